"""`KernelStore`: a kernel in tiles on the disk, made piece by piece, read like an array."""

from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, Int

from ntk_jax.checks import as_array, check_finite, check_integer
from ntk_jax.compat import is_concrete, on_device
from ntk_jax.memory import readable_size
from ntk_jax.progress import progress_bar
from ntk_jax.scale import fingerprint
from ntk_jax.scale.blocks import as_sides, limited, probe, tiles
from ntk_jax.scale.disk import Disk
from ntk_jax.scale.fingerprint import Facts
from ntk_jax.scale.grid import Corner
from ntk_jax.scale.reading import Reader
from ntk_jax.scale.workers import check_executor
from ntk_jax.types import KernelFn

Index: TypeAlias = Any
"""Numbers, slices or arrays of numbers, of one axis or a tuple for several."""


class KernelStore:
    """A kernel on the disk, in tiles: `tile(kernel_fn, out=path)(x)` makes one, `open` finds it.

    A folder of zarr (version 3) that zarr-python reads too: `kernel`, or `nngp` and `ntk` of a
    function that returns both, and the examples `x1` and `x2`. Of a symmetric kernel it holds the
    upper tiles; what is not computed yet is NaN there, and refused here. Tiles reach the disk whole
    or not at all, so that a process may be killed at any time: the next `compute` makes the missing
    ones, and the result is the same to the bit. Nothing in it is unpickled.

    It reads as an array, `numpy.asarray(store)`, `store[a:b, c:d]`, and is an operator that needs a
    few tiles of memory: `store @ v`, `store.diagonal()`, `store.columns(indices)`. Of a store with
    both kernels take `store.nngp` or `store.ntk` first.

    Attributes:
        disk: the folder, and what is in it.
        name: the kernel of the store that is read; None of a store with both.
    """

    def __init__(self, disk: Disk, name: str | None = None):
        names = disk.facts.names
        self.disk, self.name = disk, names[0] if len(names) == 1 else name

    @classmethod
    def open(cls, path: str | Path) -> "KernelStore":
        """The store in a folder, complete or not.

        Raises:
            ValueError: there is none.
            ImportError: TensorStore is not installed.
        """
        return cls(Disk(Path(path)))

    @property
    def path(self) -> Path:
        """The folder."""
        return self.disk.path

    @property
    def facts(self) -> Facts:
        """What the store is of."""
        return self.disk.facts

    @property
    def shape(self) -> tuple[int, ...]:
        """(n1, n2), or with the output axes of the kernel; the same of both kernels."""
        return self.facts.grid.n1, self.facts.grid.n2, *self.facts.outputs

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64."""
        return np.dtype(self.facts.dtype)

    @property
    def nngp(self) -> "KernelStore":
        """The covariance kernel of a store with both."""
        return self._one("nngp")

    @property
    def ntk(self) -> "KernelStore":
        """The tangent kernel of a store with both."""
        return self._one("ntk")

    @property
    def x1(self) -> np.ndarray:
        """The examples of the rows."""
        return self.disk.sides.x1

    @property
    def x2(self) -> np.ndarray | None:
        """The examples of the columns; None for x1 again."""
        return self.disk.sides.x2

    def missing(self) -> list[Corner]:
        """First row and first column of every tile that is not on the disk, or not all of it."""
        return self.disk.missing()

    def compute(
        self, kernel_fn: KernelFn, *, executor: Executor | None = None, progress: bool = True
    ) -> "KernelStore":
        """Compute the missing tiles, and return the store.

        Args:
            kernel_fn: the one the store was begun with, which a few of its values tell.
            executor: any of `concurrent.futures`, whose workers compute and write the tiles:
                threads, or spawned processes for a function of a module. None: here, one after
                another, while those before are written.
            progress: show a bar, if tqdm is installed.

        Raises:
            ValueError: another kernel function than before; one that cannot be sent to processes;
                NaN in a tile.
            OSError: someone else writes to the store, or it cannot be written to: finished tiles
                stay.
            RuntimeError: a worker of the executor died.

        Warns:
            UserWarning: the kernel is the store's to rounding only.
        """
        kernel_fn = limited(kernel_fn, self.facts.memory)
        if executor is not None:
            check_executor(executor, kernel_fn)
        self.check(kernel_fn)
        if self.missing():
            self.disk.fill(kernel_fn, executor, progress)
        return self

    def check(
        self, kernel_fn: KernelFn, x1: ArrayLike | None = None, x2: ArrayLike | None = None
    ) -> None:
        """Raise unless the store is of this kernel function and, if they are given, these examples.

        Raises:
            ValueError: it is not; the message says what differs.

        Warns:
            UserWarning: the kernel is the store's to rounding only.
        """
        if x1 is not None:
            fingerprint.check_inputs(self.path, self.facts, as_sides(x1, x2))
        kernel_fn = limited(kernel_fn, self.facts.memory)
        fingerprint.check_kernel(self.path, self.facts, probe(kernel_fn, self.disk.sides))

    def verify(
        self,
        kernel_fn: KernelFn | None = None,
        *,
        num_tiles: int | None = None,
        progress: bool = True,
    ) -> list[Corner]:
        """The first row and column of every bad tile: cut off, with NaN, or with other bits.

        `discard(bad)` removes them, and `compute` makes them again. Tiles that are not there yet
        are not bad but `missing`.

        Args:
            kernel_fn: recompute tiles, and compare their bits; None: only look at what is there.
            num_tiles: how many to recompute, spread evenly; None for all.
            progress: show a bar, if tqdm is installed.

        Raises:
            ValueError: another kernel function than the store was begun with.
        """
        grid, size = self.facts.grid, self.disk.tile_bytes
        sizes = {at: self.disk.sizes(at) for at in grid.corners}
        bad = {at for at, found in sizes.items() if any(s not in (size, None) for s in found)}
        whole = [at for at, found in sizes.items() if all(s == size for s in found)]
        bad |= {at for at, tile in self.disk.stored(whole) if any(np.isnan(k).any() for k in tile)}
        if kernel_fn is not None:
            if num_tiles is not None:
                check_integer("num_tiles", num_tiles, minimum=1)
                chosen = np.linspace(0, len(whole) - 1, min(num_tiles, len(whole)))
                whole = [whole[m] for m in chosen.astype(int)]
            kernel_fn = limited(kernel_fn, self.facts.memory)
            self.check(kernel_fn)
            with progress_bar(len(whole), "verify tiles", enabled=progress) as bar:
                made = tiles(kernel_fn, self.disk.sides, grid, whole)
                for (at, new), (_, old) in zip(made, self.disk.stored(whole), strict=True):
                    if any(a.tobytes() != b.tobytes() for a, b in zip(new, old, strict=True)):
                        bad.add(at)
                    bar.update(1)
        return sorted(bad)

    def discard(self, corners: list[Corner]) -> None:
        """Remove tiles, such as those that `verify` found."""
        self.disk.discard(corners)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("copy: expected a copy of what is on the disk; got copy=False.")
        found = np.asarray(self[:, :])
        return found if dtype is None else found.astype(dtype, copy=False)

    def __getitem__(self, key: Index) -> np.ndarray | np.floating:
        """Rows and columns by numbers, slices or arrays of numbers; the lower half from the upper.

        Raises:
            ValueError: tiles of it are missing.
        """
        rows, columns, *outputs = key if isinstance(key, tuple) else (key, slice(None))
        n1, n2 = self.shape[:2]
        r, c = np.arange(n1)[rows], np.arange(n2)[columns]
        reader, wanted = self._reader(), (np.atleast_1d(r), np.atleast_1d(c))
        self._check_there(reader.touched(*wanted))
        axes = (0 if axis.ndim == 0 else slice(None) for axis in (r, c))
        return reader.gather(*wanted)[*axes, *outputs]

    def __len__(self) -> int:
        return self.shape[0]

    def __matmul__(self, v: ArrayLike) -> Float[Array, "n1 *O"]:
        """K v for v (n2,) or (n2, k), in one pass over the tiles."""
        v = as_array("v", v)
        reader = self._matrix("@")
        if v.ndim not in (1, 2) or v.shape[0] != self.shape[1]:
            raise ValueError(
                f"v: expected shape ({self.shape[1]},) or ({self.shape[1]}, k); got {v.shape}."
            )
        if not is_concrete(v) or jnp.issubdtype(v.dtype, jnp.complexfloating):
            raise ValueError(
                f"v: expected real values that are known, as the store is read by the host; got "
                f"{v}. Iterate outside jax.jit."
            )
        check_finite("v", v)
        product = reader.multiply(np.asarray(v).reshape(len(v), -1).astype(self.dtype))
        return on_device(product.reshape(-1, *v.shape[1:]))

    def diagonal(self) -> Float[Array, " n"]:
        """The diagonal of a symmetric kernel.

        Raises:
            ValueError: of a store with an x2.
        """
        if not self.facts.grid.symmetric:
            raise ValueError(
                "diagonal: expected a store with x2=None; got rows and columns of different "
                "examples."
            )
        return on_device(self._matrix("diagonal").diagonal())

    def columns(self, indices: Int[ArrayLike, " k"]) -> Float[Array, "n1 k"]:
        """Some columns; negative ones count from the end."""
        reader, chosen = self._matrix("columns"), np.arange(self.shape[1])[np.asarray(indices)]
        return on_device(reader.gather(np.arange(self.shape[0]), np.atleast_1d(chosen)))

    def __repr__(self) -> str:
        grid, total = self.facts.grid, len(self.facts.grid.corners)
        kernels = self.name or " and ".join(self.facts.names)
        half = "upper tiles" if grid.symmetric else "tiles"
        size = readable_size(total * self.disk.tile_bytes * len(self.facts.names))
        return (
            f"KernelStore({str(self.path)!r}: {kernels} {self.shape} in {self.facts.dtype}, "
            f"{total - len(self.missing())} of {total} {half} of {grid.rows1} x {grid.rows2} there,"
            f" {size} when complete)"
        )

    def _one(self, name: str) -> "KernelStore":
        if name not in self.facts.names:
            raise AttributeError(
                f"{name}: expected a store of nngp and ntk; got one of a single kernel, which is "
                "read as it is."
            )
        return KernelStore(self.disk, name)

    def _reader(self) -> Reader:
        if self.name is None:
            raise ValueError(
                "KernelStore: expected one kernel; got a store of two. Take store.ntk or "
                "store.nngp."
            )
        return Reader(self.disk.arrays[self.facts.names.index(self.name)], self.facts.grid)

    def _matrix(self, what: str) -> Reader:
        """All of a kernel without output axes."""
        if self.facts.outputs:
            raise ValueError(
                f"{what}: expected a kernel (n1, n2); got {self.shape}. Read parts of it by "
                "store[a:b, c:d], or make it with outputs='mean'."
            )
        self._check_there(self.facts.grid.corners)
        return self._reader()

    def _check_there(self, wanted: list[Corner]) -> None:
        absent = self.disk.missing(wanted)
        if absent:
            raise ValueError(
                f"{self.path}: expected tiles that are there; {len(absent)} of {len(wanted)} are "
                f"missing, such as {min(absent)}. Compute them: KernelStore.open(path)"
                ".compute(kernel_fn)."
            )
