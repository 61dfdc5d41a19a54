"""`tile`: the same kernel function in blocks under a byte budget, in memory or to disk."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike

from ntk_jax.checks import check_number
from ntk_jax.memory import check_result_fits, memory_budget
from ntk_jax.platforms import is_on_cpu
from ntk_jax.progress import progress_bar
from ntk_jax.scale.blocks import Probe, Sides, Tile, as_found, as_sides, limited, probe, tiles
from ntk_jax.scale.disk import create, fresh
from ntk_jax.scale.fingerprint import check_budget, check_inputs, facts_of
from ntk_jax.scale.grid import Corner, Grid, grid_of
from ntk_jax.scale.store import KernelStore
from ntk_jax.tiling import swap_sides
from ntk_jax.types import KernelFn, Kernels

Found: TypeAlias = Any
"""What a kernel function returns, in NumPy's arrays; or a `KernelStore`."""


@dataclass(frozen=True)
class Tiled:
    """A kernel function in blocks; made by `tile`."""

    kernel_fn: KernelFn
    memory_limit: float | None
    out: Path | None
    progress: bool

    def __call__(self, x1: ArrayLike, x2: ArrayLike | None = None) -> Found:
        """The kernel of all pairs, on the host or on the disk."""
        sides = as_sides(x1, x2)
        budget = memory_budget(self.memory_limit)
        own = budget // 2  # for the kernel function, if it takes a limit
        kernel_fn = limited(self.kernel_fn, own)
        if self.out is not None and not fresh(self.out):
            store = KernelStore.open(self.out)
            check_inputs(self.out, store.facts, sides)
            if self.memory_limit is not None:
                others = 0 if kernel_fn is self.kernel_fn else store.facts.memory
                check_budget(self.out, store.facts, sides.row_bytes, budget - others)
            return store.compute(self.kernel_fn, progress=self.progress)
        found = probe(kernel_fn, sides)
        grid = _grid(sides, found, budget if kernel_fn is self.kernel_fn else budget - own)
        if self.out is None:
            return self._in_memory(kernel_fn, sides, found, grid)
        disk = create(self.out, sides, facts_of(sides, found, grid, own))
        disk.fill(kernel_fn, None, self.progress)
        return KernelStore(disk)

    def _in_memory(
        self, kernel_fn: KernelFn, sides: Sides, found: Probe, grid: Grid
    ) -> np.ndarray | Kernels:
        shape = grid.n1, grid.n2, *found.outputs
        if jax.default_backend() == "cpu":
            whole = jax.ShapeDtypeStruct((len(found.names), *shape), found.dtype)
            check_result_fits(whole, way_out="Keep it on disk: tile(kernel_fn, out=path).")
        kernels = tuple(np.empty(shape, found.dtype) for _ in found.names)
        bar = progress_bar(len(grid.corners), "kernel tiles", enabled=self.progress)
        # Another thread writes, as many kernel functions wait for the device before they return.
        with bar as shown, ThreadPoolExecutor(1) as other:
            written = other.submit(_put, (), (), grid, (0, 0))
            for at, tile in tiles(kernel_fn, sides, grid, grid.corners):
                written.result()
                written = other.submit(_put, kernels, tile, grid, at)
                shown.update(1)
            written.result()
        return as_found(found.names, kernels)


def tile(
    kernel_fn: KernelFn,
    *,
    memory_limit: float | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tiled:
    """The same kernel function, computed in blocks under a byte budget, in memory or to disk.

    The device holds tiles, never the kernel; with x2 = None only those of the upper triangle are
    computed, and mirrored, so that the result is symmetric to the bit. All tiles have one shape:
    two programs are compiled for them, and one for a few examples that tell what `kernel_fn`
    returns. Entries are those of `kernel_fn` itself up to the order of sums, which may differ in
    the last bits with the number of rows that a matrix product gets.

    With `out`, tiles are written to a `KernelStore` on the disk, each as soon as it is there. A
    call with the path of a store that is not complete computes what is missing; one with other
    examples or another kernel is refused.

    Args:
        kernel_fn: `kernel_fn(x1, x2=None)` -> a kernel (n1, n2, ...) or `Kernels`: a
            `functools.partial` or lambda of `mlp_kernels` or `empirical_ntk`, what `infinite_width`
            returns, or any other.
        memory_limit: bytes for tiles, beside the examples and a result in memory. If `kernel_fn`
            takes a `memory_limit` that is not set, as a partial of `empirical_ntk`, half is for it.
            None: an eighth to a quarter of the free memory.
        out: a path for a `KernelStore`; needs `pip install 'ntk-jax[scale]'`.
        progress: show a bar, if tqdm is installed.

    Returns:
        A function of x1 and x2=None. Its results are NumPy arrays (or `Kernels` of them), or the
        complete `KernelStore`.

    Raises:
        ValueError: when it is called: bad examples, or traced ones; a result that is no kernel; a
            limit below what one pair of examples needs; a result that does not fit in memory; NaN
            in a store's tile; a store of something else.
        OSError: the store cannot be written to, or another process is writing.

    Example:
        >>> kernel_fn = lambda x1, x2=None: ntk_jax.mlp_kernels(x1, x2, depth=2).ntk
        >>> x = np.random.default_rng(0).standard_normal((40, 3))
        >>> k = ntk_jax.tile(kernel_fn, memory_limit=40_000)(x)
        >>> k.shape, bool((k == k.T).all()), bool(np.allclose(k, kernel_fn(x), rtol=1e-6))
        ((40, 40), True, True)
    """
    if memory_limit is not None:
        check_number("memory_limit", memory_limit, strict=True, max_ndim=0)
    if not callable(kernel_fn):
        raise ValueError(
            f"kernel_fn: expected a function kernel_fn(x1, x2=None); got {type(kernel_fn).__name__}"
            ". Bind the options first: functools.partial(mlp_kernels, depth=3)."
        )
    return Tiled(kernel_fn, memory_limit, None if out is None else Path(out), progress)


def _put(kernels: Tile, tile: Tile, grid: Grid, at: Corner) -> None:
    """A tile in its place, and mirrored."""
    rows, columns = grid.place(at)
    for kernel, part in zip(kernels, tile, strict=True):
        kernel[rows, columns] = part
        if grid.has_mirror(at):
            kernel[columns, rows] = swap_sides(part)


def _grid(sides: Sides, found: Probe, budget: int) -> Grid:
    n2 = None if sides.x2 is None else len(sides.x2)
    on_cpu = bool(is_on_cpu(np.float32(0)))
    return grid_of(len(sides.x1), n2, found.pair_bytes, sides.row_bytes, budget, on_cpu=on_cpu)
