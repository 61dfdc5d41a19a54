"""The programs of a kernel that is not held: its tiles are made, multiplied with and forgotten.

All run on one device, and on every device of a mesh with its share of the tiles: what is summed
over the mesh is summed once, outside.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from ntk_jax.closures.programs import compiled
from ntk_jax.devices.mesh import Tree, num_devices, on_every_device, replicated, shared_out
from ntk_jax.linalg import matmul
from ntk_jax.scale.matrix import the_kernel
from ntk_jax.tiling import grid
from ntk_jax.types import KernelFn

# Rows of the blocks whose diagonals alone are wanted.
DIAGONAL_ROWS_ON_CPU, DIAGONAL_ROWS = 32, 1024


class How(NamedTuple):
    """What a program depends on beside its arrays and the kernel.

    Attributes:
        kernel: which one of a pair, or None.
        dtype: of the kernel; None for whatever the kernel_fn returns, as it is.
        rows: of a block.
        on_cpu: whether it runs on CPUs.
        mesh: the devices, on one axis; None for one device.
    """

    kernel: str | None
    dtype: DTypeLike | None
    rows: int
    on_cpu: bool
    mesh: Mesh | None

    @property
    def num_devices(self) -> int:
        """How many share the work."""
        return num_devices(self.mesh)


def tile_of(kernel_fn: KernelFn[Any], how: How, a: Array, b: Array | None = None) -> Tree:
    """The kernel of the rows of a with those of b, or with themselves."""
    with jax.default_matmul_precision("highest"):
        found = kernel_fn(a) if b is None else kernel_fn(a, b)
    return found if how.dtype is None else the_kernel(found, how.kernel).astype(how.dtype)


def blocks_of(n: int, rows: int) -> tuple[Int[np.ndarray, "blocks 2"], int]:
    """`grid`, and the rows of a block: all, if there are no more."""
    rows = min(rows, n)
    return grid(n, rows), rows


def tile_pairs(blocks1: int, blocks2: int, *, symmetric: bool) -> Int[np.ndarray, "tiles 2"]:
    """Blocks of rows and of columns of every tile; of those above the diagonal if symmetric."""
    if symmetric:
        return np.stack(np.triu_indices(blocks1, 1), 1)
    return np.stack(np.divmod(np.arange(blocks1 * blocks2), blocks2), 1)


@compiled
def product(
    kernel_fn: KernelFn[Any], x1: Array, x2: Array | None, v: Float[Array, "n2 ..."], *, how: How
) -> Float[Array, "n1 ..."]:
    """K v, tile by tile; of a symmetric kernel the tiles of the upper half, each used twice."""
    one, rows1 = blocks_of(len(x1), how.rows)
    other, rows2 = blocks_of(len(x1 if x2 is None else x2), how.rows)
    i, j = tile_pairs(len(one), len(other), symmetric=x2 is None).T
    tiles = np.concatenate([one[i], other[j]], 1)
    own = one if x2 is None else one[:0]
    # A tile none of whose rows count fills up the share of a device.
    nothing = [0, len(x1), 0, len(v)]
    shares = shared_out(how.mesh, (own, tiles), (nothing[:2], nothing))
    run = partial(_share, kernel_fn, how, (rows1, rows2))
    out = on_every_device(how.mesh, run, shares, (x1, x2, v.reshape(len(v), -1)))
    return replicated(how.mesh, out.sum(0).reshape(len(x1), *v.shape[1:]))


def _share(
    kernel_fn: KernelFn[Any],
    how: How,
    rows: tuple[int, int],
    shares: tuple[Array, Array],
    arrays: tuple[Array, Array | None, Array],
) -> Float[Array, "1 n1 b"]:
    """What a device's tiles add to the product."""
    (own, tiles), (x1, x2, v) = shares, arrays
    rows1, rows2 = rows

    def add_own(m: Array, out: Array) -> Array:
        at = own[m]
        tile = tile_of(kernel_fn, how, cut(x1, at[0], rows1))
        return _add(out, at, matmul(tile, _live(v, at, rows1)))

    def add(m: Array, out: Array) -> Array:
        i, j = tiles[m, :2], tiles[m, 2:]
        right = cut(x1 if x2 is None else x2, j[0], rows2)
        tile = tile_of(kernel_fn, how, cut(x1, i[0], rows1), right)
        out = _add(out, i, matmul(tile, _live(v, j, rows2)))
        return out if x2 is not None else _add(out, j, matmul(tile.T, _live(v, i, rows1)))

    out = jnp.zeros((len(x1), v.shape[1]), how.dtype)
    out = lax.fori_loop(0, len(own), add_own, out) if len(own) else out
    return (lax.fori_loop(0, len(tiles), add, out) if len(tiles) else out)[None]


