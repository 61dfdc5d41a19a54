"""The tiles of a kernel that a host holds or has on disk: how large, where, and their mirrors."""

import math
from typing import NamedTuple, TypeAlias

import numpy as np

from ntk_jax.memory import readable_size
from ntk_jax.tiling import corners, even, mirror_upper, row_slices, swap_sides

Corner: TypeAlias = tuple[int, int]
"""First row and first column of a tile."""

# Rows of a tile on a CPU, and of an accelerator: large products, small ends. Up to `LIVE` tiles are
# held at a time: two on the device, with what computes them, and those on their way to the disk.
CPU_ROWS, DEVICE_ROWS, LIVE = 2048, 8192, 16

ALIGNED = 16  # rows that a matrix product treats alike wherever they stand, see `tiling.tile_size`

NEAR_ROWS = 64  # of which a block and its mirror image fit a cache


class Grid(NamedTuple):
    """Tiles of rows1 by rows2 of a kernel (n1, n2); the upper half alone if it is symmetric."""

    n1: int
    n2: int
    rows1: int
    rows2: int
    symmetric: bool

    @property
    def corners(self) -> list[Corner]:
        """Of every tile, row by row."""
        n1, n2, rows1, rows2, symmetric = self
        return corners(n1, n2, rows1, rows2, symmetric=symmetric)

    def place(self, at: Corner) -> tuple[slice, slice]:
        """The rows and columns of a tile."""
        i, j = at
        return slice(i, min(i + self.rows1, self.n1)), slice(j, min(j + self.rows2, self.n2))

    def has_mirror(self, at: Corner) -> bool:
        """Whether a tile stands for a second one, below the diagonal."""
        return self.symmetric and at[0] != at[1]


def grid_of(
    n1: int,
    n2: int | None,
    pair_bytes: int,
    row_bytes: int,
    budget: int,
    *,
    on_cpu: bool,
) -> Grid:
    """The fewest, nearly equal tiles that a budget holds, for results of `pair_bytes` and examples
    of `row_bytes`; n2 = None for the kernel of n1 examples with themselves.

    Raises:
        ValueError: a budget that does not hold a single pair.
    """
    # LIVE pair_bytes t² + 4 row_bytes t <= budget
    a, b = LIVE * pair_bytes, 4 * row_bytes
    most = int((math.sqrt(b * b + 4 * a * budget) - b) / (2 * a))
    if most < 1:
        raise ValueError(
            f"memory_limit: expected at least {readable_size(a + b)}, for a tile of one pair of "
            f"examples; got {readable_size(budget)}."
        )
    most = min(most, CPU_ROWS if on_cpu else DEVICE_ROWS)
    rows1, rows2 = _rows(n1, most), _rows(n1 if n2 is None else n2, most)
    return Grid(n1, n1 if n2 is None else n2, rows1, rows2, n2 is None)


def needed_bytes(grid: Grid, pair_bytes: int, row_bytes: int) -> int:
    """What the tiles of a grid take at a time."""
    rows = max(grid.rows1, grid.rows2)
    return LIVE * pair_bytes * grid.rows1 * grid.rows2 + 4 * row_bytes * rows


def _rows(n: int, most: int) -> int:
    rows = even(n, most)
    aligned = -(-rows // ALIGNED) * ALIGNED
    return aligned if rows < n and aligned <= most else rows


def symmetrized(tile: np.ndarray) -> np.ndarray:
    """A tile on the diagonal, symmetric to the bit: see `tiling.mirror_upper`."""
    out = tile.copy()
    for rows in row_slices(len(tile), NEAR_ROWS):
        out[rows, : rows.start] = swap_sides(tile[: rows.start, rows])
        out[rows, rows] = mirror_upper(tile[rows, rows])
    return out
