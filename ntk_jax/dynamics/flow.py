"""Gradient flow on the squared loss under a fixed kernel, in closed form, mode by mode.

The loss is half the mean over all n·O entries of (f - y)², and time is t = learning rate x number
of steps. Then df/dt = -K (f - y) / (nO), and the mode of eigenvalue s decays as exp(-s t / (nO)).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, Int, Num

from ntk_jax.checks import (
    Look,
    as_number,
    check_looks,
    check_number,
    check_vector,
    is_zero,
    looks,
)
from ntk_jax.compat import is_concrete, outside_traces
from ntk_jax.dynamics.least_squares import (
    LeastSquares,
    Problem,
    apply_batch,
    in_modes,
    least_squares,
)
from ntk_jax.dynamics.on_operators import flow_on_operator
from ntk_jax.linalg import null_rcond
from ntk_jax.matrix_functions.basis import Function, divided_difference
from ntk_jax.modes.modes import Modes, Prediction
from ntk_jax.modes.multiplied import data_of
from ntk_jax.operators.symmetric import SymmetricOperator, is_operator
from ntk_jax.small_programs import jit_by_size


class Rest(NamedTuple):
    """How many modes are at rest, as their eigenvalue counts as 0, and the largest eigenvalue."""

    num_modes: Int[Array, ""]
    largest: Float[Array, ""]


def gradient_flow_mse(
    modes: Modes | SymmetricOperator,
    y_train: Num[ArrayLike, "n *O"],
    t: Num[ArrayLike, "*T"] | Sequence[float],
    *,
    fx_train_0: ArrayLike = 0.0,
    k_test_train: SymmetricOperator | ArrayLike | None = None,
    fx_test_0: ArrayLike | None = None,
    diag_reg: Float[ArrayLike, ""] = 0.0,
    weight_decay: Float[ArrayLike, ""] = 0.0,
    radial_train_0: ArrayLike | None = None,
    radial_test_0: ArrayLike | None = None,
    predict_train: bool = True,
    krylov_options: Mapping[str, Any] | None = None,
) -> Prediction:
    """The outputs at time t of gradient flow on the half-mean squared loss.

        f_train(t) = f_0 + K α(t),  f_test(t) = f_0 + K_test α(t),
        α(t) = (K + r)⁻¹ (1 - exp(-(K + r) t / (nO))) (y - f_0)

    With weight decay λ the parameters also shrink towards 0: θ - θ_0 = Jᵀα + β θ_0, β(t) = exp(-λt)
    - 1 (if r = 0), and the outputs move by β Jθ_0, which is what `radial_train_0` and
    `radial_test_0` are for.

    Args:
        modes: `diagonalize(k_train_train)`; or the training kernel as an operator or store that is
            only multiplied, without weight decay: then from a Krylov space of the operator.
        y_train: targets, (n,) or (n, O).
        t: time = learning rate x steps: a scalar, an array of times (T,), or inf.
        fx_train_0: outputs of the network at initialization, 0 or shaped like y_train.
        k_test_train: kernel between test rows and training columns, to predict test outputs too; of
            as many axes as the training kernel.
        fx_test_0: outputs on the test examples at initialization, 0 or (n_test,) or (n_test, O);
            needed with k_test_train if fx_train_0 is given.
        diag_reg: r, a pull of the parameters back to their start, (r / 2nO) |θ - θ_0|² added to the
            loss; at t = inf this is kernel ridge regression.
        weight_decay: λ, (λ / 2) |θ|² added to the loss of the linearized network
            (`optax.add_decayed_weights`).
        radial_train_0: with weight decay, J(x) θ_0 on the training examples, the derivative of the
            outputs as the parameters are scaled: `jax.jvp(lambda p: apply_fn(p, x), (params,),
            (params,))[1]`.
        radial_test_0: the same on the test examples.
        predict_train: False leaves out the training outputs, (n, n) times (n, T O), which for many
            times and few test examples is nearly all of the cost.
        krylov_options: of an operator: `tol`, of outputs in units of their change (default 1e-4 in
            float32, 1e-8 in float64), `max_steps` (200), `progress`.

    Returns:
        Prediction(train, test), shaped like the targets, with the times T as leading axis if t is
        an array.

    Raises:
        ValueError: shapes that do not fit or would broadcast, NaN, negative t.

    Warns:
        UserWarning: float32 modes that count as 0 but would have moved by the time t if they are
            not.

    Reference: Lee et al. 2019, eq. 8-11.

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> out = ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), y, [0.0, 2.0, jnp.inf])
        >>> print(np.round(out.train, 3))  # the mode of eigenvalue 1: y (1 - exp(-t / 2))
        [[ 0.     0.   ]
         [ 0.632 -0.632]
         [ 1.    -1.   ]]
    """
    check_number("t", t, finite=False)
    if is_operator(modes):
        if not is_zero(weight_decay) or radial_train_0 is not None or radial_test_0 is not None:
            raise ValueError(
                "weight_decay: expected 0 with an operator; got more. Use modes of an array."
            )
        return flow_on_operator(
            data_of(modes, y_train, k_test_train, "modes"),
            np.asarray(as_times(t, float)),
            diag_reg,
            fx_train_0,
            fx_test_0,
            krylov_options,
            predict=(predict_train, k_test_train is not None),
        )
    modes, k_test_train = cast(Modes, modes), cast(ArrayLike | None, k_test_train)
    problem = least_squares(
        modes,
        y_train,
        fx_train_0,
        k_test_train,
        fx_test_0,
        diag_reg=diag_reg,
        weight_decay=weight_decay,
        radial_train_0=radial_train_0,
        radial_test_0=radial_test_0,
        predict_train=predict_train,
    )
    dtype = modes.eigenvalues.dtype
    times = as_times(t, dtype)
    decay = as_number("diag_reg", diag_reg, dtype), as_number("weight_decay", weight_decay, dtype)
    out, seen, rest = _flow(problem, times, decay, modes.traced, predict_train)
    check_looks(seen, problem.inputs)
    if is_concrete(times):
        warn_of_lost_modes(modes, rest, float(np.max(times)), problem.num_entries)
    return out


@partial(jit_by_size, static_argnums=(3, 4))
def _flow(
    problem: Problem,
    times: Float[Array, "*T"],
    decay: tuple[Array, Array],
    traced: bool,
    predict_train: bool,
) -> tuple[Prediction, dict[str, Look | None], Rest]:
    """The outputs, what checks see of the inputs, and which modes are at rest."""
    solved = in_modes(problem, traced, predict_train)
    num_entries, shape = problem.num_entries, times.shape
    rates = decay[0], decay[1] * num_entries
    weights, shrink = _weights(solved, times.reshape(-1) / num_entries, rates)
    rest = rest_of(problem.modes)
    return solved.predict(weights, shrink, shape), looks(problem.inputs), rest


def _weights(
    solved: LeastSquares, times: Float[Array, " T"], decay: tuple[Array, Array]
) -> tuple[Float[Array, "B n T m"], Float[Array, " T"] | None]:
    """Weights of the modes and how far the initial parameters have shrunk, β, for sums of squares.

    α' = -(s + r + λ) α + (y - f_0) - β Jθ_0 with β' = -(r + λ) β - λ from zero.
    """
    diag_reg, decay_rate = decay
    rate = diag_reg + decay_rate
    parameters = times, jnp.broadcast_to(rate, times.shape)
    weights = apply_batch(relaxation, solved.basis, solved.residual, parameters, over=0)
    if solved.radial is None:
        return weights, None
    forced = apply_batch(_after_shrinking, solved.basis, solved.radial, parameters, over=0)
    none = jnp.zeros_like(rate)
    # β relaxes as a mode without eigenvalue does, at the same rate.
    beta = -decay_rate * jax.vmap(lambda t: relaxation.value(rate, (t, none), (0,)))(times)
    return weights + decay_rate * forced, beta


def as_times(t: ArrayLike | Sequence[float], dtype: DTypeLike) -> Float[ArrayLike, "*T"]:
    """Times as an argument of a compiled program; raise unless a scalar or a vector."""
    known = all(map(is_concrete, jax.tree.leaves(t)))
    times = (np if known else jnp).asarray(t)
    check_vector("t", times)
    return times.astype(dtype)


@jax.jit  # divided differences call it many times: one trace and one part of their program
def _relaxed(s: Array, parameters: tuple[Array, Array], constants: tuple[ArrayLike]) -> Array:
    """The integral of exp(-x u) over 0 < u < t, (1 - exp(-x t)) / x with x = s + rate.

    0 for null modes at times at which they would move by rounding alone, as at t = inf.
    """
    time, rate = parameters
    endless = jnp.isinf(time)
    t = jnp.where(endless, 0, time)  # products with infinity have no derivatives
    x = s + rate
    z = x * t
    starts = ~endless & (z < 0.5)
    small, early = jnp.where(starts, z, 0), jnp.full_like(z, _SERIES[-1])
    for c in _SERIES[-2::-1]:
        early = early * small + c
    late = (1 - jnp.where(endless, 0, jnp.exp(-z))) / jnp.where(starts | (x == 0), 1, x)
    return jnp.where(
        (s > 0) | (rate + 1 / time > constants[0]), jnp.where(starts, t * early, late), 0
    )


# (1 - exp(-z)) / z below 1/2, where the quotient would cancel and has no derivative at 0.
_SERIES = [(-1) ** k / math.factorial(k + 1) for k in range(16)]


def _resolved(s: Array, parameters: tuple[Array, Array], constants: tuple[ArrayLike]) -> Array:
    time, rate = parameters
    return s + rate + 1 / time


relaxation = Function(_relaxed, _resolved)
"""The response of a mode to a constant force: parameters (time, rate), constants (null level,)."""


def _shrunk(s: Array, parameters: tuple[Array, Array], constants: tuple[ArrayLike]) -> Array:
    """The response to the force (1 - exp(-rate u)) / rate: f[s + rate, s] + f(rate) f(s).

    f is the relaxation at rate 0.
    """
    time, rate = parameters
    alone = time, jnp.zeros_like(rate)
    between = divided_difference(relaxation, (s + rate, s), alone, constants)
    return between + relaxation.value(rate, alone, (0,)) * relaxation.value(s, alone, constants)


_after_shrinking = Function(_shrunk, _resolved)


def rest_of(modes: Modes) -> Rest:
    """For compiled programs: what `warn_of_lost_modes` needs to know."""
    s = jax.lax.stop_gradient(modes.eigenvalues)
    return Rest(s.size - jnp.sum(s > 0), jnp.max(s))


def warn_of_lost_modes(modes: Modes, rest: Rest, time: float, num_entries: int) -> None:
    """Warn of modes that float32 cannot tell from 0, but that would have moved by then."""
    s = modes.eigenvalues
    if s.dtype == jnp.float64 or not is_concrete(s):
        return
    if not is_concrete(rest.largest):  # inside someone's jit
        rest = outside_traces(jax.jit(rest_of), modes)
    lost, bound = int(rest.num_modes), null_rcond(s.dtype) * float(rest.largest) / num_entries
    if lost and time * bound > 1:
        warnings.warn(
            f"{lost} of {s.size} modes of this float32 kernel cannot be told from 0 and do not "
            f"move; at t = {time:.3g} they might have, if the kernel is not truly singular. Trust "
            f"times up to {1 / bound:.3g}, or compute the kernel in float64, or use diag_reg.",
            stacklevel=3,
        )
