"""A kernel from tiles: features of a row block once, the upper triangle only, a bounded number of
blocks in memory.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.compat import is_concrete
from ntk_jax.finite.contraction.gram import swap_sides

MAX_BLOCK = 512
"""Rows of a tile: large enough for the rate of large matrix products, small enough for the caches.
"""

LARGE_FEATURES = 2**25
"""Bytes of a block's features above which half the rows already make large products, and waste less
of the diagonal.
"""


class Tiling(NamedTuple):
    """Rows per block on each side, and how many blocks of features each side holds at a time."""

    rows1: int
    rows2: int
    held1: int
    held2: int


class Footprint(NamedTuple):
    """Bytes: features kept per row, temporaries per row while they are computed, temporaries per
    pair of rows.
    """

    row: int
    work: int
    pair: int


def choose_tiling(n1: int, n2: int, footprint: Footprint, memory_limit: int) -> Tiling:
    """Blocks of at most `MAX_BLOCK` rows whose features, temporaries and tiles stay within
    `memory_limit`.

    A quarter of the budget each for the features of either side, for computing a block of features,
    and for a tile. Blocks never get smaller than one row: below that the limit cannot be kept.
    """
    quarter = memory_limit // 4
    rows = MAX_BLOCK if MAX_BLOCK * footprint.row <= LARGE_FEATURES else MAX_BLOCK // 2
    cap = min(
        rows,
        quarter // max(footprint.work, footprint.row, 1),
        math.isqrt(quarter // max(footprint.pair, 1)),
    )
    rows1, rows2 = (even(n, max(cap, 1)) for n in (n1, n2))
    held1, held2 = (max(1, quarter // max(rows * footprint.row, 1)) for rows in (rows1, rows2))
    return Tiling(rows1, rows2, min(held1, -(-n1 // rows1)), min(held2, -(-n2 // rows2)))


def peak_bytes(tiling: Tiling, footprint: Footprint) -> int:
    """Bytes beside the result: features held, one block in the making, one tile."""
    held = (tiling.held1 * tiling.rows1 + tiling.held2 * tiling.rows2) * footprint.row
    return (
        held
        + max(tiling.rows1, tiling.rows2) * footprint.work
        + tiling.rows1 * tiling.rows2 * footprint.pair
    )


def even(n: int, cap: int) -> int:
    """The block size of the fewest, nearly equal blocks of at most `cap` rows."""
    return -(-n // -(-n // cap))


class Assembly:
    """The loop over tiles: `combine(prepare(rows of x1), prepare(rows of x2))` written into one
    result.

    `own(prepare(rows))` is the tile of a block of rows with itself.
    """

    def __init__(
        self,
        prepare: Callable[[Array], Any],
        combine: Callable[[Any, Any], Array],
        own: Callable[[Any], Array],
        shape: tuple[int, ...],
        dtype: Any,
        tiling: Tiling,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self.prepare, self.combine, self.own, self.tiling, self.advance = (
            prepare,
            combine,
            own,
            tiling,
            advance,
        )
        self.out = jnp.zeros(shape, dtype)

    def symmetric(self, x: Array) -> Float[Array, "n n ..."]:
        """K(x, x): each unordered pair of blocks once, and its mirror image."""
        groups = _groups(x.shape[0], self.tiling.rows1, self.tiling.held1)
        left, held = groups[0], self._features(x, groups[0])
        rest = groups[1:]
        while True:
            for a in range(len(left)):
                for b in range(a, len(left)):
                    self._tile(left[a], left[b], held[a], held[b], mirror=True)
            for right in rest:
                features = self._features(x, right)
                self._pairs(left, right, held, features, mirror=True)
            if not rest:
                return self.out
            left, held = rest.pop(), features  # the group visited last is already there

    def rectangle(self, x1: Array, x2: Array) -> Float[Array, "n1 n2 ..."]:
        """K(x1, x2), columns in alternating order so that a turn keeps the group it ends with."""
        t = self.tiling
        groups1, groups2 = (
            _groups(x1.shape[0], t.rows1, t.held1),
            _groups(x2.shape[0], t.rows2, t.held2),
        )
        at, columns = None, None
        for rows in groups1:
            held = self._features(x1, rows)
            for group in groups2 if at is not groups2[-1] else groups2[::-1]:
                if group is not at:
                    at, columns = group, None  # free the old features first
                    columns = self._features(x2, group)
                self._pairs(rows, group, held, columns)
        return self.out

    def _features(self, x: Array, group: list[slice]) -> list[Any]:
        size = group[0].stop - group[0].start
        return [self.prepare(take_rows(x, s, max(size, s.stop - s.start))) for s in group]

    def _pairs(
        self, rows: list[slice], columns: list[slice], f1: Any, f2: Any, mirror: bool = False
    ) -> None:
        for r, left in zip(rows, f1, strict=True):
            for c, right in zip(columns, f2, strict=True):
                self._tile(r, c, left, right, mirror)

    def _tile(self, rows: slice, columns: slice, f1: Any, f2: Any, mirror: bool = False) -> None:
        own = mirror and rows == columns
        tile = self.own(f1) if own else self.combine(f1, f2)
        tile = tile[: rows.stop - rows.start, : columns.stop - columns.start]
        self.out = write_tile(self.out, tile, rows.start, columns.start)
        if mirror and not own:
            self.out = write_tile(self.out, swap_sides(tile), columns.start, rows.start)
        if is_concrete(self.out):
            # work that is only queued would hold more features than the budget allows
            self.out.block_until_ready()
        self.advance()


@partial(jax.jit, donate_argnums=0)
def write_tile(out: Array, tile: Array, row: Any, column: Any) -> Array:
    """The result with one tile filled in, in place."""
    return jax.lax.dynamic_update_slice(
        out, tile, (row, column, *(jnp.zeros((), jnp.result_type(row)),) * (out.ndim - 2))
    )


def _groups(n: int, rows: int, held: int) -> list[list[slice]]:
    """Blocks of `rows` rows, `held` of them at a time."""
    blocks = [slice(a, min(a + rows, n)) for a in range(0, n, rows)]
    return [blocks[i : i + held] for i in range(0, len(blocks), held)]


def take_rows(x: Array, rows: slice, size: int) -> Array:
    """A block of x; the last one is filled up with its last row, so that all blocks share one
    compiled program.
    """
    block = x[rows]
    missing = size - block.shape[0]
    return (
        block if missing <= 0 else jnp.concatenate([block, jnp.repeat(block[-1:], missing, axis=0)])
    )


def count_tiles(n1: int, n2: int | None, tiling: Tiling) -> int:
    """How many tiles there are."""
    k1 = -(-n1 // tiling.rows1)
    return k1 * (k1 + 1) // 2 if n2 is None else k1 * -(-n2 // tiling.rows2)
