"""An ensemble: many networks at once, one per random initialization.

It is the Monte Carlo twin of the closed form in `dynamics/ensemble.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Num

from ntk_jax.checks import as_example_tree, check_integer, check_number
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import compiled
from ntk_jax.examples import Examples, num_rows
from ntk_jax.losses import LossFn, loss_function
from ntk_jax.memory import how_many, memory_budget, tree_bytes
from ntk_jax.networks.apply_fn import check_apply_fn, examples_and_targets
from ntk_jax.progress import progress_bar
from ntk_jax.training.rates import lift_rates
from ntk_jax.training.record import schedule
from ntk_jax.training.step import Data, State, Stepper, check_batches
from ntk_jax.training.train import check_start, divergence_bound, divergence_message
from ntk_jax.types import ApplyFn, Params


class EnsembleHistory(NamedTuple):
    """What M networks did, networks first: losses (M, T), outputs (M, T, n, O), final parameters if
    asked for.
    """

    steps: np.ndarray
    loss: np.ndarray
    fx_train: np.ndarray
    fx_test: np.ndarray | None
    params: Params | None


def train_ensemble(
    init_fn: Callable[[Array], Params],
    apply_fn: ApplyFn,
    x: Examples,
    y: Num[ArrayLike, "n *O"],
    *,
    key: Array,
    num_networks: int,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    loss: str | LossFn = "mse",
    batch_size: int | None = None,
    record_every: int | Sequence[int] | None = None,
    x_test: Examples | None = None,
    keep_params: bool = False,
    memory_limit: int | None = None,
    progress: bool = True,
) -> EnsembleHistory:
    """Train networks from independent initializations, as many at a time as fit into memory.

    Args:
        init_fn: `init_fn(key)` -> params, for Flax `lambda key: model.init(key, x[:1])["params"]`.
        apply_fn: `apply_fn(params, x)`.
        x: training examples in rows.
        y: targets, of exactly the shape that the network returns.
        key: a random key; the same key gives the same networks, whatever the memory limit.
        num_networks: M.
        optimizer: any Optax optimizer.
        num_steps: steps of every network.
        loss: as in `train`.
        batch_size: examples per step, every network with its own batches; None for all.
        record_every: as in `train`.
        x_test: test examples.
        keep_params: return the final parameters, with a first axis M.
        memory_limit: bytes that networks trained at the same time may take; None is a quarter of
            free memory.
        progress: show a progress bar (where tqdm is installed).

    Returns:
        EnsembleHistory(steps (T,), loss (M, T), fx_train (M, T, n, O), fx_test, params), NumPy
        arrays.

    Raises:
        ValueError: as `train`.
        FloatingPointError: a network diverged.

    Reference: Lee et al. 2019, figure 2 (ensembles of 100 networks).

    Example:
        >>> import optax
        >>> init_fn = lambda key: jax.random.normal(key, (2,))
        >>> history = ntk_jax.train_ensemble(
        ...     init_fn, lambda w, x: x @ w, jnp.eye(2), jnp.array([1.0, -1.0]),
        ...     key=jax.random.key(0), num_networks=3, optimizer=optax.sgd(1.0), num_steps=2,
        ...     progress=False,
        ... )
        >>> history.loss.shape, history.fx_train.shape
        ((3, 3), (3, 3, 2))
    """
    check_apply_fn(apply_fn, None)
    check_integer("num_networks", num_networks, minimum=1)
    check_integer("num_steps", num_steps, minimum=0)
    params = jax.eval_shape(init_fn, key)
    a, b = examples_and_targets(apply_fn, params, x, y, loss=loss)
    a_test = None if x_test is None else as_example_tree("x_test", x_test)
    batch_key = None if batch_size is None else key
    check_batches(batch_size, batch_key, num_rows(a))
    lifted, rates = lift_rates(optimizer)
    stepper = Stepper(apply_fn, lifted, loss_function(loss, b), batch_size)
    data = Data(a, b, None, rates)
    size = _group_size(stepper, params, data, a_test, num_networks, memory_limit)
    targets = schedule(record_every, num_steps)
    groups = []
    with progress_bar(num_networks * num_steps, "training an ensemble", enabled=progress) as bar:
        for first in range(0, num_networks, size):
            # The last group is filled up with copies of its last network: one program for all.
            group = np.minimum(np.arange(first, first + size), num_networks - 1)
            keys = key, group, num_networks
            rows, last = _train_group(stepper, init_fn, keys, data, a_test, targets, bar)
            kept = min(size, num_networks - first)
            part = (*rows, last if keep_params else None)
            groups.append(jax.tree.map(lambda leaf, kept=kept: np.asarray(leaf)[:kept], part))
    loss_, fx_train, fx_test, last = jax.tree.map(lambda *parts: np.concatenate(parts), *groups)
    return EnsembleHistory(np.asarray(targets), loss_, fx_train, fx_test, last)


def _group_size(
    stepper: Stepper,
    params: Params,
    data: Data,
    x_test: Examples | None,
    num_networks: int,
    limit: int | None,
) -> int:
    """Networks at a time: parameters, gradients, optimizer state and activations of each within the
    budget.
    """
    if limit is not None:
        check_number("memory_limit", limit, strict=True)
    rows = num_rows(data.x) + (0 if x_test is None else num_rows(x_test))
    widths = sum(
        leaf.shape[-1] * leaf.dtype.itemsize for leaf in jax.tree.leaves(params) if leaf.ndim
    )
    each = (
        3 * tree_bytes(params)
        + tree_bytes(jax.eval_shape(stepper.optimizer.init, params))
        + 4 * rows * widths
    )
    groups = -(-num_networks // how_many(num_networks, each, memory_budget(limit)))
    return -(-num_networks // groups)


def _train_group(
    stepper: Stepper,
    init_fn: Any,
    drawn: tuple[Array, np.ndarray, int],
    data: Data,
    x_test: Any,
    targets: list[int],
    bar: Any,
) -> tuple[Any, Params]:
    """Records (M, T, ...) and final parameters of one group: which of how many keys of one."""
    key, group, of = drawn
    keys, states = _start((stepper, init_fn), key, group, data, of=of)
    check_start(states.loss)
    bound = divergence_bound(states.loss)
    rows = []
    for before, target in zip([0, *targets], targets, strict=False):
        states = _advance(stepper, states, keys, data, before, target)
        diverged = ~(np.asarray(states.loss) <= np.asarray(bound))
        if diverged.any():
            first = int(diverged.argmax())
            state = jax.tree.map(lambda leaf, first=first: leaf[first], states)
            message = divergence_message(stepper.apply_fn, init_fn(keys[first]), data.x, state)
            raise FloatingPointError(f"{diverged.sum()} of {len(diverged)} networks: {message}")
        rows.append(jax.device_get(_record(stepper, states, data, x_test)))
        bar.update(len(keys) * (target - before))
    return jax.tree.map(lambda *each: np.stack(each, 1), *rows), states.params


def _with_key(stepper: Stepper, data: Data, key: Array) -> Data:
    # The key itself drew the parameters: batches need numbers that do not depend on those.
    return data if stepper.batch_size is None else data._replace(key=jax.random.fold_in(key, 1))


@compiled
def _start(
    functions: Reading, key: Array, group: Array, data: Data, *, of: int
) -> tuple[Array, State]:
    """The keys of a group, and its states before the first step."""
    stepper, init_fn = functions.function
    keys = jax.random.split(key, of)[group]
    one = lambda key: stepper.start(init_fn(key), _with_key(stepper, data, key))
    return keys, jax.vmap(one)(keys)


@compiled
def _advance(
    reading: Reading,
    states: State,
    keys: Array,
    data: Data,
    before: int | Array,
    target: int | Array,
) -> State:
    """All networks of a group from one step to another: one loop, without masks, since all take the
    same steps.
    """
    stepper = reading.function

    def one(state: State, key: Array) -> State:
        batches = _with_key(stepper, data, key)
        return jax.lax.fori_loop(
            before, target, lambda _, state: stepper.next(state, batches), state
        )

    return jax.vmap(one)(states, keys)


@compiled
def _record(
    reading: Reading, states: State, data: Data, x_test: Examples | None
) -> tuple[Array, Array, Array | None]:
    """Loss over all examples, train and test outputs."""
    stepper = reading.function

    def one(params: Params) -> tuple[Array, Array, Array | None]:
        fx_train = stepper.apply_fn(params, data.x)
        fx_test = None if x_test is None else stepper.apply_fn(params, x_test)
        return stepper.loss_fn(fx_train, data.y), fx_train, fx_test

    return jax.vmap(one)(states.params)
