"""The layer recursion on two sets of examples: in fused tiles, with the derivatives of the plain
path.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.duals.numerics import ANGLE, ulps
from ntk_jax.infinite.mlp.layers import (
    Architecture,
    Layers,
    Side,
    all_layers,
    first_pairs,
    has_cusp,
    side,
    split_layers,
)
from ntk_jax.infinite.mlp.nearly_parallel import (
    all_pole_gaps,
    directions,
    from_afar,
    is_near,
    near_pole_gaps,
)
from ntk_jax.infinite.mlp.tiles import TiledLayers
from ntk_jax.linalg import matmul, mirror_upper


@partial(jax.jit, static_argnames=("arch",))
def sides(x1: Array, x2: Array | None, layers: Layers, arch: Architecture) -> tuple[Side, Side]:
    """Both sides; the same object twice for x2 = None."""
    side1 = side(_second_moments(x1), layers, arch)
    return side1, side1 if x2 is None else side(_second_moments(x2), layers, arch)


def _second_moments(x: Array) -> Array:
    return jnp.sum(x * x, axis=1) / x.shape[1]


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def kernels(x1: Array, x2: Array | None, layers: Layers, arch: Architecture) -> tuple[Array, Array]:
    """NNGP and NTK (n1, n2)."""
    return cropped(follow(*begin(x1, x2, layers, arch), x1, x2, layers, arch), x1, x2)


def begin(
    x1: Array, x2: Array | None, layers: Layers, arch: Architecture
) -> tuple[tuple[Array, Array], Array]:
    """Both kernels, padded to whole tiles, and which tiles have nearly parallel pairs, whose
    kernels are not yet exact.
    """
    tiled = _tiled(x1, x2, layers, arch)
    out, near = tiled.begin()
    return (_exact_diagonal(out, tiled.side1) if x2 is None else out), near


def follow(
    out: tuple[Array, Array],
    near: Array,
    x1: Array,
    x2: Array | None,
    layers: Layers,
    arch: Architecture,
) -> tuple[Array, Array]:
    """The kernels of `begin` with those pairs exact."""
    return _tiled(x1, x2, layers, arch).follow(out, near)


def _tiled(x1: Array, x2: Array | None, layers: Layers, arch: Architecture) -> TiledLayers:
    side1, side2 = sides(x1, x2, layers, arch)
    return TiledLayers(x1, x2, side1, side2, layers, arch)


def cropped(out: tuple[Array, Array], x1: Array, x2: Array | None) -> tuple[Array, Array]:
    """Without the padding."""
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    return out if out[0].shape == (n1, n2) else (out[0][:n1, :n2], out[1][:n1, :n2])


@kernels.defjvp
def _kernels_jvp(arch, primals, tangents):
    x1, x2, layers = primals
    if x2 is None:
        reference = lambda x1, layers: reference_kernels(x1, None, layers, arch)
        return jax.jvp(reference, (x1, layers), (tangents[0], tangents[2]))
    return jax.jvp(lambda *args: reference_kernels(*args, arch), primals, tangents)


def reference_kernels(
    x1: Array, x2: Array | None, layers: Layers, arch: Architecture, every: bool = False
):
    """The same without tiles; with `every` layer on a leading axis."""
    side1, side2 = sides(x1, x2, layers, arch)
    products = matmul(x1, (x1 if x2 is None else x2).T) / x1.shape[1]
    if x2 is None:
        products = _with_diagonal(products, side1.q0)
    own1, own2 = (
        (side1.q0[:, None], side1.own[0][:, None]),
        (side2.q0[None, :], side2.own[0][None, :]),
    )
    start = first_pairs(jax.tree.map(lambda c: c[0], layers), products, own1, own2)
    pole_gaps = (
        _pole_gaps(x1, x2, start, side1, side2, layers, arch) if has_cusp(layers, arch) else None
    )
    out = all_layers(start, side1, side2, layers, arch, every, pole_gaps)
    if x2 is not None:
        return out
    if not every:
        return _exact_diagonal(jax.tree.map(mirror_upper, out), side1)
    out = jax.tree.map(jax.vmap(mirror_upper), out)
    own = side1.own, jnp.concatenate([side1.tangents, side1.ntk[None]])
    return tuple(
        jax.vmap(_with_diagonal)(k, diagonal) for k, diagonal in zip(out, own, strict=True)
    )


def _pole_gaps(
    x1: Array,
    x2: Array | None,
    start: tuple[Array, Array],
    side1: Side,
    side2: Side,
    layers: Layers,
    arch: Architecture,
) -> Array:
    """1 - |rho| of all pairs as it enters each hidden layer: the value, which those of nearly
    parallel pairs owe to the rows.

    Of the covariance of an example with itself nothing but rounding would be left: divided by it,
    derivatives of that size would be as large as any. An angle of a few ulps has none: it is 0.
    """
    # what has no derivatives is not differentiated: its loops could not be reversed
    x1, x2, start, side1, side2, layers = lax.stop_gradient((x1, x2, start, side1, side2, layers))
    first, _ = split_layers(layers)
    sides_of = ((x1, side1), (x1 if x2 is None else x2, side2))
    left, right = ((directions(x, s.variances[0], first), s.variances) for x, s in sides_of)
    wanted = is_near(side1.variances[0][:, None], start[0], side2.variances[0][None, :])
    distinct = (
        ~jnp.eye(len(x1), dtype=bool) if x2 is None else True
    )  # an example and itself are not a pair
    if arch.rule.pole_gaps_are_cheap:
        pole_gaps = all_pole_gaps(left, start, right, wanted & distinct, layers, arch)
    else:
        history, _ = all_layers(start, side1, side2, layers, arch, every=True)
        before = [jnp.expand_dims(s.variances, axis) for s, axis in ((side1, 2), (side2, 1))]
        wanted = (
            wanted | is_near(side1.nngp[:, None], history[-1], side2.nngp[None, :])
        ) & distinct
        near = near_pole_gaps(left, start, right, wanted, layers, arch)
        pole_gaps = jnp.where(wanted, near, from_afar(before[0], history[:-1], before[1]))
    return jnp.where(pole_gaps > ulps(ANGLE, pole_gaps.dtype) ** 2 / 2, pole_gaps, 0)


def _exact_diagonal(out: tuple[Array, Array], side1: Side) -> tuple[Array, Array]:
    return _with_diagonal(out[0], side1.nngp), _with_diagonal(out[1], side1.ntk)


def _with_diagonal(k: Array, diagonal: Array) -> Array:
    i = jnp.arange(k.shape[0])
    return k.at[i, i].set(diagonal, unique_indices=True, indices_are_sorted=True)
