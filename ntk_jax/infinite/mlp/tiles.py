"""All layers on blocks of pairs: a block stays near the processor while its layers are gone
through.

One mathematics, two schedules. A CPU takes tiles that fit its caches, each in one loop over layers;
XLA's CPU fusion has one output, so the two kernels travel as the real and the imaginary part of one
complex number: as two arrays, the recursion would be computed twice per layer, and the time grow
exponentially with depth. An accelerator takes few, large blocks, and eight layers in one pass that
writes what is asked for. With x2 = None only blocks of the upper triangle are visited, and
mirrored.
"""

import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from ntk_jax.duals.numerics import NEAR
from ntk_jax.host import few, on_host
from ntk_jax.infinite.mlp.diagonal import Diagonal, Diagonals
from ntk_jax.infinite.mlp.layers import Architecture, Layers, Moments, Network, split_layers
from ntk_jax.infinite.mlp.pairs import inputs, side, start, step
from ntk_jax.linalg import matmul
from ntk_jax.memory import memory_budget
from ntk_jax.platforms import is_the_host
from ntk_jax.tiling import corners, even, own_mirrored, tile_size, write_both, write_each
from ntk_jax.types import Which

LIVE = 16  # arrays of an accelerator's block that are held at a time, at most: mixtures hold eight
LIVE_NEAR = 48  # the same of series with kinks, for their pairs that are nearly parallel
GROUP = 8  # layers in one pass: more take long to compile


Entry = TypeVar("Entry")
Sizes = tuple[int, int]  # rows and columns of a tile
NTK = 1  # its place in `Kernels`


def asked(kernels: tuple[Entry, ...], which: Which) -> tuple[Entry, ...]:
    """Of K and Theta, or what belongs to each."""
    return tuple(kernels[i] for i in which)


class Rows(NamedTuple):
    """Of some examples: what the first layer needs, what hidden layers need (on an axis before the
    examples), both kernels of each with itself.
    """

    inputs: Any
    sides: Any
    own: Moments


def in_tiles(
    x1: Array,
    x2: Array | None,
    layers: Layers,
    arch: Architecture,
    known: Diagonals,
    which: Which,
    watched: bool = False,
) -> tuple[tuple[Array, ...], Array]:
    """K, Theta or both in a CPU's tiles, padded to whole ones; if `watched`, whether any pair was
    nearly parallel before any hidden layer.
    """
    sizes = tile_size(len(x1)), tile_size(len(x1 if x2 is None else x2))
    sides = both_rows(x1, x2, layers, arch, known, sizes)
    return tiled(*sides, layers, arch, which, watched)


