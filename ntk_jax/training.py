"""The real network, trained with Optax, and recorded on the way."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_examples, check_finite, check_integer, check_number, check_option, check_params
from ntk_jax.finite.empirical import empirical_ntk
from ntk_jax.laziness import kernel_change, relative_change
from ntk_jax.linalg import largest_eigenvalue
from ntk_jax.progress import progress_bar
from ntk_jax.types import ApplyFn, Params

LossFn = Callable[[Array, Array], Array]

# Catapults, from which training recovers, raise the loss by a factor of tens (Lewkowycz et al. 2020).
_DIVERGED = 1e6


class History(NamedTuple):
    """What was recorded at each of T steps, step 0 included; what was not asked for is None."""

    params: Params
    steps: np.ndarray
    loss: np.ndarray
    test_loss: np.ndarray | None
    relative_change: np.ndarray
    relative_change_by_layer: dict[str, np.ndarray]
    kernel_change: np.ndarray | None
    fx_train: np.ndarray | None
    fx_test: np.ndarray | None
    recorded: Any
    converged: bool


class _State(NamedTuple):
    params: Params
    opt_state: Any
    step: Array
    loss: Array
    grads: Params


def train(
    apply_fn: ApplyFn,
    params: Params,
    x: Num[ArrayLike, "n *d"],
    y: Num[ArrayLike, "n *O"],
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    loss: str | LossFn = "mse",
    record_every: int | Sequence[int] | None = None,
    x_test: Num[ArrayLike, "n_test *d"] | None = None,
    y_test: Num[ArrayLike, "n_test *O"] | None = None,
    x_kernel: Num[ArrayLike, "n_kernel *d"] | None = None,
    record_outputs: bool = False,
    record: Callable[[Params], Any] | None = None,
    stop_loss: float | None = None,
    progress: bool = True,
) -> History:
    """Train a network by full-batch steps of an Optax optimizer and record what happens.

    Every recorded number belongs to the parameters after that many steps: losses before and after a step are not mixed.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params: initial parameters; they are not modified.
        x: training examples in rows.
        y: targets, of exactly the shape that the network returns.
        optimizer: for example `optax.sgd(learning_rate)`; time in the closed forms is learning rate x steps.
        num_steps: at most this many steps.
        loss: "mse", half the mean over all n·O entries of (f - y)², or a function of (f, y) that returns a scalar.
        record_every: record each so many steps, or at the given steps; default about 50 records. Step 0 and the last
            step are always recorded.
        x_test: test examples.
        y_test: test targets; with them the test loss is recorded.
        x_kernel: examples on which to follow the relative change of the empirical NTK.
        record_outputs: keep the outputs on x (and x_test) at every record.
        record: a function of the parameters, called at every record; what it returns (any pytree of arrays) is stacked
            along a new first axis in `History.recorded`.
        stop_loss: stop at the first step at which the training loss is below this.
        progress: show a progress bar (where tqdm is installed).

    Returns:
        A History of NumPy arrays with one entry per record, and the final parameters.

    Raises:
        ValueError: bad examples, targets whose shape is not that of the outputs, unknown options.
        FloatingPointError: training diverged; the message holds the critical learning rate.
    """
    check_params(params)
    check_integer("num_steps", num_steps, minimum=0)
    loss_fn = _loss_function(loss)
    a, b = _check_pair(apply_fn, params, "x", x, "y", y)
    a_test, b_test = (None, None) if x_test is None else _check_test(apply_fn, params, x_test, y_test)
    if y_test is not None and x_test is None:
        raise ValueError("x_test: expected the test examples together with y_test; got None.")
    if stop_loss is not None:
        check_number("stop_loss", stop_loss)
    schedule = _schedule(record_every, num_steps)
    recorder = _Recorder(apply_fn, params, a, a_test, b_test, x_kernel, loss_fn, record_outputs, record)
    state = _start(apply_fn, optimizer, loss_fn, params, a, b)
    threshold = jnp.asarray(-jnp.inf if stop_loss is None else stop_loss, state.loss.dtype)
    bound = jnp.where(state.loss == 0, 1, _DIVERGED * jnp.abs(state.loss))
    recorder(state)
    with progress_bar(num_steps, "training", enabled=progress) as bar:
        for target in schedule[1:]:
            before = int(state.step)
            state = _advance(apply_fn, optimizer, loss_fn, state, target, threshold, bound, a, b)
            if not state.loss <= bound:
                raise FloatingPointError(_divergence_message(apply_fn, params, a, state))
            recorder(state)
            bar.update(int(state.step) - before)
            bar.set_postfix_str(f"loss {float(state.loss):.3g}", refresh=False)
            if state.loss < threshold:
                break
    return recorder.history(state, converged=bool(state.loss < threshold))


def mse(f: Float[Array, "n *O"], y: Float[Array, "n *O"]) -> Float[Array, ""]:
    """Half the mean over all entries of (f - y)²: the squared loss of all closed forms here."""
    return jnp.mean(jnp.square(f - y)) / 2


def _loss_function(loss: str | LossFn) -> LossFn:
    if callable(loss):
        return loss
    check_option("loss", loss, ["mse"])
    return mse


def _check_pair(apply_fn: ApplyFn, params: Params, x_name: str, x: Any, y_name: str, y: Any) -> tuple[Array, Array]:
    a, b = as_examples(x_name, x), jnp.asarray(y)
    check_finite(y_name, b)
    out = jax.eval_shape(apply_fn, params, a)
    if b.shape != out.shape:
        raise ValueError(
            f"{y_name}: expected the shape that apply_fn returns, {out.shape}; got {b.shape}. "
            "Reshape the targets (y[:, None] makes one output column): broadcasting would be silently wrong."
        )
    return a, b.astype(out.dtype)


def _check_test(apply_fn: ApplyFn, params: Params, x_test: Any, y_test: Any) -> tuple[Array, Array | None]:
    if y_test is None:
        return as_examples("x_test", x_test), None
    return _check_pair(apply_fn, params, "x_test", x_test, "y_test", y_test)


def _schedule(record_every: Any, num_steps: int) -> list[int]:
    """The steps to record, from 0 to `num_steps`."""
    if record_every is None:
        record_every = max(1, num_steps // 50)
    if isinstance(record_every, int | np.integer):
        check_integer("record_every", record_every, minimum=1)
        record_every = range(0, num_steps, record_every)
    steps = [int(step) for step in record_every]
    if any(step < 0 or step > num_steps for step in steps) or steps != sorted(set(steps)):
        raise ValueError(f"record_every: expected increasing steps between 0 and num_steps = {num_steps}; got {steps}.")
    return sorted({0, *steps, num_steps})


@partial(jax.jit, static_argnums=(0, 1, 2))
def _start(apply_fn: ApplyFn, optimizer: Any, loss_fn: LossFn, params: Params, x: Array, y: Array) -> _State:
    loss, grads = jax.value_and_grad(lambda p: loss_fn(apply_fn(p, x), y))(params)
    return _State(params, optimizer.init(params), jnp.asarray(0), loss, grads)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    loss_fn: LossFn,
    state: _State,
    target: ArrayLike,
    threshold: Array,
    bound: Array,
    x: Array,
    y: Array,
) -> _State:
    """Step until `target`, a loss below `threshold` or one above `bound`: compiled once for any target."""

    def going(state: _State) -> Array:
        return (state.step < target) & (state.loss >= threshold) & (state.loss <= bound)

    def step(state: _State) -> _State:
        updates, opt_state = optimizer.update(state.grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        loss, grads = jax.value_and_grad(lambda p: loss_fn(apply_fn(p, x), y))(params)
        return _State(params, opt_state, state.step + 1, loss, grads)

    return jax.lax.while_loop(going, step, state)


class _Recorder:
    """Collects one row per recorded step."""

    def __init__(self, apply_fn, params_0, x, x_test, y_test, x_kernel, loss_fn, record_outputs, record):
        self.record = record
        self.apply_fn, self.params_0, self.loss_fn = jax.jit(apply_fn), params_0, loss_fn
        self.x, self.x_test, self.y_test, self.record_outputs = x, x_test, y_test, record_outputs
        self.kernel_fn = None if x_kernel is None else partial(empirical_ntk, apply_fn, x1=x_kernel)
        self.k_0 = None if self.kernel_fn is None else self.kernel_fn(params=params_0)
        self.rows: list[dict[str, Any]] = []

    def __call__(self, state: _State) -> None:
        moved = relative_change(state.params, self.params_0)
        row = {"steps": state.step, "loss": state.loss, "relative_change": moved.total, "by_layer": moved.by_layer}
        if self.record_outputs:
            row["fx_train"] = self.apply_fn(state.params, self.x)
        if self.x_test is not None:
            fx_test = self.apply_fn(state.params, self.x_test)
            if self.record_outputs:
                row["fx_test"] = fx_test
            if self.y_test is not None:
                row["test_loss"] = self.loss_fn(fx_test, self.y_test)
        if self.kernel_fn is not None:
            row["kernel_change"] = kernel_change(self.kernel_fn(params=state.params), self.k_0)
        if self.record is not None:
            row["recorded"] = self.record(state.params)
        self.rows.append(jax.device_get(row))

    def history(self, state: _State, *, converged: bool) -> History:
        columns = jax.tree.map(lambda *values: np.stack(values), *self.rows)
        return History(
            params=state.params,
            steps=columns["steps"],
            loss=columns["loss"],
            test_loss=columns.get("test_loss"),
            relative_change=columns["relative_change"],
            relative_change_by_layer=columns["by_layer"],
            kernel_change=columns.get("kernel_change"),
            fx_train=columns.get("fx_train"),
            fx_test=columns.get("fx_test"),
            recorded=columns.get("recorded"),
            converged=converged,
        )


@partial(jax.jit, static_argnums=0)
def _sharpness(apply_fn: ApplyFn, params: Params, x: Array) -> Array:
    """The largest eigenvalue of the full tangent kernel of the training set, from Jacobian-vector products."""
    out, vjp = jax.vjp(lambda p: apply_fn(p, x), params)

    def multiply(v: Array) -> Array:
        return jax.jvp(lambda p: apply_fn(p, x), (params,), vjp(v))[1]

    return largest_eigenvalue(multiply, out.shape, out.dtype)


def _divergence_message(apply_fn: ApplyFn, params: Params, x: Array, state: _State) -> str:
    entries = jax.eval_shape(apply_fn, params, x).size
    critical = 2 * entries / float(_sharpness(apply_fn, params, x))
    return (
        f"training diverged: loss {float(state.loss):.4g} at step {int(state.step)}. Gradient descent on half-mean "
        "squared loss is stable at this initialization up to the critical learning rate "
        f"2 n O / lambda_max = {critical:.6g}; half of it is a good start. "
        "In the 'ntk' parameterization it does not depend on the width."
    )
