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

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.duals.dual_rule import Gap, PoleGaps
from ntk_jax.duals.numerics import NEAR, correlation, ratio, root, with_derivative
from ntk_jax.infinite.mlp.layers import (
    Architecture,
    Flag,
    Layers,
    Moments,
    before_activation,
    dense,
    tangent_before_activation,
)
from ntk_jax.platforms import by_platform
from ntk_jax.small_programs import is_small

BLOCK = 16
"""Features whose differences a CPU adds up before their sum is read and written."""


class Shares(NamedTuple):
    """Of one side: deviations of activation, constant and skip connection, over that of their
    sum, which is `alive` if it is not 0.
    """

    active: Array
    constant: Array
    skipped: Array
    alive: Array


class GapSide(NamedTuple):
    """One side at one hidden layer: rows of the dual, its factor before the activation,
    sqrt(E[phi²]), shares in the variance to come.
    """

    rows: Any
    scale: Array | None
    deviation: Array
    shares: Shares


def gap_side(
    arch: Architecture, layer: Layers, last: Flag, q: Array, second: Array, factor: Array | None
) -> GapSide:
    """What a pair needs of one side, given the variances that enter a hidden layer, E[phi²], and
    its factor.
    """
    v, scale = before_activation(arch, q, factor)
    skipped = jnp.where(last, 0, q) if arch.residual else jnp.zeros_like(q)
    total = layer.W * second + layer.b + skipped
    shares = _shares(second, skipped, total)
    return GapSide(arch.rule.gap_rows(v, second), scale, root(second), shares)


def _shares(active: Array, skipped: Array, total: Array) -> Shares:
    """Given the variances."""
    constant = ratio(jnp.ones_like(total), root(total))
    return Shares(_share(active, total), constant, _share(skipped, total), total > 0)


@jax.custom_jvp
def _share(part: Array, total: Array) -> Array:
    """sqrt(part / total), whose derivative does not overflow before it must."""
    return ratio(root(part), root(total))


@_share.defjvp
def _share_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    share = _share(*primals)
    relative = [ratio(t, p) for t, p in zip(tangents, primals, strict=True)]
    return share, share / 2 * (relative[0] - relative[1])


def gap_step(
    arch: Architecture,
    layer: Layers,
    last: Flag,
    one: GapSide,
    state: Moments,
    other: GapSide,
) -> Moments:
    """One hidden layer and the Dense after it, for (signed gap, tangent kernel) of pairs: the first
    is the covariance after the `last`.
    """
    gap, theta = Gap(state[0]), state[1]
    scale = None if one.scale is None or other.scale is None else one.scale * other.scale
    # a factor that is given may be negative
    seen = gap if scale is None or arch.layer_norm else _turned(gap, scale < 0)
    active, rho, k_dot = arch.rule.of_gap(seen, one.rows, other.rows)
    k = one.deviation * other.deviation * rho
    nngp, new = dense(layer, k, k_dot, tangent_before_activation(layer, theta, scale))
    if arch.residual:
        new = new + jnp.where(last, 0, theta)
    skipped = gap.both if arch.residual else None
    return jnp.where(last, nngp, _in_sum(layer, one.shares, other.shares, active, skipped)), new


def _turned(gap: Gap, where: Array) -> Gap:
    """That of -rho `where` it is so."""
    tiny = jnp.finfo(gap.signed.dtype).tiny
    opposite = gap.by_pole(-jnp.maximum(gap.signed, tiny), -gap.signed)
    return Gap(jnp.where(where, opposite, gap.signed))


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


class FirstSide(NamedTuple):
    """One side at the inputs: examples, their second moments, roots of these and reciprocals,
    shares in the variance after the first Dense layer.
    """

    x: Array
    q: Array
    s: Array
    r: Array
    shares: Shares


def first_side(layer: Layers, x: Array, q0: Array, q: Array) -> FirstSide:
    """Given second moments of the inputs and variances after the first Dense layer."""
    s = root(q0)
    return FirstSide(x, q0, s, ratio(jnp.ones_like(s), s), _shares(q0, jnp.zeros_like(s), q))


def first_step(
    layer: Layers, one: FirstSide, products: Array, other: FirstSide, distinct: Flag
) -> Moments:
    """The first Dense layer, given the second moments of pairs of inputs.

    Pairs that are nearly parallel are compared feature by feature, if there are any that are
    `distinct`: not an example and itself.
    """
    of = lambda a, b: (a[:, None], b[None, :])
    r1, r2 = of(one.r, other.r)
    rho = products * (r1 * r2)
    size = jnp.minimum(jnp.abs(rho), 1)
    near = (size >= 1 - NEAR) & distinct
    sign = jnp.where(rho >= 0, 1, -1).astype(rho.dtype)
    exact = lambda: jnp.where(near, _distances(one, sign, other), 1 - size)
    u = lax.cond(jnp.any(near), exact, lambda: 1 - size)
    data = Gap(sign * jnp.maximum(u, jnp.finfo(u.dtype).tiny))
    a = Shares(*(s[:, None] for s in one.shares))
    b = Shares(*(s[None, :] for s in other.shares))
    signed = _in_sum(layer, a, b, data.both, None)
    # an example in both sets has its own second moment, to the bit
    (q1, q2), (s1, s2) = of(one.q, other.q), of(one.s, other.s)
    c = sign * (1 - u) * jnp.where(q1 == q2, q1, s1 * s2)
    # the gap of an example and itself is as good as any: what such pairs have is known
    return jnp.where(distinct, signed, 1), layer.W_eta * c + layer.b_eta


def _distances(one: FirstSide, sign: Array, other: FirstSide) -> Array:
    """|u1 - sign u2|² / 2 of all pairs of unit vectors."""
    d = one.x.shape[1]
    u1, u2 = ((side.x * (side.r * d**-0.5)[:, None]).T for side in (one, other))
    squares = lambda a, sign, b: (a[..., :, None] - sign * b[..., None, :]) ** 2

    def in_blocks(u1: Array, sign: Array, u2: Array) -> Array:
        u1, u2 = (jnp.pad(u, ((0, -d % BLOCK), (0, 0))) for u in (u1, u2))

        def add(m: Array, total: Array) -> Array:
            a, b = (lax.dynamic_slice_in_dim(u, m * BLOCK, BLOCK) for u in (u1, u2))
            return total + sum(squares(a[k], sign, b[k]) for k in range(BLOCK))

        return lax.fori_loop(0, len(u1) // BLOCK, add, jnp.zeros_like(sign))

    in_one_pass = lambda u1, sign, u2: jnp.sum(squares(u1, sign[None], u2), axis=0)
    if is_small(sign.size):  # slower, and four times as quick to compile
        return in_one_pass(u1, sign, u2) / 2
    return by_platform(in_blocks, in_one_pass, u1, sign, u2) / 2


def with_derivatives_of_moments(state: Moments, q1: Array, moments: Moments, q2: Array) -> Moments:
    """The state with the derivatives that covariance and tangent kernel give it: of differences of
    examples they would cost as much as these.
    """
    (signed, theta), (k, reference) = state, moments
    far = -correlation(q1, k, q2)
    return with_derivative(signed, far), with_derivative(theta, reference)


def covariance(signed: Array, q1: Array, q2: Array) -> Array:
    """The covariances of pairs, from their gaps."""
    return Gap(signed).rho * (root(q1) * root(q2))
