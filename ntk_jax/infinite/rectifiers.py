"""Duals of the rectifiers a relu(u) + b relu(-u), steps and rectified squares: arc-cosine kernels (Cho, Saul 2009).

With (u, v) of standard deviations s1, s2 and correlation rho, everything follows from the angle to the nearer pole
(`angle.py`), without cancellation. Derivatives go by rule in the three moments: Price's theorem dk/dq12 = k_dot, and
homogeneity. Normalizing to a correlation before differentiating would be singular at identical, antipodal and zero inputs.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.infinite.angle import ROUNDING, angle, arcsine
from ntk_jax.infinite.dual import Apart, Dual, DualRule, deviation_product, ratio, reciprocal, root


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
    def cusp(self):
        return self.a != -self.b

    def rows(self, q):
        return scales(q)

    def pair(self, rows1, q12, rows2):
        return Dual(*_rectifier(self.a, self.b, rows1, q12, rows2))

    def own(self, q):
        return Dual((self.a**2 + self.b**2) / 2 * q, jnp.full_like(q, (self.a**2 + self.b**2) / 2))

    def apart(self, inputs, one, other):
        own, even = (self.a**2 + self.b**2) / 2, (self.a + self.b) ** 2 / (2 * np.pi)
        at, mirrored = angle(inputs.lack), self.a * self.b / own
        lift = even / own * at.first_gap
        minus = inputs.by_pole(at.u - lift, (1 - mirrored) + mirrored * at.u - lift)
        plus = inputs.by_pole(2 - at.u + lift, (1 + mirrored) - mirrored * at.u + lift)
        return Apart(minus, plus), inputs.by_pole(own - even * at.to_pole, even * at.to_pole - self.a * self.b)


def scales(q: Array) -> Scales:
    """The rows of every rule in this file."""
    s = root(q)
    return Scales(q, s, ratio(1, s))


def correlation(rows1: Scales, q12: Array, rows2: Scales) -> Array:
    """rho, 0 next to a zero input."""
    return q12 * (rows1.r * rows2.r)  # commutes to the bit


def _relative(tangents1: Scales, rows1: Scales, tangents2: Scales, rows2: Scales) -> Array:
    return ratio(tangents1.q, rows1.q) + ratio(tangents2.q, rows2.q)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rectifier(a, b, rows1, q12, rows2):
    even = (a + b) ** 2 / (2 * np.pi)
    at = angle(1 - jnp.abs(correlation(rows1, q12, rows2)), ROUNDING)
    positive = q12 > 0
    linear = jnp.where(positive, (a * a + b * b) / 2, -a * b).astype(q12.dtype)
    k = linear * q12 + even * (rows1.s * rows2.s) * at.first_gap
    near = even * at.to_pole  # for ReLU the probability of equal signs where rho < 0, of opposite signs elsewhere
    return k, linear + jnp.where(positive, -near, near)


@_rectifier.defjvp
def _rectifier_jvp(a, b, primals, tangents):
    (rows1, q12, rows2), (d1, d12, d2) = primals, tangents
    k, k_dot = _rectifier(a, b, rows1, q12, rows2)
    S, relative = deviation_product(rows1.q, q12, rows2.q), _relative(d1, rows1, d2, rows2)
    dk = k_dot * d12 + (a + b) ** 2 / (4 * np.pi) * (S * relative)
    dk_dot = (a + b) ** 2 / (2 * np.pi) * (d12 - q12 / 2 * relative) * reciprocal(S, rows1.s * rows2.s)  # 0 at the cusp
    return (k, k_dot), (dk, dk_dot)


@dataclass(frozen=True)
class Step(DualRule):
    """phi(u) = low for u < 0, high for u > 0; its derivative is 0 almost everywhere, and so is k_dot."""

    low: float
    high: float

    @property
    def cusp(self):
        return self.low != self.high

    def rows(self, q):
        return scales(q)

    def pair(self, rows1, q12, rows2):
        # sign(u) has the dual 4 P(u > 0, v > 0) - 1, which an arcsine gives without cancellation at rho = 0
        half, mean = (self.high - self.low) / 2, (self.high + self.low) / 2
        k = half**2 * _sign(rows1, q12, rows2) + mean**2
        return Dual(k, jnp.zeros_like(k))

    def own(self, q):
        k = jnp.where(q > 0, (self.low**2 + self.high**2) / 2, ((self.low + self.high) / 2) ** 2).astype(q.dtype)
        return Dual(k, jnp.zeros_like(k))

    def apart(self, inputs, one, other):
        half, mean = (self.high - self.low) / 2, (self.high + self.low) / 2
        turned, share = 2 / np.pi * angle(inputs.lack).to_pole, half**2 / (half**2 + mean**2)
        minus = share * inputs.by_pole(turned, 2 - turned)
        plus = 2 * (1 - share) + share * inputs.by_pole(2 - turned, turned)
        return Apart(minus, plus), jnp.zeros_like(minus)


@jax.custom_jvp
def _sign(rows1, q12, rows2):
    rho = jnp.clip(correlation(rows1, q12, rows2), -1, 1)
    cosine = angle(1 - jnp.abs(rho), ROUNDING).sine
    return 2 / np.pi * arcsine(jnp.where(cosine > 0, rho, jnp.sign(rho)), cosine)


@_sign.defjvp
def _sign_jvp(primals, tangents):
    (rows1, q12, rows2), (d1, d12, d2) = primals, tangents
    S = deviation_product(rows1.q, q12, rows2.q)
    dk = 2 / np.pi * (d12 - q12 / 2 * _relative(d1, rows1, d2, rows2)) * reciprocal(S, rows1.s * rows2.s)
    return _sign(rows1, q12, rows2), dk


@dataclass(frozen=True)
class RectifiedSquare(DualRule):
    """phi(u) = relu(u)²: the arc-cosine kernel of order 2, halved."""

    def rows(self, q):
        return scales(q)

    def pair(self, rows1, q12, rows2):
        return Dual(_square(rows1, q12, rows2), 4 * _rectifier(1.0, 0.0, rows1, q12, rows2)[0])

    def own(self, q):
        return Dual(1.5 * q * q, 2 * q)


@jax.custom_jvp
def _square(rows1, q12, rows2):
    rho = jnp.clip(correlation(rows1, q12, rows2), -1, 1)
    gap = angle(1 - jnp.abs(rho), ROUNDING).second_gap
    J2 = jnp.where(rho > 0, np.pi * (1 + 2 * rho * rho) - gap, gap)
    return (rows1.q * rows2.q) * J2 / (2 * np.pi)


@_square.defjvp
def _square_jvp(primals, tangents):
    (rows1, q12, rows2), (d1, d12, d2) = primals, tangents
    M = _mixed(rows1, q12, rows2)  # dk/dq11 = E[phi''(u) phi(v)] / 2 = q22 M
    dk = 4 * _rectifier(1.0, 0.0, rows1, q12, rows2)[0] * d12 + M * (rows2.q * d1.q + rows1.q * d2.q)
    return _square(rows1, q12, rows2), dk


@jax.custom_jvp
def _mixed(rows1, q12, rows2):
    """(pi - theta + sin theta cos theta) / (2 pi) = E[1(u > 0) relu(v)²] / q22."""
    rho = jnp.clip(correlation(rows1, q12, rows2), -1, 1)
    at = angle(1 - jnp.abs(rho), ROUNDING)
    gap = at.sine * at.u * (1 + at.R1)
    return jnp.where(rho > 0, np.pi - gap, gap) / (2 * np.pi)


@_mixed.defjvp
def _mixed_jvp(primals, tangents):
    (rows1, q12, rows2), (d1, d12, d2) = primals, tangents
    sine = deviation_product(rows1.q, q12, rows2.q) * rows1.r * rows2.r
    d_rho = d12 * rows1.r * rows2.r - correlation(rows1, q12, rows2) / 2 * _relative(d1, rows1, d2, rows2)
    return _mixed(rows1, q12, rows2), sine / np.pi * d_rho
