"""Gradient flow in the space of the parameters themselves, by an ODE solver (extra `ode`)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Num

from ntk_jax.checks import check_params
from ntk_jax.closures.programs import Leaves, program_of
from ntk_jax.networks.apply_fn import as_arrays
from ntk_jax.ode import solve_ode
from ntk_jax.types import Params


def parameter_flow(
    loss: Callable[[Params], Array],
    params: Params,
    t: Num[ArrayLike, "*T"] | Sequence[float],
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_steps: int = 100_000,
) -> Params:
    """Parameters at time t of steepest descent without steps, dθ/dt = -∇L(θ).

    Along the flow the loss falls at the rate dL/dt = -|∇L|². Gradient descent with a small learning
    rate is its Euler method, with t = learning rate x steps. Of a network, L(θ) is for example
    `lambda p: mse(apply_fn(p, x), y)`, and its outputs follow df/dt = -K(θ_t) ∂L/∂f, with the
    kernel of the parameters at that time.

    Args:
        loss: parameters -> scalar.
        params: the start, any pytree of floating-point arrays.
        t: a scalar or an array of times (T,), finite.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        max_steps: error beyond.

    Returns:
        Parameters, every leaf with a leading axis T if t is an array.

    Raises:
        ImportError: diffrax is missing.
        ValueError: bad parameters, negative or infinite times; a solve that needs more than
            `max_steps`.

    Reference: Jacot et al. 2018, section 3.

    Example:
        >>> loss = lambda params: jnp.sum(params["w"] ** 2) / 2
        >>> out = ntk_jax.parameter_flow(loss, {"w": jnp.ones(2)}, [0.0, 1.0])
        >>> print(np.round(out["w"], 3))  # exp(-t)
        [[1.    1.   ]
         [0.368 0.368]]
    """
    check_params(params)

    start = as_arrays(params)
    # Equal losses share the function that runs, and with it the program of the solver.
    downhill, consts, _ = program_of(_downhill, loss, start)
    velocity = jax.tree_util.Partial(_velocity, downhill.run)
    options: dict[str, Any] = {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    solution = solve_ode(velocity, start, t, consts, caller="parameter_flow", **options)
    if solution.failure is not None:
        raise ValueError(
            f"t: expected times that are reached within max_steps = {max_steps} steps of the "
            f"solver; got up to {np.max(t):.6g}. The flow is stiff or diverges: use smaller times, "
            "more steps, or looser tolerances."
        )
    return solution.states


def _downhill(loss: Callable[[Params], Array], params: Params) -> Params:
    return jax.tree.map(jnp.negative, jax.grad(loss)(params))


def _velocity(run: Callable[[Any, Any], Any], _: Array, params: Params, consts: Leaves) -> Params:
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, run(consts, leaves))
