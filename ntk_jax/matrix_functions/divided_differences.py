"""Divided differences: f[a] = f(a), f[a, b] = (f(a) - f(b)) / (a - b), ...; f'(a) where a = b.

The quotient cancels where the points are near. There f[a, b] is the mean of f' between them.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.matrix_functions.basis import Constants, Parameters, SpectralFunction

# Gauss-Legendre on [-1/2, 1/2]: of a function that varies on the scale of twice the interval, the
# mean to 1e-16.
_NODES, _WEIGHTS = (part / 2 for part in np.polynomial.legendre.leggauss(8))


def divided_difference(
    f: SpectralFunction,
    points: tuple[Array, ...],
    parameters: Parameters,
    constants: Constants = (),
) -> Array:
    """f[a, b, ...] of points that broadcast."""
    a, *others = jnp.broadcast_arrays(*points)
    g = lambda s: f.value(s, parameters, constants)
    for b in others:
        g = partial(_slope, g, b, lambda low: f.reach(low, parameters, constants))
    return g(a)


def _slope(
    g: Callable[[Array], Array], b: Array, reach: Callable[[Array], Array], a: Array
) -> Array:
    """g[a, b]."""
    gap = a - b
    near = jnp.abs(gap) <= reach(jnp.minimum(a, b)) / 2
    derivative = lambda u: jax.jvp(g, (u,), (jnp.ones_like(u),))[1]
    nodes, weights = (jnp.asarray(part, a.dtype) for part in (_NODES, _WEIGHTS))
    between = jax.vmap(lambda x: derivative((a + b) / 2 + x * gap))(nodes)
    mean = jnp.tensordot(weights, between, 1, precision="highest")
    return jnp.where(near, mean, (g(a) - g(b)) / jnp.where(near, 1, gap))
