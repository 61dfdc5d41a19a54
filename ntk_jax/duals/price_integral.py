"""The dual of f(w) = a w above 0, c (exp(w) - 1) below, at any variance and correlation: one
integral over the angle.

For a pair of deviations s1, s2 and correlation rho, p = s1 s2, Price's theorem gives k from a
correlation r of which both moments are known, downwards to rho,

    k(rho) = k(r) - p int_rho^r k_dot,    k_dot = a² P + a c H + c² B,

P the probability that both are above 0, H the mean of exp(the one below 0) where only one is, B
that of exp(u + v) where both are. At the correlation cos x, with Y(c) = 1 - c m(c) of Mills' ratio
m and Z = Y(s1 sin x) + Y(s2 sin x),

    dP = -dx / (2 pi),    dH = Z dx / (2 pi),    dB = -(p B sin x + (Z - 1) / (2 pi)) dx.

So B decays on this way, and nothing overflows or cancels:

    k_dot(rho) = a² P(r) + a c H(r) + c² exp(-p (r - rho)) B(r)
                 + int (a c Z - a² + c² exp(-p d) (1 - Z)) dx / (2 pi),    d = cos x - rho,

and int_rho^r k_dot is the same with d for 1 and (1 - exp(-p d)) / p for exp(-p d). For rho > 0 the
way starts at the pole r = 1, else at r = 0, where means multiply.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.duals.angle import Angle, angle, held
from ntk_jax.duals.mills import first_moment, mills
from ntk_jax.duals.numerics import ratio
from ntk_jax.platforms import packed_sum

DENSITY = (2 * math.pi) ** -0.5


class Way(NamedTuple):
    """To a correlation: from the pole 1 if it is `positive`, else from 0; how far that is; its
    angle to the nearer pole; the tangent of half the angle that is gone.
    """

    positive: Array
    length: Array
    angle: Angle
    t: Array


def way(rho: Array, pole_gap: Array) -> Way:
    """Given 1 - |rho|."""
    pole_gap = held(pole_gap)
    at, positive = angle(pole_gap), rho > 0
    size = 1 - pole_gap  # NaN, which the angle does not keep
    t = jnp.where(positive, at.sine / (1 + size), size / (1 + at.sine))
    return Way(positive, jnp.where(positive, pole_gap, size), at, t)


def tail(s: Array) -> Array:
    """E[exp(-s z)] above 0, of a standard normal z."""
    return DENSITY * mills(s)


def unit_interval(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rule of Gauss and Legendre on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return (x + 1) / 2, w / 2


@lru_cache(maxsize=32)
def _rule(level: int, double: bool) -> tuple[np.ndarray, np.ndarray]:
    """Nodes y in [0, 1] and weights, for variances up to 4^level: at large ones all changes next to
    the ends.
    """
    count = 13 + level * (level + 1) if level < 4 else 44 + 15 * (level - 4)
    x, w = unit_interval(count if double else -(-count // 2))
    if level < 4:
        return x, w
    k = level / 2 - 1
    s = k * (2 * x - 1)
    return (1 + np.tanh(s) / np.tanh(k)) / 2, w * k / (np.cosh(s) ** 2 * np.tanh(k))


def integrals(
    a: float, c: float, level: int, s1: Array, tail1: Array, s2: Array, tail2: Array, to: Way
) -> tuple[Array, Array]:
    """k_dot, and int k_dot over the way, given both deviations and their tails."""
    double = s1.dtype == jnp.float64
    y, weights = (jnp.asarray(v, s1.dtype) for v in _rule(level, double))
    p = s1 * s2
    inverse, t = ratio(1, p), to.t

    def node(i: Array) -> tuple[Array, Array]:
        tau = t * y[i]
        stretch = 1 / (1 + tau * tau)
        d = to.length * (1 - y[i]) * jnp.where(to.positive, 1 + y[i], 1 - t * tau) * stretch
        sine = jnp.where(to.positive, 2 * tau, 1 - tau * tau) * stretch
        Z = first_moment(s1 * sine) + first_moment(s2 * sine)
        gone = -jnp.expm1(-p * d)
        apart, together = a * c * Z - a * a, c * c * (1 - Z)
        k_dot = apart + together * (1 - gone)
        dx = weights[i] * stretch
        return dx * k_dot, dx * (d * apart + together * (gone * inverse))

    zero = jnp.zeros(jnp.broadcast_shapes(p.shape, t.shape), s1.dtype)
    total = packed_sum(node, len(weights), zero)
    k_dot, lack = (part * (t / math.pi) for part in (total.real, total.imag))
    gone = -jnp.expm1(-p * to.length)
    together = c * c * jnp.where(to.positive, tail(s1 + s2), tail1 * tail2)
    apart = jnp.where(to.positive, a * a / 2, a * a / 4 + a * c / 2 * (tail1 + tail2))
    return (
        k_dot + apart + together * (1 - gone),
        lack + to.length * apart + together * (gone * inverse),
    )
