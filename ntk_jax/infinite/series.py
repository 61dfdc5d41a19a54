"""The dual of any scalar function, by the Hermite (Mehler) series: E[f(u) g(v)] = sum_k a_k(f, q11) a_k(g, q22) rho^k.

The coefficients a_k = E[f(sigma z) h_k(z)] cost one quadrature per example, a pair costs one multiplication and addition
per term. Kinks at 0 are split off as sums of relu(u)^p, whose coefficients and duals are exact (`half_gaussian.py`): what
remains is smooth and converges fast. Kinks elsewhere are split off for exact coefficients only.

All derivatives of the dual are again moments of the same kind: with M_ij = E[phi^(i)(u) phi^(j)(v)], Price's theorem reads
d M_ij = M_(i+1)(j+1) dq12 + M_(i+2)j / 2 dq11 + M_i(j+2) / 2 dq22. (Mehler 1866; Daniely, Frostig, Singer 2016, section 4.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from ntk_jax.infinite.dual import Dual, DualRule, ratio, root
from ntk_jax.infinite.half_gaussian import MixedOrders
from ntk_jax.infinite.hermite import basis, breakpoints, nodes_and_weights, panel_rule, step_coefficients
from ntk_jax.linalg import matmul

CHUNK = 16  # terms per compiled loop: more make compilation slow, fewer make passes over the pairs


class Kink(NamedTuple):
    """A point where phi is not smooth, and the jumps there of phi, phi', phi'' and phi'''."""

    at: float
    jumps: tuple[float, ...]


class Coefficients(NamedTuple):
    """Of one function at one side's variances: (terms, ...), of its part singular at 0 likewise, and the tail (2, ...)."""

    all: Array
    singular: Array | None
    tail: Array | None


class Rows(NamedTuple):
    """One side of a pair: variance, deviation and its reciprocal, coefficients of phi and of phi'."""

    q: Array
    s: Array
    r: Array
    phi: Coefficients
    slope: Coefficients


@dataclass(frozen=True)
class Series(DualRule):
    """The dual of the scalar function `phi` by `terms` terms.

    Attributes:
        phi: a scalar JAX function, applied to arrays element by element.
        kinks: where it is not smooth.
        terms: how many terms of the series.
        levels: the quadrature resolves 0 for standard deviations up to about 2^levels.
        tolerance: what `fit` asks of the tail; None for 1e-10 in float64 and 1e-7 in float32.
    """

    phi: Callable[[Array], Array]
    kinks: tuple[Kink, ...] = ()
    terms: int = 64
    levels: int = 12
    tolerance: float | None = None
    unroll = 1

    def rows(self, q):
        s = root(q)
        return Rows(q, s, ratio(jnp.ones_like(s), s), *(coefficients(self, order, q) for order in (0, 1)))

    def pair(self, rows1, q12, rows2):
        return Dual(*_pair(self, rows1, q12, rows2))

    def own(self, q):
        return Dual(*(second_moment(self, order, q) for order in (0, 1)))

    def bound(self, q11: ArrayLike, q22: ArrayLike) -> Dual:
        """A bound on the error of k and k_dot at any correlation: Cauchy-Schwarz on the terms that are left out."""
        return Dual(*(_tail_bound(self, order, jnp.asarray(q11), jnp.asarray(q22)) for order in (0, 1)))


def _tangent(f, v):
    return jax.jvp(f, (v,), (jnp.ones_like(v),))[1]


def derivative(phi: Callable[[Array], Array], order: int) -> Callable[[Array], Array]:
    """The `order`-th derivative of an elementwise function."""
    for _ in range(order):
        phi = partial(_tangent, phi)
    return phi


def _jump_terms(series: Series, order: int) -> list[tuple[float, int, float]]:
    """Of the `order`-th derivative's singular part: (where, power p of relu(v - c)^p / p!, factor)."""
    return [(c, p - order, jump) for c, jumps in series.kinks for p, jump in enumerate(jumps) if jump]


