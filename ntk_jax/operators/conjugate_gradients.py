"""Preconditioned conjugate gradients: every column by itself, all columns in one product.

A run goes in chunks. Inside a chunk the residual is the recursion's, which drifts from b - A x with
rounding; between chunks it is computed anew, and only that one is believed.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from ntk_jax.checks import Number
from ntk_jax.linalg import matmul
from ntk_jax.operators.nystrom import LowRank
from ntk_jax.operators.symmetric import Operator, multiply
from ntk_jax.small_programs import jit_by_size

Preconditioner: TypeAlias = LowRank | Callable[[Array], ArrayLike] | None


class State(NamedTuple):
    """Where all columns are: values x, residuals r, directions p, rᵀ M r, which columns still move,
    which broke down, the smallest and largest pᵀ A p / pᵀ p seen, and the steps.
    """

    value: Float[Array, "n m"]
    residual: Float[Array, "n m"]
    direction: Float[Array, "n m"]
    rho: Float[Array, " m"]
    active: Bool[Array, " m"]
    broken: Bool[Array, " m"]
    seen: Float[Array, "2"]
    steps: Int[Array, ""]


class Renewed(NamedTuple):
    """A state with true residuals: their norms, how far the recursion had drifted from them, which
    columns broke down, and which begin anew.
    """

    state: State
    size: Float[Array, " m"]
    drift: Float[Array, " m"]
    broken: Bool[Array, " m"]
    anew: Bool[Array, " m"]


class System(NamedTuple):
    """(K + ridge) x = b, with columns b of norm 1, and its preconditioner."""

    k: Operator
    ridge: Number
    b: Float[Array, "n m"]
    preconditioner: Preconditioner


def start(system: System, tol: Number) -> State:
    """From x = 0."""
    return _start(system.b, _preconditioned(system.preconditioner, system.b), tol)


def chunk(
    system: System, state: State, num_steps: int, tol: Number, tick: Callable[[int], object]
) -> State:
    """So many steps, or until no column moves; `tick` hears of steps."""
    k, ridge, _, m = system
    if isinstance(k, Array) and _is_traced(m):
        before = int(state.steps)
        state = _chunk(k, ridge, m, state, np.int32(num_steps), tol)
        tick(int(state.steps) - before)
        return state
    # The products are made one by one, outside of any trace: an operator may be any Python code.
    for _ in range(num_steps):
        if not np.any(np.asarray(state.active)):
            break
        product = multiply(k, state.direction)
        if _is_traced(m):
            state = _whole_step(m, ridge, state, product, tol)
        else:
            state = _advance(ridge, state, product, tol)
            state = _turn(state, _preconditioned(m, state.residual))
        tick(1)
    return state


def renew(system: System, state: State, tol: Number) -> Renewed:
    """The state with true residuals: a column starts anew where rounding had led it astray."""
    renewed = _renew(system.ridge, system.b, state, multiply(system.k, state.value), tol)
    z = _preconditioned(system.preconditioner, renewed.state.residual)
    return renewed._replace(state=_restart(renewed.state, renewed.anew, z))


def _is_traced(m: Preconditioner) -> TypeGuard[LowRank | None]:
    """Whether a preconditioner may be part of a compiled step; users' own may be any Python."""
    return m is None or isinstance(m, LowRank)


def _preconditioned(m: Preconditioner, residual: Array) -> Array:
    if m is None:
        return residual
    z = _apply(m, residual) if isinstance(m, LowRank) else jnp.asarray(m(residual))
    if z.shape != residual.shape or z.dtype != residual.dtype:
        raise ValueError(
            f"preconditioner: expected results like its argument, {residual.shape} of "
            f"{residual.dtype}; got {z.shape} of {z.dtype}."
        )
    return z


