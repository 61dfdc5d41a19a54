"""The real network, trained with Optax, and recorded on the way."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Num

from ntk_jax.checks import as_example_tree, check_integer, check_number, check_params
from ntk_jax.closures.fingerprint import read
from ntk_jax.closures.programs import compiled
from ntk_jax.examples import Examples, num_rows
from ntk_jax.losses import LossFn, loss_function
from ntk_jax.networks.apply_fn import check_apply_fn, examples_and_targets, forward_mode, trace_of
from ntk_jax.operators.power_iteration import largest_eigenvalue
from ntk_jax.progress import progress_bar
from ntk_jax.training.rates import lift_rates
from ntk_jax.training.record import History, Recorder, schedule
from ntk_jax.training.step import Data, State, Stepper, advance, check_batches, start
from ntk_jax.types import ApplyFn, Params

# Catapults, from which training recovers, raise the loss by a factor of tens (Lewkowycz et al.
# 2020).
_DIVERGED = 1e6


def train(
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    y: Num[ArrayLike, "n *O"],
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    loss: str | LossFn = "mse",
    batch_size: int | None = None,
    key: Array | None = None,
    record_every: int | Sequence[int] | None = None,
    x_test: Examples | None = None,
    y_test: Num[ArrayLike, "n_test *O"] | None = None,
    x_kernel: Examples | None = None,
    record_outputs: bool = False,
    record: Callable[[Params], Any] | None = None,
    stop_loss: float | None = None,
    progress: bool = True,
) -> History:
    """Train a network by steps of an Optax optimizer, and record what happens.

    Every recorded number belongs to the parameters after that many steps: losses before and after a
    step are not mixed.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params: initial parameters; they are not modified.
        x: training examples in rows.
        y: targets, of exactly the shape that the network returns, or class labels (n,) for
            cross-entropy.
        optimizer: for example `optax.sgd(learning_rate)`; time in the closed forms is learning rate
            x steps.
        num_steps: at most this many steps.
        loss: "mse" (half the mean over all n·O entries of (f - y)²), "cross_entropy" (mean over
            examples, softmax), "logistic", "huber", "hinge", "l1", "quantile(0.9)",
            "expectile(0.9)", as in `gradient_descent`, or a function of (f, y) that returns a
            scalar.
        batch_size: examples per step, drawn without replacement and independently of the other
            steps; None for all. `gradient_descent_mse` is then the exact mean of the linearized
            network.
        key: with batch_size, the random key of the batches.
        record_every: record each so many steps, or at the given steps; default about 50 records.
            Step 0 and the last step are always recorded.
        x_test: test examples.
        y_test: test targets; with them the test loss is recorded.
        x_kernel: examples on which to follow the relative change of the empirical NTK.
        record_outputs: keep the outputs on x (and x_test) at every record.
        record: a function of the parameters, called at every record; what it returns (any pytree of
            arrays) is stacked along a new first axis in `History.recorded`.
        stop_loss: stop at the first step at which the training loss is below this (with batches:
            the first record).
        progress: show a progress bar (where tqdm is installed).

    Returns:
        A History of NumPy arrays with one entry per record, and the final parameters.

    Raises:
        ValueError: bad examples, targets whose shape is not that of the outputs, unknown options.
        FloatingPointError: training diverged; the message holds the critical learning rate.

    Example:
        >>> import optax
        >>> network = lambda w, x: x @ w
        >>> x, y = jnp.eye(2), jnp.array([1.0, -1.0])
        >>> history = ntk_jax.train(
        ...     network, jnp.zeros(2), x, y, optimizer=optax.sgd(1.0), num_steps=2, progress=False
        ... )
        >>> print(history.steps, np.round(history.loss, 4), np.round(history.params, 3))
        [0 1 2] [0.5    0.125  0.0312] [ 0.75 -0.75]
    """
    check_apply_fn(apply_fn, params)
    check_params(params)
    check_integer("num_steps", num_steps, minimum=0)
    a, b = examples_and_targets(apply_fn, params, x, y, loss=loss)
    loss_fn = loss_function(loss, b)
    check_batches(batch_size, key, num_rows(a))
    a_test = b_test = None
    if y_test is None and x_test is not None:
        a_test = as_example_tree("x_test", x_test)
    elif x_test is not None:
        a_test, b_test = examples_and_targets(apply_fn, params, x_test, y_test, "_test", loss)
    elif y_test is not None:
        raise ValueError("x_test: expected the test examples together with y_test; got None.")
    if stop_loss is not None:
        check_number("stop_loss", stop_loss)
    lifted, rates = lift_rates(optimizer)
    stepper, data = Stepper(apply_fn, lifted, loss_fn, batch_size), Data(a, b, key, rates)
    recorder = Recorder(stepper, params, data, a_test, b_test, x_kernel, record_outputs, record)
    # What the network reads may change between two steps only where code of the user's runs there.
    steps = read(stepper) if record is None else stepper
    state = start(steps, params, data)
    check_start(state.loss)
    stop = -np.inf if stop_loss is None else stop_loss
    # The loss of a batch is noise: with batches, only records may stop.
    threshold = np.asarray(stop if batch_size is None else -np.inf, state.loss.dtype)
    bound = divergence_bound(state.loss)
    current = recorder(state)
    targets = schedule(record_every, num_steps)[1:]
    with progress_bar(num_steps, "training", enabled=progress) as bar:
        for target in targets:
            before = int(state.step)
            state = advance(steps, state, data, target, threshold, bound)
            if not np.asarray(state.loss) <= bound:
                raise FloatingPointError(divergence_message(apply_fn, params, a, state))
            current = recorder(state)
            bar.update(int(state.step) - before)
            bar.set_postfix_str(f"loss {current:.3g}", refresh=False)
            if current < stop:
                break
    return recorder.history(state, converged=current < stop)


def check_start(loss: Array) -> None:
    """Raise if there is no loss to begin with."""
    if not np.isfinite(loss).all():
        raise ValueError(
            "apply_fn: expected a finite loss at the initial parameters; got "
            f"{float(np.sum(loss))}. Look at apply_fn(params, x): NaN comes from logarithms, roots "
            "and quotients outside their domain, or from overflow."
        )


def divergence_bound(loss: Array) -> np.ndarray:
    """The loss above which training counts as diverged, from its value at the start."""
    values = np.asarray(loss)
    with np.errstate(over="ignore"):  # of half precision: then nothing counts
        bound = np.where(values == 0, 1, _DIVERGED * np.abs(values.astype(float)))
        return bound.astype(values.dtype)


@compiled
def _sharpness(apply_fn: ApplyFn, params: Params, x: Examples) -> Array:
    """The largest eigenvalue of the full tangent kernel of the training set, from Jacobian-vector
    products.
    """
    out, vjp = jax.vjp(lambda p: apply_fn(p, x), params)

    def multiply(v: Array) -> Array:
        return jax.jvp(lambda p: apply_fn(p, x), (params,), vjp(v))[1]

    return largest_eigenvalue(multiply, out.shape, out.dtype)


def divergence_message(apply_fn: ApplyFn, params: Params, x: Examples, state: State) -> str:
    """What happened, and the learning rate that would have been stable."""
    message = f"training diverged: loss {float(state.loss):.4g} at step {int(state.step)}. "
    entries = trace_of(apply_fn, params, x)[1].size
    try:
        with forward_mode("train"):
            critical = 2 * entries / float(_sharpness(apply_fn, params, x))
    except ValueError:  # a network that has no forward-mode derivative
        return message + "Take a smaller learning rate."
    return message + (
        "Gradient descent on half-mean squared loss is stable at this initialization up to the "
        f"critical learning rate 2 n O / lambda_max = {critical:.6g}; half of it is a good start. "
        "In the 'ntk' parameterization it does not depend on the width."
    )