def _remainder(series: Series, order: int, v: Array) -> Array:
    """phi^(order) without its singular part: smooth, so that fixed panels integrate it."""
    value = derivative(series.phi, order)(v)
    for c, p, jump in _jump_terms(series, order):
        if p >= 0:
            value = value - jump / math.factorial(p) * jnp.where(v > c, (v - c) ** p, 0)
    return value


def _power(s: Array, p: int) -> Array:
    return s**p if p >= 0 else ratio(jnp.ones_like(s), s) ** -p


def coefficients(series: Series, order: int, q: Array) -> Coefficients:
    """E[phi^(order)(sigma z) h_k(z)] for k below `terms`."""
    u, _ = nodes_and_weights(series.levels)
    s = root(q)
    values = _remainder(series, order, s[..., None] * _row(u, q))
    projection = jnp.asarray(basis(series.levels, series.terms), q.dtype)
    smooth = jnp.moveaxis(matmul(values, projection), -1, 0)
    total, singular = smooth, None
    for c, p, jump in _jump_terms(series, order):
        if c == 0.0:
            part: Any = jnp.asarray(step_coefficients(np.zeros(1), series.terms, p), q.dtype)
            part = jump * part.reshape(-1, *[1] * q.ndim) * _power(s, p)[None]
            singular = part if singular is None else singular + part
        else:
            part = jump * step_coefficients(c * ratio(jnp.ones_like(s), s), series.terms, p) * _power(s, p)[None]
        total = total + part
    tail = None
    if singular is None and order < 2:
        tail = _tail(series, order, q, total)
    return Coefficients(total, singular, tail)


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
    away = [c for c, _ in series.kinks if c != 0.0]
    if not away:
        u, w = nodes_and_weights(series.levels)
        return _row(u, q), _row(w, q)
    fixed = jnp.asarray(breakpoints(series.levels), q.dtype)
    moved = jnp.clip(_row(np.array(away), q) * ratio(jnp.ones_like(q), root(q))[..., None], -14, 14)
    return panel_rule(
        jnp.sort(jnp.concatenate([jnp.broadcast_to(fixed, (*q.shape, fixed.size)), moved], axis=-1), axis=-1)
    )


def _tail(series: Series, order: int, q: Array, total: Array) -> Array:
    """Square roots of what the even and odd terms left out hold of E[phi^(order)²] (Parseval), (2, ...)."""
    s = root(q)[..., None]
    u, w = _kinked_rule(series, q)
    f = derivative(series.phi, order)
    halves = [(f(s * u) + sign * f(-s * u)) / 2 for sign in (1, -1)]
    energy = [jnp.sum(w * h * h, axis=-1) - jnp.sum(total[parity::2] ** 2, axis=0) for parity, h in enumerate(halves)]
    floor = 4 * float(jnp.finfo(q.dtype).eps) * jnp.sum(total**2, axis=0)  # below it a tail is rounding
    return jnp.stack([root(jnp.where(e > floor, e, 0)) for e in energy])