@compiled
def diagonal(kernel_fn: KernelFn[Any], x: Array, *, how: How) -> Float[Array, " n"]:
    """The kernel of every row with itself: of few rows at a time all pairs, and their diagonal."""
    blocks, rows = blocks_of(len(x), DIAGONAL_ROWS_ON_CPU if how.on_cpu else DIAGONAL_ROWS)

    def run(shares: Array, x: Array) -> Array:
        def fill(m: Array, out: Array) -> Array:
            at = shares[m]
            found = jnp.diagonal(tile_of(kernel_fn, how, cut(x, at[0], rows)))
            return _add(out, at, found)

        return lax.fori_loop(0, len(shares), fill, jnp.zeros(len(x), how.dtype))[None]

    out = on_every_device(how.mesh, run, shared_out(how.mesh, blocks, [0, len(x)]), x)
    return replicated(how.mesh, out.sum(0))


@compiled
def columns(
    kernel_fn: KernelFn[Any], x1: Array, x2: Array | None, indices: Int[Array, " k"], *, how: How
) -> Float[Array, "n1 k"]:
    """Some columns; on a mesh every device has the rows of its share, if these are equal shares."""
    chosen = (x1 if x2 is None else x2)[indices]
    own = diagonal(kernel_fn, chosen, how=how) if x2 is None else None
    n, places = len(x1), jnp.where(indices < 0, indices + len(x1), indices)

    def run(first: Array, arrays: tuple[Array, Array, Array, Array | None]) -> Array:
        x, chosen, places, own = arrays
        blocks, rows = blocks_of(share, how.rows)

        def fill(m: Array, out: Array) -> Array:
            at = jnp.asarray(blocks)[m, 0]
            # A last device may have less rows than the others: it looks at some of them twice.
            taken = jnp.minimum(first[0] + at + jnp.arange(rows), n - 1)
            tile = tile_of(kernel_fn, how, x[taken], chosen)
            if own is not None:
                tile = jnp.where(taken[:, None] == places[None], own[None], tile)
            return lax.dynamic_update_slice_in_dim(out, tile, at, 0)

        out = jnp.zeros((share, len(chosen)), how.dtype)
        return lax.fori_loop(0, len(blocks), fill, out)

    share = -(-n // how.num_devices)
    starts = jnp.arange(how.num_devices) * share
    found = on_every_device(how.mesh, run, starts, (x1, chosen, places, own))
    return found if len(found) == n else replicated(how.mesh, found[:n])


def cut(x: Array, start: Array, rows: int) -> Array:
    """Some rows."""
    return lax.dynamic_slice_in_dim(x, start, rows)


def _is_own(at: Array, rows: int, like: Array) -> Array:
    """Which rows of a block are its own, against arrays of rows."""
    return (at[0] + jnp.arange(rows) >= at[1]).reshape(-1, *(1,) * (like.ndim - 1))


def _live(v: Array, at: Array, rows: int) -> Array:
    """The rows of a block, 0 where they belong to another one."""
    return jnp.where(_is_own(at, rows, v), cut(v, at[0], rows), 0)


def _add(out: Array, at: Array, block: Array) -> Array:
    """The rows of a block added to those of the result, where they are its own."""
    block = jnp.where(_is_own(at, len(block), block), block, 0)
    old = cut(out, at[0], len(block))
    return lax.dynamic_update_slice_in_dim(out, old + block, at[0], 0)
