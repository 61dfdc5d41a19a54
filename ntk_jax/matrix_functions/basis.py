"""The modes of a symmetric matrix, functions of its eigenvalues, and products at full precision."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
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