def tiled(
    one: Rows,
    other: Rows | None,
    layers: Layers,
    arch: Architecture,
    which: Which,
    watched: bool = False,
) -> tuple[tuple[Array, ...], Array]:
    """The same, given the rows of whole tiles."""
    depth, symmetric = len(layers.W) - 1, other is None
    other = one if other is None else other
    t1, t2 = sizes = tile_size(len(one.own[0])), tile_size(len(other.own[0]))
    starts = _starts(one, other, sizes, symmetric)
    _, (rest, _) = split_layers(layers)
    # K alone is packed, too, with nothing: real tiles JAX 0.6 computes anew for their mirror images
    packed = lambda s: lax.complex(s[0], s[1] if NTK in which else jnp.zeros_like(s[0]))

    def tile(i: Array, j: Array) -> tuple[Array, Array]:
        a, b = _cut(one, i, t1), _cut(other, j, t2)
        distinct = _distinct(i, a, j, b) if symmetric else True

        def layer(m: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            both, near = carry
            if watched:
                near |= jnp.any(jnp.abs(both.real) <= NEAR)
            left, right = _facing(_at(a.sides, m, -2), _at(b.sides, m, -2))
            state = both.real, both.imag
            new = step(arch, _at(rest, m), m == depth - 1, left, state, right)
            return packed(new), near

        state = start(layers, a.inputs, _products(a, b), b.inputs, distinct)
        carry = packed(state), jnp.bool(False)
        both, near = lax.fori_loop(0, depth, layer, carry) if depth else carry
        own = packed(a.own)[:, None]
        both = jnp.where(distinct, both, own) if symmetric else both
        return both.imag if which == (NTK,) else both, near

    def write(state: tuple[Array, ...], both: Array, m: Array | int) -> tuple[Array, ...]:
        return write_both(symmetric, state, both, (starts[m, 0], starts[m, 1]))

    # written one step later: or else it would be computed anew for each of the four places
    def body(m: Array, carry: Any) -> Any:
        state, both, near = carry
        new, found = tile(starts[m, 0], starts[m, 1])
        return write(state, both, jnp.maximum(m - 1, 0)), new, near | found

    zeros, nothing = (_nothing(one, other),) * len(which), jnp.zeros((t1, t2), layers.W.dtype)
    last = nothing if which == (NTK,) else lax.complex(nothing, nothing)
    carry = zeros, last, jnp.bool(False)
    state, both, near = lax.fori_loop(0, len(starts), body, carry)
    return write(state, both, len(starts) - 1), near


def block_rows(arch: Architecture, dtype: DTypeLike) -> int:
    """Of an accelerator's block at most, by its memory: 8,192 in float32 where 16 GiB are free, and
    fewer of series with kinks.
    """
    live = LIVE if arch.rule.exact or not arch.rule.cusp else LIVE_NEAR
    return math.isqrt(memory_budget(on_cpu=False) // (live * np.dtype(dtype).itemsize))


def in_blocks(
    x1: Array,
    x2: Array | None,
    layers: Layers,
    arch: Architecture,
    known: Diagonals,
    which: Which,
    most: int,
) -> tuple[Array, ...]:
    """K, Theta or both in an accelerator's blocks of at most so many rows, padded to whole ones."""
    symmetric = x2 is None
    t1, t2 = sizes = even(len(x1), most), even(len(x1 if x2 is None else x2), most)
    one, other = both_rows(x1, x2, layers, arch, known, sizes)
    other = one if other is None else other
    starts = _starts(one, other, sizes, symmetric)
    if len(starts) == 1:
        return _block(layers, arch, one, other, (0, 0), symmetric, which)

    def body(m: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        i, j = starts[m, 0], starts[m, 1]
        found = _block(layers, arch, _cut(one, i, t1), _cut(other, j, t2), (i, j), symmetric, which)
        return write_each(symmetric, state, found, (i, j))

    return lax.fori_loop(0, len(starts), body, (_nothing(one, other),) * len(which))


def _block(
    layers: Layers,
    arch: Architecture,
    a: Rows,
    b: Rows,
    at: tuple[Array | int, Array | int],
    symmetric: bool,
    which: Which,
) -> tuple[Array, ...]:
    """The kernels of the block that starts `at` a row and a column."""
    products, distinct = _products(a, b), _distinct(at[0], a, at[1], b) if symmetric else True
    if symmetric:  # what follows commutes: of symmetric products it is symmetric to the bit
        products = own_mirrored(products, at)
    state = start(layers, a.inputs, products, b.inputs, distinct)
    _, (rest, _) = split_layers(layers)
    depth = len(layers.W) - 1
    for m in range(depth):
        one, other = _facing(_at(a.sides, m, -2), _at(b.sides, m, -2))
        state = step(arch, _at(rest, m), m == depth - 1, one, state, other)
        if m % GROUP == GROUP - 1:
            # the barrier would keep a Theta that nobody asks for
            state = lax.optimization_barrier(state) if NTK in which else _k_alone(state)
    pairs = asked(tuple(zip(state, a.own, strict=True)), which)
    return tuple(jnp.where(distinct, k, own[:, None]) if symmetric else k for k, own in pairs)


def _k_alone(state: Moments) -> Moments:
    k = lax.optimization_barrier(state[0])
    return k, jnp.zeros_like(k)


def _starts(one: Rows, other: Rows, sizes: Sizes, symmetric: bool) -> Array:
    """Where each tile starts."""
    n1, n2 = (len(rows.own[0]) for rows in (one, other))
    return jnp.asarray(corners(n1, n2, *sizes, symmetric=symmetric))


def both_rows(
    x1: Array, x2: Array | None, layers: Layers, arch: Architecture, known: Diagonals, sizes: Sizes
) -> tuple[Rows, Rows | None]:
    """Of both sides, filled up to whole tiles; None for x2 = None."""
    one = _all_rows(x1, known[0], layers, arch, sizes[0])
    return one, None if x2 is None else _all_rows(x2, known[-1], layers, arch, sizes[1])


def both_on_host(network: Network, known: Diagonals) -> tuple[Rows, Rows | None] | None:
    """The same of whole tiles by NumPy, given what is on the host; None where it cannot."""
    x1, x2, layers, arch, _ = network
    if any(len(x) % tile_size(len(x)) for x in (x1, x2) if x is not None):
        return None
    found = on_host(_without_examples, arch, known, layers)
    if found is None:
        return None
    of = lambda rows, x: rows._replace(inputs=rows.inputs._replace(x=x))
    return of(found[0], x1), None if x2 is None else of(found[1], x2)


def block_on_host(
    network: Network, known: Diagonals, which: Which
) -> tuple[np.ndarray, ...] | None:
    """The kernels of few examples by NumPy, given what is on the host; None where it cannot."""
    x1, x2, layers, arch, _ = network
    entries = len(x1) * len(x1 if x2 is None else x2)
    if entries > few.FEW or len(layers.W) > GROUP or arch.rule.by_terms or not is_the_host():
        return None
    return on_host(_whole, (arch, which), x1, x2, known, layers, few=True)


def _whole(
    static: tuple[Architecture, Which],
    x1: Array,
    x2: Array | None,
    known: Diagonals,
    layers: Layers,
) -> tuple[Array, ...]:
    arch, which = static
    one = _rows(x1, known[0], layers, arch)
    other = one if x2 is None else _rows(x2, known[1], layers, arch)
    return _block(layers, arch, one, other, (0, 0), x2 is None, which)


def _without_examples(arch: Architecture, known: Diagonals, layers: Layers) -> tuple[Rows, ...]:
    return tuple(_rows(jnp.zeros(()), d, layers, arch) for d in known)


def _nothing(one: Rows, other: Rows) -> Array:
    return jnp.zeros((len(one.own[0]), len(other.own[0])), one.own[0].dtype)


def _all_rows(x: Array, known: Diagonal, layers: Layers, arch: Architecture, tile: int) -> Rows:
    """Of all examples, filled up to whole tiles."""
    known = jax.tree.map(lambda a: _pad(a, tile, -1), known)
    return _rows(_pad(x, tile), known, layers, arch)


def _rows(x: Array, known: Diagonal, layers: Layers, arch: Architecture) -> Rows:
    _, (rest, last) = split_layers(layers)
    each = jax.tree.map(lambda c: c[:, None], rest), last[:, None]
    moments = known.variances, known.active
    sides = side(arch, *each, *moments, known.factors) if len(last) else None
    return Rows(inputs(layers, arch, x, known), sides, (known.nngp, known.ntk))


def _cut(rows: Rows, i: Array, tile: int) -> Rows:
    """Of the examples of a tile."""
    cut = lambda axis: lambda a: lax.dynamic_slice_in_dim(a, i, tile, axis)
    return Rows(
        *(jax.tree.map(cut(axis), part) for part, axis in zip(rows, (0, -1, 0), strict=True))
    )


def _at(tree: Any, m: Array | int, axis: int = 0) -> Any:
    """Of one hidden layer."""
    return jax.tree.map(lambda c: lax.dynamic_index_in_dim(c, m, axis, keepdims=False), tree)


def _distinct(i: Array | int, a: Rows, j: Array | int, b: Rows) -> Array:
    """Which pairs of a tile of a symmetric kernel are not an example and itself."""
    return i + jnp.arange(len(a.own[0]))[:, None] != j + jnp.arange(len(b.own[0]))[None, :]


def _products(a: Rows, b: Rows) -> Array:
    return matmul(a.inputs.x, b.inputs.x.T) / a.inputs.x.shape[1]


def _facing(one: Any, other: Any) -> tuple[Any, Any]:
    """Both sides with an axis for the other's examples."""
    return (
        jax.tree.map(lambda r: r[..., :, None], one),
        jax.tree.map(lambda r: r[..., None, :], other),
    )


def _pad(a: Array, tile: int, axis: int = 0) -> Array:
    """Zero rows up to a multiple of the tile."""
    if a.ndim == 0 or a.shape[axis] % tile == 0:
        return a
    return jnp.pad(a, [(0, -s % tile if i == axis % a.ndim else 0) for i, s in enumerate(a.shape)])
