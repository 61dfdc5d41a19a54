"""Duals of tanh, sigmoid, softplus and SiLU at any variance and correlation: mixtures of closed
forms over scales.

The logistic distribution is a scale mixture of normal ones: sigmoid(u) = E[Phi(u / S)], where S / 2
follows Kolmogorov's distribution (Andrews, Mallows 1974). So each of these functions is f(u) = c +
sum_i w_i s_i^p base(u / s_i) with a base of known dual: Phi for the sigmoid, z Phi(z) for SiLU, the
integral of Phi for softplus. Of a Gauss rule in log S, 10 points give the duals to 5e-12 and 6
points to 4e-8, at any variance and correlation; a Hermite series would need thousands of terms far
out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.duals.dual_rule import Dual, DualRule
from ntk_jax.duals.form import ClosedForm, partial_derivatives
from ntk_jax.duals.hermite_series.fit import enough_terms
from ntk_jax.duals.hermite_series.series import Series
from ntk_jax.platforms import packed_sum


class Logistic(NamedTuple):
    """Scales and weights of normal distributions that make up the logistic one
    (tests/references/logistic_mixture.py).
    """

    scales: tuple[float, ...]
    weights: tuple[float, ...]


SINGLE = Logistic(
    (
        0.7675129544992112, 1.0458260195885156, 1.4394128684692153, 2.0114754080268566,
        2.8063576421270335, 3.8871781307111988,
    ),
    (
        0.007484715142298019, 0.13130282973515148, 0.3978567237942512, 0.35767481797947936,
        0.10042087022320553, 0.005260043125614423,
    ),
)  # fmt: skip
DOUBLE = Logistic(
    (
        0.604503145158677, 0.7566800543617584, 0.9441582287229336, 1.188291082984385,
        1.5120831933987853, 1.9384298811363463, 2.4825214891994642, 3.152796723181404,
        3.9706016525812884, 5.014787011649723,
    ),
    (
        6.956693914282693e-05, 0.004269207908548157, 0.04738941802790831, 0.18070483007429805,
        0.31218265753701563, 0.28238643603317676, 0.13792370581355803, 0.032311345253772,
        0.0027201514350036543, 4.2680977576607146e-05,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Mixture(DualRule):
    """The dual of c + a sum_i w_i s_i^p base(b u / s_i) over the logistic law's scales s_i and
    weights w_i.

    Attributes:
        base: a closed form; of mean zero unless c is 0.
        phi: the same as a JAX function.
        power: p.
        gain: a.
        rate: b.
        shift: c.
    """

    base: ClosedForm
    phi: Callable[[Array], Array]
    power: int = 0
    gain: float = 1.0
    rate: float = 1.0
    shift: float = 0.0
    unroll = 1
    adaptive = True
    by_terms = True

    def fitted(self, q_max: float, dtype: Any) -> DualRule:
        """A short series instead, if one is exact: in float32 a mixture of six scales costs less
        than 32 terms.
        """
        if jnp.dtype(dtype) != jnp.float64:
            return self
        short = enough_terms(Series(self.phi), q_max, dtype)
        return short if short.count <= 160 else self

    def rows(self, q: Array) -> "_Rows":
        """The variances, and those at every scale."""
        rates = jnp.asarray([self.rate / s for s in _law(q.dtype).scales], q.dtype)
        return _Rows(q, rates.reshape(-1, *[1] * q.ndim) ** 2 * q[None])

    def mean(self, q: Array) -> Array:
        """The sum over scales."""
        s, w = map(np.array, _law(q.dtype))
        weights = jnp.asarray(self.gain * w * s**self.power, q.dtype)
        means = self.base.mean(self.rows(q).scaled)
        return self.shift + jnp.sum(weights.reshape(-1, *[1] * q.ndim) * means, axis=0)

    @property
    def description(self) -> str:
        """The base and how many scales."""
        base, count = self.base.form.dual.__name__, len(DOUBLE.scales)
        return f"mixture of closed forms: {base} at {count} scales"

    def pair(self, rows1: "_Rows", q12: Array, rows2: "_Rows") -> Dual:
        """The double sum over scales."""
        return Dual(*_pair(self, rows1, q12, rows2))


class _Rows(NamedTuple):
    """One side's variances, and those of the arguments of the base at every scale, on a leading
    axis.
    """

    q: Array
    scaled: Array


class _Pairs(NamedTuple):
    """Pairs of scales in both orders (pairs, 2), the factor of the covariance, and the weights in k
    and in k_dot.
    """

    first: Array
    second: Array
    rate: Array
    k: Array
    k_dot: Array


def _law(dtype: Any) -> Logistic:
    return DOUBLE if dtype == jnp.float64 else SINGLE


def _pairs(rule: Mixture, dtype: Any) -> _Pairs:
    s, w = map(np.array, _law(dtype))
    i, j = np.tril_indices(len(s))
    product, half = s[i] * s[j], np.where(i == j, 0.5, 1.0)
    k = half * w[i] * w[j] * rule.gain**2 * product**rule.power
    rates = rule.rate**2 / product
    weights = (jnp.asarray(a, dtype) for a in (rates, k, k * rates))
    return _Pairs(jnp.asarray(np.stack([i, j], 1)), jnp.asarray(np.stack([j, i], 1)), *weights)


def _moments(
    at: _Pairs, m: Array, rows1: _Rows, q12: Array, rows2: _Rows
) -> tuple[Array, Array, Array]:
    """Moments of the base's arguments at the m-th pair of scales, in both orders on a leading
    axis.
    """
    return rows1.scaled[at.first[m]], (q12 * at.rate[m])[None], rows2.scaled[at.second[m]]


def _zero(rows1: _Rows, q12: Array, rows2: _Rows) -> Array:
    return jnp.zeros((2, *jnp.broadcast_shapes(rows1.q.shape, q12.shape, rows2.q.shape)), q12.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pair(rule: Mixture, rows1: _Rows, q12: Array, rows2: _Rows) -> tuple[Array, Array]:
    at, zero = _pairs(rule, q12.dtype), _zero(rows1, q12, rows2)

    def term(m: Array) -> tuple[Array, Array]:
        dual = rule.base.form.dual(*_moments(at, m, rows1, q12, rows2), *rule.base.options)
        return at.k[m] * dual.k, at.k_dot[m] * dual.k_dot

    # the two orders are added last: exchanging the sides exchanges two numbers, and their sum has
    # the same bits
    total = jnp.sum(packed_sum(term, len(at.k), zero), axis=0)
    return total.real + rule.shift**2, total.imag


@_pair.defjvp
def _pair_jvp(rule: Mixture, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Partial derivatives first: a reverse pass then need not remember every step of the sum."""
    out, moments = _pair(rule, *primals), (tangents[0].q, tangents[1], tangents[2].q)
    of_k, of_k_dot = _partial_derivatives(rule, *primals)
    of_k = of_k[0], out[1], of_k[1]  # the middle one by Price's theorem
    return out, tuple(
        sum(g * t for g, t in zip(row, moments, strict=True)) for row in (of_k, of_k_dot)
    )


