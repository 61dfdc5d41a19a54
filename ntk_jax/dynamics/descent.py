"""Gradient descent on the squared loss under a fixed kernel: the recursion of every mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Num

from ntk_jax.checks import Look, Number, as_number, check_looks, check_number, check_vector, looks
from ntk_jax.compat import is_concrete
from ntk_jax.dynamics.flow import Rest, rest_of, warn_of_lost_modes
from ntk_jax.dynamics.least_squares import (
    LeastSquares,
    Problem,
    apply_batch,
    in_modes,
    least_squares,
)
from ntk_jax.modes.modes import Modes, Prediction, as_momentum, max_learning_rate
from ntk_jax.small_programs import jit_by_size


def gradient_descent_mse(
    modes: Modes,
    y_train: Num[ArrayLike, "n *O"],
    num_steps: Int[ArrayLike, "*T"] | Sequence[int],
    learning_rate: Float[ArrayLike, ""],
    *,
    momentum: Float[ArrayLike, ""] = 0.0,
    nesterov: bool = False,
    fx_train_0: ArrayLike = 0.0,
    k_test_train: ArrayLike | None = None,
    fx_test_0: ArrayLike | None = None,
    diag_reg: Float[ArrayLike, ""] = 0.0,
    weight_decay: Float[ArrayLike, ""] = 0.0,
    radial_train_0: ArrayLike | None = None,
    radial_test_0: ArrayLike | None = None,
    predict_train: bool = True,
) -> Prediction:
    """The outputs after full-batch gradient descent on the half-mean squared loss, exactly.

        g = ((y - f_0) - (K + r) α) / (nO),    v ← μ v + g,
        α ← α + learning_rate (v, or Nesterov: μ v + g),    f = f_0 + K α

    which is `optax.sgd(learning_rate, momentum, nesterov)` on the linearized network; with weight
    decay, which shrinks the parameters towards 0,
    `optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(...))`. The power of each mode's
    recursion is taken by repeated squaring, so that a million steps cost as much as twenty.

    It is also the exact mean of mini-batch SGD on the linearized network, with or without momentum
    and decay, if every batch is drawn independently of the earlier ones, every example is equally
    likely to be in it, and the batch loss is half the mean over the batch: the mean of a linear
    recursion is the recursion of the mean. Epochs without replacement break the first condition,
    and differ from it in the second order of the learning rate.

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
        ValueError: as `gradient_flow_mse`; a learning rate so far above `max_learning_rate` that
            the result overflows.

    Warns:
        UserWarning: as `gradient_flow_mse`.

    Reference: Lee et al. 2019, section 2.2 (discrete steps); Polyak 1964; Nesterov 1983.

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> modes = ntk_jax.diagonalize(k)
        >>> out = ntk_jax.gradient_descent_mse(modes, y, [0, 1, 4], 0.5)
        >>> print(np.round(out.train[:, 0], 3))  # 1 - (3 / 4)^steps
        [0.    0.25  0.684]
    """
    check_number("learning_rate", learning_rate, strict=True, max_ndim=0)
    check_number("num_steps", num_steps)
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
    rates = (
        as_number("learning_rate", learning_rate, dtype),
        as_momentum(momentum, dtype),
        as_number("diag_reg", diag_reg, dtype),
        as_number("weight_decay", weight_decay, dtype),
    )
    bits, shape = _bits(num_steps)
    options = shape, bool(nesterov), modes.traced, predict_train
    out, seen, rest, finite = _descent(problem, rates, bits, *options)
    check_looks(seen, problem.inputs)
    if all(map(is_concrete, jax.tree.leaves((num_steps, learning_rate, momentum)))):
        last, rate, mass = (
            float(np.asarray(x).max()) for x in (num_steps, learning_rate, momentum)
        )
        warn_of_lost_modes(modes, rest, last * rate / (1 - mass), problem.num_entries)
    if all(map(is_concrete, (finite, *jax.tree.leaves(out)))) and not finite:
        limit = max_learning_rate(
            modes, problem.num_entries // modes.eigenvalues.size, momentum, nesterov=nesterov
        )
        raise ValueError(
            f"learning_rate: expected at most {float(limit):.6g}, the largest stable step "
            "(max_learning_rate; regularization lowers it); got "
            f"{float(np.asarray(learning_rate)):.6g}, under which the outputs overflow."
        )
    return out


def _bits(
    num_steps: ArrayLike | Sequence[int],
) -> tuple[Bool[ArrayLike, "bits T"], tuple[int, ...]]:
    """The binary digits of every number of steps, the least first, and the shape of the numbers.

    Known numbers become digits in NumPy, where 64 bits are at hand whatever JAX's default integers
    are.
    """
    known = all(map(is_concrete, jax.tree.leaves(num_steps)))
    steps = np.asarray(num_steps) if known else jnp.asarray(num_steps)
    check_vector("num_steps", steps)
    if not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(
            f"num_steps: expected integers; got {steps.dtype}. For continuous time use "
            "gradient_flow_mse."
        )
    num_bits = int(np.max(steps)).bit_length() if known else jnp.iinfo(steps.dtype).bits - 1
    digits = (steps.reshape(1, -1) >> np.arange(num_bits, dtype=steps.dtype)[:, None]) & 1
    return digits.astype(bool), steps.shape


class _Rates(NamedTuple):
    """Of the recursion: learning rate (over nO), momentum, pulls to the start and (times nO) to
    0.
    """

    step_size: Array
    momentum: Array
    diag_reg: Array
    decay: Array


@partial(jit_by_size, static_argnums=(3, 4, 5, 6))
def _descent(
    problem: Problem,
    numbers: tuple[Number, Number, Number, Number],
    bits: Bool[Array, "bits T"],
    shape: tuple[int, ...],
    nesterov: bool,
    traced: bool,
    predict_train: bool,
) -> tuple[Prediction, dict[str, Look | None], Rest, Bool[Array, ""]]:
    """The outputs, what checks see of the inputs, which modes are at rest, and whether all is
    finite.
    """
    solved, num_entries = in_modes(problem, traced, predict_train), problem.num_entries
    rates = _Rates(*map(jnp.asarray, numbers))
    rates = rates._replace(step_size=rates.step_size / num_entries, decay=rates.decay * num_entries)
    out = solved.predict(*_weights(solved, rates, bits, nesterov), shape)
    finite = jnp.stack([jnp.all(jnp.isfinite(f)) for f in out if f is not None]).all()
    return out, looks(problem.inputs), rest_of(problem.modes), finite


def _weights(
    solved: LeastSquares, rates: _Rates, bits: Bool[Array, "bits T"], nesterov: bool
) -> tuple[Float[Array, "B n T m"], Float[Array, " T"] | None]:
    """Coefficients of the modes, and how far the initial parameters have shrunk."""
    basis, dtype, over = solved.basis, solved.residual.dtype, (None, 1)
    forced = apply_batch(_Recursion(nesterov, 3), basis, solved.residual, rates, (bits,), over=over)
    if solved.radial is None:
        return forced, None
    pulled = apply_batch(_Recursion(nesterov, 5), basis, solved.radial, rates, (bits,), over=over)
    at_rest = _forced_by_shrinking(jnp.zeros((), dtype), rates, nesterov)
    return forced + pulled, jax.vmap(lambda one: _final(at_rest, one)[2], 1)(bits)


@dataclass(frozen=True)
class _Recursion:
    """The coefficient of a mode after a number of steps, as a `matrix_functions.Function`.

    Parameters are rates, constants the level of null modes and the bits of the number of steps.
    """

    nesterov: bool
    size: int  # of the state: 3 forced by the residual, 5 by the shrinking of initial parameters

    def value(self, s: Array, rates: _Rates, constants: tuple[Array, Array]) -> Array:
        level, bits = constants
        forced = {3: _forced_by_residual, 5: _forced_by_shrinking}[self.size]
        moving = (s > 0) | (self.reach(s, rates, constants) > level)
        return jnp.where(moving, _final(forced(s, rates, self.nesterov), bits)[..., 0], 0)

    def reach(self, s: Array, rates: _Rates, constants: tuple[Array, Array]) -> Array:
        """One over the time: near the largest stable step, too, modes vary as fast."""
        bits = constants[1].astype(s.dtype)
        steps = jnp.sum(bits * 2.0 ** jnp.arange(len(bits), dtype=s.dtype))
        return (1 - rates.momentum) / (rates.step_size * steps)


def _momentum_step(
    gradient: Array, velocity: Array, momentum: Array, nesterov: bool
) -> tuple[Array, Array]:
    """Rows of the change of a coordinate and its velocity, from its negative, scaled gradient."""
    new = momentum * velocity + gradient
    return (momentum * new + gradient if nesterov else new), new - velocity


def _rows(s: Array, size: int) -> Array:
    """The unit row of every state variable, repeated for every mode: (size, *s.shape, size)."""
    return jnp.broadcast_to(
        jnp.eye(size, dtype=s.dtype).reshape(size, *(1,) * s.ndim, size), (size, *s.shape, size)
    )


def _forced_by_residual(s: Array, rates: _Rates, nesterov: bool) -> Float[Array, "... 2 3"]:
    """The change of (α, v) per step, by (α, v, 1), for a unit residual."""
    alpha, velocity, one = _rows(s, 3)
    gradient = rates.step_size * (one - (s + rates.diag_reg + rates.decay)[..., None] * alpha)
    return jnp.stack(_momentum_step(gradient, velocity, rates.momentum, nesterov), -2)


def _forced_by_shrinking(s: Array, rates: _Rates, nesterov: bool) -> Float[Array, "... 4 5"]:
    """The change of (α, v, β, w), by (α, v, β, w, 1); θ - θ_0 = Jᵀα + β θ_0, α forced by -β J θ_0
    of unit size.
    """
    alpha, velocity, beta, beta_velocity, one = _rows(s, 5)
    pull = rates.diag_reg + rates.decay
    gradient = -rates.step_size * (beta + (s + pull)[..., None] * alpha)
    beta_gradient = -rates.step_size * (rates.decay * one + pull * beta)
    alphas = _momentum_step(gradient, velocity, rates.momentum, nesterov)
    betas = _momentum_step(beta_gradient, beta_velocity, rates.momentum, nesterov)
    return jnp.stack([*alphas, *betas], -2)


def _final(change: Float[Array, "*s d d+1"], bits: Bool[Array, " bits"]) -> Float[Array, "*s d"]:
    """The state after a number of steps, from 0.

    A step adds A x + b to the state x, change = (A, b); composing changes, 2 (A, b) + A (A, b),
    keeps the digits of slow modes that powers of I + A would round away. Bits of the step count say
    which doublings to apply.
    """
    state = jnp.zeros(change.shape[:-1], change.dtype)

    def apply_bit(carry: tuple[Array, Array], chosen: Array) -> tuple[tuple[Array, Array], None]:
        state, change = carry
        A, b = change[..., :-1], change[..., -1]
        # In sums, not products of matrices: these are called one after the other.
        moved = state + jnp.sum(A * state[..., None, :], -1) + b
        doubled = 2 * change + jnp.sum(A[..., None] * change[..., None, :, :], -2)
        return (jnp.where(chosen, moved, state), doubled), None

    return jax.lax.scan(apply_bit, (state, change), bits)[0][0]
