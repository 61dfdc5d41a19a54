"""A kernel tile by tile within a budget of memory: how large tiles are, and the loop over them.

A tile has two sides, some rows of x1 and some of x2. The features of a side are made once for
several tiles, and as many sides hold theirs as the budget allows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from jax import Array
from jaxtyping import Float

from ntk_jax.examples import Examples, num_rows, take_rows
from ntk_jax.platforms import is_on_cpu
from ntk_jax.tiling import even, row_slices, row_tiles, swap_sides, write_tile

Features = TypeVar("Features")

# Rows of a side on a CPU: enough for the rate of large products, few enough for the caches.
MAX_ROWS = 512

# Bytes of a side's features above which half the rows already make large products, and waste less
# of the diagonal.
LARGE_FEATURES = 2**25


class Tiling(NamedTuple):
    """Rows of either side of a tile, and how many sides of each kind hold their features."""

    rows1: int
    rows2: int
    held1: int
    held2: int


class Footprint(NamedTuple):
    """Bytes: kept features of a row, temporaries while they are made, temporaries of a pair."""

    row: int
    work: int
    pair: int


def choose_tiling(
    n1: int, n2: int, footprint: Footprint, memory_limit: int, *, on_cpu: bool = True
) -> Tiling:
    """Sides whose features, temporaries and tiles fit in `memory_limit`; on a CPU of at most
    `MAX_ROWS` rows.

    A quarter of the budget each for the features of either kind of side, for making the features of
    one side, and for a tile. One row is the least: below that the limit cannot be kept.
    """
    quarter = memory_limit // 4
    rows = MAX_ROWS if MAX_ROWS * footprint.row <= LARGE_FEATURES else MAX_ROWS // 2
    cap = min(
        rows if on_cpu else max(n1, n2),
        quarter // max(footprint.work, footprint.row, 1),
        math.isqrt(quarter // max(footprint.pair, 1)),
    )
    # Equal tiles: a short last one would be filled up, and computed in vain.
    rows1, rows2 = (even(n, max(cap, 1)) for n in (n1, n2))
    held1, held2 = (max(1, quarter // max(rows * footprint.row, 1)) for rows in (rows1, rows2))
    return Tiling(rows1, rows2, min(held1, -(-n1 // rows1)), min(held2, -(-n2 // rows2)))


def peak_bytes(tiling: Tiling, footprint: Footprint) -> int:
    """Bytes beside the result: features held, one side in the making, one tile."""
    held = (tiling.held1 * tiling.rows1 + tiling.held2 * tiling.rows2) * footprint.row
    return (
        held
        + max(tiling.rows1, tiling.rows2) * footprint.work
        + tiling.rows1 * tiling.rows2 * footprint.pair
    )


@dataclass
class TileLoop(Generic[Features]):
    """`combine(prepare(rows of x1), prepare(rows of x2))` for every tile, written into one result.

    Attributes:
        prepare: the features of some rows.
        combine: the tile of the features of two sides.
        combine_own: the tile of some rows with themselves.
        tiling: rows of a tile, and tiles whose features are held.
        out: the result so far.
        advance: called after every tile.
        prepare2: the features of some rows of x2, if these are of another function.
    """

    prepare: Callable[[Examples], Features]
    combine: Callable[[Features, Features], Array]
    combine_own: Callable[[Features], Array]
    tiling: Tiling
    out: Array
    advance: Callable[[], None] = lambda: None
    prepare2: Callable[[Examples], Features] | None = None

    def symmetric(self, x: Examples) -> Float[Array, "n n ..."]:
        """K(x, x): each unordered pair of sides once, and its mirror image."""
        groups = _groups(num_rows(x), self.tiling.rows1, self.tiling.held1)
        left, held = groups[0], self._features(x, groups[0], self.tiling.rows1)
        rest = groups[1:]
        while True:
            for a, (rows, f) in enumerate(zip(left, held, strict=True)):
                self._tile(rows, rows, self.combine_own(f))
                self._pairs([rows], left[a + 1 :], [f], held[a + 1 :], mirror=True)
            for right in rest:
                features = self._features(x, right, self.tiling.rows1)
                self._pairs(left, right, held, features, mirror=True)
            if not rest:
                return self.out
            # The group visited last is already there: going on with it saves making it again.
            left, held = rest.pop(), features

    def rectangle(self, x1: Examples, x2: Examples) -> Float[Array, "n1 n2 ..."]:
        """K(x1, x2), columns in alternating order so that a turn keeps the group it ends with."""
        t = self.tiling
        groups1, groups2 = (
            _groups(num_rows(x), rows, held)
            for x, rows, held in ((x1, t.rows1, t.held1), (x2, t.rows2, t.held2))
        )
        at: list[slice] = []
        columns: list[Features] = []
        for rows in groups1:
            held = self._features(x1, rows, t.rows1)
            for group in groups2 if at is not groups2[-1] else groups2[::-1]:
                if group is not at:
                    at, columns = group, []  # free the old features before new ones are made
                    columns = self._features(x2, group, t.rows2, self.prepare2)
                self._pairs(rows, group, held, columns)
        return self.out

    def _features(
        self,
        x: Examples,
        group: list[slice],
        rows: int,
        prepare: Callable[[Examples], Features] | None = None,
    ) -> list[Features]:
        some = take_rows(x, slice(group[0].start, group[-1].stop))
        return [(prepare or self.prepare)(tile) for _, tile in row_tiles(some, rows)]

    def _pairs(
        self,
        rows: list[slice],
        columns: list[slice],
        f1: list[Features],
        f2: list[Features],
        mirror: bool = False,
    ) -> None:
        for r, left in zip(rows, f1, strict=True):
            for c, right in zip(columns, f2, strict=True):
                self._tile(r, c, self.combine(left, right), mirror)

    def _tile(self, rows: slice, columns: slice, tile: Array, mirror: bool = False) -> None:
        tile = tile[: rows.stop - rows.start, : columns.stop - columns.start]
        self.out = write_tile(self.out, tile, rows.start, columns.start)
        if mirror:
            self.out = write_tile(self.out, swap_sides(tile), columns.start, rows.start)
        if is_on_cpu(self.out):
            # Work that is only queued would hold more features than the budget allows; an
            # accelerator's memory is given out in the order of its work.
            self.out.block_until_ready()
        self.advance()


def _groups(n: int, rows: int, held: int) -> list[list[slice]]:
    """The rows of every tile, `held` of them at a time."""
    sides = row_slices(n, rows)
    return [sides[i : i + held] for i in range(0, len(sides), held)]


def count_tiles(n1: int, n2: int | None, tiling: Tiling) -> int:
    """How many tiles there are."""
    k1 = -(-n1 // tiling.rows1)
    return k1 * (k1 + 1) // 2 if n2 is None else k1 * -(-n2 // tiling.rows2)
