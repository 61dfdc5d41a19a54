"""The modes of a symmetric matrix, functions of its eigenvalues, and their divided differences.

f[a] = f(a), f[a, b] = (f(a) - f(b)) / (a - b), ...; f'(a) where a = b. The quotient cancels where
the points are near: there f[a, b] is the mean of f' between them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

NULL = 5
"""Eigenvalues up to this many eps of the largest are rounding.

Of 180 kernels of up to 1,000 examples (ReLU, erf, GELU; uniform, normal, repeated and nearly
repeated rows), computed and diagonalized in float32, no eigenvalue that small was off by more than
3.5 eps of the largest, whatever the number of examples.
"""

# TF32 and bfloat16 products make kernels indefinite: full precision unless the caller says
# otherwise.
matmul = partial(jnp.matmul, precision="highest")
vdot = partial(jnp.vdot, precision="highest")
einsum = partial(jnp.einsum, precision="highest")
fixed = jax.lax.stop_gradient

Parameters: TypeAlias = Any
"""What a function of eigenvalues is differentiated by: a pytree of scalars."""

Constants: TypeAlias = Any
"""What else it depends on: a pytree of arrays."""


class Basis(NamedTuple):
    """The modes of a symmetric matrix, and the matrix itself where it is traced: what derivatives
    go through.
    """

    eigenvalues: Float[Array, " n"]
    eigenvectors: Float[Array, "n n"]
    kernel: Float[Array, "n n"] | None


class Function(NamedTuple):
    """A function of eigenvalues s, and of parameters and constants.

    Attributes:
        value: (s, parameters, constants) -> values shaped like s, differentiable in s and
            parameters.
        reach: (s, parameters, constants) -> how far from s the function is a short polynomial.
    """

    value: Callable[[Array, Parameters, Constants], Array]
    reach: Callable[[Array, Parameters, Constants], Array]


@runtime_checkable
class SpectralFunction(Protocol):
    """A `Function`, or a hashable object that has its two parts as methods."""

    @property
    def value(self) -> Callable[[Array, Parameters, Constants], Array]: ...  # noqa: D102

    @property
    def reach(self) -> Callable[[Array, Parameters, Constants], Array]: ...  # noqa: D102


# Gauss-Legendre on [-1/2, 1/2]: of a function that varies on the scale of twice the interval, the
# mean to 1e-16.
_NODES, _WEIGHTS = (part / 2 for part in np.polynomial.legendre.leggauss(8))
# Where a divided difference looks: sign in f(a) - f(b), place between b and a, weight in the mean.
_POINTS = np.concatenate([[[1, 0, 0], [-1, 0, 0]], np.stack([0 * _NODES, _NODES, _WEIGHTS], 1)])


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

    def add(sums: tuple[Array, Array], node: Array) -> tuple[tuple[Array, Array], None]:
        sign, x, weight = node
        at = jnp.where(sign > 0, a, jnp.where(sign < 0, b, (a + b) / 2 + x * gap))
        value, slope = jax.jvp(g, (at,), (jnp.ones_like(at),))
        # the slope at the ends is not asked for, and may be infinite
        return (sums[0] + sign * value, sums[1] + jnp.where(weight > 0, weight * slope, 0)), None

    # In a loop: at once they would take ten times the memory, and g is a large program where it is
    # a divided difference itself.
    zero = jnp.zeros_like(gap)
    (difference, mean), _ = jax.lax.scan(add, (zero, zero), jnp.asarray(_POINTS, a.dtype))
    return jnp.where(near, mean, difference / jnp.where(near, 1, gap))
