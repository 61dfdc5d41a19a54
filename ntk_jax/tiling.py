"""Tiles of a kernel K(x1, x2): which there are, how rows fill them, how they are put together.

A tile is the kernel of some rows of x1 with some rows of x2. K(x, x) is symmetric: only the tiles
of its upper half are computed, the others are their mirror images. The loops are where the tiles
are made: `finite/strategy/tiles.py` holds features between tiles, `infinite/flax/batch.py` scans in
one program, `infinite/mlp/tiles.py` fuses layers.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Inexact, Int

from ntk_jax.compat import given_to_device, is_concrete
from ntk_jax.examples import Examples, num_rows, take_rows
from ntk_jax.platforms import is_the_host

K = TypeVar("K", Array, np.ndarray)


def even(n: int, most: int) -> int:
    """The rows of the fewest, nearly equal tiles of at most `most` rows."""
    return -(-n // -(-n // most))


TILE = 256  # rows: a tile of both kernels stays in the caches while its layers are gone through


def tile_size(n: int) -> int:
    """A multiple of 16 near `TILE` that divides a large n, or else the one that pads n least.

    Rows that a matrix product treats in full blocks get the same sums wherever they stand:
    permuting rows permutes the kernel.
    """
    tiles = -(-n // TILE)
    even = -(-n // (16 * tiles)) * 16
    if n <= 2 * TILE or n % even == 0:
        return even
    exact = [t for t in range(2 * TILE, TILE // 2, -16) if n % t == 0]
    return exact[-1] if exact else even


def bucket(n: int) -> int:
    """The rows of whole tiles for n rows: nearly equal n share them, and programs."""
    return -(-n // tile_size(n)) * tile_size(n)


def padded(x: Array, rows: int) -> Array | np.ndarray:
    """Concrete `x` with zero rows up to `rows`; on several devices it stays as it is. NumPy's goes
    to the device with the call of a program.
    """
    if len(x) == rows or len(x.devices()) > 1:
        return x
    if not is_the_host():
        return _padded(x, rows)
    out = np.zeros((rows, *x.shape[1:]), x.dtype)
    out[: len(x)] = np.asarray(x)
    return out


def cropped(arrays: Sequence[Array | np.ndarray], shape: tuple[int, ...]) -> list[Array]:
    """The first entries along every axis of concrete arrays, all of one shape."""
    held = [k for k in arrays if isinstance(k, Array)]
    if len(held) == len(arrays) and held[0].shape == shape:
        return held
    if held and not is_the_host():
        return _cropped(list(arrays), shape)
    return given_to_device([np.array(np.asarray(k)[tuple(map(slice, shape))]) for k in arrays])


@partial(jax.jit, static_argnums=1)
def _padded(x: Array, rows: int) -> Array:
    return jnp.pad(x, [(0, rows - len(x)), *[(0, 0)] * (x.ndim - 1)])


@partial(jax.jit, static_argnums=1)
def _cropped(arrays: list[Array], shape: tuple[int, ...]) -> list[Array]:
    return [k[tuple(map(slice, shape))] for k in arrays]


def row_slices(n: int, rows: int) -> list[slice]:
    """Which rows each tile has."""
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def corners(n1: int, n2: int, rows1: int, rows2: int, *, symmetric: bool) -> list[tuple[int, int]]:
    """First row and column of every tile, row by row; of the upper half alone if symmetric."""
    return [(i, j) for i in range(0, n1, rows1) for j in range(i if symmetric else 0, n2, rows2)]


def grid(n: int, rows: int) -> Int[np.ndarray, "blocks 2"]:
    """First row of every block of exactly `rows` <= n rows, and the first that is its own: the last
    block reaches back over rows of the one before it, so that nothing is filled up.
    """
    own = np.arange(0, n, rows)
    return np.stack([np.minimum(own, n - rows), own], 1)


def pad_rows(x: Examples, multiple: int, *, zeros: bool = False) -> Examples:
    """Rows up to a multiple, of zeros or like the last one, which no network can object to."""
    return jax.tree.map(lambda leaf: _padded_leaf(leaf, multiple, zeros), x)


def _padded_leaf(x: Array, multiple: int, zeros: bool) -> Array:
    missing = -x.shape[0] % multiple
    if not missing:
        return x
    fill = jnp.zeros((missing, *x.shape[1:]), x.dtype) if zeros else x[-1:].repeat(missing, 0)
    return jnp.concatenate([x, fill])


def row_tiles(x: Examples, rows: int) -> Iterator[tuple[slice, Examples]]:
    """Which rows, and these rows of x; the last tile is filled up, so that one program serves."""
    slices = row_slices(num_rows(x), rows)
    yield from ((taken, pad_rows(take_rows(x, taken), rows)) for taken in slices)


@partial(jax.jit, donate_argnums=0)
def write_tile(out: Array, tile: Array, row: int | Array, column: int | Array) -> Array:
    """The result with one tile filled in, in place."""
    return jax.lax.dynamic_update_slice(
        out, tile, (row, column, *(jnp.zeros((), jnp.result_type(row)),) * (out.ndim - 2))
    )


def write_both(
    symmetric: bool, kernels: tuple[Array, ...], both: Array, at: tuple[Array, Array]
) -> tuple[Array, ...]:
    """A tile of two kernels, the parts of a complex number, in its place, and mirrored; one kernel
    is the real part.
    """
    both = own_mirrored(both, at) if symmetric else both
    return _written(symmetric, kernels, (both.real, both.imag)[: len(kernels)], at)


def write_each(
    symmetric: bool, kernels: tuple[Array, ...], tiles: tuple[Array, ...], at: tuple[Array, Array]
) -> tuple[Array, ...]:
    """A tile of each kernel in its place, and mirrored."""
    tiles = tuple(own_mirrored(tile, at) for tile in tiles) if symmetric else tiles
    return _written(symmetric, kernels, tiles, at)


def own_mirrored(tile: Array, at: tuple[Array | int, Array | int]) -> Array:
    """A tile; if it is on the diagonal, with its lower half from the upper one."""
    return jnp.where(at[0] == at[1], mirror_upper(tile), tile)


def _written(
    symmetric: bool, kernels: tuple[Array, ...], tiles: tuple[Array, ...], at: tuple[Array, Array]
) -> tuple[Array, ...]:
    (i, j), write = at, jax.lax.dynamic_update_slice
    outputs = (jnp.zeros_like(i),) * (kernels[0].ndim - 2)
    pairs = lambda: zip(kernels, tiles, strict=True)
    kernels = tuple(write(k, tile, (i, j, *outputs)) for k, tile in pairs())
    if not symmetric or kernels[0].shape == tiles[0].shape:  # one tile is its own mirror image
        return kernels
    return tuple(write(k, swap_sides(tile), (j, i, *outputs)) for k, tile in pairs())


def swap_sides(k: Inexact[K, "n1 n2 ..."]) -> Inexact[K, "n2 n1 ..."]:
    """K(x2, x1) from K(x1, x2): rows and columns swap, and output pairs with them."""
    return k.transpose(1, 0, 3, 2) if k.ndim == 4 else k.swapaxes(0, 1)


def mirror_upper(k: Inexact[K, "n n ..."]) -> Inexact[K, "n n ..."]:
    """The kernel with its lower triangle copied from the upper one: symmetric to the bit.

    XLA evaluates a comparison of two `arange` while it compiles, for seconds at a few hundred rows;
    `tri` it leaves alone.
    """
    n, outputs = k.shape[0], k.shape[2:]
    xp: ModuleType = np if isinstance(k, np.ndarray) else jnp
    if k.ndim == 4:  # on the diagonal, where examples are equal, the order of the outputs decides
        lower = xp.tri(n * outputs[0], k=-1, dtype=bool).reshape(n, outputs[0], n, outputs[1])
        return xp.where(lower.transpose(0, 2, 1, 3), swap_sides(k), k)
    lower = xp.tri(n, k=-1, dtype=bool).reshape(n, n, *(1,) * len(outputs))
    return xp.where(lower, swap_sides(k), k)


SMALL = 2**16  # entries that NumPy mirrors as fast as a program is launched


def mirrored(k: Inexact[Array, "n n ..."]) -> Inexact[Array, "n n ..."]:
    """`mirror_upper` on its own: fused with what makes the kernel, an entry and its mirror image
    may be rounded differently.
    """
    return mirrored_on_host([k])[0] if is_small_on_host(k) else _mirrored(k)


def mirrored_on_host(kernels: Sequence[Array]) -> list[Array]:
    """The same of several that are small; as they are if, like most, they are symmetric already."""
    found = list(map(np.asarray, kernels))
    if all(k.tobytes() == swap_sides(k).tobytes() for k in found):  # 0 and -0 are equal numbers
        return list(kernels)
    return given_to_device(list(map(mirror_upper, found)))


def is_small_on_host(k: Array) -> bool:
    """Whether NumPy mirrors a kernel without a program for its shape."""
    return k.size <= SMALL and is_concrete(k) and is_the_host()


_mirrored = jax.jit(mirror_upper)
