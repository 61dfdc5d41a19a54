"""P(U > a, V > b) of a standard normal pair for a, b >= 0, to the last digit at every correlation,
by Owen's T function.

T(h, t) = 1/(2 pi) int_0^t exp(-h² (1 + x²) / 2) / (1 + x²) dx is smooth for t in [0, 1], where a
short Gauss rule is exact to rounding at every h; a larger t is exchanged with 1/t. Reference: Owen
1956, eq. 2.1, 2.3 and 3.1.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import erfc

from ntk_jax.duals.numerics import ratio
from ntk_jax.platforms import by_platform

FAR = 40.0  # beyond, densities and tails are 0 in double precision


class Threshold(NamedTuple):
    """A threshold a in [0, 40], the standard normal density there, and the mass beyond it."""

    at: Array
    density: Array
    mass: Array


def threshold(a: Array) -> Threshold:
    """What is needed of a threshold, once per example."""
    return Threshold(a, density(a), mass(a))


def density(a: Array) -> Array:
    """The standard normal density."""
    return jnp.exp(-a * a / 2) * (2 * math.pi) ** -0.5


def mass(a: Array) -> Array:
    """P(Z > a)."""
    return erfc(a * 0.5**0.5) / 2


@jax.jit  # of each shape one trace, whichever kinks and orders ask for it
def orthant(
    first: Threshold, beta1: Array, mass1: Array, second: Threshold, beta2: Array, mass2: Array
) -> Array:
    """P(U > a, V > b), with beta1 = (b - rho a) / sine, beta2 = (a - rho b) / sine and the masses
    beyond them.

    The two lines meet at (a, beta1) of the first one's coordinates and at (b, beta2) of the
    second's. (Owen 1956, eq. 3.1.)
    """
    sides = (first.at, beta1, mass1, first.mass), (second.at, beta2, mass2, second.mass)
    stacked = lambda *pair: jnp.stack(jnp.broadcast_arrays(*pair))
    together = lambda *sides: jnp.sum(_of_one_side(*map(stacked, *sides)), axis=0)
    apart = lambda one, other: _of_one_side(*one) + _of_one_side(*other)
    return by_platform(together, apart, *sides)


def _of_one_side(h: Array, beta: Array, tail: Array, mass_h: Array) -> Array:
    """Its part of the orthant's probability."""
    b = jnp.abs(beta)
    inside = _owen(jnp.maximum(h, b), ratio(jnp.minimum(h, b), jnp.maximum(h, b)))
    tail = jnp.where(beta > 0, tail, 1 - tail)
    outside = (mass_h + tail) / 2 - mass_h * tail - inside
    return mass_h / 2 - jnp.sign(beta) * jnp.where(b > h, outside, inside)


def _owen(h: Array, t: Array) -> Array:
    """T(h, t) for t in [0, 1]: Gauss-Legendre on [-t, t], whose integrand is even; to 1e-16
    (float32: 5e-9).
    """
    count = 10 if h.dtype == jnp.float64 else 5
    x, w = (jnp.asarray(a[count:], h.dtype) for a in np.polynomial.legendre.leggauss(2 * count))

    def node(h: Array, t: Array, i: Array | int, total: Array | int) -> Array:
        stretch = 1 + x[i] ** 2 * (t * t)
        return total + w[i] * jnp.exp(-h * h / 2 * stretch) / stretch

    in_one_pass = lambda h, t: sum(node(h, t, i, 0) for i in range(count))
    # also keeps XLA for a CPU from computing its operands again in every consumer
    looped = lambda h, t: lax.fori_loop(0, count, partial(node, h, t), jnp.zeros_like(h))
    return t / (2 * np.pi) * by_platform(looped, in_one_pass, h, t)
