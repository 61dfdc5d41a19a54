"""A kernel on the disk as a matrix: parts of it, products with it, its diagonal."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from ntk_jax.scale.files import Opened, read_tiles
from ntk_jax.scale.grid import Corner, Grid
from ntk_jax.tiling import swap_sides

Part: TypeAlias = slice | np.ndarray
"""Positions along an axis."""


class Members(NamedTuple):
    """Of the rows that are asked for, those in one block: where they go, where they come from."""

    to: Part
    of: Part


class Reader(NamedTuple):
    """An array of tiles, of which a symmetric one has the upper half."""

    array: Opened
    grid: Grid

    def tiles(self, which: Iterable[Corner]) -> Iterator[tuple[Corner, np.ndarray]]:
        """Tiles as they are on the disk."""
        return read_tiles(self.array, self.grid, which)

    def touched(self, rows: np.ndarray, columns: np.ndarray) -> list[Corner]:
        """The stored tiles in which some rows and columns meet."""
        in_rows, in_columns = self._blocks(rows, columns)
        return [
            at
            for at in self.grid.corners
            if (at[0] in in_rows and at[1] in in_columns)
            or (self.grid.symmetric and at[1] in in_rows and at[0] in in_columns)
        ]

    def gather(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """K[rows][:, columns], each stored tile read once."""
        in_rows, in_columns = self._blocks(rows, columns)
        outputs = tuple(self.array.shape[2:])
        out = np.empty((len(rows), len(columns), *outputs), self.array.dtype.numpy_dtype)

        def put(at: Corner, tile: np.ndarray) -> None:
            r, c = in_rows.get(at[0]), in_columns.get(at[1])
            if r is not None and c is not None:
                out[_meet(r.to, c.to)] = tile[_meet(r.of, c.of)]

        for at, tile in self.tiles(self.touched(rows, columns)):
            put(at, tile)
            if self.grid.has_mirror(at):
                put(at[::-1], swap_sides(tile))
        return out

    def multiply(self, v: np.ndarray) -> np.ndarray:
        """K v in one pass over the tiles."""
        out = np.zeros((self.grid.n1, v.shape[1]), v.dtype)
        for at, tile in self.tiles(self.grid.corners):
            rows, columns = self.grid.place(at)
            out[rows] += tile @ v[columns]
            if self.grid.has_mirror(at):
                out[columns] += tile.T @ v[rows]
        return out

    def diagonal(self) -> np.ndarray:
        """Of a symmetric kernel without output axes."""
        own = [at for at in self.grid.corners if at[0] == at[1]]
        return np.concatenate([np.diagonal(tile) for _, tile in self.tiles(own)])

    def _blocks(
        self, rows: np.ndarray, columns: np.ndarray
    ) -> tuple[dict[int, Members], dict[int, Members]]:
        return _members(rows, self.grid.rows1), _members(columns, self.grid.rows2)


def _members(wanted: np.ndarray, rows: int) -> dict[int, Members]:
    """By the first row of every block that has some."""
    block = wanted // rows
    found = {}
    for b in np.unique(block).tolist():
        to = np.flatnonzero(block == b)
        found[b * rows] = Members(_run(to), _run(wanted[to] - b * rows))
    return found


def _run(positions: np.ndarray) -> Part:
    """A slice for positions that follow each other: copied faster."""
    first, last = int(positions[0]), int(positions[-1])
    if last - first == len(positions) - 1 and np.all(np.diff(positions) == 1):
        return slice(first, last + 1)
    return positions


def _meet(rows: Part, columns: Part) -> tuple[Part, Part]:
    """An index for the entries where rows and columns meet."""
    if isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray):
        return rows[:, None], columns[None, :]
    return rows, columns
