"""Regression with a kernel that is only multiplied."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from ntk_jax.checks import as_outputs, check_finite
from ntk_jax.compat import on_device
from ntk_jax.modes.kind import initial_test_outputs
from ntk_jax.modes.multiplied import Data, product, ridge_of
from ntk_jax.modes.solves import SolveReport
from ntk_jax.operators.iteration import Options
from ntk_jax.operators.solve import Solved, solve_system


def regression_on_operator(
    data: Data,
    diag_reg: ArrayLike,
    fx_train_0: ArrayLike,
    fx_test_0: ArrayLike | None,
    solve_options: Mapping[str, Any] | None,
) -> tuple[Array, Array, Array, SolveReport]:
    """Training outputs, test outputs, coefficients, and a report of what was met on the way."""
    k, y, dtype = data.k, data.y, data.k.dtype
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, dtype)
    f_test_0 = initial_test_outputs(fx_train_0, fx_test_0, data.test_shape, dtype)
    check_finite("fx_train_0", f_0)
    check_finite("fx_test_0", f_test_0)
    residual = y - jnp.broadcast_to(f_0, y.shape)
    ridge = ridge_of(data, "diag_reg", diag_reg)
    options = options_of(solve_options)
    solved = solve_system(
        k, data.flat(residual), ridge, options, stacklevel=4, name="k_train_train"
    )
    alpha = solved.solution.value
    # What K α is, is known: no product is needed for it.
    pull = ridge[:, None] * alpha if alpha.ndim > ridge.ndim > 0 else ridge * alpha
    train = y - (solved.left + pull).reshape(y.shape)
    test = product(data, alpha) + jnp.broadcast_to(f_test_0, data.test_shape)
    return train, test, alpha.reshape(y.shape), _report(k.shape[0], solved, dtype)


def options_of(solve_options: Mapping[str, Any] | None) -> Options:
    """Keywords of `solve`, for an operator: never Cholesky, which does not tell eigenvalues."""
    given = dict(solve_options or {})
    known = [name for name in Options._fields if name != "method"]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"solve_options: expected keywords of solve, {', '.join(known)}; got "
            f"{', '.join(unknown)}."
        )
    return Options(**given, method="conjugate_gradients")


def check_no_options(solve_options: Mapping[str, Any] | None) -> None:
    """Raise for options of a solve that an array does not need."""
    if solve_options is not None:
        raise ValueError(
            "solve_options: expected None with an array, which is factored; got some. Drop them, "
            "or use solve."
        )


def _report(rank: int, solved: Solved, dtype: DTypeLike) -> SolveReport:
    assert solved.bounds is not None  # as by all conjugate gradients
    low, high = solved.bounds
    parts = (np.asarray(x, jnp.dtype(dtype)) for x in (low, high, high / low))
    return SolveReport(on_device(np.asarray(rank)), *map(on_device, parts))
