"""What F(p, q) = E[relu(u - a)^p relu(v - b)^q] / (p! q!) lacks of its value at the nearer pole of
the correlation.

The difference is of the size of the angle or below, and its parts are too: nothing larger is
subtracted. At rho = 1 - g and a <= b, conditioning on v gives

    G(0, q) = J(0, q),  G(1, 0) = g density(b) - J(1, 0),  G(1, 1) = g mass(b) - J(1, 1),
    J(p, q) = sine^(p+q+1) int_0^inf w^q density(b + sine w) I_p((rho b - a) / sine + rho w) dw,
    I_p(x) = E[relu(z - x)^p],

and higher orders follow by Stein's lemma as in `half_gaussian.py`. At rho = -1 half lines do not
meet: F is 0 there.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.duals.kinks.half_gaussian import DENSITY, MixedOrders
from ntk_jax.duals.kinks.orthant import density, mass


class PoleDeficit:
    """The value at the pole less F(p, q), for p, q >= 0, given the mixed orders and 1 - |rho|."""

    def __init__(self, orders: MixedOrders, pole_gap: Array):
        self.orders, self.pole_gap, self.rho = orders, pole_gap, orders.rho
        self.gap = orders.b - orders.a
        self.known: dict[tuple[int, int], Array] = {}

    def __call__(self, p: int, q: int) -> Array:
        """F(p, q) at the pole, less F(p, q)."""
        return jnp.where(self.rho > 0, self._at_plus_one(p, q), -self.orders(p, q))

    def _at_plus_one(self, p: int, q: int) -> Array:
        if (p, q) not in self.known:
            self.known[p, q] = self._value(p, q)
        return self.known[p, q]

    def _value(self, p: int, q: int) -> Array:
        F, G = self.orders, self._at_plus_one
        if p == -1:
            return F.given_u.density * self._conditional(F.given_u, F.a, self.gap, q)
        if q == -1:
            return F.given_v.density * self._conditional(F.given_v, F.b, -self.gap, p)
        if p < 2 and q < 2:
            return self._zero_thresholds(p + q) if F.tails is None else self._first_orders(p, q)
        below = G(p - 1, q - 1) + self.pole_gap * F(p - 1, q - 1)
        if p < q:
            return (G(p, q - 2) + below - F.b * G(p, q - 1)) / q
        return (G(p - 2, q) + below - F.a * G(p - 1, q)) / p

    def _zero_thresholds(self, order: int) -> Array:
        at = self.orders.angle
        if order == 1:
            return self.pole_gap * (DENSITY / 2)
        return (
            at.to_pole / (2 * np.pi)
            if order == 0
            else self.pole_gap / 2 - at.first_gap / (2 * np.pi)
        )

    def _first_orders(self, p: int, q: int) -> Array:
        """The larger threshold takes the part of b."""
        if p == q:
            return self._by_part(p, q)
        return jnp.where(self.gap >= 0, self._by_part(p, q), self._by_part(q, p))

    def _by_part(self, p: int, q: int) -> Array:
        F = self.orders
        high = jnp.maximum(F.a, F.b)
        start = -jnp.where(self.gap >= 0, F.given_v.beta, F.given_u.beta)
        count, end = (24, 8.5) if high.dtype == jnp.float64 else (12, 6.0)
        rule = np.polynomial.legendre.leggauss(count)
        x, weights = (jnp.asarray(a, high.dtype).reshape(-1, *[1] * high.ndim) for a in rule)
        w = end / 2 * (x + 1)
        at = start[None] + self.rho[None] * w
        means = mass(at) if p == 0 else density(at) - at * mass(at)
        integrand = end / 2 * weights * w**q * density(high[None] + F.sine[None] * w) * means
        J = F.sine ** (p + q + 1) * jnp.sum(integrand, axis=0)
        if p == 0 or F.tails is None:
            return J
        pair = (F.given_v.density, F.given_u.density) if q == 0 else F.tails[::-1]
        return self.pole_gap * jnp.where(self.gap >= 0, *pair) - J

    def _conditional(self, given: Any, at: Array, gap: Array, m: int) -> Array:
        """What E[relu(v - b)^m / m! | u = a] lacks of relu(a - b)^m / m!, m >= 1."""
        sine, moved = self.orders.sine, at * self.pole_gap
        if m == 1:
            beta = jnp.abs(given.beta)
            past = moved - sine * (density(beta) - beta * mass(beta))
            return jnp.where(given.beta >= 0, jnp.maximum(-gap, 0) - given.mean(1), past)
        below = self._conditional(given, at, gap, m - 1)
        return (-gap * below + moved * given.mean(m - 1) - sine**2 * given.mean(m - 2)) / m
