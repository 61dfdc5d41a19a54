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

from ntk_jax.infinite.mlp.diagonal import Diagonal, Diagonals
from ntk_jax.infinite.mlp.gaps import Inputs
from ntk_jax.infinite.mlp.layers import Moments, Network, split_layers
from ntk_jax.infinite.mlp.pairs import side, start, step
from ntk_jax.linalg import matmul
from ntk_jax.tiling import corners, tile_size, write_both


def tiled(network: Network, known: Diagonals) -> Moments:
    """K and Theta, padded to whole tiles."""
    x1, x2, layers, arch = network
    depth, symmetric = layers.W.shape[0] - 1, x2 is None
    _, (rest, last) = split_layers(layers)
    each = jax.tree.map(lambda c: c[:, None], rest), last[:, None]
    t1, t2 = (tile_size(len(x)) for x in (x1, x1 if x2 is None else x2))
    one = _Side(x1, known[0], t1)
    other = one if x2 is None else _Side(x2, known[-1], t2)
    sides1 = side(arch, *each, one.diagonal.variances) if depth else None
    sides2 = sides1 if symmetric or not depth else side(arch, *each, other.diagonal.variances)
    starts = jnp.asarray(corners(len(one.x), len(other.x), t1, t2, symmetric=symmetric))

    def tile(i: Array, j: Array) -> Array:
        left, right = one.inputs(i), other.inputs(j)
        distinct = i + jnp.arange(t1)[:, None] != j + jnp.arange(t2)[None, :] if symmetric else True
        products = matmul(left.x, right.x.T) / x1.shape[1]

        def layer(m: Array, both: Array) -> Array:
            at = jax.tree.map(lambda c: c[m], rest)
            of = lambda r: lax.dynamic_index_in_dim(r, m, -2, keepdims=False)
            a = jax.tree.map(lambda r: _rows(of(r), i, t1, -1)[..., :, None], sides1)
            b = jax.tree.map(lambda r: _rows(of(r), j, t2, -1)[..., None, :], sides2)
            return lax.complex(*step(arch, at, m == depth - 1, a, (both.real, both.imag), b))

        both = lax.complex(*start(layers, arch, left, products, right, distinct))
        if depth:
            both = lax.fori_loop(0, depth, layer, both)
        return jnp.where(distinct, both, one.own(i)[:, None]) if symmetric else both

    def body(m: Array, state: Moments) -> Moments:
        at = starts[m, 0], starts[m, 1]
        k, theta = write_both(symmetric, state, tile(*at), at)
        return k, theta

    zero = jnp.zeros((len(one.x), len(other.x)), x1.dtype)
    return lax.fori_loop(0, len(starts), body, (zero, zero))


class _Side:
    """One set of examples, filled up to whole tiles."""

    def __init__(self, x: Array, known: Diagonal, tile: int):
        self.x, self.tile = _pad(x, tile), tile
        # examples are the last axis of what they have with themselves
        self.diagonal: Any = jax.tree.map(lambda a: _pad(a, tile, -1), known)

    def inputs(self, i: Array) -> Inputs:
        """Of the rows of a tile."""
        return jax.tree.map(
            lambda a: _rows(a, i, self.tile),
            Inputs(self.x, self.diagonal.q0, self.diagonal.by_layer[0][0]),
        )

    def own(self, i: Array) -> Array:
        """Both kernels of these rows with themselves."""
        return lax.complex(
            *(_rows(k, i, self.tile) for k in (self.diagonal.nngp, self.diagonal.ntk))
        )


def _rows(x: Array, i: Array, tile: int, axis: int = 0) -> Array:
    return lax.dynamic_slice_in_dim(x, i, tile, axis)


def _pad(a: Array, tile: int, axis: int = 0) -> Array:
    """Zero rows up to a multiple of the tile."""
    if a.ndim == 0 or a.shape[axis] % tile == 0:
        return a
    return jnp.pad(a, [(0, -s % tile if i == axis % a.ndim else 0) for i, s in enumerate(a.shape)])
