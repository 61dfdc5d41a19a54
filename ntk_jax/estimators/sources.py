"""Which kernel an estimator uses, as a function of two blocks of rows."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float

from ntk_jax.finite.empirical import empirical_nngp, empirical_ntk
from ntk_jax.infinite.mlp.kernels import kernel_diagonal, mlp_kernels
from ntk_jax.networks.adapters import from_linen
from ntk_jax.networks.mlp import MLP
from ntk_jax.types import KernelFn

OWN = 64  # rows of a block whose diagonal alone is wanted
Traceable: TypeAlias = tuple[KernelFn[Any], Float[np.ndarray, "n *d"], str | None]
"""A kernel function that JAX can trace, rows as it takes them, and which one of a pair it is."""


@runtime_checkable
class Source(Protocol):
    """A kernel of rows that are standardized already."""

    def block(self, x1: np.ndarray, x2: np.ndarray | None) -> np.ndarray:
        """K(x1, x2)."""

    def own(self, x: np.ndarray) -> np.ndarray:
        """K of each row with itself."""

    def traceable(self, x: np.ndarray) -> Traceable:
        """Arguments of `kernel_operator` for these rows."""


class MLPSource(NamedTuple):
    """The infinitely wide MLP, in float64. Zero columns change nothing but the fan-in."""

    kind: str
    activation: str | Callable
    depth: int
    W_std: float
    b_std: float

    @property
    def options(self) -> dict:
        """Arguments of `mlp_kernels`."""
        return {name: value for name, value in self._asdict().items() if name != "kind"}

    def block(self, x1: np.ndarray, x2: np.ndarray | None) -> np.ndarray:
        """K(x1, x2)."""
        return np.asarray(getattr(mlp_kernels(x1, x2, **self.options), self.kind))

    def own(self, x: np.ndarray) -> np.ndarray:
        """K of each row with itself."""
        return np.asarray(getattr(kernel_diagonal(x, **self.options), self.kind))

    def traceable(self, x: np.ndarray) -> Traceable:
        """Arguments of `kernel_operator` for these rows."""
        return partial(mlp_kernels, **self.options), x, self.kind


class FiniteSource(NamedTuple):
    """An MLP of finite width with given parameters, in float32."""

    kind: str
    model: MLP
    variables: dict

    def block(self, x1: np.ndarray, x2: np.ndarray | None) -> np.ndarray:
        """K(x1, x2)."""
        kernel = empirical_ntk if self.kind == "ntk" else empirical_nngp
        return np.asarray(kernel(*from_linen(self.model, self.variables), x1, x2))

    def own(self, x: np.ndarray) -> np.ndarray:
        """K of each row with itself."""
        return own_of_blocks(self.block, x)

    def traceable(self, x: np.ndarray) -> Traceable:
        """Arguments of `kernel_operator` for these rows."""
        kernel = empirical_ntk if self.kind == "ntk" else empirical_nngp
        return partial(kernel, *from_linen(self.model, self.variables)), x, None


def own_of_blocks(block: Callable, x: np.ndarray) -> np.ndarray:
    """K of each row with itself, from small blocks."""
    parts = [np.diagonal(block(x[i : i + OWN], None)) for i in range(0, len(x), OWN)]
    return np.concatenate(parts)
