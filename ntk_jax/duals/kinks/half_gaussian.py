"""E[relu(u - a)^p relu(v - b)^q] / (p! q!) for a standard pair of correlation rho: arc-cosine
kernels of mixed order, shifted.

Order 0 is the step, -1 the delta function, -2 its derivative, and so on. Stein's lemma, E[u g] =
E[dg/du] + rho E[dg/dv], gives

    p F(p, q) = F(p - 2, q) + rho F(p - 1, q - 1) - a F(p - 1, q),

upwards from the orthant probability F(0, 0) and from F(-1, q), a moment of v given u = a, and
downwards to distributions.
"""

import math

import jax.numpy as jnp
from jax import Array

from ntk_jax.duals.angle import angle
from ntk_jax.duals.kinks.orthant import FAR, Threshold, density, mass, orthant
from ntk_jax.duals.numerics import CORRELATION, THRESHOLDS, ulps

DENSITY = (2 * math.pi) ** -0.5


class MixedOrders:
    """All orders at one array of correlations; each value is computed once. Thresholds are at least
    0; None means both are 0.

    With `pole_gap`, 1 - |rho| is known better than from rho.
    """

    def __init__(
        self,
        rho: Array,
        first: Threshold | None = None,
        second: Threshold | None = None,
        pole_gap: Array | None = None,
    ):
        self.rho = jnp.clip(rho, -1, 1)
        noise = CORRELATION if pole_gap is None else 0
        far = 1 - jnp.where(
            self.rho > 0, self.rho, -self.rho
        )  # not `abs`: orthogonal inputs have a derivative
        self.angle = at = angle(far if pole_gap is None else pole_gap, noise)
        self.sine, self.inverse_sine = at.sine, at.inverse_sine(noise)
        self.tails = None if first is None or second is None else (first.mass, second.mass)
        if first is None or second is None:
            zero, half = jnp.zeros_like(self.rho), jnp.full_like(self.rho, 0.5)
            to_pole = at.to_pole / (2 * math.pi)
            self.a = self.b = zero
            self.given_u = self.given_v = _Conditional(
                self, jnp.full_like(zero, DENSITY), zero, zero, half
            )
            orthant_mass = jnp.where(self.rho > 0, 0.5 - to_pole, to_pole)
        else:
            self.a, self.b = first.at, second.at
            sign = jnp.where(self.rho > 0, 1, -1).astype(
                rho.dtype
            )  # a - rho b without rounding rho b next to a
            d1, d2 = (
                (b - sign * a) + sign * at.u * a for a, b in ((self.a, self.b), (self.b, self.a))
            )
            # one threshold seen by equal inputs, whose variances may have been rounded in two ways:
            # neither is beyond the other
            few = ulps(THRESHOLDS, rho.dtype) * jnp.maximum(self.a, self.b)
            d1, d2 = (jnp.where((self.sine == 0) & (jnp.abs(d) <= few), 0, d) for d in (d1, d2))
            beta1, beta2 = (
                jnp.clip(d / jnp.maximum(self.sine, 1e-30), -FAR, FAR) for d in (d1, d2)
            )
            mass1, mass2 = mass(beta1), mass(beta2)
            self.given_u = _Conditional(self, first.density, d1, beta1, mass1)
            self.given_v = _Conditional(self, second.density, d2, beta2, mass2)
            orthant_mass = orthant(first, beta1, mass1, second, beta2, mass2)
        self.known = {(0, 0): orthant_mass}

    def __call__(self, p: int, q: int) -> Array:
        """F(p, q)."""
        if (p, q) not in self.known:
            self.known[p, q] = self._value(p, q)
        return self.known[p, q]

    def _value(self, p: int, q: int) -> Array:
        if p == -1:
            return self.given_u(q)
        if q == -1:
            return self.given_v(p)
        if p < -1 and (q >= 0 or p >= q):  # Stein's lemma, read downwards
            return (
                (p + 2) * self(p + 2, q) - self.rho * self(p + 1, q - 1) + self.a * self(p + 1, q)
            )
        if q < -1:
            return (
                (q + 2) * self(p, q + 2) - self.rho * self(p - 1, q + 1) + self.b * self(p, q + 1)
            )
        if q == 0 or 0 < p <= q:
            return (self(p - 2, q) + self.rho * self(p - 1, q - 1) - self.a * self(p - 1, q)) / p
        return (self(p, q - 2) + self.rho * self(p - 1, q - 1) - self.b * self(p, q - 1)) / q


class _Conditional:
    """E[delta(u - a) relu(v - b)^q] / q!, where v - b given u = a has mean -gap and the standard
    deviation `sine`.
    """

    def __init__(self, orders: MixedOrders, at: Array, gap: Array, beta: Array, tail: Array):
        self.density, self.gap, self.beta = at, gap, beta
        self.sine, self.inverse_sine = orders.sine, orders.inverse_sine
        self.at_gap = density(beta)
        self.known = {0: tail, -1: self.at_gap * self.inverse_sine}

    def __call__(self, q: int) -> Array:
        return self.density * self.mean(q)

    def mean(self, q: int) -> Array:
        if q not in self.known:
            if q > 0:
                below = self.sine * self.at_gap if q == 1 else self.sine**2 * self.mean(q - 2)
                self.known[q] = (below - self.gap * self.mean(q - 1)) / q
            else:
                above = (q + 2) * self.mean(q + 2) + self.gap * self.mean(q + 1)
                self.known[q] = above * self.inverse_sine * self.inverse_sine
        return self.known[q]
