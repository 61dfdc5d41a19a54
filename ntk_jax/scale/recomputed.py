"""A kernel whose entries are computed anew in every product, in bounded memory."""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from ntk_jax.closures.fingerprint import Reading
from ntk_jax.scale.matrix import KernelMatrix
from ntk_jax.scale.tile_products import How, columns, diagonal, product
from ntk_jax.types import KernelFn

Sides: TypeAlias = tuple[Array, Array | None]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class RecomputedKernel(KernelMatrix):
    """K(x1, x2) in tiles that are made, multiplied with and forgotten. A pytree.

    Attributes:
        x1: examples of the rows.
        x2: examples of the columns; None means x1.
        kernel_fn: the kernel.
        how: which one of a pair it is, its dtype, the rows of a block, the devices.
    """

    x1: Array
    x2: Array | None
    kernel_fn: KernelFn[Any]
    how: How

    def tree_flatten(self) -> tuple[Sides, tuple[Reading, How]]:
        """The examples, and the kernel with what it reads now, without which no program fits."""
        return (self.x1, self.x2), (Reading(self.kernel_fn), self.how)

    @classmethod
    def tree_unflatten(cls, rest: tuple[Reading, How], arrays: Sides) -> "RecomputedKernel":
        """The operator of these examples."""
        return cls(*arrays, rest[0].function, rest[1])

    def __repr__(self) -> str:
        """Without entries."""
        return f"RecomputedKernel(shape={self.shape}, dtype={self.dtype.name}, {self.how})"

    @property
    def shape(self) -> tuple[int, int]:
        """(n1, n2)."""
        return len(self.x1), len(self.x1 if self.x2 is None else self.x2)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the kernel."""
        return jnp.dtype(self.how.dtype)

    @property
    def is_symmetric(self) -> bool:
        """Whether there is no x2."""
        return self.x2 is None

    @property
    def T(self) -> "RecomputedKernel":
        """The transpose, K(x2, x1)."""
        return self if self.x2 is None else replace(self, x1=self.x2, x2=self.x1)

    def _multiply(self, v: Float[Array, "n2 ..."]) -> Float[Array, "n1 ..."]:
        return product(self.kernel_fn, self.x1, self.x2, v, how=self.how)

    def _diagonal(self) -> Float[Array, " n"]:
        return diagonal(self.kernel_fn, self.x1, how=self.how)

    def _columns(self, indices: Int[Array, " k"]) -> Float[Array, "n1 k"]:
        return columns(self.kernel_fn, self.x1, self.x2, indices, how=self.how)
