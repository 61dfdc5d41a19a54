"""The programs of a kernel that is held: its tiles are made, and written in place.

Every entry comes from one tile, the same on any number of devices: of the block of its row with the
block of its column, in this order if the row is above the diagonal, and mirrored if not.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.closures.programs import compiled
from ntk_jax.scale.mesh import Tree, on_every_device
from ntk_jax.scale.tile_products import How, blocks_of, cut, tile_of, tile_pairs
from ntk_jax.tiling import swap_sides
from ntk_jax.types import KernelFn


@compiled
def whole(kernel_fn: KernelFn[Any], x1: Array, x2: Array | None, *, how: How) -> Tree:
    """K(x1, x2) on one device; of a symmetric one, tiles of the upper half and their mirrors."""
    one, rows1 = blocks_of(len(x1), how.rows)
    other, rows2 = blocks_of(len(x1 if x2 is None else x2), how.rows)
    first, second = map(jnp.asarray, (one, other))
    side = x1 if x2 is None else x2

    def write_own(m: Array, out: Tree) -> Tree:
        tile = tile_of(kernel_fn, how, cut(x1, first[m, 0], rows1))
        return _put(out, tile, first[m], first[m])

    def write(m: Array, out: Tree) -> Tree:
        i, j = first[chosen[m, 0]], second[chosen[m, 1]]
        tile = tile_of(kernel_fn, how, cut(x1, i[0], rows1), cut(side, j[0], rows2))
        out = _put(out, tile, i, j)
        return out if x2 is not None else _put(out, jax.tree.map(swap_sides, tile), j, i)

    out = _nothing(kernel_fn, how, x1, x2, len(x1))
    if x2 is None:
        out = lax.fori_loop(0, len(one), write_own, out)
    chosen = jnp.asarray(tile_pairs(len(one), len(other), symmetric=x2 is None))
    return lax.fori_loop(0, len(chosen), write, out) if len(chosen) else out


@compiled
def strips(kernel_fn: KernelFn[Any], x1: Array, x2: Array | None, *, how: How) -> Tree:
    """K(x1, x2), some rows on every device of a mesh: as many on each, the last ones may be 0.

    No device waits for another one: a tile that two devices need is made by both.
    """
    n = len(x1)
    one, rows1 = blocks_of(n, how.rows)
    other, rows2 = blocks_of(n if x2 is None else len(x2), how.rows)
    share = -(-n // how.num_devices)
    count = min(len(one), -(-share // rows1) + 1)

    def run(start: Array, arrays: tuple[Array, Array | None]) -> Tree:
        (x1, x2), offset, (first, second) = arrays, start[0], map(jnp.asarray, (one, other))
        block = lambda t: jnp.minimum(offset // rows1 + t, len(one) - 1)

        def write_own(t: Array, out: Tree) -> Tree:
            at = first[block(t)]
            return _put(out, tile_of(kernel_fn, how, cut(x1, at[0], rows1)), at, at, offset)

        def write(m: Array, out: Tree) -> Tree:
            row, column = block(m // len(other)), m % len(other)
            i, j = first[row], second[column]
            a, b = cut(x1, i[0], rows1), cut(x1 if x2 is None else x2, j[0], rows2)
            if x2 is not None:
                return _put(out, tile_of(kernel_fn, how, a, b), i, j, offset)
            below = column < row
            a, b = jnp.where(below, b, a), jnp.where(below, a, b)
            tile = tile_of(kernel_fn, how, a, b)
            tile = jax.tree.map(lambda k: jnp.where(below, swap_sides(k), k), tile)
            # The tile on the diagonal is written by `write_own`.
            i = i.at[1].set(jnp.where(row == column, n, i[1]))
            return _put(out, tile, i, j, offset)

        out = _nothing(kernel_fn, how, x1, x2, max(share, rows1))
        if x2 is None:
            out = lax.fori_loop(0, count, write_own, out)
        out = lax.fori_loop(0, count * len(other), write, out)
        return jax.tree.map(lambda k: k[:share], out)

    starts = jnp.arange(how.num_devices) * share
    return on_every_device(how.mesh, run, starts, (x1, x2))


def _nothing(kernel_fn: KernelFn[Any], how: How, x1: Array, x2: Array | None, rows: int) -> Tree:
    """Zeros in the place of a kernel with this many rows."""
    few = x1[:1]
    found = jax.eval_shape(partial(tile_of, kernel_fn, how), few, few if x2 is None else x2[:1])
    shape = rows, len(x1 if x2 is None else x2)
    return jax.tree.map(lambda k: jnp.zeros((*shape, *k.shape[2:]), k.dtype), found)


def _put(out: Tree, tile: Tree, at: Array, columns: Array, offset: Array | None = None) -> Tree:
    """A tile in its place in rows of a kernel that start at `offset`, as far as it is there."""
    return jax.tree.map(lambda k, t: _put_one(k, t, at, columns, offset), out, tile)


def _put_one(out: Array, tile: Array, at: Array, columns: Array, offset: Array | None) -> Array:
    rows, top = len(tile), at[0]
    if offset is not None:  # only a part of the tile's rows may be here
        top = jnp.clip(at[0] - offset, 0, len(out) - rows)
        down = at[0] - offset - top
        tile = jnp.roll(tile, down, 0)
        at = at - offset
    row, column = top + jnp.arange(rows), columns[0] + jnp.arange(tile.shape[1])
    mine = (row >= at[1]) & (row < at[0] + rows)
    mine = mine[:, None] & (column >= columns[1])[None]
    start = (top, columns[0], *(jnp.zeros((), top.dtype),) * (tile.ndim - 2))
    old = lax.dynamic_slice(out, start, tile.shape)
    mine = mine.reshape(*mine.shape, *(1,) * (tile.ndim - 2))
    return lax.dynamic_update_slice(out, jnp.where(mine, tile, old), start)
