"""What counts as rounding, and functions of moments that are exact, or have a derivative, where
rounding would decide.

The correlation of parallel examples is +-1 to rounding, and there an angle is the square root of
what the correlation lacks: each place that compares with "parallel" names its threshold here. Each
is a number of ulps (of relative distances between neighbouring numbers) of the dtype, unless said
otherwise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

CORRELATION = 2
"""Ulps within which a correlation computed from three moments counts as +-1.

Two roots, a product and a quotient round by as much. Below, the angle of parallel rows would be the
square root of rounding, and their kernel not positive semi-definite.
"""

SQUARED_SINE = 2 * CORRELATION
"""Ulps within which 1 - rho² = (1 - |rho|) (1 + |rho|) counts as 0: it is twice 1 - |rho|."""

THRESHOLDS = 8
"""Ulps within which one kink, seen by two inputs that are parallel, counts as one threshold c / s.

Both variances may have been rounded on the way through a layer, in two ways.
"""

PRODUCTS = 8
"""Ulps within which a covariance from a product of matrices counts as that of parallel rows.

A product sums in another order than the sum of squares on the diagonal.
"""

ANGLE = 16
"""Ulps within which an angle counts as 0 where it is differentiated.

Of the direction in which it grows nothing is left: its derivative would be rounding over rounding.
"""

NEAR = 2.0**-12
"""1 - |rho| below which a pair counts as nearly parallel, in any dtype.

Angles are below .022 there, and in float32 rounding of a covariance moves them by 45 ulps and more:
such a pair is followed by the distance between its directions instead.
"""

LEFT_OUT = 32
"""Ulps of E[phi²] below which what a series leaves out is the rounding of its sum over terms."""

TAIL = 4
"""Ulps of a sum of squares below which the tail that Parseval's formula leaves is rounding."""


def ulps(count: float, dtype: Any) -> float:
    """That many relative distances between neighbouring numbers."""
    return count * float(jnp.finfo(dtype).eps)


def covariance_slack(dtype: Any) -> float:
    """How far beyond sqrt(q11 q22), relative to it, a covariance given by a user may be.

    The rounding of products over millions of features; in float32 also of accelerators' short
    formats.
    """
    return 1e-6 if dtype == jnp.float64 else 2e-3


def with_derivative(value: Array, of: Array) -> Array:
    """`value`, with the derivative `of` what it is known better than."""
    return lax.stop_gradient(value) + (of - lax.stop_gradient(of))


def clip_rounding(a: Array, low: float, high: float | None = None) -> Array:
    """`jnp.clip` with the derivative of `a` itself: at the bounds, where parallel examples stand,
    that of `clip` is halved.
    """
    clipped = jnp.clip(a, low, high)
    return a + lax.stop_gradient(jnp.where(clipped == a, 0, clipped - a))


def covariance_at_poles(c: Array, q1: Array, q2: Array, s1: Array, s2: Array) -> Array:
    """A covariance that a product of matrices left within `PRODUCTS` of +-sqrt(q1 q2), put there,
    given the variances and their roots.

    Products round differently from sums of squares, so that equal and parallel rows would be a
    rounding apart: in the tangent kernel of ReLU, whose derivative at a pole is infinite, the root
    of that. An example in both sets has its own variance to the bit: at inputs of 1e4, q11 + q22 -
    2 q12 is all rounding, and that of the radial basis function its kernel.
    """
    s = jnp.where(q1 == q2, q1, s1 * s2)
    parallel = jnp.abs(c) >= s * (1 - ulps(PRODUCTS, s.dtype))
    return c + lax.stop_gradient(jnp.where(parallel, jnp.sign(c) * s - c, 0))


def ratio(a: ArrayLike, b: Array) -> Array:
    """a / b where b > 0, else 0, with finite derivatives."""
    positive = b > 0
    return jnp.where(positive, a / jnp.where(positive, b, 1), 0)


def root(q: Array) -> Array:
    """sqrt(q) for q > 0, else 0, with derivative 0 there."""
    positive = q > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, q, 1)), 0)


@jax.custom_jvp
def correlation(q11: Array, q12: Array, q22: Array) -> Array:
    """q12 / sqrt(q11 q22), 0 next to a zero input; its derivative neither overflows nor underflows
    before it must.
    """
    return q12 * (ratio(1, root(q11)) * ratio(1, root(q22)))


@correlation.defjvp
def _correlation_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    q11, _, q22 = primals
    rho, half = correlation(*primals), ratio(tangents[0], q11) / 2 + ratio(tangents[2], q22) / 2
    return rho, tangents[1] * (ratio(1, root(q11)) * ratio(1, root(q22))) - rho * half
