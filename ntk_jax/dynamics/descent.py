"""Gradient descent on the squared loss under a fixed kernel: the discrete recursion of every mode, exactly."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Num

from ntk_jax.checks import check_number
from ntk_jax.compat import is_concrete
from ntk_jax.dynamics.flow import warn_of_lost_modes
from ntk_jax.dynamics.modes import Modes, Prediction, check_momentum, max_learning_rate
from ntk_jax.dynamics.problem import check_problem
from ntk_jax.linalg import matmul


def gradient_descent_mse(
    modes: Modes,
    y_train: Num[ArrayLike, "n *O"],
    num_steps: Int[ArrayLike, "*T"] | Sequence[int],
    learning_rate: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    fx_train_0: ArrayLike = 0.0,
    k_test_train: ArrayLike | None = None,
    fx_test_0: ArrayLike = 0.0,
    diag_reg: float = 0.0,
    weight_decay: float = 0.0,
    radial_train_0: ArrayLike | None = None,
    radial_test_0: ArrayLike | None = None,
    predict_train: bool = True,
) -> Prediction:
    """The outputs after a number of full-batch gradient descent steps on the half-mean squared loss, exactly.

        g = ((y - f_0) - (K + r) α) / (nO),  v ← μ v + g,  α ← α + learning_rate (v, or Nesterov: μ v + g),  f = f_0 + K α

    which is `optax.sgd(learning_rate, momentum, nesterov)` on the linearized network; with weight decay, which shrinks
    the parameters towards 0, `optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(...))`. The power of each
    mode's recursion is taken by repeated squaring, so that a million steps cost as much as twenty.

    It is also the exact mean of mini-batch SGD on the linearized network, with or without momentum and decay, if every
    batch is drawn independently of the earlier ones, every example is equally likely to be in it, and the batch loss is
    half the mean over the batch: the mean of a linear recursion is the recursion of the mean. Epochs without
    replacement break the first condition, and differ from it in the second order of the learning rate.

    Args:
        modes: `diagonalize(k_train_train)`.
        y_train: targets, (n,) or (n, O).
        num_steps: an integer, or an array of them (T,), however large.
        learning_rate: step size, above 0.
        momentum: μ in [0, 1).
        nesterov: look ahead by the momentum.
        fx_train_0: as in `gradient_flow_mse`, like the remaining arguments.
        k_test_train: kernel of test rows and training columns.
        fx_test_0: initial outputs on the test examples.
        diag_reg: r, a pull to the initial parameters.
        weight_decay: λ, a pull to 0.
        radial_train_0: J(x) θ_0 on the training examples, with weight decay.
        radial_test_0: J(x) θ_0 on the test examples.
        predict_train: as in `gradient_flow_mse`.

    Returns:
        Prediction(train, test), shaped as in `gradient_flow_mse`.

    Raises:
        ValueError: as `gradient_flow_mse`; a learning rate so far above `max_learning_rate` that the result overflows.

    Warns:
        UserWarning: as `gradient_flow_mse`.

    Reference: Lee et al. 2019, section 2.2 (discrete steps); Polyak 1964; Nesterov 1983.
    """
    check_number("learning_rate", learning_rate, strict=True)
    check_number("num_steps", num_steps)
    check_momentum(momentum)
    problem = check_problem(
        modes, y_train, fx_train_0, k_test_train, fx_test_0, diag_reg=diag_reg, weight_decay=weight_decay,
        radial_train_0=radial_train_0, radial_test_0=radial_test_0, predict_train=predict_train,
    )  # fmt: skip
    bits, shape = _bits(num_steps)
    if all(map(is_concrete, jax.tree.leaves((num_steps, learning_rate, momentum)))):
        time = float(np.max(np.asarray(num_steps))) * float(learning_rate) / (1 - momentum)
        warn_of_lost_modes(modes, time, problem.num_entries)
    s = problem.eigenvalues
    decay = weight_decay * problem.num_entries
    rates = (learning_rate / problem.num_entries, momentum, nesterov)
    joint = _final(_forced_by_residual(s + diag_reg + decay, *rates), bits)[..., 0]  # (B, n, T)
    weights = joint[..., None] * problem.residual[:, :, None, :]
    shrink = jnp.zeros(bits.shape[1:], s.dtype)
    if radial_train_0 is not None:
        shrinking = _final(_forced_by_shrinking(s, diag_reg, decay, *rates), bits)
        weights = weights + shrinking[..., :1] * problem.radial[:, :, None, :]
        shrink = shrinking[0, 0, :, 2]
    weights = jnp.where((s > 0)[:, :, None, None], weights, 0)
    out = problem.predict(weights, shrink, shape)
    if not all(bool(jnp.all(jnp.isfinite(f))) for f in out if f is not None and is_concrete(f)):
        limit = max_learning_rate(modes, problem.num_entries // modes.eigenvalues.size, momentum, nesterov=nesterov)
        raise ValueError(
            f"learning_rate: expected at most {float(limit):.6g}, the largest stable step (max_learning_rate; "
            f"regularization lowers it); got {float(learning_rate):.6g}, under which the outputs overflow."
        )
    return out


def _bits(num_steps: Any) -> tuple[Bool[Array, "bits T"], tuple[int, ...]]:
    """The binary digits of every number of steps, the least first, and the shape that these came in.

    Known numbers become digits in NumPy, where 64 bits are at hand whatever JAX's default integers are.
    """
    known = all(map(is_concrete, jax.tree.leaves(num_steps)))
    steps = np.asarray(num_steps) if known else jnp.asarray(num_steps)
    if steps.ndim > 1 or not steps.size:
        raise ValueError(f"num_steps: expected a scalar or a non-empty vector; got shape {steps.shape}.")
    if not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(f"num_steps: expected integers; got {steps.dtype}. For continuous time use gradient_flow_mse.")
    num_bits = int(np.max(steps)).bit_length() if known else jnp.iinfo(steps.dtype).bits - 1
    digits = (steps.reshape(1, -1) >> np.arange(num_bits, dtype=steps.dtype)[:, None]) & 1
    return jnp.asarray(digits, bool), steps.shape


def _momentum_step(gradient: Array, velocity: Array, momentum: Any, nesterov: bool) -> tuple[Array, Array]:
    """Rows of the change of a coordinate and of its velocity, from those of its (negative, scaled) gradient."""
    new = momentum * velocity + gradient
    return (momentum * new + gradient if nesterov else new), new - velocity


def _rows(s: Array, size: int) -> Array:
    """The unit row of every state variable, repeated for every mode: (size, B, n, size)."""
    return jnp.broadcast_to(jnp.eye(size, dtype=s.dtype)[:, None, None, :], (size, *s.shape, size))


def _forced_by_residual(s: Array, step_size: Any, momentum: Any, nesterov: bool) -> Float[Array, "B n 3 3"]:
    """The change of the state (α, v, 1) per step, for a unit residual."""
    alpha, velocity, one = _rows(s, 3)
    gradient = step_size * (one - s[..., None] * alpha)
    return jnp.stack([*_momentum_step(gradient, velocity, momentum, nesterov), jnp.zeros_like(one)], -2)


def _forced_by_shrinking(
    s: Array, diag_reg: Any, decay: Any, step_size: Any, momentum: Any, nesterov: bool
) -> Float[Array, "B n 5 5"]:
    """The change of (α, v, β, w, 1), where θ - θ_0 = Jᵀα + β θ_0 and α is forced by -β J θ_0 of unit size."""
    alpha, velocity, beta, beta_velocity, one = _rows(s, 5)
    gradient = -step_size * (beta + (s + diag_reg + decay)[..., None] * alpha)
    beta_gradient = -step_size * (decay * one + (diag_reg + decay) * beta)
    alphas = _momentum_step(gradient, velocity, momentum, nesterov)
    betas = _momentum_step(beta_gradient, beta_velocity, momentum, nesterov)
    return jnp.stack([*alphas, *betas, jnp.zeros_like(one)], -2)


@jax.jit
def _final(increment: Float[Array, "B n d d"], bits: Bool[Array, "bits T"]) -> Float[Array, "B n T d"]:
    """The state after each number of steps, from (0, ..., 0, 1).

    The state moves by I + D; composing increments, D_ab = D_a + D_b + D_a D_b, keeps the digits of slow modes that
    powers of I + D would round away. Bits of the step count say which squarings to apply.
    """
    *lead, size = increment.shape[:-1]
    state = jnp.zeros((*lead, bits.shape[1], size), increment.dtype).at[..., -1].set(1)

    def apply_bit(carry: tuple[Array, Array], chosen: Array) -> tuple[tuple[Array, Array], None]:
        state, increment = carry
        moved = state + jnp.einsum("bnij,bntj->bnti", increment, state, precision="highest")
        state = jnp.where(chosen[None, None, :, None], moved, state)
        return (state, 2 * increment + matmul(increment, increment)), None

    return jax.lax.scan(apply_bit, (state, increment), bits)[0][0]
