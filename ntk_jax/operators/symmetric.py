"""A symmetric matrix that need not be formed: what it must offer, and the check that it does."""

from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, Int

from ntk_jax.checks import Look, as_coupled_kernel, check_looks, look
from ntk_jax.compat import on_device
from ntk_jax.linalg import as_matrix, matmul
from ntk_jax.small_programs import jit_by_size


@runtime_checkable
class SymmetricOperator(Protocol):
    """What is only multiplied: `op @ v` for columns v (n, b), `shape` (n, n) and `dtype`."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> DTypeLike: ...  # noqa: D102

    def __matmul__(self, v: Any, /) -> ArrayLike: ...


@runtime_checkable
class ColumnOperator(SymmetricOperator, Protocol):
    """An operator that also gives single columns: `columns(indices)` (n, k)."""

    def columns(self, indices: ArrayLike, /) -> ArrayLike: ...  # noqa: D102


Operator: TypeAlias = Array | SymmetricOperator
"""A matrix that passed `as_operator`: held as an array, or only multiplied."""


def is_operator(k: object) -> TypeGuard[SymmetricOperator]:
    """Whether `k` is only multiplied: it has `@`, and is no array."""
    if isinstance(k, Array | np.ndarray) or hasattr(k, "todense"):  # sooner than by the protocol
        return False
    return isinstance(k, SymmetricOperator)


def as_operator(name: str, k: SymmetricOperator | ArrayLike) -> Operator:
    """A kernel as a symmetric matrix (n, n), or an operator with `@` and a square `shape` as it is.

    Raises:
        ValueError: neither, not square, an array that is not symmetric, an operator that is not in
            float32 or float64.
    """
    if is_operator(k):
        if len(k.shape) != 2 or k.shape[0] != k.shape[1]:
            raise ValueError(
                f"{name}: expected a square operator; got shape {k.shape}. Make it with x2=None."
            )
        if jnp.dtype(k.dtype) not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"{name}: expected an operator in float32 or float64; got {k.dtype}. Convert its "
                "products."
            )
        return k
    kernel = as_coupled_kernel(name, k)
    matrix, seen = _seen(kernel)
    check_looks({name: seen}, {name: kernel})
    return kernel if kernel.ndim == 2 else matrix


@jit_by_size
def _seen(k: Float[Array, "n n *outputs"]) -> tuple[Float[Array, "N N"], Look | None]:
    return as_matrix(k), look(k, symmetric=True)


def multiply(k: Operator, v: Float[Array, "n2 b"]) -> Float[Array, "n1 b"]:
    """K v, in full precision for an array."""
    return _product(k, v) if isinstance(k, Array) else jnp.asarray(k @ v)


_product = jit_by_size(matmul)


def columns(k: Operator, indices: np.ndarray) -> Float[Array, "n r"]:
    """Columns of a matrix; of an operator that has no `columns`, by products with unit vectors."""
    if isinstance(k, Array):
        return _columns(k, indices)
    if isinstance(k, ColumnOperator):
        return jnp.asarray(k.columns(indices))
    return multiply(k, on_device(_units(k.shape[1], indices, jnp.dtype(k.dtype))))


@jit_by_size
def _columns(k: Float[Array, "n n"], indices: Int[ArrayLike, " r"]) -> Float[Array, "n r"]:
    return jnp.take(k, jnp.asarray(indices), axis=1)


def _units(n: int, indices: np.ndarray, dtype: jnp.dtype) -> Float[np.ndarray, "n r"]:
    units = np.zeros((n, len(indices)), dtype)
    units[indices, np.arange(len(indices))] = 1
    return units
