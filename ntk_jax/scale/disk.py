"""The tiles of a store: which are on the disk, how they get there, and back."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.compat import settings, under_settings
from ntk_jax.progress import progress_bar
from ntk_jax.scale import files, fingerprint
from ntk_jax.scale.blocks import NAMES, Sides, Tile, tiles
from ntk_jax.scale.fingerprint import Facts
from ntk_jax.scale.grid import Corner
from ntk_jax.scale.workers import drive
from ntk_jax.types import KernelFn


class Disk:
    """Examples and tiles in a folder, as its attributes describe them.

    Raises:
        ValueError: there is no store.
        ImportError: TensorStore is not installed.
    """

    def __init__(self, path: Path):
        files.tensorstore()
        self.path = path
        self.facts = fingerprint.from_json(path, files.read_attributes(path))

    @functools.cached_property
    def sides(self) -> Sides:
        """The examples."""
        x2 = None if self.facts.grid.symmetric else self._array("x2").read().result()
        return Sides(self._array("x1").read().result(), x2)

    @functools.cached_property
    def arrays(self) -> tuple[files.Opened, ...]:
        """One for every kernel."""
        return tuple(map(self._array, self.facts.names))

    def _array(self, name: str) -> files.Opened:
        return files.open_array(self.path / name)

    @property
    def tile_bytes(self) -> int:
        """Of the file of one tile of one kernel; those at the ends are as large."""
        grid, outputs = self.facts.grid, np.prod(self.facts.outputs, dtype=int)
        return grid.rows1 * grid.rows2 * int(outputs) * np.dtype(self.facts.dtype).itemsize

    def files(self, at: Corner) -> list[Path]:
        """Of a tile of every kernel."""
        grid, axes = self.facts.grid, len(self.facts.outputs)
        return [files.chunk_file(self.path / name, at, grid, axes) for name in self.facts.names]

    def sizes(self, at: Corner) -> list[int | None]:
        """Bytes of these; None where there are none."""
        return [*map(_size, self.files(at))]

    def missing(self, wanted: list[Corner] | None = None) -> list[Corner]:
        """Tiles, of those that are wanted, that are not on the disk, or not all of them."""
        whole = [self.tile_bytes] * len(self.facts.names)
        wanted = self.facts.grid.corners if wanted is None else wanted
        return [at for at in wanted if self.sizes(at) != whole]

    def discard(self, which: list[Corner]) -> None:
        """Remove tiles."""
        for at in which:
            for file in self.files(at):
                files.remove(file)

    def stored(self, which: list[Corner]) -> Iterator[tuple[Corner, Tile]]:
        """Tiles of all kernels."""
        readers = [files.read_tiles(array, self.facts.grid, which) for array in self.arrays]
        for found in zip(*readers, strict=True):
            yield found[0][0], tuple(tile for _, tile in found)

    def fill(self, kernel_fn: KernelFn, executor: Executor | None, progress: bool) -> None:
        """Compute what is missing, with a kernel function that has been checked."""
        with files.locked(self.path):
            missing = self.missing()
            self.discard(missing)  # those that were cut off could not be written over
            with progress_bar(len(missing), "kernel tiles", enabled=progress) as bar:
                if executor is None:
                    self.write(kernel_fn, missing, bar.update)
                    return
                own = str(self.path), self.facts.identity, settings()
                task = functools.partial(_compute_tile, *own, kernel_fn)
                drive(executor, task, missing, bar.update)

    def write(
        self, kernel_fn: KernelFn, which: list[Corner], advance: Callable[[int], object]
    ) -> None:
        """Compute tiles one after another, while those before are written."""
        with files.Writer(self.path, self.arrays, self.facts.grid) as writer:
            for at, tile in tiles(kernel_fn, self.sides, self.facts.grid, which):
                self._check_tile(at, tile)
                writer.write(at, tile)
                advance(1)

    def _check_tile(self, at: Corner, tile: Tile) -> None:
        if {k.dtype.name for k in tile} != {self.facts.dtype}:
            raise ValueError(
                f"kernel_fn: expected {self.facts.dtype}; got {tile[0].dtype} at {at}."
            )
        # A sum is NaN if an entry is, and faster to look at.
        if any(np.isnan(k.sum()) and np.isnan(k).any() for k in tile):
            raise ValueError(
                f"kernel_fn: expected no NaN, which stands for missing tiles; got NaN in the tile "
                f"at {at}. Finished tiles stay."
            )


def fresh(path: Path) -> bool:
    """Whether there is no store yet, and may be one.

    Raises:
        ValueError: something else is there.
    """
    if path.is_dir() and (files.read_attributes(path) is not None or files.is_ours(path, NAMES)):
        return files.read_attributes(path) is None
    if path.exists():
        raise ValueError(
            f"{path}: expected a KernelStore, an empty folder or nothing; got other files. Take "
            "another path."
        )
    return True


def create(path: Path, sides: Sides, facts: Facts) -> Disk:
    """A store without tiles. Its attributes come last: a store that has them is whole.

    Raises:
        OSError: the folder cannot be made, or another process writes to it.
    """
    files.tensorstore()
    path.mkdir(parents=True, exist_ok=True)
    grid = facts.grid
    shape, chunk = (grid.n1, grid.n2, *facts.outputs), (grid.rows1, grid.rows2, *facts.outputs)
    with files.locked(path):
        if not fresh(path):
            raise OSError(f"{path}: another process has made a store here. Call again.")
        for name, x in zip(("x1", "x2"), sides, strict=True):
            if x is not None:
                files.write_array(path / name, x)
        for name in facts.names:
            files.create_array(path / name, shape, chunk, facts.dtype)
        files.write_attributes(path, fingerprint.as_json(facts))
    return Disk(path)


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


@functools.lru_cache(maxsize=4)
def _opened(path: str, identity: str) -> Disk:
    """Once in every worker."""
    disk = Disk(Path(path))
    if disk.facts.identity != identity:
        raise ValueError(f"{path}: expected the store that is computed; got another one.")
    return disk


def _compute_tile(
    path: str, identity: str, own: dict[str, Any], kernel_fn: KernelFn, at: Corner
) -> Corner:
    """A tile by a worker, under the settings of the one who wants it."""
    with under_settings(own):
        _opened(path, identity).write(kernel_fn, [at], lambda done: None)
    return at