def _partial_derivatives(rule: Mixture, rows1: _Rows, q12: Array, rows2: _Rows) -> tuple[Any, Any]:
    """Of k by (q11, q22) and of k_dot by (q11, q12, q22)."""
    at, zero = _pairs(rule, q12.dtype), _zero(rows1, q12, rows2)
    squares = jnp.asarray([(rule.rate / s) ** 2 for s in _law(q12.dtype).scales], q12.dtype)
    column = (2, *[1] * q12.ndim)

    def step(m: Array, totals: Any) -> Any:
        a, b = (squares[index[m]].reshape(column) for index in (at.first, at.second))
        moments = _moments(at, m, rows1, q12, rows2)
        slope = rule.base.form.dual(*moments, *rule.base.options).k_dot
        k, k_dot = partial_derivatives(rule.base, slope, *moments)
        of_k = [
            t + at.k[m] * (r * d) for t, r, d in zip(totals[0], (a, b), (k[0], k[2]), strict=True)
        ]
        of_k_dot = [
            t + at.k_dot[m] * (r * d)
            for t, r, d in zip(totals[1], (a, at.rate[m], b), k_dot, strict=True)
        ]
        return of_k, of_k_dot

    totals = lax.fori_loop(0, len(at.k), step, ([zero] * 2, [zero] * 3))
    return jax.tree.map(lambda t: jnp.sum(t, axis=0), totals)
