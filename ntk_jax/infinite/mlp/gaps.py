"""The recursion of activations with kinks: pairs are followed by the gap of their correlation to
the nearer pole.

The angle of a pair is the root of what its covariance lacks of sqrt(q1 q2), which is all rounding
where that is a few ulps: k_dot of ReLU would be off by sqrt(eps) from one pair to the next, and the
tangent kernel of a cluster not be positive semi-definite. A gap starts as |u1 -+ u2|² / 2 of unit
vectors and never cancels. A variance is a sum of parts, of activations, bias and skip connection:
with shares a_m² of one side's, b_m² of the other's,

    1 -+ rho = sum_m a_m b_m (1 -+ rho_m) + sum_m (a_m - b_m)² / 2.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.duals.dual_rule import Gap, PoleGaps
from ntk_jax.duals.numerics import NEAR, correlation, ratio, root, with_derivative
from ntk_jax.infinite.mlp.layers import (
    Architecture,
    Layers,
    Moments,
    before_activation,
    dense,
)

BLOCK = 16
"""Features whose differences are added up before the sum is read and written."""


class Shares(NamedTuple):
    """Of one side: deviations of activation, constant and skip connection, over that of their
    sum, which is `alive` if it is not 0.
    """

    active: Array
    constant: Array
    skipped: Array
    alive: Array


class GapSide(NamedTuple):
    """One side at one hidden layer: rows of the dual, LayerNorm's factor, sqrt(E[phi²]), shares in
    the variance to come.
    """

    rows: Any
    scale: Array | None
    deviation: Array
    shares: Shares


def gap_side(arch: Architecture, layer: Layers, last: Any, q: Array) -> GapSide:
    """What a pair needs of one side, given the variances that enter a hidden layer."""
    v, scale = before_activation(arch, q)
    second = arch.rule.diagonal(v).k
    skipped = jnp.where(last, 0, q) if arch.residual else jnp.zeros_like(q)
    total = layer.W * second + layer.b + skipped
    shares = _shares(root(second), root(skipped), total)
    return GapSide(arch.rule.gap_rows(v), scale, root(second), shares)


def _shares(active: Array, skipped: Array, total: Array) -> Shares:
    constant = ratio(jnp.ones_like(total), root(total))
    return Shares(active * constant, constant, skipped * constant, total > 0)


def gap_step(
    arch: Architecture, layer: Layers, last: Any, one: GapSide, state: Moments, other: GapSide
) -> Moments:
    """One hidden layer and the Dense after it, for (signed gap, tangent kernel) of pairs: the first
    is the covariance after the `last`.
    """
    gap, theta = Gap(state[0]), state[1]
    active, rho, k_dot = arch.rule.of_gap(gap, one.rows, other.rows)
    k = one.deviation * other.deviation * rho
    before = theta if one.scale is None else theta * (one.scale * other.scale)
    nngp, new = dense(layer, k, k_dot, before)
    if arch.residual:
        new = new + jnp.where(last, 0, theta)
    skipped = gap.both if arch.residual else None
    return jnp.where(last, nngp, _in_sum(layer, one.shares, other.shares, active, skipped)), new


def _in_sum(
    layer: Layers, a: Shares, b: Shares, active: PoleGaps, skipped: PoleGaps | None
) -> Array:
    """The signed gap under a sum of kernels, given the gaps under each of them."""
    constant = layer.b * (a.constant * b.constant)
    unequal = layer.W * (a.active - b.active) ** 2 + layer.b * (a.constant - b.constant) ** 2
    aligned = layer.W * (a.active * b.active)
    minus, plus = aligned * active.minus, aligned * active.plus + 2 * constant
    if skipped is not None:
        unequal = unequal + (a.skipped - b.skipped) ** 2
        kept = a.skipped * b.skipped
        minus, plus = minus + kept * skipped.minus, plus + kept * skipped.plus
    signed = PoleGaps(minus + unequal / 2, plus + unequal / 2).nearer.signed
    return jnp.where(a.alive & b.alive, signed, 1)


class Inputs(NamedTuple):
    """One side before the first hidden layer: examples, their second moments, variances after the
    first Dense layer.
    """

    x: Array
    q0: Array
    q: Array


def first_gaps(layer: Layers, left: Inputs, products: Array, right: Inputs, distinct: Any) -> Array:
    """The signed gaps of pairs after the first Dense layer, given the second moments of the inputs.

    Pairs that are nearly parallel are compared feature by feature, if there are any that are
    `distinct`: not an example and itself.
    """
    # what has no derivatives is not differentiated
    layer, left, products, right = lax.stop_gradient((layer, left, products, right))
    r1, r2 = (ratio(jnp.ones_like(side.q0), root(side.q0)) for side in (left, right))
    rho = products * (r1[:, None] * r2[None, :])
    size = jnp.minimum(jnp.abs(rho), 1)
    near = (size >= 1 - NEAR) & distinct
    sign = jnp.where(rho >= 0, 1, -1).astype(rho.dtype)
    exact = lambda: jnp.where(near, _distances(left.x, r1, sign, right.x, r2), 1 - size)
    u = lax.cond(jnp.any(near), exact, lambda: 1 - size)
    shares1, shares2 = (_first_shares(side) for side in (left, right))
    at = lambda shares, axis: Shares(*(jnp.expand_dims(s, axis) for s in shares))
    data = Gap(jnp.where(rho >= 0, u, -jnp.maximum(u, jnp.finfo(u.dtype).tiny))).both
    return _in_sum(layer, at(shares1, 1), at(shares2, 0), data, None)


def _first_shares(side: Inputs) -> Shares:
    return _shares(root(side.q0), jnp.zeros_like(side.q), side.q)


def _distances(x1: Array, r1: Array, sign: Array, x2: Array, r2: Array) -> Array:
    """|u1 - sign u2|² / 2 of all pairs of unit vectors."""
    d = x1.shape[1]
    unit = lambda x, r: jnp.pad(x * (r * d**-0.5)[:, None], ((0, 0), (0, -d % BLOCK))).T
    u1, u2 = unit(x1, r1), unit(x2, r2)

    def add(m: Array, total: Array) -> Array:
        a, b = (lax.dynamic_slice_in_dim(u, m * BLOCK, BLOCK) for u in (u1, u2))
        return total + sum((a[k][:, None] - sign * b[k][None, :]) ** 2 for k in range(BLOCK))

    return lax.fori_loop(0, len(u1) // BLOCK, add, jnp.zeros_like(sign)) / 2


def with_derivative_of_covariance(signed: Array, q1: Array, q12: Array, q2: Array) -> Array:
    """Gaps with the derivative that moments give them: of differences of examples it would cost as
    much as they do.
    """
    return with_derivative(signed, -correlation(q1, q12, q2))


def covariance(signed: Array, q1: Array, q2: Array) -> Array:
    """The covariances of pairs, from their gaps."""
    return Gap(signed).rho * (root(q1) * root(q2))
