"""The dual of any scalar function, by the Hermite (Mehler) series: E[f(u) g(v)] = sum_k a_k(f, q11)
a_k(g, q22) rho^k.

The coefficients a_k = E[f(sigma z) h_k(z)] cost one quadrature per example, a pair costs one
multiplication and addition per term. Kinks are split off as sums of one-sided powers, whose
coefficients and duals are exact (`kinks.py`): what remains is smooth and converges fast; of a
piecewise polynomial, a polynomial remains and nothing is left out.

All derivatives of the dual are again moments of the same kind: with M_ij = E[phi^(i)(u)
phi^(j)(v)], Price's theorem reads d M_ij = M_(i+1)(j+1) dq12 + M_(i+2)j / 2 dq11 + M_i(j+2) / 2
dq22. (Mehler 1866; Daniely, Frostig, Singer 2016, section 4.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from ntk_jax.compat import is_concrete
from ntk_jax.duals.dual_rule import Dual, DualRule, PoleGaps, derivative
from ntk_jax.duals.gaussian_pair import as_moments
from ntk_jax.duals.hermite_coefficients import basis, breakpoints, nodes_and_weights, panel_rule
from ntk_jax.duals.hermite_series import nearly_parallel
from ntk_jax.duals.hermite_series.expansion import Expansion
from ntk_jax.duals.hermite_series.fit import (
    enough_terms,
    errors,
    find_kink,
    fitted_rule,
    relative_error,
)
from ntk_jax.duals.hermite_series.resolution import kinks_of_derivative
from ntk_jax.duals.kinks import kinks
from ntk_jax.duals.kinks.kinks import View
from ntk_jax.duals.numerics import TAIL, ratio, root, ulps
from ntk_jax.linalg import matmul

CHUNK = 16  # terms per compiled loop: more make compilation slow, fewer make passes over the pairs


class Coefficients(NamedTuple):
    """Of one function at one side's variances: (terms, ...), of its singular part likewise, and the
    tail (2, ...).
    """

    all: Array
    singular: Array | None
    tail: Array | None


class Rows(NamedTuple):
    """One side of a pair: variance, the deviation's reciprocal, how it sees the kinks, coefficients
    of phi and of phi'.
    """

    q: Array
    r: Array
    seen: View
    phi: Coefficients
    slope: Coefficients


@dataclass(frozen=True)
class Series(Expansion, DualRule):
    """The dual of a scalar function by its Hermite series. Called on values, it takes as many terms
    as their variances ask for.

    Warns:
        UserWarning: (when called on values) the tolerance is not met.
    """

    unroll = 1
    adaptive = True
    exact = False

    @property
    def cusp(self) -> bool:
        return any(any(kink.jumps[:2]) for kink in self.kinks)

    @property
    def slope(self) -> "Series":
        """What phi' is almost everywhere: where phi jumps, a network has no delta function."""
        return (
            replace(self, kinks=kinks_of_derivative(self.kinks, 1))
            if any(kink.jumps[0] for kink in self.kinks)
            else self
        )

    def __call__(self, q11: ArrayLike, q12: ArrayLike, q22: ArrayLike) -> Dual:
        moments = as_moments(q11, q12, q22)
        q_max = [jnp.max(q, initial=0) for q in (moments[0], moments[2])]
        if not all(is_concrete(m) for m in (*moments, *q_max)):
            return super().__call__(*moments)
        if self.terms is not None:
            return _called(self, *moments)
        return _called(
            fitted_rule("duals", self, max(map(float, q_max)), moments[0].dtype, stacklevel=2),
            *moments,
        )

    def fitted(self, q_max: float, dtype: Any) -> DualRule:
        return self if self.terms else enough_terms(self, q_max, dtype)

    def shortfall(self, q_max: float, dtype: Any) -> str | None:
        worst, asked = (
            relative_error(self, q_max, dtype),
            self.tolerance or (1e-9 if dtype == jnp.float64 else 1e-5),
        )
        if worst <= max(asked, (1e-6 if dtype == jnp.float64 else 2e-5) if self.kinks else 0):
            return None
        return (
            f"the series of {self.phi!r} with {self.count} terms is within {worst:.1e} of the dual "
            "(relative, at variance "
            f"{q_max:.3g} and correlations near +-1, much closer elsewhere); asked for "
            f"{asked:.0e}. "
            "Use smaller weights, an activation with a closed form, or name the points other than "
            "0 where the function is not "
            "smooth: duals.series(phi, kinks=(...))."
        )

    def rows(self, q: Array) -> Rows:
        s = root(q)
        phi, slope = coefficients(self, 0, q), coefficients(self.slope, 1, q)
        return Rows(q, ratio(jnp.ones_like(s), s), kinks.view(self.kinks, q), phi, slope)

    def pair(self, rows1: Rows, q12: Array, rows2: Rows, pole_gap: Array | None = None) -> Dual:
        return Dual(*_pair(self, rows1, q12, rows2, pole_gap))

    def mean(self, q: Array) -> Array:
        return coefficients(self, 0, q).all[0]

    @property
    def description(self) -> str:
        """With the bound on its relative error at unit variance."""
        at = jnp.asarray(1.0)
        error = max(float(self.bound(at, at).k / self.diagonal(at).k), ulps(1, at.dtype))
        return f"series of {self.count} terms, error below {error:.0e}"

    def diagonal(self, q: Array) -> Dual:
        return Dual(*(second_moment(self, order, q) for order in (0, 1)))

    def near_rows(self, q: Array) -> nearly_parallel.Side:
        rows, second = self.rows(q), self.diagonal(q).k
        return nearly_parallel.side(rows, second, self.pair(rows, q, rows).k)

    def pole_gaps(
        self, inputs: PoleGaps, one: nearly_parallel.Side, other: nearly_parallel.Side
    ) -> tuple[PoleGaps, Array]:
        outputs, singular = nearly_parallel.pole_gaps(self.kinks, inputs, one, other)
        if self.slope is not self:
            singular = nearly_parallel.pole_gaps(self.slope.kinks, inputs, one, other)[1]
        rho = (inputs.plus - inputs.minus) / 2
        return outputs, singular + _sum(one.rows.slope, other.rows.slope, rho, self.count)

    def bound(self, q11: ArrayLike, q22: ArrayLike) -> Dual:
        """A bound on the error of k and k_dot at any correlation: Cauchy-Schwarz on what is left
        out and what is not seen.

        Raises:
            ValueError: inside jit, where variances are not known; what calling the series raises.
        """
        q11, _, q22 = as_moments(q11, 0, q22)
        if not (is_concrete(q11) and is_concrete(q22)):
            raise ValueError(
                "bound: expected variances that are known; got some inside jit. Take the bound "
                "outside of it."
            )
        pairs = np.stack(np.broadcast_arrays(np.asarray(q11, float), np.asarray(q22, float)))
        at = {q: errors(self, q, q11.dtype) for q in np.unique(pairs).tolist()}
        second, share = np.moveaxis(
            np.array([at[q] for q in pairs.ravel().tolist()]).reshape(*pairs.shape, 2, 2), -1, 0
        )
        return Dual(
            *jnp.asarray(
                np.moveaxis(np.sqrt(second[0] * second[1]) * share.max(axis=0), -1, 0), q11.dtype
            )
        )


