"""Regression with a kernel that is only multiplied."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from ntk_jax.checks import as_array, as_dtype, as_kernel, as_number, as_outputs, check_finite
from ntk_jax.compat import on_device
from ntk_jax.linalg import as_matrix
from ntk_jax.modes.kind import initial_test_outputs
from ntk_jax.modes.solves import SolveReport
from ntk_jax.operators.iteration import Options
from ntk_jax.operators.solve import Solved, solve_system
from ntk_jax.operators.symmetric import (
    Operator,
    SymmetricOperator,
    as_operator,
    is_operator,
    multiply,
)


class Data(NamedTuple):
    """A kernel as an operator, targets of its examples, and its rows at test examples."""

    k: Operator
    y: Float[Array, "n *O"]
    k_test: Operator

    @property
    def coupled(self) -> int:
        """How many outputs of an example are rows of the operator."""
        return self.k.shape[0] // len(self.y)

    def flat(self, y: Array) -> Array:
        """Outputs as the columns that the operator acts on."""
        return y.reshape(-1) if self.coupled > 1 else y

    @property
    def test_shape(self) -> tuple[int, ...]:
        """The shape of outputs on the test examples."""
        return self.k_test.shape[0] // self.coupled, *self.y.shape[1:]


def data_of(
    k_train_train: SymmetricOperator | ArrayLike, y_train: ArrayLike, k_test_train: object = None
) -> Data:
    """The arguments, checked; without a test kernel, the training one stands for it."""
    k = as_operator("k_train_train", k_train_train)
    y = as_array("y_train", y_train)
    n = k.shape[0]
    if y.ndim not in (1, 2) or y.size == 0 or (len(y) != n and y.size != n):
        raise ValueError(
            f"y_train: expected one row per row of k_train_train, ({n},) or ({n}, O), or all its "
            f"outputs (n, O) with n O = {n}; got {y.shape}."
        )
    y = as_dtype("y_train", y, k.dtype)
    check_finite("y_train", y)
    return Data(k, y, k if k_test_train is None else test_operator(k_test_train, n, k.dtype))


def test_operator(k_test_train: object, n: int, dtype: DTypeLike) -> Operator:
    """A test kernel of n training columns: an operator as it is, an array as a matrix."""
    if is_operator(k_test_train):
        k: Operator = k_test_train
    else:
        k = as_matrix(as_dtype("k_test_train", as_kernel("k_test_train", k_test_train), dtype))
        check_finite("k_test_train", k)
    if len(k.shape) != 2 or k.shape[1] != n:
        hint = " It is transposed." if k.shape[0] == n else ""
        raise ValueError(
            f"k_test_train: expected test rows and {n} training columns, (n_test, {n}); got "
            f"{tuple(k.shape)}.{hint}"
        )
    return k


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


def ridge_of(data: Data, name: str, value: ArrayLike) -> Array:
    """A ridge for all rows, or for each; those of an example's outputs are the same."""
    ridge = as_number(name, value, data.k.dtype, max_ndim=1)
    if ridge.ndim and data.coupled > 1 and len(ridge) == len(data.y):
        ridge = np.repeat(np.asarray(ridge), data.coupled)
    return on_device(np.asarray(ridge))


def product(data: Data, columns: Array) -> Array:
    """K_test times columns, as outputs on the test examples."""
    flat = columns if columns.ndim == 2 else columns[:, None]
    return multiply(data.k_test, flat).reshape(data.test_shape)


def _report(rank: int, solved: Solved, dtype: DTypeLike) -> SolveReport:
    assert solved.bounds is not None  # as by all conjugate gradients
    low, high = solved.bounds
    parts = (np.asarray(x, jnp.dtype(dtype)) for x in (low, high, high / low))
    return SolveReport(on_device(np.asarray(rank)), *map(on_device, parts))
