"""One step of any Optax optimizer, on all examples or on a random batch of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ntk_jax.checks import check_integer
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import compiled
from ntk_jax.examples import Examples, num_rows, take_rows
from ntk_jax.losses import LossFn
from ntk_jax.training.rates import with_rates
from ntk_jax.types import ApplyFn, Params


class Data(NamedTuple):
    """Training examples, targets, the key that batches are drawn from (None: all examples at every
    step), and learning rates, see `lift_rates`.
    """

    x: Examples
    y: Array
    key: Array | None
    rates: tuple[float | Array, ...] = ()


class State(NamedTuple):
    """Parameters after `step` steps, with loss and gradient there: those of the batch that the next
    step takes.
    """

    params: Params
    opt_state: Any
    step: Array
    loss: Array
    grads: Params


class Stepper(NamedTuple):
    """What makes a step, apart from the data: network, optimizer, loss, size of a batch.

    The optimizer is without its rates, which come with the data.
    """

    apply_fn: ApplyFn
    optimizer: optax.GradientTransformation
    loss_fn: LossFn
    batch_size: int | None

    def objective(self, data: Data, step: Array) -> Callable[[Params], Array]:
        """The loss of the parameters on the batch of a step."""
        x, y = data.x, data.y
        if self.batch_size is not None and data.key is not None:
            key = jax.random.fold_in(data.key, step)
            # Drawn from the number of the step: the same batches however the steps are divided.
            chosen = jax.random.permutation(key, num_rows(x))[: self.batch_size]
            x, y = take_rows(x, chosen), y[chosen]
        return lambda params: self.loss_fn(self.apply_fn(params, x), y)

    def start(self, params: Params, data: Data) -> State:
        """The state before the first step."""
        step = jnp.asarray(0)
        loss, grads = jax.value_and_grad(self.objective(data, step))(params)
        with as_optax_is_written():
            opt_state = with_rates(self.optimizer, data.rates).init(params)
            return State(params, opt_state, step, loss, grads)

    def next(self, state: State, data: Data) -> State:
        """The state one step later. Optimizers with a line search get the loss function too."""
        optimizer = with_rates(self.optimizer, data.rates)
        update = optax.with_extra_args_support(optimizer).update
        extra = {
            "value": state.loss,
            "grad": state.grads,
            "value_fn": self.objective(data, state.step),
        }
        with as_optax_is_written():
            updates, opt_state = update(state.grads, state.opt_state, state.params, **extra)
            params = optax.apply_updates(state.params, updates)
        # Loss and gradient of the next step already: a recorded loss is that of the recorded
        # parameters, and costs no second evaluation.
        loss, grads = jax.value_and_grad(self.objective(data, state.step + 1))(params)
        return State(params, opt_state, state.step + 1, loss, grads)


@contextmanager
def as_optax_is_written() -> Iterator[None]:
    """Optax mixes dtypes and shapes, whatever the caller forbids in code of his own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def check_batches(batch_size: int | None, key: Array | None, num_examples: int) -> None:
    """Raise unless batches are asked for with a key, and are no larger than the data."""
    if (batch_size is None) != (key is None):
        raise ValueError(
            "key: expected a random key together with batch_size, and only then; "
            f"got batch_size = {batch_size!r} and {'no key' if key is None else 'a key'}."
        )
    if batch_size is not None:
        check_integer("batch_size", batch_size, minimum=1)
        if batch_size > num_examples:
            raise ValueError(
                f"batch_size: expected at most the {num_examples} examples; got {batch_size}."
            )


@compiled
def start(stepper: Reading, params: Params, data: Data) -> State:
    """Compiled `Stepper.start`."""
    return stepper.function.start(params, data)


@compiled
def advance(
    stepper: Reading, state: State, data: Data, target: int | Array, threshold: Array, bound: Array
) -> State:
    """Step until `target`, a loss below `threshold` or one above `bound`: compiled once for any
    target.
    """
    next_state = stepper.function.next

    def going(state: State) -> Array:
        return (state.step < target) & (state.loss >= threshold) & (state.loss <= bound)

    return jax.lax.while_loop(going, lambda state: next_state(state, data), state)
