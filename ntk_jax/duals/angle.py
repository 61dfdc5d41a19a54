"""The angle between two directions, exact to a few ulps and cheap enough to stay inside one fused
loop.

With x = |rho| and u = 1 - x, the angle to the nearer pole is phi = arccos(x) = s R(u), s = sqrt(u
(2 - u)): the square root carries the whole singularity and R(u) = 1 + u/3 + u² R2(u) is smooth on
[0, 1], a short polynomial. XLA's own `arccos` and `arctan2` are library calls on CPU: not
vectorized, and they split the loop they stand in.

The differences that the arc-cosine kernels need cancel near a pole; here they are products of
positive terms instead:

    s - x phi                   = s u  (1 - x R1),                          R1 = 1/3 + u R2
    (1 + 2 x²) phi - 3 s x      = s u² (2 (1 + u) / 3 + (3 - 4 u + 2 u²) R2)

The coefficients come from tests/references/angle_coefficients.py; R inherits a relative error of
2e-8 and 8e-18.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.duals.numerics import ANGLE, ulps

R2_SINGLE = (
    0.1333333479775923, 0.057140491861866184, 0.02545894362253235, 0.01092457830432989,
    0.00836847732576608, -0.005691800390384384, 0.013587833775570986, -0.009633282682205669,
    0.003974375235873354,
)  # fmt: skip
R2_DOUBLE = (
    0.13333333333333333, 0.05714285714285137, 0.02539682539767046, 0.011544011495022771,
    0.0053280068283786544, 0.0024863744291136365, 0.0011704209487457503, 0.0005511852981476394,
    0.0002835299270906467, 3.184406360713761e-05, 0.0004083527948481862, -0.0009635383468165953,
    0.0022243132759559186, -0.003837948107068089, 0.005209721348258905, -0.005432159431369671,
    0.004290883668483571, -0.00248148586545124, 0.000995179263538204, -0.00024800596311574333,
    2.9291960338425676e-05,
)  # fmt: skip


class Angle(NamedTuple):
    """Of one correlation: u = 1 - |rho|, the sine s, and the smooth part R2 of the angle to the
    nearer pole.
    """

    u: Array
    sine: Array
    R2: Array

    @property
    def R1(self) -> Array:
        """(R - 1) / u."""
        return self.u * self.R2 + 1 / 3

    @property
    def to_pole(self) -> Array:
        """phi = arccos |rho|, in [0, pi/2]."""
        return self.sine * (self.u * self.R1 + 1)

    @property
    def first_gap(self) -> Array:
        """s - |rho| phi."""
        return self.sine * self.u * (1 - (1 - self.u) * self.R1)

    @property
    def second_gap(self) -> Array:
        """(1 + 2 rho²) phi - 3 s |rho|."""
        u = self.u
        return self.sine * u * u * ((1 + u) * (2 / 3) + (3 + u * (2 * u - 4)) * self.R2)

    def inverse_sine(self, noise: float = 0) -> Array:
        """1 / s, 0 at the pole: the derivative of the angle by u, half of what either side of the
        cusp adds to the other.

        It is bounded: compiled code may evaluate s twice with different rounding, positive in the
        test and 0 in the quotient.
        """
        dtype = self.sine.dtype
        floor = max(ulps(noise / 2, dtype) ** 0.5, ulps(ANGLE, dtype))
        return jnp.where(self.sine > 0, 1 / jnp.maximum(self.sine, floor), 0)


def angle(u: Array, noise: float = 0) -> Angle:
    """The angle of |rho| = 1 - u; u below `noise` ulps counts as 0: a correlation rounded past +-1
    is +-1.
    """
    positive = u > ulps(noise, u.dtype)  # one comparison: `maximum` would take two to propagate NaN
    # A finite derivative too: inside scan and jit, JAX may drop custom rules of what it inlines.
    safe = jnp.where(positive, u, 1)
    u = jnp.where(positive, u, 0)
    return Angle(u, jnp.where(positive, jnp.sqrt(safe * (2 - safe)), 0), _R2(u))


@jax.custom_jvp
def first_gap(u: Array) -> Array:
    """s - |rho| phi of |rho| = 1 - u; its derivative is phi."""
    return angle(held(u)).first_gap


@first_gap.defjvp
def _first_gap_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return first_gap(*primals), to_pole(*primals) * tangents[0]


@jax.custom_jvp
def to_pole(u: Array) -> Array:
    """phi = arccos |rho| of |rho| = 1 - u; its derivative is 1 / s, 0 at the cusp."""
    return angle(held(u)).to_pole


@to_pole.defjvp
def _to_pole_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    u = held(primals[0])
    return to_pole(u), jnp.where(u > _cusp(u), angle(u).inverse_sine(), 0) * tangents[0]


def beyond_cusp(u: Array) -> Array:
    """u, but 0 where of the angle's derivative nothing but rounding would be left."""
    return jnp.where(u > _cusp(u), u, 0)


def held(u: Array) -> Array:
    """u, without a derivative at the cusp: there that of the angle would be rounding over
    rounding. Custom rules alone will not do: reverse mode through `scan` loses them.
    """
    return jnp.where(u > _cusp(u), u, lax.stop_gradient(u))


def _cusp(u: Array) -> float:
    return ulps(ANGLE, u.dtype) ** 2 / 2


def _R2(u: Array) -> Array:
    coefficients = R2_DOUBLE if u.dtype == jnp.float64 else R2_SINGLE
    R2 = jnp.full_like(u, coefficients[-1])
    for c in coefficients[-2::-1]:
        R2 = R2 * u + c
    return R2


@jax.custom_jvp
def arcsine(sine: Array, cosine: Array) -> Array:
    """arcsin(sine) for sine in [-1, 1], exact relative to its value, given cosine = sqrt(1 - sine²)
    free of cancellation.
    """
    u = sine * sine / (1 + cosine)  # 1 - cosine
    return sine * (1 + u * (1 / 3 + u * _R2(u)))


@arcsine.defjvp
def _arcsine_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    sine, cosine = primals
    return arcsine(sine, cosine), tangents[0] / jnp.where(cosine > 0, cosine, 1)


@jax.custom_jvp
def orthant(sine: Array, cosine: Array) -> Array:
    """pi/2 + arcsin(sine): pi minus the angle, exact relative to its value down to the pole sine =
    -1.
    """
    to_pole = angle(cosine * cosine / (1 + jnp.abs(sine))).to_pole
    return jnp.where(sine > 0, jnp.pi - to_pole, to_pole)


@orthant.defjvp
def _orthant_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    sine, cosine = primals
    return orthant(sine, cosine), tangents[0] / jnp.where(cosine > 0, cosine, 1)