@lru_cache(maxsize=256)
def series_rule(
    phi: Callable[[Array], Array], kinks: tuple[float, ...] = (), tolerance: float | None = None
) -> Series:
    """The series of a scalar function; a kink at 0 is found, others are named."""
    found = [find_kink(phi, float(c)) for c in sorted({0.0, *kinks})]
    return Series(phi, tuple(k for k in found if k is not None), tolerance=tolerance)


@partial(jax.jit, static_argnums=0)
def _called(series: Series, *moments: Array) -> Dual:
    """One program: a series has some hundred operations."""
    return super(Series, series).__call__(*moments)


def coefficients(series: Series, order: int, q: Array) -> Coefficients:
    """E[phi^(order)(sigma z) h_k(z)] for k below `terms`."""
    u, _ = nodes_and_weights(series.levels, series.reach)
    v = root(q)[..., None] * _row(u, q)
    values = derivative(series.phi, order)(v) - kinks.values(series.kinks, order, v)
    projection = jnp.asarray(basis(series.levels, series.count, series.reach), q.dtype)
    total = jnp.moveaxis(matmul(values, projection), -1, 0)
    if series.kinks:
        singular = kinks.coefficients(
            series.kinks, order, kinks.view(series.kinks, q), series.count
        )
        return Coefficients(total + singular, singular, None)
    return Coefficients(total, None, _tail(series, order, q, total) if order < 2 else None)


def second_moment(series: Series, order: int, q: Array) -> Array:
    """E[phi^(order)(sigma z)²], by panels with a break at every kink."""
    s = root(q)[..., None]
    u, w = _kinked_rule(series, q)
    f = derivative(series.phi, order)(s * u)
    return jnp.sum(w * f * f, axis=-1)


def _row(a: np.ndarray, q: Array) -> Array:
    """Values along one more axis than `q` has."""
    return jnp.asarray(a, q.dtype).reshape((1,) * q.ndim + (-1,))


def _kinked_rule(series: Series, q: Array) -> tuple[Array, Array]:
    away = [c for c, _ in series.kinks if c != 0]
    if not away:
        u, w = nodes_and_weights(series.levels, series.reach)
        return _row(u, q), _row(w, q)
    fixed = jnp.asarray(breakpoints(series.levels, series.reach), q.dtype)
    moved = jnp.clip(_row(np.array(away), q) * ratio(jnp.ones_like(q), root(q))[..., None], -14, 14)
    return panel_rule(
        jnp.sort(
            jnp.concatenate([jnp.broadcast_to(fixed, (*q.shape, fixed.size)), moved], axis=-1),
            axis=-1,
        )
    )


