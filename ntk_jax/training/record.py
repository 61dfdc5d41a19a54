"""What is recorded of a network on the way, and when."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from ntk_jax.checks import check_integer
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import compiled
from ntk_jax.diagnostics.change import changes, kernel_change
from ntk_jax.examples import Examples
from ntk_jax.finite.empirical import empirical_ntk
from ntk_jax.training.step import Data, State, Stepper
from ntk_jax.types import Params


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


def schedule(record_every: int | Sequence[int] | None, num_steps: int) -> list[int]:
    """The steps to record, from 0 to `num_steps`."""
    if record_every is None:
        record_every = max(1, num_steps // 50)
    if isinstance(record_every, int | np.integer):
        check_integer("record_every", record_every, minimum=1)
        record_every = range(0, num_steps, record_every)
    steps = [int(step) for step in record_every]
    if any(step < 0 or step > num_steps for step in steps) or steps != sorted(set(steps)):
        raise ValueError(
            f"record_every: expected increasing steps between 0 and num_steps = {num_steps}; got "
            f"{steps}."
        )
    return sorted({0, *steps, num_steps})


class Recorder:
    """Collects one row per recorded step."""

    def __init__(
        self,
        stepper: Stepper,
        params_0: Params,
        data: Data,
        x_test: Examples | None,
        y_test: Array | None,
        x_kernel: Examples | None,
        record_outputs: bool,
        record: Callable[[Params], Any] | None,
    ):
        self.stepper, self.record, self.record_outputs = stepper, record, record_outputs
        self.params_0, self.given = params_0, (data, x_test, y_test)
        self.evaluates = record_outputs or stepper.batch_size is not None or y_test is not None
        self.k_0 = None if x_kernel is None else empirical_ntk(stepper.apply_fn, params_0, x_kernel)
        self.x_kernel = x_kernel
        self.rows: list[dict[str, Any]] = []

    def __call__(self, state: State) -> float:
        """Record a state; returns its training loss, over all examples."""
        row: dict[str, Any] = {"steps": state.step, "loss": state.loss}
        if self.evaluates:
            row |= _evaluated(self.stepper, state.params, *self.given, outputs=self.record_outputs)
        row["relative_change"], row["by_layer"] = changes(state.params, self.params_0)
        if self.k_0 is not None and self.x_kernel is not None:
            k = empirical_ntk(self.stepper.apply_fn, state.params, self.x_kernel)
            row["kernel_change"] = kernel_change(k, self.k_0)
        if self.record is not None:
            row["recorded"] = self.record(state.params)
        self.rows.append(jax.device_get(row))
        return float(self.rows[-1]["loss"])

    def history(self, state: State, *, converged: bool) -> History:
        """All rows stacked, and the final parameters."""
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


@compiled
def _evaluated(
    reading: Reading,
    params: Params,
    data: Data,
    x_test: Examples | None,
    y_test: Array | None,
    *,
    outputs: bool,
) -> dict[str, Array]:
    """What has to be evaluated of a state, in one program."""
    stepper = reading.function
    row: dict[str, Array] = {}
    if outputs or stepper.batch_size is not None:
        fx_train = stepper.apply_fn(params, data.x)
        row |= {"fx_train": fx_train} if outputs else {}
        if stepper.batch_size is not None:
            row["loss"] = stepper.loss_fn(fx_train, data.y)
    if x_test is not None:
        fx_test = stepper.apply_fn(params, x_test)
        row |= {"fx_test": fx_test} if outputs else {}
        if y_test is not None:
            row["test_loss"] = stepper.loss_fn(fx_test, y_test)
    return row
