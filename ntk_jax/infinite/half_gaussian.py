"""E[relu(u)^p relu(v)^q] / (p! q!) for a standard pair of correlation rho: the arc-cosine kernels of mixed order.

By Stein's lemma, E[u g] = E[dg/du] + rho E[dg/dv]; order 0 is the step and -1 the delta function.
"""

import math

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.angle import angle
from ntk_jax.infinite.dual import ratio

DENSITY = (2 * math.pi) ** -0.5


class MixedOrders:
    """All orders at one array of correlations; each value is computed once."""

    def __init__(self, rho: Array):
        self.rho = jnp.clip(rho, -1, 1)
        at = angle(1 - jnp.abs(self.rho))
        self.sine = at.sine
        to_pole = at.to_pole / (2 * math.pi)
        self.known = {(0, 0): jnp.where(self.rho > 0, 0.5 - to_pole, to_pole)}

    def __call__(self, p: int, q: int) -> Array:
        """E[relu(u)^p relu(v)^q] / (p! q!); 0 for orders below -1, which are distributions on a null set."""
        p, q = min(p, q), max(p, q)
        if (p, q) not in self.known:
            self.known[p, q] = self._value(p, q)
        return self.known[p, q]

    def _value(self, p: int, q: int) -> Array:
        if p < -1:
            return jnp.zeros_like(self.rho)
        if p == -1:
            return self._at_zero(q)
        if p == 0:  # reduce the other side: E[1(u > 0) v^q] with g = 1(u > 0) v^(q-1)
            lower = 0.5 * DENSITY if q == 1 else self(0, q - 2)
            return (lower + self.rho * self._at_zero(q - 1)) / q
        lower = self._at_zero(q) if p == 1 else self(p - 2, q)
        return (lower + self.rho * self(p - 1, q - 1)) / p

    def _at_zero(self, q: int) -> Array:
        """E[delta(u) relu(v)^q] / q!, where v given u = 0 has standard deviation `sine`."""
        if q < -1:
            return jnp.zeros_like(self.rho)
        if q == -1:
            return DENSITY**2 * ratio(jnp.ones_like(self.rho), self.sine)
        mean = 0.5 if q == 0 else DENSITY if q == 1 else None
        if mean is None:
            mean = math.prod(range(1, q, 2)) / 2 if q % 2 == 0 else math.prod(range(2, q, 2)) * DENSITY
        return DENSITY * mean / math.factorial(q) * self.sine**q