def _tail(series: Series, order: int, q: Array, total: Array) -> Array:
    """Square roots of what the even and odd terms left out hold of E[phi^(order)²] (Parseval), (2,
    ...).
    """
    s = root(q)[..., None]
    u, w = _kinked_rule(series, q)
    f = derivative(series.phi, order)
    halves = [(f(s * u) + sign * f(-s * u)) / 2 for sign in (1, -1)]
    energy = [
        jnp.sum(w * h * h, axis=-1) - jnp.sum(total[parity::2] ** 2, axis=0)
        for parity, h in enumerate(halves)
    ]
    floor = ulps(TAIL, q.dtype) * jnp.sum(total**2, axis=0)  # below it a tail is rounding
    return jnp.stack([root(jnp.where(e > floor, e, 0)) for e in energy])


def _sum(a: Coefficients, b: Coefficients, rho: Array, terms: int) -> Array:
    """sum_k (a_k b_k - S_k S'_k) rho^k by Horner's rule, plus the tail at the first powers left
    out; `terms` is even.
    """
    value = jnp.zeros_like(rho)
    if (
        a.tail is not None and b.tail is not None
    ):  # exact at rho = +-1 for equal variances, and 0 where terms suffice
        value = a.tail[0] * b.tail[0] + rho * (a.tail[1] * b.tail[1])
    pairs = [(a.all, b.all, 1)]
    if a.singular is not None and b.singular is not None:
        pairs.append((a.singular, b.singular, -1))
    chunk = math.gcd(terms, CHUNK)

    def step(m: Array, value: Array) -> Array:
        at = terms - chunk * (m + 1)
        cut = lambda c: lax.dynamic_slice_in_dim(c, at, chunk)
        parts = [(cut(left), cut(right), sign) for left, right, sign in pairs]
        for k in range(chunk - 1, -1, -1):
            value = value * rho + sum(sign * (left[k] * right[k]) for left, right, sign in parts)
        return value

    return lax.fori_loop(
        0,
        terms // chunk,
        step,
        jnp.broadcast_to(value, jnp.broadcast_shapes(*_shapes(value, pairs))),
    )


def _shapes(value: Array, pairs: list[tuple[Array, Array, int]]) -> list[tuple[int, ...]]:
    return [value.shape, *(c.shape[1:] for left, right, _ in pairs for c in (left, right))]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pair(
    series: Series, rows1: Rows, q12: Array, rows2: Rows, pole_gap: Array | None
) -> tuple[Array, Array]:
    rho = jnp.clip(q12 * (rows1.r * rows2.r), -1, 1)
    k = _sum(rows1.phi, rows2.phi, rho, series.count)
    k_dot = _sum(rows1.slope, rows2.slope, rho, series.count)
    if not series.kinks:
        return k, k_dot
    one, other = nearly_parallel.in_order(rows1.seen, rows2.seen, rows1.q, rows2.q)
    if series.slope is series:
        singular = kinks.moments(series.kinks, ((0, 0), (1, 1)), one, other, rho, pole_gap)
        return k + singular[0], k_dot + singular[1]
    parts = enumerate((series, series.slope))
    singular = [
        kinks.moments(part.kinks, ((i, i),), one, other, rho, pole_gap)[0] for i, part in parts
    ]
    return k + singular[0], k_dot + singular[1]


@_pair.defjvp
def _pair_jvp(series: Series, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (rows1, q12, rows2, pole_gap), (d1, d12, d2, _) = primals, tangents
    return _pair(series, *primals), tuple(
        _d_moment(part, i, i, rows1.q, q12, rows2.q, pole_gap, d1.q, d12, d2.q)
        for i, part in enumerate((series, series.slope))
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def moment(
    series: Series, i: int, j: int, q11: Array, q12: Array, q22: Array, pole_gap: Array | None
) -> Array:
    """E[phi^(i)(u) phi^(j)(v)], differentiable to any order."""
    s1, s2 = root(q11), root(q22)
    rho = jnp.clip(q12 * (ratio(jnp.ones_like(s1), s1) * ratio(jnp.ones_like(s2), s2)), -1, 1)
    value = _sum(coefficients(series, i, q11), coefficients(series, j, q22), rho, series.count)
    one, other = (kinks.view(series.kinks, q) for q in (q11, q22))
    return value + kinks.moments(series.kinks, ((i, j),), one, other, rho, pole_gap)[0]


@moment.defjvp
def _moment_jvp(series: Series, i: int, j: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    return moment(series, i, j, *primals), _d_moment(series, i, j, *primals, *tangents[:3])


def _d_moment(
    series: Series,
    i: int,
    j: int,
    q11: Array,
    q12: Array,
    q22: Array,
    pole_gap: Array | None,
    d11: Array,
    d12: Array,
    d22: Array,
) -> Array:
    at = q11, q12, q22, pole_gap
    return (
        moment(series, i + 1, j + 1, *at) * d12
        + moment(series, i + 2, j, *at) * (d11 / 2)
        + moment(series, i, j + 2, *at) * (d22 / 2)
    )
