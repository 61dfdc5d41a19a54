"""How far apart a function with kinks takes two nearly parallel Gaussian inputs, for `Series`:
nothing cancels to rounding.

With f_i(z) = phi(s_i z) / n_i of norm 1 in L²(normal), and rho near the pole +-1,

    1 -+ rho' = |f_1 -+ f_2(+-z)|² / 2 +- deficit / (n_1 n_2),   deficit = k(pole) - k(rho).

The distance is taken from the Hermite coefficients that the series sums, with the singular part's
distance in full; what the series leaves out separates examples here as it does in the kernel.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from ntk_jax.duals.dual_rule import Gap, PoleGaps
from ntk_jax.duals.hermite_coefficients import NODES, RANGE
from ntk_jax.duals.kinks import kinks
from ntk_jax.duals.kinks.kinks import Kinks
from ntk_jax.duals.kinks.orthant import density
from ntk_jax.duals.numerics import LEFT_OUT, NEAR, ratio, ulps
from ntk_jax.platforms import by_platform

PANEL = RANGE / 4  # wide enough for one-sided powers and the density, between kinks
PARTS = 64  # in which a CPU looks at rows
FEW_PARTS = 4  # an accelerator, whose memory holds fifty numbers for each pair of one


class Side(NamedTuple):
    """Of one side: rows of the series, 1 / |phi|, and the share of |phi|² that the series leaves
    out.
    """

    rows: Any
    r: Array
    left_out: Array


def side(rows: Any, second: Array, summed: Array) -> Side:
    """Given E[phi²] and what the series makes of it."""
    share = 1 - ratio(summed, second)
    return Side(
        rows,
        ratio(jnp.ones_like(second), jnp.sqrt(second)),
        jnp.where(share > ulps(LEFT_OUT, second.dtype), share, 0),
    )


def in_order(one: Any, other: Any, q1: Array, q2: Array) -> list[Any]:
    """Two sides, smaller variance first: exchanging them then gives the same bits, however sums are
    rounded.
    """
    swap = q1 > q2
    where = lambda a, b: jnp.where(swap if a.ndim == swap.ndim else swap[None], b, a)
    return [jax.tree.map(where, *pair) for pair in ((one, other), (other, one))]


def pole_gaps(singular: Kinks, inputs: Gap, one: Side, other: Side) -> PoleGaps:
    """How far apart the activations are."""
    one, other = in_order(one, other, one.rows.q, other.rows.q)
    pole_gap = inputs.pole_gap
    pole = inputs.by_pole(jnp.ones_like(pole_gap), -jnp.ones_like(pole_gap))
    rho = pole * jnp.maximum(
        1 - pole_gap, jnp.finfo(pole_gap.dtype).tiny
    )  # of the pole's sign even where both are equally far
    deficit = kinks.pole_deficit(singular, one.rows.seen, other.rows.seen, rho, pole_gap)
    a, b = one.rows.phi, other.rows.phi
    mirror = kinks.alternating(len(a.all), pole_gap)
    at_pole = jnp.where(pole[None] > 0, jnp.ones_like(mirror), mirror)
    deficit = deficit + _deficit(at_pole * (a.all * b.all - a.singular * b.singular), pole_gap)
    turned = deficit * (one.r * other.r)
    smooth = [
        _half_squared_distances(c1 * one.r[None], at_pole * c2 * other.r[None])
        for c1, c2 in ((a.all, b.all), (a.singular, b.singular))
    ]
    whole = _singular_distances(singular, one, other, pole)
    left_out = (one.left_out + other.left_out) / 2
    minus, plus = (
        all_ - cut + add + left_out for all_, cut, add in zip(*smooth, whole, strict=True)
    )
    return PoleGaps(jnp.clip(minus + turned, 0, 2), jnp.clip(plus - turned, 0, 2))


def where_near(singular: Kinks, far: Array, inputs: Gap, one: Side, other: Side) -> Array:
    """The signed gaps of activations: `pole_gaps` where the inputs are nearly parallel, else `far`.

    Of pairs (n1, n2), some rows at a time: those without such pairs cost nothing.
    """
    far, inputs, one, other = lax.stop_gradient((far, inputs, one, other))
    near = inputs.pole_gap <= NEAR

    def exact(near: Array, far: Array, inputs: Gap, one: Side, other: Side) -> Array:
        return jnp.where(near, pole_gaps(singular, inputs, one, other).nearer.signed, far)

    if near.ndim != 2:
        return exact(near, far, inputs, one, other)

    def in_parts(near: Array, far: Array, inputs: Gap, one: Side, other: Side, parts: int) -> Array:
        rows = -(-len(near) // parts)

        def some_rows(m: Array, out: Array) -> Array:
            start = jnp.minimum(m * rows, len(near) - rows)
            cut = lambda a: lax.dynamic_slice_in_dim(a, start, rows, -2)
            here = jax.tree.map(cut, (near, far, inputs, one))
            new = lax.cond(jnp.any(here[0]), exact, lambda near, far, *_: far, *here, other)
            return lax.dynamic_update_slice_in_dim(out, new, start, 0)

        return lax.fori_loop(0, -(-len(near) // rows), some_rows, far)

    cpu, accelerator = (partial(in_parts, parts=parts) for parts in (PARTS, FEW_PARTS))
    all_rows = lambda *given: by_platform(cpu, accelerator, *given)
    # in one array: each of many would be copied first, whether any pair is near or not
    sides, apart = ravel_pytree((one, other))
    return lax.cond(
        jnp.any(near),
        lambda near, far, inputs, sides: all_rows(near, far, inputs, *apart(sides)),
        lambda near, far, *_: far,
        near, far, inputs, lax.optimization_barrier(sides),
    )  # fmt: skip


def _deficit(coefficients: Array, pole_gap: Array) -> Array:
    """sum_k c_k (1 - (1 - pole_gap)^k): by Horner's rule after division by `pole_gap`, or in one
    pass.
    """
    terms = coefficients[1:]

    def by_horner(terms: Array, pole_gap: Array) -> Array:
        def step(carry: tuple[Array, Array], c: Array) -> tuple[tuple[Array, Array], None]:
            value, total = carry
            total = total + c
            return (value * (1 - pole_gap) + total, total), None

        zero = jnp.zeros_like(pole_gap)
        return pole_gap * lax.scan(step, (zero, zero), terms, reverse=True)[0][0]

    def in_one_pass(terms: Array, pole_gap: Array) -> Array:
        k = jnp.arange(1, len(coefficients), dtype=pole_gap.dtype).reshape(-1, *[1] * pole_gap.ndim)
        return -jnp.sum(terms * jnp.expm1(k * jnp.log1p(-pole_gap)[None]), axis=0)

    return by_platform(by_horner, in_one_pass, terms, pole_gap)


def _half_squared_distances(a: Array, b: Array) -> tuple[Array, Array]:
    """|a -+ b|² / 2 along the leading axis."""
    return jnp.sum((a - b) ** 2, axis=0) / 2, jnp.sum((a + b) ** 2, axis=0) / 2


def _singular_distances(
    singular: Kinks, one: Side, other: Side, pole: Array
) -> tuple[Array, Array]:
    """|S_1 -+ S_2(+-z)|² / 2 by panels with a break where either side sees a kink."""
    ends = jnp.stack(_breaks(singular, one, other, pole))[:, None]
    x, weights = (
        jnp.asarray(a, pole.dtype).reshape(1, -1, *[1] * pole.ndim)
        for a in np.polynomial.legendre.leggauss(NODES)
    )
    half = (ends[1:] - ends[:-1]) / 2
    u = (ends[1:] + ends[:-1]) / 2 + half * x
    w = half * weights * density(u)
    first, second = (
        kinks.values(singular, 0, (sign * side.rows.seen.s)[None, None] * u) * side.r[None, None]
        for sign, side in ((jnp.ones_like(pole), one), (pole, other))
    )
    minus, plus = (jnp.sum(w * f**2, axis=(0, 1)) / 2 for f in (first - second, first + second))
    return minus, plus


def _breaks(singular: Kinks, one: Side, other: Side, pole: Array) -> list[Array]:
    """The ends of the panels, in order: kinks are inserted one after the other."""
    found = [jnp.full_like(pole, b) for b in np.arange(-RANGE, RANGE + PANEL / 2, PANEL)]
    for sign, side in ((1, one), (pole, other)):
        for c in (c for c, _ in singular if c != 0):
            at = jnp.clip(c * (sign * side.rows.r), -RANGE, RANGE)
            below, above = [found[0], *found], [*found, found[-1]]
            found = [jnp.maximum(a, jnp.minimum(at, b)) for a, b in zip(below, above, strict=True)]
    return found
