"""The singular part of an activation: a sum of one-sided powers that carry its jumps, with exact
coefficients and duals.

A jump J of the p-th derivative at c >= 0 is that of J relu(v - c)^p / p!; one at c < 0 is carried
by the power of the other side, -J (v - c)^p / p! for v < c. So the singular part vanishes around 0,
and nothing cancels at small variances.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.duals.hermite_coefficients import step_coefficients
from ntk_jax.duals.kinks.half_gaussian import MixedOrders
from ntk_jax.duals.kinks.near_pole import PoleDeficit
from ntk_jax.duals.kinks.orthant import FAR, Threshold, threshold
from ntk_jax.duals.numerics import ratio, root


class Kink(NamedTuple):
    """A point where phi is not smooth, and the jumps there of phi and of its first derivatives."""

    at: float
    jumps: tuple[float, ...]

    @property
    def sign(self) -> int:
        """The direction in which the singular part grows."""
        return 1 if self.at >= 0 else -1

    def factor(self, power: int, order: int) -> float:
        """Of relu(sign (v - c))^power / power! in the `order`-th derivative; powers below 0 are
        distributions.
        """
        p = power + order
        jump = self.jumps[p] if 0 <= p < len(self.jumps) else 0.0
        return jump if self.sign > 0 else (-1.0) ** (power + 1) * jump


class View(NamedTuple):
    """The kinks as one side sees them: its standard deviation, and |c| / s for every kink on a
    leading axis.
    """

    s: Array
    thresholds: Threshold | None


Kinks = tuple[Kink, ...]


def view(kinks: Kinks, q: Array) -> View:
    """What the functions below need of the variances `q`."""
    s = root(q)
    if all(kink.at == 0 for kink in kinks):
        return View(s, None)
    c = jnp.asarray([abs(kink.at) for kink in kinks], q.dtype).reshape(-1, *[1] * q.ndim)
    return View(s, threshold(jnp.minimum(ratio(c, jnp.maximum(s[None], c / FAR)), FAR)))


def powers(kinks: Kinks, order: int) -> list[int]:
    """The powers of which the `order`-th derivative of the singular part is a sum."""
    return sorted({p - order for kink in kinks for p, jump in enumerate(kink.jumps) if jump})


def values(kinks: Kinks, order: int, v: Array | np.ndarray) -> Any:
    """The `order`-th derivative of the singular part, as a function: without its distributions."""
    xp: Any = np if isinstance(v, np.ndarray) else jnp
    total = xp.zeros_like(v)
    for c, jumps in kinks:
        for p, jump in enumerate(jumps):
            if jump and p >= order:
                term = jump / math.factorial(p - order) * (v - c) ** (p - order)
                total = total + (xp.where(v > c, term, 0) if c >= 0 else xp.where(v < c, -term, 0))
    return total


def alternating(terms: int, like: Array) -> Array:
    """(-1)^k on a leading axis: what Hermite coefficients of f(-z) have of those of f(z)."""
    return jnp.asarray((-1.0) ** np.arange(terms), like.dtype).reshape(-1, *[1] * like.ndim)


def coefficients(kinks: Kinks, order: int, seen: View, terms: int) -> Array:
    """E[S^(order)(s z) h_k(z)] of the singular part S, (terms, ...)."""
    total = jnp.zeros((terms, *seen.s.shape), seen.s.dtype)
    mirror = alternating(terms, seen.s)
    for m, kink in enumerate(kinks):
        for power in powers((kink,), order):
            part: Any
            if kink.at == 0 or seen.thresholds is None:
                part = jnp.asarray(step_coefficients(np.zeros(1), terms, power), seen.s.dtype)
                part = part.reshape(-1, *[1] * seen.s.ndim)
            else:
                part = step_coefficients(seen.thresholds.at[m], terms, power)
            part = kink.factor(power, order) * part * _power(kink, seen.s, power)[None]
            total = total + (part if kink.sign > 0 else mirror * part)
    return total


def _power(kink: Kink, s: Array, p: int) -> Array:
    """s^p; where the kink is out of sight its terms are 0, and a negative power must not
    overflow.
    """
    s = jnp.maximum(s, abs(kink.at) / FAR)
    return s**p if p >= 0 else ratio(jnp.ones_like(s), s) ** -p


def moments(
    kinks: Kinks,
    orders: tuple[tuple[int, int], ...],
    first: View,
    second: View,
    rho: Array,
    pole_gap: Array | None = None,
) -> list[Array]:
    """E[S^(i)(u) S^(j)(v)] of the singular part S for every (i, j) of `orders`.

    With `pole_gap`, 1 - |rho| is known better than from rho.
    """
    totals = [jnp.zeros_like(rho) for _ in orders]
    for group in _groups(kinks):
        mixed = _mixed(kinks, group, first, second, rho, pole_gap)
        totals = [
            t + _sum(group, i, j, first.s, second.s, mixed)
            for t, (i, j) in zip(totals, orders, strict=True)
        ]
    return totals


def pole_deficit(kinks: Kinks, first: View, second: View, rho: Array, pole_gap: Array) -> Array:
    """What E[S(u) S(v)] lacks of its value at the nearer pole, given 1 - |rho|."""
    total = jnp.zeros_like(rho)
    for group in _groups(kinks):
        mixed = _mixed(kinks, group, first, second, rho, pole_gap)
        total = total + _sum(group, 0, 0, first.s, second.s, PoleDeficit(mixed, pole_gap[None]))
    return total


Pairs = list[tuple[Kink, Kink]]


def _groups(kinks: Kinks) -> list[list[Pairs]]:
    """Pairs of kinks that share their moments, those of 0 with itself in a group of their own:
    these are cheaper.

    Mirroring both kinks changes nothing: half of the pairs of an even or odd function are the
    others again.
    """
    alike: dict[Any, Pairs] = {}
    for a, b in itertools.product(kinks, repeat=2):
        alike.setdefault((abs(a.at), abs(b.at), a.sign * b.sign), []).append((a, b))
    at_zero = [pairs for (a, b, _), pairs in alike.items() if a == b == 0]
    elsewhere = [pairs for (a, b, _), pairs in alike.items() if not a == b == 0]
    return [group for group in (at_zero, elsewhere) if group]


def _mixed(
    kinks: Kinks,
    group: list[Pairs],
    first: View,
    second: View,
    rho: Array,
    pole_gap: Array | None = None,
) -> MixedOrders:
    """The mixed orders of a group, on a leading axis."""
    pairs = [alike[0] for alike in group]
    column = lambda a: jnp.asarray(a, rho.dtype).reshape(-1, *[1] * rho.ndim)
    signed = column([a.sign * b.sign for a, b in pairs]) * rho[None]
    pole_gap = None if pole_gap is None else pole_gap[None]
    if (
        first.thresholds is None
        or second.thresholds is None
        or pairs[0][0].at == pairs[0][1].at == 0
    ):
        return MixedOrders(signed, pole_gap=pole_gap)
    one, other = (
        Threshold(*(jnp.stack([t[kinks.index(pair[k])] for pair in pairs]) for t in thresholds))
        for k, thresholds in enumerate((first.thresholds, second.thresholds))
    )
    return MixedOrders(signed, one, other, pole_gap)


def _sum(
    group: list[Pairs], i: int, j: int, s1: Array, s2: Array, mixed: MixedOrders | PoleDeficit
) -> Array:
    total = jnp.zeros_like(mixed.rho)
    left, right = (tuple(pair[k] for pairs in group for pair in pairs) for k in (0, 1))

    def scale(p: int, q: int, pairs: Pairs) -> Any:
        return sum(
            a.factor(p, i) * b.factor(q, j) * (_power(a, s1, p) * _power(b, s2, q))
            for a, b in pairs
        )

    for p in powers(left, i):
        for q in powers(right, j):
            scales = [scale(p, q, pairs) for pairs in group]
            total = total + jnp.stack(jnp.broadcast_arrays(*scales)) * mixed(p, q)
    return jnp.sum(total, axis=0)
