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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from jax import Array
from jaxtyping import Float

Params: TypeAlias = Any
"""Any pytree of floating-point arrays."""

ApplyFn: TypeAlias = Callable[[Params, Any], Array]
"""`apply_fn(params, x) -> outputs (n, ...)`: row i of the result depends on example i alone.

x is an array (n, ...), or a pytree of them."""


class Kernels(NamedTuple):
    """The two kernels of a network: covariance of its initial outputs, and tangent kernel."""

    nngp: Float[Array, "n1 n2 ..."]
    ntk: Float[Array, "n1 n2 ..."]


Which: TypeAlias = tuple[int, ...]
"""The places in `Kernels` of those that are asked for."""

BOTH: Which = (0, 1)
WHICH: dict[str, Which] = {"both": BOTH, "nngp": (0,), "ntk": (1,)}
"""By the names that the option `kernels` has."""


def as_asked(kernels: Sequence[Array]) -> Kernels | Array:
    """Both kernels, or the one that was asked for."""
    return Kernels(*kernels) if len(kernels) == len(BOTH) else kernels[0]


class Estimate(NamedTuple):
    """A mean over random probes, and its standard error."""

    value: Float[Array, ""]
    standard_error: Float[Array, ""]


K = TypeVar("K", Array, Kernels)

KernelFn: TypeAlias = Callable[..., K]
"""`kernel_fn(x1, x2=None)` -> one kernel, `KernelFn[Array]`, or both, `KernelFn[Kernels]`; x2=None
means x1 again.
"""
