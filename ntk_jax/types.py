"""The types that cross file borders, and the legend of dimension letters.

| letter | meaning |
| --- | --- |
| n, n1, n2, n_train, n_test | examples (rows) |
| d | input features of one example, flattened |
| O | output coordinates of the network |
| P | parameters |
| m | width: units of a hidden layer |
| T | times, or recorded steps |
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

Params: TypeAlias = Any
"""Any pytree of floating-point arrays."""

ApplyFn: TypeAlias = Callable[[Params, ArrayLike], Array]
"""`apply_fn(params, x) -> outputs (n, ...)`: row i of the result depends on row i of x alone."""


class Kernels(NamedTuple):
    """The two kernels of a network: covariance of its outputs at initialization, and its tangent
    kernel.
    """

    nngp: Float[Array, "n1 n2"]
    ntk: Float[Array, "n1 n2"]


KernelFn: TypeAlias = Callable[..., Kernels | Array]
"""`kernel_fn(x1, x2=None)` -> one kernel or `Kernels`; x2=None means x1 again."""


@runtime_checkable
class SymmetricOperator(Protocol):
    """A symmetric matrix that need not be formed: `op @ v` for columns v (n, b), `shape` (n, n) and
    `dtype`.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> Any: ...  # noqa: D102

    def __matmul__(self, v: Any, /) -> Any: ...


@runtime_checkable
class Eigenmodes(Protocol):
    """Eigenvalues, largest first, with eigenvectors in columns: all (`diagonalize`) or the first
    (`top_eigenvalues`).
    """

    @property
    def eigenvalues(self) -> Float[Array, " k"]: ...  # noqa: D102

    @property
    def eigenvectors(self) -> Float[Array, "n k"]: ...  # noqa: D102
