"""Data whose kernel is only multiplied: an operator, targets of its rows, rows at test examples."""

from typing import NamedTuple

import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from ntk_jax.checks import as_array, as_dtype, as_kernel, as_number, check_finite
from ntk_jax.compat import on_device
from ntk_jax.linalg import as_matrix
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
    k_train_train: SymmetricOperator | ArrayLike,
    y_train: ArrayLike,
    k_test_train: object = None,
    name: str = "k_train_train",
) -> Data:
    """The arguments, checked; without a test kernel, the training one stands for it."""
    k = as_operator(name, k_train_train)
    y = as_array("y_train", y_train)
    n = k.shape[0]
    if y.ndim not in (1, 2) or y.size == 0 or (len(y) != n and y.size != n):
        raise ValueError(
            f"y_train: expected one row per row of {name}, ({n},) or ({n}, O), or all its "
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
