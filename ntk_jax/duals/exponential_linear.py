"""Duals of elu, selu and celu: a line above 0, an exponential below, by the integral of
`price_integral.py`.

At the pole, k is the inner product of two functions of one normal z, known by their values at nodes
z < 0; that of unequal variances is apart from the product of their norms by half of the squared
distance of their directions, which does not cancel. So 1 - rho' of nearly parallel pairs is as good
as their angle.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from ntk_jax.duals.angle import beyond_cusp
from ntk_jax.duals.dual_rule import Dual, DualOfGap, DualRule, Gap, PoleGaps
from ntk_jax.duals.gaussian_pair import as_moments
from ntk_jax.duals.hermite_series.fit import fitted_to
from ntk_jax.duals.mills import mills
from ntk_jax.duals.numerics import CORRELATION, ratio, root, ulps, with_derivative
from ntk_jax.duals.price_integral import DENSITY, Way, integrals, tail, unit_interval, way
from ntk_jax.platforms import by_platform

LEVEL, MOST = 4, 12  # of variances that are not known, and of all


class Rows(NamedTuple):
    """One side: variance of u, deviation of w = rate u, E[exp(w)] below 0, |f|, s / |f|,
    E[f] / |f|, and the direction of f: above 0, and at nodes below (nodes + 1, ...).
    """

    q: Array
    s: Array
    tail: Array
    norm: Array
    share: Array
    mean: Array
    direction: Array


@dataclass(frozen=True)
class ExponentialLinear(DualRule):
    """phi(u) = f(rate u), f(w) = a w for w > 0, c (exp(w) - 1) below; rate > 0.

    `level`: exact at variances of w up to 4^level.
    """

    a: float
    c: float
    rate: float = 1.0
    level: int = LEVEL
    unroll = 1
    adaptive = True

    @property
    def cusp(self) -> bool:
        return self.a != self.c

    def __call__(self, q11: ArrayLike, q12: ArrayLike, q22: ArrayLike) -> Dual:
        moments = as_moments(q11, q12, q22)
        return DualRule.__call__(fitted_to(self, moments), *moments)

    @property
    def own(self) -> DualRule:
        return replace(self, level=LEVEL)

    def fitted(self, q_max: float, dtype: DTypeLike) -> DualRule:
        level = math.log(max(q_max * self.rate**2, 1.0), 4)
        return replace(self, level=min(math.ceil(level - 1e-6), MOST))

    def rows(self, q: Array) -> Rows:
        s = self.rate * root(q)
        values = _values(self, s)
        size = jnp.sqrt(jnp.sum(values**2, axis=0))
        share = 1 / size
        return Rows(q, s, tail(s), s * size, share, _mean(values) * share, values * share[None])

    def pair(self, rows1: Rows, q12: Array, rows2: Rows) -> Dual:
        k, k_dot, _ = _pair(self, rows1, q12, rows2, None)
        return Dual(k, k_dot)

    def mean(self, q: Array) -> Array:
        s = self.rate * root(q)
        return s * _mean(_values(self, s))

    @property
    def description(self) -> str:
        return "closed form up to one integral: a line and an exponential"

    def diagonal(self, q: Array) -> Dual:
        s = self.rate * root(q)
        square = jnp.sum(_values(self, s) ** 2, axis=0)
        slopes = self.a**2 / 2 + self.c**2 * tail(2 * s)
        return Dual(self.rate**2 * q * square, self.rate**2 * slopes)

    def gap_rows(self, q: Array, second: Array) -> Rows:
        return self.rows(q)

    def of_gap(self, gap: Gap, rows1: Rows, rows2: Rows) -> DualOfGap:
        q12 = gap.rho * (root(rows1.q) * root(rows2.q))
        k, k_dot, minus = _pair(self, rows1, q12, rows2, gap.pole_gap)
        far = -k * (ratio(1, rows1.norm) * ratio(1, rows2.norm))
        minus = with_derivative(minus, far)
        return DualOfGap(PoleGaps(minus, 2 - minus), 1 - minus, k_dot)


@lru_cache(maxsize=2)
def _half_line(double: bool) -> tuple[np.ndarray, np.ndarray]:
    """Nodes z > 0, as exact for exp(-100 z) as for 1, and the roots of their weights, which contain
    the normal density.
    """
    count, end, k = (44, 8.7, 5.0) if double else (20, 6.0, 5.0)
    x, w = unit_interval(count)
    z, dz = (end / np.expm1(k) * g for g in (np.expm1(k * x), k * np.exp(k * x)))
    return z, np.sqrt(w * dz * np.exp(-z * z / 2) * DENSITY)


def _values(rule: ExponentialLinear, s: Array) -> Array:
    """|f(s z)| / s, above 0 and at the nodes below, times the roots of the weights."""
    z, weights = (_column(v, s) for v in _half_line(s.dtype == jnp.float64))
    above = jnp.full_like(s, rule.a * 0.5**0.5)
    s = jnp.maximum(s, 1e-18)[None]
    return jnp.concatenate([above[None], -rule.c * weights * jnp.expm1(-s * z) / s])


def _mean(values: Array) -> Array:
    """E[f] / s: above 0, less that below."""
    _, weights = _half_line(values.dtype == jnp.float64)
    signed = np.concatenate([[math.pi**-0.5], -weights])
    return jnp.sum(_column(signed, values[0]) * values, axis=0)


def _column(a: np.ndarray, like: Array) -> Array:
    """On an axis in front."""
    return jnp.asarray(a, like.dtype).reshape(-1, *[1] * like.ndim)


_Given = tuple[Rows, Array, Rows, Array | None]
_Out = tuple[Array, Array, Array]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pair(
    rule: ExponentialLinear, rows1: Rows, q12: Array, rows2: Rows, pole_gap: Array | None
) -> _Out:
    """k, k_dot, and 1 less the correlation of the activations, whose derivative is that of k: it
    has none of its own.
    """
    to, _ = _to(rows1, q12, rows2, pole_gap)
    sides = rows1.s, rows1.tail, rows2.s, rows2.tail
    k_dot, lack = integrals(rule.a, rule.c, rule.level, *sides, to)
    apart = _half_squared_distance(rows1.direction, rows2.direction)
    start = jnp.where(to.positive, apart, 1 - rows1.mean * rows2.mean)
    minus = start + (rows1.share * rows2.share) * lack
    return (rows1.norm * rows2.norm) * (1 - minus), rule.rate**2 * k_dot, minus


def _to(rows1: Rows, q12: Array, rows2: Rows, pole_gap: Array | None) -> tuple[Way, Array]:
    """The way to a correlation, and this."""
    r1, r2 = (ratio(1, root(rows.q)) for rows in (rows1, rows2))
    rho = jnp.clip(q12 * (r1 * r2), -1, 1)
    if pole_gap is None:
        far = 1 - jnp.where(rho > 0, rho, -rho)  # not `abs`: orthogonal inputs have a derivative
        pole_gap = jnp.where(far <= ulps(CORRELATION, far.dtype), 0, far)
    return way(rho, pole_gap), rho


def _half_squared_distance(a: Array, b: Array) -> Array:
    """|a - b|² / 2 along the leading axis."""
    count = 15 if len(a) % 15 == 0 else 7  # that a CPU adds up before their sum is written
    chunked = [v.reshape(-1, count, *v.shape[1:]) for v in (a, b)]
    squares = lambda u, v: sum((u[i] - v[i]) ** 2 for i in range(count))

    def by_chunks(a: Array, b: Array) -> Array:
        zero = jnp.zeros(jnp.broadcast_shapes(a.shape[2:], b.shape[2:]), a.dtype)
        return lax.scan(lambda total, ab: (total + squares(*ab), None), zero, (a, b))[0]

    in_one_pass = lambda a, b: jnp.sum((a - b) ** 2, axis=(0, 1))
    return by_platform(by_chunks, in_one_pass, *chunked) / 2


@_pair.defjvp
def _pair_jvp(rule: ExponentialLinear, primals: _Given, tangents: _Given) -> tuple[_Out, _Out]:
    """Partial derivatives first: a reverse pass then need not remember every step of the sums."""
    (rows1, q12, rows2, pole_gap), (d1, d12, d2, _) = primals, tangents
    out = _pair(rule, *primals)
    k_dot, (to, rho) = out[1], _to(rows1, q12, rows2, pole_gap)
    q1, q2, s1, s2 = rows1.q, rows2.q, rows1.s, rows2.s
    ones = [jnp.stack([jnp.full_like(s, i == j) for i in range(2)]) for j, s in enumerate((s1, s2))]
    at = partial(_at_correlation, rule, to)
    of_k, of_k_dot = jax.vmap(lambda *along: jax.jvp(at, (s1, s2), along)[1])(*ones)
    slope = _slope(rule, rows1, rows2, to)
    r = ratio(1, root(q1)) * ratio(1, root(q2))
    by_q = lambda i, q, s: (
        (of_k[i] * s - k_dot * q12) * (ratio(1, q) / 2),
        (rule.rate**2 * of_k_dot[i] * s - slope * rho) * (ratio(1, q) / 2),
    )
    (k1, k_dot1), (k2, k_dot2) = by_q(0, q1, s1), by_q(1, q2, s2)
    dk = k1 * d1.q + k_dot * d12 + k2 * d2.q
    dk_dot = k_dot1 * d1.q + slope * r * d12 + k_dot2 * d2.q
    return out, (dk, dk_dot, jnp.zeros_like(dk))


def _at_correlation(rule: ExponentialLinear, to: Way, s1: Array, s2: Array) -> tuple[Array, Array]:
    """k and E[f' f'], to be differentiated by the deviations."""
    k_dot, lack = integrals(rule.a, rule.c, rule.level, s1, tail(s1), s2, tail(s2), to)
    one, other = (_values(rule, s) for s in (s1, s2))
    start = jnp.where(to.positive, jnp.sum(one * other, axis=0), _mean(one) * _mean(other))
    return s1 * s2 * (start - lack), k_dot


def _slope(rule: ExponentialLinear, rows1: Rows, rows2: Rows, to: Way) -> Array:
    """The derivative of k_dot by the correlation: p E[f'' f''], f'' = (a - c) delta + c exp below
    0.
    """
    s1, s2, jump, sine = rows1.s, rows2.s, rule.a - rule.c, to.angle.sine
    at_one = s1 * mills(s1 * sine) + s2 * mills(s2 * sine)
    cusp = jnp.where(beyond_cusp(to.angle.u) > 0, to.angle.inverse_sine(), 0)
    singular = jump * (jump * cusp + rule.c * at_one) / (2 * math.pi)
    both, _ = integrals(0.0, rule.c, rule.level, s1, rows1.tail, s2, rows2.tail, to)
    return rule.rate**2 * (singular + s1 * s2 * both)