def _sum(a: Coefficients, b: Coefficients, rho: Array, terms: int) -> Array:
    """sum_k (a_k b_k - S_k S'_k) rho^k by Horner's rule, plus the tail at the first powers left out; `terms` is even."""
    value = jnp.zeros_like(rho)
    if a.tail is not None and b.tail is not None:  # exact at rho = +-1 for equal variances, and 0 where terms suffice
        value = a.tail[0] * b.tail[0] + rho * (a.tail[1] * b.tail[1])
    pairs = [(a.all, b.all, 1)]
    if a.singular is not None and b.singular is not None:
        pairs.append((a.singular, b.singular, -1))
    chunk = math.gcd(terms, CHUNK)

    def step(m, value):
        at = terms - chunk * (m + 1)
        parts = [
            (*(lax.dynamic_slice_in_dim(c, at, chunk) for c in (left, right)), sign) for left, right, sign in pairs
        ]
        for k in range(chunk - 1, -1, -1):
            value = value * rho + sum(sign * (left[k] * right[k]) for left, right, sign in parts)
        return value

    return lax.fori_loop(0, terms // chunk, step, jnp.broadcast_to(value, jnp.broadcast_shapes(*_shapes(value, pairs))))


def _shapes(value: Array, pairs: list[tuple[Array, Array, int]]) -> list[tuple[int, ...]]:
    return [value.shape, *(c.shape[1:] for left, right, _ in pairs for c in (left, right))]


def _singular(series: Series, i: int, j: int, s1: Array, s2: Array, orders: MixedOrders) -> Array | float:
    """E[S^(i)(u) S^(j)(v)] of the part singular at 0, in closed form."""
    total: Any = 0.0
    for c1, p1, jump1 in _jump_terms(series, i):
        for c2, p2, jump2 in _jump_terms(series, j):
            if c1 == c2 == 0.0 and min(p1, p2) >= -1:
                total = total + jump1 * jump2 * _power(s1, p1) * _power(s2, p2) * orders(p1, p2)
    return total


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pair(series, rows1, q12, rows2):
    rho = jnp.clip(q12 * (rows1.r * rows2.r), -1, 1)
    k = _sum(rows1.phi, rows2.phi, rho, series.terms)
    k_dot = _sum(rows1.slope, rows2.slope, rho, series.terms)
    if rows1.phi.singular is None:
        return k, k_dot
    orders = MixedOrders(rho)
    return k + _singular(series, 0, 0, rows1.s, rows2.s, orders), k_dot + _singular(
        series, 1, 1, rows1.s, rows2.s, orders
    )


@_pair.defjvp
def _pair_jvp(series, primals, tangents):
    (rows1, q12, rows2), (d1, d12, d2) = primals, tangents
    return _pair(series, *primals), tuple(
        _d_moment(series, i, i, rows1.q, q12, rows2.q, d1.q, d12, d2.q) for i in (0, 1)
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def moment(series, i, j, q11, q12, q22):
    """E[phi^(i)(u) phi^(j)(v)], differentiable to any order."""
    s1, s2 = root(q11), root(q22)
    rho = jnp.clip(q12 * (ratio(jnp.ones_like(s1), s1) * ratio(jnp.ones_like(s2), s2)), -1, 1)
    value = _sum(coefficients(series, i, q11), coefficients(series, j, q22), rho, series.terms)
    return value + _singular(series, i, j, s1, s2, MixedOrders(rho))


@moment.defjvp
def _moment_jvp(series, i, j, primals, tangents):
    return moment(series, i, j, *primals), _d_moment(series, i, j, *primals, *tangents)


def _d_moment(series, i, j, q11, q12, q22, d11, d12, d22):
    return (
        moment(series, i + 1, j + 1, q11, q12, q22) * d12
        + moment(series, i + 2, j, q11, q12, q22) * (d11 / 2)
        + moment(series, i, j + 2, q11, q12, q22) * (d22 / 2)
    )


def _tail_bound(series: Series, order: int, q11: Array, q22: Array) -> Array:
    """sqrt(t t') of the tails' energies t; with a singular part S split off, sqrt(t t') - S S' term by term is not left out."""
    tails = []
    for q in (q11, q22):
        c = coefficients(series, order, q)
        if c.tail is None:  # the remainder against itself and against the singular part
            longer = coefficients(Series(series.phi, series.kinks, 2 * series.terms, series.levels), order, q)
            singular = 0.0 if longer.singular is None else longer.singular**2
            rest = jnp.abs(longer.all**2 - singular)[series.terms :]
            tails.append(jnp.sqrt(2 * jnp.sum(rest, axis=0)))
        else:
            tails.append(jnp.sqrt(jnp.sum(c.tail**2, axis=0)))
    return tails[0] * tails[1]
