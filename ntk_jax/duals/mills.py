"""Mills' ratio, from which exponentials of one-sided Gaussians are made: without overflow, cheap
enough for a loop.

    m(c) = exp(c² / 2) int_c^inf exp(-x² / 2) dx,    m' = c m - 1,    c >= 0.

(c + 4) m(c) is smooth in v = (c - 4) / (c + 4) on [-1, 1], a short polynomial. The coefficients
come from tests/references/mills_coefficients.py; relative errors are 4e-9 and 1e-17.
"""

import jax
import jax.numpy as jnp
from jax import Array

CENTRE = 4
SINGLE = (
    1.8932190635312804, -1.5237709064105511, 0.9704095390179237, -0.46754128126014594,
    0.1513919355386495, -0.018896690449470618, -0.008722923582576076, 0.004071385052562722,
    0.00033498687103175465, -0.0005458711105576162, -4.326421081647871e-06,
    5.509329167240786e-05,
)  # fmt: skip
DOUBLE = (
    1.8932190633084853, -1.5237709108199835, 0.9704095548675874, -0.46754096299832926,
    0.1513917623124891, -0.01890045086179461, -0.008722295275113486, 0.00408785568219404,
    0.00033424462447582926, -0.0005792693112383798, -4.7833112184110975e-06,
    8.809575792458322e-05, 1.7965666540766273e-06, -1.4843347253192145e-05,
    -1.5791693622508298e-06, 2.5688741365377523e-06, 6.836016680202922e-07,
    -4.006262909600915e-07, -2.1840990663360633e-07, 4.482320698500524e-08,
    5.4154267181159925e-08, -1.509241818614183e-09, -9.520279114401458e-09,
    -2.9433098761634534e-10, 8.812534041624495e-10,
)  # fmt: skip


@jax.custom_jvp
def mills(c: Array) -> Array:
    """m(c) for c >= 0."""
    coefficients = DOUBLE if c.dtype == jnp.float64 else SINGLE
    inverse = 1 / (c + CENTRE)
    v = 1 - 2 * CENTRE * inverse
    value = jnp.full_like(c, coefficients[-1])
    for a in coefficients[-2::-1]:
        value = value * v + a
    return value * inverse


@mills.defjvp
def _mills_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return mills(*primals), -first_moment(*primals) * tangents[0]


def first_moment(c: Array) -> Array:
    """int_0^inf r exp(-r² / 2 - c r) dr = 1 - c m(c), which falls from 1 to 0."""
    return 1 - c * mills(c)
