"""Gradient descent on any loss under a fixed kernel: the recursion in function space, exactly."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Num

from ntk_jax.checks import (
    Look,
    Number,
    as_number,
    as_square_kernel,
    check_looks,
    check_number,
    check_vector,
    looks,
)
from ntk_jax.closures.fingerprint import Reading, read
from ntk_jax.closures.programs import compiled
from ntk_jax.compat import is_concrete
from ntk_jax.dynamics.any_loss_inputs import check_scalar, inputs_of
from ntk_jax.losses import LossFn, loss_function
from ntk_jax.modes.kind import apply_kernel
from ntk_jax.modes.modes import Prediction, as_momentum


def gradient_descent(
    loss: str | LossFn,
    k_train_train: Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    num_steps: Int[ArrayLike, "*T"] | Sequence[int],
    learning_rate: Float[ArrayLike, ""],
    *,
    momentum: Float[ArrayLike, ""] = 0.0,
    nesterov: bool = False,
    fx_train_0: ArrayLike = 0.0,
    k_test_train: ArrayLike | None = None,
    fx_test_0: ArrayLike | None = None,
) -> Prediction:
    """The outputs after full-batch gradient descent on any loss, kinked ones too, exactly.

        g = ∂L/∂f(f, y),    v ← μ v + g,    α ← α - learning_rate (v, or Nesterov: g + μ v),
        f = f_0 + K α,    f_test = f_test_0 + K_test α

    which is `optax.sgd(learning_rate, momentum, nesterov)` on the linearized network, step by step;
    at a kink g is what JAX takes for the derivative, as in training. The squared loss has a closed
    form, `gradient_descent_mse`; as the learning rate goes to 0 the steps follow `gradient_flow`,
    t = learning rate x steps.

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> out = ntk_jax.gradient_descent("l1", k, y, [0, 1, 4], 0.5)
        >>> print(np.round(out.train[:, 0], 3))  # 1/4 per step
        [0.   0.25 1.  ]

    Args:
        loss: "mse", "cross_entropy", "logistic", "huber", as in `gradient_flow`; "hinge" (mean over
            entries of max(0, 1 - y f), targets -1 and 1), "l1" (mean over entries of |f - y|),
            "quantile(0.9)", "expectile(0.9)" or another level, see `ntk_jax.losses`; or a function
            of (f, y) that returns a scalar, in jax.numpy.
        k_train_train: training kernel, (n, n), (n, n, O) or (n, n, O, O).
        y_train: targets, (n,) or (n, O); for cross-entropy also class labels (n,), integers from 0:
            there are as many classes as outputs in the kernel or in fx_train_0, or else up to the
            largest label.
        num_steps: an integer, or an array of them (T,); every step is taken.
        learning_rate: step size, above 0.
        momentum: μ in [0, 1).
        nesterov: look ahead by the momentum.
        fx_train_0: outputs at initialization, 0 or shaped like y_train.
        k_test_train: kernel of test rows and training columns, to predict test outputs too.
        fx_test_0: outputs on the test examples at initialization; needed with k_test_train if
            fx_train_0 is given.

    Returns:
        Prediction(train, test), with a leading axis T if `num_steps` is an array. Derivatives by
        kernels, targets and rates are by forward mode.

    Raises:
        ValueError: shapes, targets, options; a loss that is not a scalar; outputs that overflow.

    Reference: Lee et al. 2019, section 2.2 and eq. 8 (there in continuous time); Nesterov 1983.
    """
    k = as_square_kernel("k_train_train", k_train_train)
    inputs = inputs_of(loss, k, y_train, fx_train_0, k_test_train, fx_test_0)
    check_number("learning_rate", learning_rate, strict=True, max_ndim=0)
    numbers = as_number("learning_rate", learning_rate, k.dtype), as_momentum(momentum, k.dtype)
    steps = _as_steps(num_steps)
    reading = read(loss_function(loss, inputs["y_train"]))
    check_scalar(reading, inputs["y_train"], inputs["y_train"])
    order = np.argsort(steps.reshape(-1), kind="stable")
    gaps = np.diff(steps.reshape(-1)[order], prepend=0)
    out, seen, finite = _descent(
        reading, inputs, numbers, gaps, np.argsort(order), shape=steps.shape, nesterov=nesterov
    )
    check_looks(seen, inputs)
    if is_concrete(finite) and not finite:
        raise ValueError(
            "learning_rate: expected one under which the outputs stay finite; they overflow at "
            f"{float(np.asarray(learning_rate)):.6g}. The squared loss is stable up to "
            "max_learning_rate, and so is any that is nowhere more curved."
        )
    return out


def _as_steps(num_steps: ArrayLike | Sequence[int]) -> np.ndarray:
    if not all(map(is_concrete, jax.tree.leaves(num_steps))):
        raise ValueError("num_steps: expected known integers; got a traced value.")
    check_number("num_steps", num_steps)
    steps = np.asarray(num_steps)
    check_vector("num_steps", steps)
    if not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(f"num_steps: expected integers; got {steps.dtype}.")
    return steps.astype(np.int32)


@compiled
def _descent(
    loss: Reading,
    inputs: dict[str, Array],
    numbers: tuple[Number, Number],
    gaps: Int[ArrayLike, " T"],
    places: Int[ArrayLike, " T"],
    *,
    shape: tuple[int, ...],
    nesterov: bool,
) -> tuple[Prediction, dict[str, Look | None], Bool[Array, ""]]:
    """From one recorded step to the next; what checks see; and whether all outputs are finite."""
    k, y = inputs["k_train_train"], inputs["y_train"]
    k_test, f_test_0 = inputs.get("k_test_train"), inputs.get("fx_test_0")
    f_0, (rate, mass) = jnp.broadcast_to(inputs["fx_train_0"], y.shape), numbers

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        alpha, velocity = state
        gradient = jax.grad(loss)(f_0 + apply_kernel(k, alpha), y)
        velocity = mass * velocity + gradient
        return alpha - rate * (gradient + mass * velocity if nesterov else velocity), velocity

    def record(
        state: tuple[Array, Array], gap: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array | None]]:
        state = jax.lax.fori_loop(0, gap, step, state)
        train = f_0 + apply_kernel(k, state[0])
        if k_test is None or f_test_0 is None:
            return state, (train, None)
        moved = apply_kernel(k_test, state[0])
        return state, (train, jnp.broadcast_to(f_test_0, moved.shape) + moved)

    start = jnp.zeros(y.shape, k.dtype), jnp.zeros(y.shape, k.dtype)
    _, found = jax.lax.scan(record, start, jnp.asarray(gaps))
    as_asked = lambda f: f[jnp.asarray(places)].reshape(*shape, *f.shape[1:])
    out = Prediction(*jax.tree.map(as_asked, found))
    finite = jnp.stack([jnp.all(jnp.isfinite(f)) for f in out if f is not None]).all()
    return out, looks(inputs, symmetric=("k_train_train",)), finite
