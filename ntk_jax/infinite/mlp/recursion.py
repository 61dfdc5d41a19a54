"""The layer recursion on two sets of examples: in fused tiles, with the derivatives of the plain
path.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.duals.numerics import ANGLE, ulps
from ntk_jax.infinite.mlp.diagonal import Diagonal, Diagonals, diagonals
from ntk_jax.infinite.mlp.layers import (
    Architecture,
    Layers,
    Moments,
    Network,
    all_layers,
    first_pairs,
    has_cusp,
    split_layers,
)
from ntk_jax.infinite.mlp.nearly_parallel import (
    all_pole_gaps,
    coincident,
    directions,
    from_afar,
    is_near,
    near_pole_gaps,
)
from ntk_jax.infinite.mlp.tiles import TiledLayers
from ntk_jax.linalg import matmul
from ntk_jax.tiling import mirror_upper


def kernels(network: Network, known: Diagonals | None) -> Moments:
    """NNGP and NTK (n1, n2), given the diagonals where they are known, with their padding.

    What corrects nearly parallel pairs takes long to compile, and is compiled when there are some:
    only where values are known can one look.
    """
    if known is None:
        return _compiled(*network)
    out, near = _compiled_tiles(*network, known)
    counts = np.asarray(near) if has_cusp(network.layers, network.arch) else np.zeros(1)
    if not counts.any():
        return out
    same = coincident(network.x1, network.x2, np.asarray(known[0].variances)[0], counts)
    if same is None:
        return _compiled_correction(out, near, *network, known)
    return _compiled_coincident(out, *same, known[0], symmetric=network.x2 is None)


def kernels_by_layer(network: Network, known: Diagonals | None) -> Moments:
    """The same after every Dense layer, (depth + 1, n1, n2)."""
    return _compiled_by_layer(*network, known)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _kernels(x1: Array, x2: Array | None, layers: Layers, arch: Architecture) -> Moments:
    """In tiles, with the derivatives of the reference path."""
    known = diagonals(Network(x1, x2, layers, arch))
    out, near = _tiles(x1, x2, layers, arch, known)
    return _cropped(_corrected(out, near, x1, x2, layers, arch, known), x1, x2)


def _tiles(
    x1: Array, x2: Array | None, layers: Layers, arch: Architecture, known: Diagonals
) -> tuple[Moments, Array]:
    """Both kernels, padded to whole tiles, and how many pairs of every tile are nearly parallel,
    whose kernels are not yet exact.
    """
    return TiledLayers(Network(x1, x2, layers, arch), known).from_covariances()


def _corrected(
    out: Moments,
    near: Array,
    x1: Array,
    x2: Array | None,
    layers: Layers,
    arch: Architecture,
    known: Diagonals,
) -> Moments:
    """The kernels of `_tiles` with those pairs exact."""
    return TiledLayers(Network(x1, x2, layers, arch), known).corrected(out, near)


def _cropped(out: Moments, x1: Array, x2: Array | None) -> Moments:
    """Without the padding."""
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    return out if out[0].shape == (n1, n2) else (out[0][:n1, :n2], out[1][:n1, :n2])


@_kernels.defjvp
def _kernels_jvp(arch: Architecture, primals: Any, tangents: Any) -> tuple[Moments, Moments]:
    x1, x2, layers = primals
    if x2 is None:
        reference = lambda x1, layers: _reference(x1, None, layers, arch)
        return jax.jvp(reference, (x1, layers), (tangents[0], tangents[2]))
    return jax.jvp(lambda *a: _reference(a[0], a[1], a[2], arch), primals, tangents)


def _reference(
    x1: Array,
    x2: Array | None,
    layers: Layers,
    arch: Architecture,
    known: Diagonals | None = None,
    every: bool = False,
) -> Moments:
    """The same without tiles; with `every` layer on a leading axis."""
    known = diagonals(Network(x1, x2, layers, arch)) if known is None else known
    one, other = known[0], known[-1]
    products = matmul(x1, (x1 if x2 is None else x2).T) / x1.shape[1]
    if x2 is None:
        products = _with_diagonal(products, one.q0)
    variances1, variances2 = (
        (one.q0[:, None], one.by_layer[0][0][:, None]),
        (other.q0[None, :], other.by_layer[0][0][None, :]),
    )
    first, _ = split_layers(layers)
    start, gaps = first_pairs(first, products, variances1, variances2), None
    if has_cusp(layers, arch):
        gaps = _pole_gaps(x1, x1 if x2 is None else x2, start, one, other, layers, arch, x2 is None)
    out = all_layers(start, one.variances, other.variances, layers, arch, every, gaps)
    if x2 is not None:
        return out
    if not every:
        return _exact_diagonal(jax.tree.map(mirror_upper, out), one)
    both = zip(out, one.by_layer, strict=True)
    nngp, ntk = (jax.vmap(_with_diagonal)(jax.vmap(mirror_upper)(k), d) for k, d in both)
    return nngp, ntk


def _pole_gaps(
    x1: Array,
    x2: Array,
    start: Moments,
    one: Diagonal,
    other: Diagonal,
    layers: Layers,
    arch: Architecture,
    same: bool,
) -> Array:
    """1 - |rho| of all pairs as it enters each hidden layer: the value, which those of nearly
    parallel pairs owe to the rows.

    Of the covariance of an example with itself nothing but rounding would be left: divided by it,
    derivatives of that size would be as large as any. An angle of a few ulps has none: it is 0.
    """
    # what has no derivatives is not differentiated: its loops could not be reversed
    x1, x2, start, one, other, layers = lax.stop_gradient((x1, x2, start, one, other, layers))
    first, _ = split_layers(layers)
    left, right = (
        (directions(x, d.variances[0], first), d.variances) for x, d in ((x1, one), (x2, other))
    )
    wanted = is_near(one.variances[0][:, None], start[0], other.variances[0][None, :])
    # an example and itself are not a pair
    distinct = ~jnp.eye(len(x1), dtype=bool) if same else True
    if arch.rule.pole_gaps_are_cheap:
        pole_gaps = all_pole_gaps(left, start, right, wanted & distinct, layers, arch)
    else:
        history, _ = all_layers(start, one.variances, other.variances, layers, arch, every=True)
        before = [jnp.expand_dims(d.variances, axis) for d, axis in ((one, 2), (other, 1))]
        wanted |= is_near(one.nngp[:, None], history[-1], other.nngp[None, :])
        wanted &= distinct
        near = near_pole_gaps(left, start, right, wanted, layers, arch)
        pole_gaps = jnp.where(wanted, near, from_afar(before[0], history[:-1], before[1]))
    return jnp.where(pole_gaps > ulps(ANGLE, pole_gaps.dtype) ** 2 / 2, pole_gaps, 0)


def _exact_diagonal(out: Moments, known: Diagonal) -> Moments:
    return _with_diagonal(out[0], known.nngp), _with_diagonal(out[1], known.ntk)


def _with_diagonal(k: Array, diagonal: Array) -> Array:
    i = jnp.arange(k.shape[0])
    return k.at[i, i].set(diagonal, unique_indices=True, indices_are_sorted=True)


def _with_coincident(out: Moments, i: Array, j: Array, known: Diagonal, symmetric: bool) -> Moments:
    """The kernels where row i of x1 is row j of x2: those of an example with itself."""
    write = lambda k, i, j, d: k.at[i, j].set(d[i], mode="drop")
    for row, column in ((i, j), (j, i)) if symmetric else ((i, j),):
        out = write(out[0], row, column, known.nngp), write(out[1], row, column, known.ntk)
    return out


_compiled = jax.jit(_kernels, static_argnums=3)
_compiled_tiles = jax.jit(_tiles, static_argnums=3)
_compiled_coincident = jax.jit(_with_coincident, donate_argnums=0, static_argnames="symmetric")
_compiled_correction = jax.jit(_corrected, static_argnums=5, donate_argnums=0)
_compiled_by_layer = jax.jit(partial(_reference, every=True), static_argnums=3)
