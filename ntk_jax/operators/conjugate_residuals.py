"""Conjugate residuals: the solution of a linear system from products with its matrix alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ntk_jax.matrix_functions.basis import vdot


class Solution(NamedTuple):
    """An approximate solution of A x = b, the residual b - A x, and how the iteration ended."""

    value: Float[Array, " n"]
    residual: Float[Array, " n"]
    converged: Bool[Array, ""]
    num_steps: Int[Array, ""]


class _State(NamedTuple):
    """The solution so far, residual r and search direction p, the products A r and A p, and
    rᵀ A r.
    """

    value: Array
    residual: Array
    a_residual: Array
    direction: Array
    a_direction: Array
    rho: Array
    step: Array


def conjugate_residuals(
    multiply: Callable[[Array], Array],
    b: Float[Array, " n"],
    *,
    tolerance: Float[Array, ""],
    max_steps: int,
) -> Solution:
    """Solve A x = b for a positive semi-definite A, from x = 0, inside or outside of a trace.

    The norm of the residual is the smallest in each Krylov space, so that it falls in every step.
    If A is singular and b is not in its range, the residual comes to lie in the null space, and
    the value is a least-squares solution.

    Args:
        multiply: v (n,) -> A v.
        b: the right-hand side.
        tolerance: stop when sqrt(rᵀ A r) has fallen to this fraction of its start.
        max_steps: products at most.

    Returns:
        Solution(value, residual, converged, num_steps).

    Reference: Hestenes, Stiefel 1952; Stiefel 1955.
    """
    a_b = multiply(b)
    rho_0 = vdot(b, a_b)

    def going(state: _State) -> Array:
        return (state.rho > tolerance**2 * rho_0) & (state.step < max_steps)

    def step(state: _State) -> _State:
        length = state.rho / vdot(state.a_direction, state.a_direction)
        residual = state.residual - length * state.a_direction
        a_residual = multiply(residual)  # the only product: that with the direction is a sum
        rho = vdot(residual, a_residual)
        turn = rho / state.rho
        return _State(
            state.value + length * state.direction,
            residual,
            a_residual,
            residual + turn * state.direction,
            a_residual + turn * state.a_direction,
            rho,
            state.step + 1,
        )

    first = _State(jnp.zeros_like(b), b, a_b, b, a_b, rho_0, jnp.asarray(0))
    last = jax.lax.while_loop(going, step, first)
    return Solution(last.value, last.residual, last.rho <= tolerance**2 * rho_0, last.step)
