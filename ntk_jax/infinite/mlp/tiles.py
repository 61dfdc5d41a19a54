"""All layers on pairs, tile by tile: each tile in one loop per group of layers, kernel and tangent
kernel in registers.

With x2 = None only the upper triangle is visited, and mirrored. XLA's CPU fusion has one output, so
the two kernels travel as the real and the imaginary part of one complex number: as two arrays, the
recursion was computed twice per layer, and the time grew exponentially with depth.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.duals.numerics import NEAR
from ntk_jax.infinite.mlp.diagonal import Diagonal, Diagonals
from ntk_jax.infinite.mlp.layers import Architecture, Layers, Moments, split_layers
from ntk_jax.infinite.mlp.pairs import inputs, side, start, step
from ntk_jax.linalg import matmul
from ntk_jax.tiling import corners, tile_size, write_both


def tiled(
    x1: Array,
    x2: Array | None,
    layers: Layers,
    arch: Architecture,
    known: Diagonals,
    watched: bool = False,
) -> tuple[Moments, Array]:
    """K and Theta, padded to whole tiles; if `watched`, whether any pair was nearly parallel
    before any hidden layer.
    """
    depth, symmetric = layers.W.shape[0] - 1, x2 is None
    _, (rest, last) = split_layers(layers)
    each = jax.tree.map(lambda c: c[:, None], rest), last[:, None]
    t1, t2 = (tile_size(len(x)) for x in (x1, x1 if x2 is None else x2))
    one, other = _filled(x1, known[0], t1), _filled(x1 if x2 is None else x2, known[-1], t2)
    inputs1, inputs2 = (inputs(layers, arch, *filled) for filled in (one, other))
    sides1, sides2 = (
        side(arch, *each, d.variances, d.active) if depth else None for _, d in (one, other)
    )
    shape = len(one[0]), len(other[0])
    starts = jnp.asarray(corners(*shape, t1, t2, symmetric=symmetric))

    def tile(i: Array, j: Array) -> tuple[Array, Array]:
        left, right = _rows(inputs1, i, t1), _rows(inputs2, j, t2)
        distinct = i + jnp.arange(t1)[:, None] != j + jnp.arange(t2)[None, :] if symmetric else True
        products = matmul(left.x, right.x.T) / x1.shape[1]

        def layer(m: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            both, near = carry
            if watched:
                near |= jnp.any(jnp.abs(both.real) <= NEAR)
            at = jax.tree.map(lambda c: c[m], rest)
            of = lambda r: lax.dynamic_index_in_dim(r, m, -2, keepdims=False)
            a = jax.tree.map(lambda r: _rows(of(r), i, t1, -1)[..., :, None], sides1)
            b = jax.tree.map(lambda r: _rows(of(r), j, t2, -1)[..., None, :], sides2)
            new = step(arch, at, m == depth - 1, a, (both.real, both.imag), b)
            return lax.complex(*new), near

        carry = lax.complex(*start(layers, left, products, right, distinct)), jnp.bool(False)
        both, near = lax.fori_loop(0, depth, layer, carry) if depth else carry
        own = lax.complex(*_rows((one[1].nngp, one[1].ntk), i, t1))
        return jnp.where(distinct, both, own[:, None]) if symmetric else both, near

    def write(state: Moments, both: Array, m: Array | int) -> Moments:
        k, theta = write_both(symmetric, state, both, (starts[m, 0], starts[m, 1]))
        return k, theta

    # written one step later: or else it would be computed anew for each of the four places
    def body(m: Array, carry: Any) -> Any:
        state, both, near = carry
        new, found = tile(starts[m, 0], starts[m, 1])
        return write(state, both, jnp.maximum(m - 1, 0)), new, near | found

    zero = jnp.zeros(shape, x1.dtype)
    nothing = jnp.zeros((t1, t2), jnp.result_type(zero, jnp.complex64))
    carry = (zero, zero), nothing, jnp.bool(False)
    state, both, near = lax.fori_loop(0, len(starts), body, carry)
    return write(state, both, len(starts) - 1), near


def _filled(x: Array, known: Diagonal, tile: int) -> tuple[Array, Diagonal]:
    """Examples up to whole tiles; they are the last axis of what they have with themselves."""
    return _pad(x, tile), jax.tree.map(lambda a: _pad(a, tile, -1), known)


def _rows(tree: Any, i: Array, tile: int, axis: int = 0) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i, tile, axis), tree)


def _pad(a: Array, tile: int, axis: int = 0) -> Array:
    """Zero rows up to a multiple of the tile."""
    if a.ndim == 0 or a.shape[axis] % tile == 0:
        return a
    return jnp.pad(a, [(0, -s % tile if i == axis % a.ndim else 0) for i, s in enumerate(a.shape)])
