"""Duals of the rectifiers a relu(u) + b relu(-u), steps and rectified squares: arc-cosine kernels
(Cho, Saul 2009).

With (u, v) of standard deviations s1, s2 and correlation rho, everything follows from the angle to
the nearer pole (`angle.py`), without cancellation. The derivative of k goes by rule in the three
moments: Price's theorem dk/dq12 = k_dot, and homogeneity. What has a cusp at the poles is
differentiated through 1 - |rho|; at the cusp its derivative is 0, the mean of both sides.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.duals.angle import angle, arcsine, first_gap, to_pole
from ntk_jax.duals.dual_rule import Dual, DualOfGap, DualRule, Gap, PoleGaps
from ntk_jax.duals.numerics import CORRELATION, ratio, root


class Scales(NamedTuple):
    """One side of a pair: variance, standard deviation and its reciprocal, 0 for a zero input."""

    q: Array
    s: Array
    r: Array


@dataclass(frozen=True)
class Rectifier(DualRule):
    """phi(u) = a relu(u) + b relu(-u)."""

    a: float
    b: float
    unroll = 10

    @property
    def cusp(self) -> bool:
        return self.a != -self.b

    def rows(self, q: Array) -> Scales:
        return scales(q)

    def pair(self, rows1: Scales, q12: Array, rows2: Scales) -> Dual:
        return Dual(*_rectifier(self.a, self.b, rows1, q12, rows2))

    def mean(self, q: Array) -> Array:
        return (self.a + self.b) * jnp.sqrt(1 / (2 * np.pi)) * root(q)

    @property
    def description(self) -> str:
        return "closed form: rectifier"

    def diagonal(self, q: Array) -> Dual:
        return Dual((self.a**2 + self.b**2) / 2 * q, jnp.full_like(q, (self.a**2 + self.b**2) / 2))

    def of_gap(self, gap: Gap, rows1: Any, rows2: Any) -> DualOfGap:
        # With u = 1 - |rho| and first_gap = sin theta - cos theta theta of the angle to the nearer
        # pole, relative to E[phi²]: 1 - rho' = u - lift, or (1 - mirrored) + mirrored u - lift.
        mean, even = (self.a**2 + self.b**2) / 2, (self.a + self.b) ** 2 / (2 * np.pi)
        u, mirrored = gap.pole_gap, self.a * self.b / mean
        lift, near = even / mean * first_gap(u), even * to_pole(u)
        minus = gap.by_pole(u, (1 - mirrored) + mirrored * u) - lift
        plus = gap.by_pole(2 - u, (1 + mirrored) - mirrored * u) + lift
        correlation = gap.by_pole(1 - u, mirrored * (1 - u)) + lift
        k_dot = gap.by_pole(mean - near, near - self.a * self.b)
        return DualOfGap(PoleGaps(minus, plus), correlation, k_dot)


def scales(q: Array) -> Scales:
    """The rows of every rule in this file."""
    s = root(q)
    return Scales(q, s, ratio(1, s))


def correlation(rows1: Scales, q12: Array, rows2: Scales) -> Array:
    """rho, 0 next to a zero input."""
    return q12 * (rows1.r * rows2.r)  # commutes to the bit


def _relative(tangents1: Scales, rows1: Scales, tangents2: Scales, rows2: Scales) -> Array:
    return ratio(tangents1.q, rows1.q) + ratio(tangents2.q, rows2.q)


@jax.custom_jvp
def _pole_gap(rows1: Scales, q12: Array, rows2: Scales) -> Array:
    """1 - |rho|, as the moments know it."""
    rho = correlation(rows1, q12, rows2)
    return 1 - jnp.where(q12 > 0, rho, -rho)  # not `abs`: orthogonal inputs have a derivative


@_pole_gap.defjvp
def _pole_gap_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (rows1, q12, rows2), (d1, d12, d2) = primals, tangents
    d_rho = d12 * (rows1.r * rows2.r) - correlation(rows1, q12, rows2) / 2 * _relative(
        d1, rows1, d2, rows2
    )
    return _pole_gap(*primals), jnp.where(q12 > 0, -d_rho, d_rho)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rectifier(a: float, b: float, rows1: Scales, q12: Array, rows2: Scales) -> tuple[Array, Array]:
    # The arc-cosine kernel of order 1 (Cho, Saul 2009), for a = 1, b = 0:
    #     k = s1 s2 (sin theta + (pi - theta) cos theta) / (2 pi),   k_dot = (pi - theta) / (2 pi).
    # With phi = angle to the nearer pole, sin theta - |rho| phi is `first_gap`, free of
    # cancellation; what is left of k is linear in q12.
    even = (a + b) ** 2 / (2 * np.pi)
    at = angle(_pole_gap(rows1, q12, rows2), CORRELATION)
    positive = q12 > 0
    linear = jnp.where(positive, (a * a + b * b) / 2, -a * b).astype(q12.dtype)
    k = linear * q12 + even * (rows1.s * rows2.s) * at.first_gap
    near = (
        even * at.to_pole
    )  # for ReLU the probability of equal signs where rho < 0, of opposite signs elsewhere
    return k, linear + jnp.where(positive, -near, near)


@_rectifier.defjvp
def _rectifier_jvp(a: float, b: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (rows1, q12, rows2), (d1, d12, d2) = primals, tangents
    pole_gap, d_gap = jax.jvp(_pole_gap, primals, tangents)
    out, at = _rectifier(a, b, *primals), angle(pole_gap, CORRELATION)
    even = (a + b) ** 2 / (2 * np.pi)
    S = rows1.s * rows2.s * at.sine
    dk = out[1] * d12 + even / 2 * (S * _relative(d1, rows1, d2, rows2))
    turned = even * (d_gap * at.inverse_sine(CORRELATION))
    return out, (dk, jnp.where(q12 > 0, -turned, turned))


@dataclass(frozen=True)
class Step(DualRule):
    """phi(u) = low for u < 0, high for u > 0; its derivative is 0 almost everywhere, and so is
    k_dot.
    """

    low: float
    high: float
    flat = True

    @property
    def cusp(self) -> bool:
        return self.low != self.high

    def rows(self, q: Array) -> Scales:
        return scales(q)

    def pair(self, rows1: Scales, q12: Array, rows2: Scales) -> Dual:
        # sign(u) has the dual 4 P(u > 0, v > 0) - 1, which an arcsine gives without cancellation at
        # rho = 0
        half, mean = (self.high - self.low) / 2, (self.high + self.low) / 2
        k = half**2 * _sign(rows1, q12, rows2) + mean**2
        return Dual(k, jnp.zeros_like(k))

    def mean(self, q: Array) -> Array:
        return jnp.full_like(q, (self.low + self.high) / 2)

    @property
    def description(self) -> str:
        return "closed form: step"

    def diagonal(self, q: Array) -> Dual:
        k = jnp.where(
            q > 0, (self.low**2 + self.high**2) / 2, ((self.low + self.high) / 2) ** 2
        ).astype(q.dtype)
        return Dual(k, jnp.zeros_like(k))

    def of_gap(self, gap: Gap, rows1: Any, rows2: Any) -> DualOfGap:
        half, mean = (self.high - self.low) / 2, (self.high + self.low) / 2
        share = half**2 / (half**2 + mean**2)
        turned = 2 / np.pi * to_pole(gap.pole_gap)
        minus = share * gap.by_pole(turned, 2 - turned)
        plus = 2 * (1 - share) + share * gap.by_pole(2 - turned, turned)
        correlation = share * gap.by_pole(1 - turned, turned - 1) + (1 - share)
        return DualOfGap(PoleGaps(minus, plus), correlation, jnp.zeros_like(turned))


@jax.custom_jvp
def _sign(rows1: Scales, q12: Array, rows2: Scales) -> Array:
    # Order 0: E[sign(u) sign(v)] = 2 arcsin(rho) / pi (Sheppard 1899).
    rho = jnp.clip(correlation(rows1, q12, rows2), -1, 1)
    cosine = angle(_pole_gap(rows1, q12, rows2), CORRELATION).sine
    return 2 / np.pi * arcsine(jnp.where(cosine > 0, rho, jnp.sign(rho)), cosine)


@_sign.defjvp
def _sign_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    pole_gap, d_gap = jax.jvp(_pole_gap, primals, tangents)
    turned = 2 / np.pi * (d_gap * angle(pole_gap, CORRELATION).inverse_sine(CORRELATION))
    return _sign(*primals), jnp.where(primals[1] > 0, -turned, turned)


@dataclass(frozen=True)
class RectifiedSquare(DualRule):
    """phi(u) = relu(u)²: the arc-cosine kernel of order 2, halved."""

    def rows(self, q: Array) -> Scales:
        return scales(q)

    def pair(self, rows1: Scales, q12: Array, rows2: Scales) -> Dual:
        return Dual(_square(rows1, q12, rows2), 4 * _relu(rows1, q12, rows2))

    def mean(self, q: Array) -> Array:
        return q / 2

    @property
    def description(self) -> str:
        return "closed form: rectifiedsquare"

    def diagonal(self, q: Array) -> Dual:
        return Dual(1.5 * q * q, 2 * q)


def _relu(rows1: Scales, q12: Array, rows2: Scales) -> Array:
    return _rectifier(1.0, 0.0, rows1, q12, rows2)[0]


@jax.custom_jvp
def _square(rows1: Scales, q12: Array, rows2: Scales) -> Array:
    # Order 2: k = q11 q22 (3 sin theta cos theta + (pi - theta) (1 + 2 cos² theta)) / (2 pi).
    rho = jnp.clip(correlation(rows1, q12, rows2), -1, 1)
    gap = angle(1 - jnp.abs(rho), CORRELATION).second_gap
    J2 = jnp.where(rho > 0, np.pi * (1 + 2 * rho * rho) - gap, gap)
    return (rows1.q * rows2.q) * J2 / (2 * np.pi)


@_square.defjvp
def _square_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (rows1, q12, rows2), (d1, d12, d2) = primals, tangents
    M = _mixed(rows1, q12, rows2)  # dk/dq11 = E[phi''(u) phi(v)] / 2 = q22 M
    dk = 4 * _relu(rows1, q12, rows2) * d12 + M * (rows2.q * d1.q + rows1.q * d2.q)
    return _square(rows1, q12, rows2), dk


@jax.custom_jvp
def _mixed(rows1: Scales, q12: Array, rows2: Scales) -> Array:
    """(pi - theta + sin theta cos theta) / (2 pi) = E[1(u > 0) relu(v)²] / q22."""
    rho = jnp.clip(correlation(rows1, q12, rows2), -1, 1)
    at = angle(1 - jnp.abs(rho), CORRELATION)
    gap = at.sine * at.u * (1 + at.R1)
    return jnp.where(rho > 0, np.pi - gap, gap) / (2 * np.pi)


@_mixed.defjvp
def _mixed_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    pole_gap, d_gap = jax.jvp(_pole_gap, primals, tangents)
    turned = angle(pole_gap, CORRELATION).sine / np.pi * d_gap
    return _mixed(*primals), jnp.where(primals[1] > 0, -turned, turned)
