"""The sums of a Hermite series: coefficients at one variance, moments of a pair, derivatives.

All derivatives of a dual are again moments of the same kind: with M_ij = E[phi^(i)(u) phi^(j)(v)],
Price's theorem reads d M_ij = M_(i+1)(j+1) dq12 + M_(i+2)j / 2 dq11 + M_i(j+2) / 2 dq22.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.duals.dual_rule import derivative
from ntk_jax.duals.hermite_coefficients import basis, breakpoints, nodes_and_weights, panel_rule
from ntk_jax.duals.hermite_series import nearly_parallel
from ntk_jax.duals.hermite_series.expansion import Expansion
from ntk_jax.duals.kinks import kinks
from ntk_jax.duals.kinks.kinks import View
from ntk_jax.duals.numerics import TAIL, ratio, root, ulps
from ntk_jax.linalg import matmul
from ntk_jax.platforms import by_platform

CHUNK = 16  # terms in one pass: more make compilation slow, fewer make passes over the pairs
AT_ONCE = 4  # passes in one trip on an accelerator


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


def coefficients(series: Expansion, order: int, q: Array) -> Coefficients:
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
    return Coefficients(total, None, _tail(series, q, values, total) if order < 2 else None)


def second_moment(series: Expansion, order: int, q: Array) -> Array:
    """E[phi^(order)(sigma z)²], by panels with a break at every kink."""
    s = root(q)[..., None]
    u, w = _kinked_rule(series, q)
    f = derivative(series.phi, order)(s * u)
    return jnp.sum(w * f * f, axis=-1)


def _row(a: np.ndarray, q: Array) -> Array:
    """Values along one more axis than `q` has."""
    return jnp.asarray(a, q.dtype).reshape((1,) * q.ndim + (-1,))


def _kinked_rule(series: Expansion, q: Array) -> tuple[Array, Array]:
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


def _tail(series: Expansion, q: Array, values: Array, total: Array) -> Array:
    """Square roots of what the even and odd terms left out hold of E[phi^(order)²] (Parseval), (2,
    ...), given the values at the nodes, which are symmetric about 0.
    """
    w = _row(nodes_and_weights(series.levels, series.reach)[1], q)
    halves = [(values + sign * jnp.flip(values, axis=-1)) / 2 for sign in (1, -1)]
    energy = [
        jnp.sum(w * h * h, axis=-1) - jnp.sum(total[parity::2] ** 2, axis=0)
        for parity, h in enumerate(halves)
    ]
    floor = ulps(TAIL, q.dtype) * jnp.sum(total**2, axis=0)  # below it a tail is rounding
    return jnp.stack([root(jnp.where(e > floor, e, 0)) for e in energy])


def series_sum(a: Coefficients, b: Coefficients, rho: Array, terms: int) -> Array:
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
    value = jnp.broadcast_to(value, jnp.broadcast_shapes(*_shapes(value, pairs)))

    by_horner = lambda trips: partial(_by_horner, pairs, math.gcd(terms, CHUNK), trips)
    return by_platform(by_horner(1), by_horner(AT_ONCE), value, rho)


def _by_horner(
    pairs: list[tuple[Array, Array, int]], chunk: int, at_once: int, value: Array, rho: Array
) -> Array:
    """A pass for every chunk of terms, and so many of them in each trip of a loop."""
    # Terms are scanned, not written out: both schedules are traced, the other one for nothing.

    def term(value: Array, at: list[list[Array]]) -> tuple[Array, None]:
        signed = (sign * (a * b) for (a, b), (*_, sign) in zip(at, pairs, strict=True))
        return value * rho + sum(signed), None

    def terms(value: Array, at: list[list[Array]]) -> tuple[Array, None]:
        if len(pairs[0][0]) > chunk:
            # A pass of all terms would have more operands than XLA for a GPU takes.
            value, at = lax.optimization_barrier((value, at))
        return lax.scan(term, value, at, reverse=True, unroll=chunk)

    chunked = [[c.reshape(-1, chunk, *c.shape[1:]) for c in both] for *both, _ in pairs]
    return lax.scan(terms, value, chunked, reverse=True, unroll=at_once)[0]


def _shapes(value: Array, pairs: list[tuple[Array, Array, int]]) -> list[tuple[int, ...]]:
    return [value.shape, *(c.shape[1:] for left, right, _ in pairs for c in (left, right))]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def pair_moments(
    series: Expansion, rows1: Rows, q12: Array, rows2: Rows, pole_gap: Array | None
) -> tuple[Array, Array]:
    """k and k_dot, with derivatives by the variances and the covariance."""
    rho = jnp.clip(q12 * (rows1.r * rows2.r), -1, 1)
    k = series_sum(rows1.phi, rows2.phi, rho, series.count)
    k_dot = series_sum(rows1.slope, rows2.slope, rho, series.count)
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


@pair_moments.defjvp
def _pair_jvp(series: Expansion, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (rows1, q12, rows2, pole_gap), (d1, d12, d2, _) = primals, tangents
    return pair_moments(series, *primals), tuple(
        _d_moment(part, i, i, rows1.q, q12, rows2.q, pole_gap, d1.q, d12, d2.q)
        for i, part in enumerate((series, series.slope))
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def moment(
    series: Expansion, i: int, j: int, q11: Array, q12: Array, q22: Array, pole_gap: Array | None
) -> Array:
    """E[phi^(i)(u) phi^(j)(v)], differentiable to any order."""
    s1, s2 = root(q11), root(q22)
    rho = jnp.clip(q12 * (ratio(jnp.ones_like(s1), s1) * ratio(jnp.ones_like(s2), s2)), -1, 1)
    value = series_sum(
        coefficients(series, i, q11), coefficients(series, j, q22), rho, series.count
    )
    one, other = (kinks.view(series.kinks, q) for q in (q11, q22))
    return value + kinks.moments(series.kinks, ((i, j),), one, other, rho, pole_gap)[0]


@moment.defjvp
def _moment_jvp(series: Expansion, i: int, j: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    return moment(series, i, j, *primals), _d_moment(series, i, j, *primals, *tangents[:3])


def _d_moment(
    series: Expansion,
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
