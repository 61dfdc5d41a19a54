"""Leave-one-out with a kernel that is only multiplied: by random probes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from ntk_jax.checks import as_number, as_outputs, check_finite, check_integer
from ntk_jax.compat import on_device
from ntk_jax.inference.on_operators import options_of
from ntk_jax.inference.posterior_on_operators import columns_at_test
from ntk_jax.modes.multiplied import Data, ridge_of
from ntk_jax.operators.inverse_diagonal import WithDiagonal, solve_with_diagonal
from ntk_jax.operators.iteration import Options
from ntk_jax.operators.solve import solve_system


class LeftOut(NamedTuple):
    """Predictions, the loss, changes of test outputs; standard errors of the first two."""

    predictions: Array
    loss: Array
    test_change: Array | None
    standard_error: Array
    loss_standard_error: Array


def left_out_on_operator(
    data: Data,
    diag_reg: ArrayLike,
    fx_train_0: ArrayLike,
    num_probes: int,
    solve_options: Mapping[str, Any] | None,
    *,
    change: bool,
) -> LeftOut:
    """Of every ridge, by a solve of its own.

    Raises:
        ValueError: see `leave_one_out`.
    """
    y, dtype = data.y, data.k.dtype
    check_integer("num_probes", num_probes, minimum=2)
    if data.coupled > 1:
        raise ValueError(
            f"modes: expected an operator with a row for each of the {len(y)} examples; got one of "
            f"{data.k.shape[0]} rows, whose outputs are coupled. Use outputs='mean' of "
            "empirical_ntk with kernel_operator, or diagonalize the kernel."
        )
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, dtype)
    check_finite("fx_train_0", f_0)
    residual = (y - jnp.broadcast_to(f_0, y.shape)).reshape(len(y), -1)
    ridges = np.asarray(as_number("diag_reg", diag_reg, dtype, max_ndim=1))
    options, parts = options_of(solve_options), []
    for value in ridges.reshape(-1):
        ridge = ridge_of(data, "diag_reg", value)
        found = solve_with_diagonal(
            data.k, residual, ridge, options, num_probes=num_probes, stacklevel=4, name="modes"
        )
        parts.append(_of_ridge(data, ridge, found, options, change))
    return _together(parts, ridges.shape, dtype)


def _of_ridge(
    data: Data, ridge: Array, found: WithDiagonal, options: Options, change: bool
) -> list[np.ndarray]:
    """The parts of `LeftOut`, on the host, without changes if there are none to be."""
    error, spread = found.left_out(np.asarray(found.solved.solution.value, float))
    predictions = np.asarray(data.y, float) - error.reshape(data.y.shape)
    # Squares of estimates are too large by their variance.
    loss = np.mean(np.square(error) - np.square(spread)) / 2
    pull = np.mean(np.square(error), axis=1) / found.diagonal
    of_probes = pull @ found.deviations / len(error)
    loss_error = of_probes.std(ddof=1) / len(of_probes) ** 0.5
    parts = [predictions, np.asarray(loss), spread.reshape(data.y.shape), np.asarray(loss_error)]
    if change:
        blocks = list(_shares(data, ridge, found, options))
        shares = np.concatenate(blocks, axis=1)
        moved = -shares[:, :, None] * error[:, None, :]
        parts.append(moved.reshape(*shares.shape, *data.y.shape[1:]))
    return parts


def _shares(
    data: Data, ridge: Array, found: WithDiagonal, options: Options
) -> Iterator[Float[np.ndarray, "n b"]]:
    """G K_testᵀ, columns of some test rows at a time."""
    options = options._replace(preconditioner=found.preconditioner, checkpoint=None, progress=False)
    for columns in columns_at_test(data.k_test):
        solved = solve_system(data.k, columns, ridge, options, stacklevel=7, name="modes")
        yield np.asarray(solved.solution.value, float)


def _together(parts: list[list[np.ndarray]], shape: tuple[int, ...], dtype: DTypeLike) -> LeftOut:
    """With an axis of ridges in front, where there is one."""
    whole = [np.stack(each).astype(jnp.dtype(dtype)) for each in zip(*parts, strict=True)]
    arrays = [on_device(each.reshape((*shape, *each.shape[1:]))) for each in whole]
    predictions, loss, error, loss_error = arrays[:4]
    return LeftOut(predictions, loss, arrays[4] if arrays[4:] else None, error, loss_error)