@jit_by_size
def _start(b: Float[Array, "n m"], z: Float[Array, "n m"], tol: Array) -> State:
    every = jnp.sqrt(jnp.sum(b * b, axis=0)) > tol
    seen = jnp.asarray([jnp.inf, 0], b.dtype)
    state = State(
        jnp.zeros_like(b),
        b,
        z,
        jnp.zeros_like(b[0]),
        every,
        ~every,
        seen,
        jnp.asarray(0, jnp.int32),
    )
    return _restarted(state, every, z)


@jit_by_size
def _chunk(
    k: Array, ridge: Array, m: LowRank | None, state: State, num_steps: Array, tol: Array
) -> State:
    last = state.steps + num_steps

    def going(state: State) -> Array:
        return jnp.any(state.active) & (state.steps < last)

    def step(state: State) -> State:
        return _step(m, ridge, state, matmul(k, state.direction), tol)

    return jax.lax.while_loop(going, step, state)


_apply = jit_by_size(LowRank.__call__)


def _step(m: LowRank | None, ridge: Array, state: State, product: Array, tol: Array) -> State:
    state = _advanced(ridge, state, product, tol)
    return _turned(state, state.residual if m is None else m(state.residual))


def _advanced(ridge: Array, state: State, product: Array, tol: Array) -> State:
    """x and r after a step along p, of exact length, where columns move."""
    x, r, p, rho, active, broken, seen, steps = state
    product = product + _of_rows(ridge) * p
    curvature, square = jnp.sum(p * product, axis=0), jnp.sum(p * p, axis=0)
    quotient = curvature / jnp.where(square > 0, square, 1)
    least, most = (jnp.where(active & (square > 0), quotient, edge) for edge in (jnp.inf, 0))
    downhill = jnp.sum(p * r, axis=0)
    moves = active & (curvature > 0) & (downhill > 0)
    length = jnp.where(moves, downhill / jnp.where(moves, curvature, 1), 0)[None]
    x, r = x + length * p, r - length * product
    seen = jnp.stack([jnp.minimum(seen[0], least.min()), jnp.maximum(seen[1], most.max())])
    far = jnp.sqrt(jnp.sum(r * r, axis=0)) > tol
    return State(x, r, p, rho, moves & far, broken | (active & ~moves), seen, steps + 1)


def _turned(state: State, z: Array) -> State:
    """The next direction, where columns move."""
    rho = jnp.sum(state.residual * z, axis=0)
    moves = state.active & (rho > 0)
    turn = jnp.where(moves, rho / jnp.where(moves, state.rho, 1), 0)[None]
    p = jnp.where(moves[None], z + turn * state.direction, state.direction)
    return state._replace(
        direction=p,
        rho=jnp.where(moves, rho, state.rho),
        active=moves,
        broken=state.broken | (state.active & ~moves),
    )


_whole_step, _advance, _turn = jit_by_size(_step), jit_by_size(_advanced), jit_by_size(_turned)


@jit_by_size
def _renew(ridge: Array, b: Array, state: State, product: Array, tol: Array) -> Renewed:
    residual = b - product - _of_rows(ridge) * state.value
    length = lambda v: jnp.sqrt(jnp.sum(v * v, axis=0))
    size = length(residual)
    drift = length(residual - state.residual)
    # Directions go on where the recursion was right, and begin at the residual where it was not.
    anew = (drift > size / 10) | state.broken | ~state.active
    state = state._replace(residual=residual, active=size > tol)
    return Renewed(state, size, drift, state.broken, anew)


def _restarted(state: State, anew: Bool[Array, " m"], z: Float[Array, "n m"]) -> State:
    rho = jnp.sum(state.residual * z, axis=0)
    return state._replace(
        direction=jnp.where(anew[None], z, state.direction),
        rho=jnp.where(anew, rho, state.rho),
        broken=jnp.zeros_like(state.broken),
    )


_restart = jit_by_size(_restarted)


def _of_rows(ridge: Array) -> Array:
    return jnp.reshape(ridge, (-1, 1)) if jnp.ndim(ridge) else jnp.asarray(ridge)
