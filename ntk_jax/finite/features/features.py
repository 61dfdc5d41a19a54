"""Tangent features: what each parameter contributes to each output, per example, as factors or as
gradients.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import working_dtype
from ntk_jax.finite.uses.entries import Order, in_order_of_leaf


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs", "cotangents", "scales"],
    meta_fields=["leaves", "orders"],
)
@dataclass(frozen=True, eq=False)
class FactoredBlock:
    """Leaves whose gradient is sum_t a[b, t, i] delta[o, b, t, d], all with the same cotangents.

    Attributes:
        inputs: one array (n, B, T, I) per leaf.
        cotangents: (n, O, B, T, D).
        leaves: names of the leaves.
        orders: which entry of its leaf each entry of a gradient belongs to.
        scales: of cotangents that all outputs share, (n, 1, B, T, D): their weights in the mean
            over outputs, (B, 1, D).
    """

    inputs: Any
    cotangents: Any
    leaves: tuple[str, ...] = field(default=())
    orders: tuple[Order, ...] = field(default=())
    scales: Any = None

    @property
    def num_outputs(self) -> int:
        """O."""
        return int(self.cotangents.shape[1])

    @property
    def kind(self) -> tuple[Any, ...]:
        """What two blocks must share for their factors to be contracted with each other."""
        sizes = tuple(a.shape[3] for a in self.inputs)
        return (
            FactoredBlock,
            self.leaves,
            self.orders,
            sizes,
            self.cotangents.shape[2],
            self.cotangents.shape[4],
        )

    def rows(self, rows: slice) -> "FactoredBlock":
        """The block of some of the rows."""
        return replace(
            self, inputs=tuple(a[rows] for a in self.inputs), cotangents=self.cotangents[rows]
        )

    def with_rows_of(self, others: "list[FactoredBlock]") -> "FactoredBlock":
        """The block with the rows of others after its own."""
        parts = [self, *others]
        inputs = tuple(
            jnp.concatenate(a) for a in zip(*(block.inputs for block in parts), strict=True)
        )
        return replace(
            self, inputs=inputs, cotangents=jnp.concatenate([block.cotangents for block in parts])
        )

    def weighted(self, dtype: Any) -> "FactoredBlock":
        """One side of a product, with the weights of shared cotangents."""
        if self.scales is None:
            return self
        return replace(
            self,
            cotangents=self.cotangents.astype(dtype) * self.scales[None, None].astype(dtype),
            scales=None,
        )

    def gradients(self, precision: str) -> "GradientBlock":
        """The same block with the sum over positions carried out."""
        scales = None
        if self.scales is not None:
            B, _, D = self.scales.shape
            scales = tuple(
                jnp.broadcast_to(self.scales, (B, a.shape[3], D)).reshape(-1) for a in self.inputs
            )
        jacobians = tuple(_outer(a, self.cotangents, precision) for a in self.inputs)
        return GradientBlock(jacobians, self.leaves, self.orders, scales)

    def squared_norms(self, precision: str) -> Float[Array, "n O"]:
        """|d f_o(x_i) / d leaves|², without the gradients."""
        dtype = working_dtype(self.cotangents.dtype)
        d = self.cotangents.astype(dtype)
        a_gram = sum(
            jnp.einsum("nbsi,nbti->nbst", a, a, precision=precision)
            for a in (a.astype(dtype) for a in self.inputs)
        )
        return jnp.einsum("nbst,nobsd,nobtd->no", a_gram, d, d, precision=precision)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["jacobians", "scales"],
    meta_fields=["leaves", "orders"],
)
@dataclass(frozen=True, eq=False)
class GradientBlock:
    """Explicit gradients: one array (n, O, p) per leaf; where all outputs share one, its weights in
    their mean, (p,).

    Their entries are in the order of the leaf, or in `orders`.
    """

    jacobians: Any
    leaves: tuple[str, ...] = field(default=())
    orders: tuple[Order, ...] = field(default=())
    scales: Any = None

    @property
    def num_outputs(self) -> int:
        """O."""
        return int(self.jacobians[0].shape[1])

    @property
    def kind(self) -> tuple[Any, ...]:
        """What two blocks must share for their gradients to be contracted with each other."""
        return GradientBlock, self.leaves, self.orders

    def by_leaf(self) -> dict[str, Array]:
        """The gradient (n, O, p) of each leaf, with its entries where the leaf has them."""
        orders = self.orders or (None,) * len(self.leaves)
        triples = zip(self.leaves, self.jacobians, orders, strict=True)
        return {
            leaf: j if order is None else in_order_of_leaf(j, order) for leaf, j, order in triples
        }

    def rows(self, rows: slice) -> "GradientBlock":
        """The block of some of the rows."""
        return replace(self, jacobians=tuple(j[rows] for j in self.jacobians))

    def with_rows_of(self, others: "list[GradientBlock]") -> "GradientBlock":
        """The block with the rows of others after its own."""
        parts = zip(*(block.jacobians for block in (self, *others)), strict=True)
        return replace(self, jacobians=tuple(jnp.concatenate(j) for j in parts))

    def weighted(self, dtype: Any) -> "GradientBlock":
        """One side of a product, with the weights of shared gradients."""
        if self.scales is None:
            return self
        pairs = zip(self.jacobians, self.scales, strict=True)
        return replace(
            self,
            jacobians=tuple(j.astype(dtype) * s[None, None].astype(dtype) for j, s in pairs),
            scales=None,
        )

    def gradients(self, precision: str) -> "GradientBlock":
        """The block itself."""
        return self

    def squared_norms(self, precision: str) -> Float[Array, "n O"]:
        """|d f_o(x_i) / d leaves|²."""
        dtype = working_dtype(*(j.dtype for j in self.jacobians))
        return jnp.stack([jnp.sum(j.astype(dtype) ** 2, axis=2) for j in self.jacobians]).sum(0)


Block = FactoredBlock | GradientBlock


class Projection(NamedTuple):
    """The number of dimensions, and the random key in words: "" inside jit, where it is not
    known.
    """

    num_dimensions: int
    key: str


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["blocks"],
    meta_fields=["num_rows", "num_outputs", "dtype", "parameters", "projection"],
)
@dataclass(frozen=True, eq=False)
class TangentFeatures:
    """The tangent features of a batch: contract two of them to get the kernel of every pair.

    Attributes:
        blocks: `FactoredBlock`s and `GradientBlock`s; each parameter that is read is in one of
            them. A single one if projected.
        num_rows: n.
        num_outputs: O.
        dtype: of the kernel.
        parameters: path and shape of every leaf.
        projection: None if exact.
    """

    blocks: Any
    num_rows: int
    num_outputs: int
    dtype: Any
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = field(default=())
    projection: Projection | None = None

    def rows(self, start: int, stop: int) -> "TangentFeatures":
        """The features of some of the rows."""
        blocks = tuple(block.rows(slice(start, stop)) for block in self.blocks)
        return replace(self, blocks=blocks, num_rows=stop - start)

    def matrix(self) -> Float[Array, "n_O dimensions"]:
        """The features as one matrix Phi: Phi Phiᵀ is the kernel of all examples and outputs, or
        its estimate.

        Returns:
            (n O, dimensions), with rows in order example · O + output, so that `reshape(n, O, -1)`
            splits them: the random projection of each gradient, or without one the gradient itself,
            all leaves one after the other.
        """
        if self.projection is not None:
            return self.blocks[0].jacobians[0].reshape(self.num_rows * self.num_outputs, -1)
        return _matrix(self)


def join_rows(parts: tuple[TangentFeatures, ...]) -> TangentFeatures:
    """The features of all rows, from those of some rows each."""
    first, num_rows = parts[0], sum(part.num_rows for part in parts)
    blocks = tuple(
        block.with_rows_of(list(others))
        for block, *others in zip(*(p.blocks for p in parts), strict=True)
    )
    return replace(first, blocks=blocks, num_rows=num_rows)


@jax.jit
def _matrix(features: TangentFeatures) -> Float[Array, "n_O dimensions"]:
    rows = features.num_rows * features.num_outputs
    found = gradients_by_leaf(features.blocks, "highest")
    sizes = [(name, math.prod(shape)) for name, shape in features.parameters]
    unread = lambda size: jnp.zeros((rows, size), features.dtype)
    parts = [
        found[name].reshape(rows, size) if name in found else unread(size) for name, size in sizes
    ]
    return jnp.concatenate([part.astype(features.dtype) for part in parts], axis=1)


def gradients_by_leaf(blocks: Iterable[Block], precision: str) -> dict[str, Array]:
    """The gradient (n, O, p) of every leaf of some blocks, with its entries where the leaf has
    them.
    """
    return {leaf: g for block in blocks for leaf, g in block.gradients(precision).by_leaf().items()}


def _outer(
    a: Float[Array, "n B T I"], d: Float[Array, "n O B T D"], precision: str
) -> Float[Array, "n O p"]:
    """sum_t a delta for every example and output, one product (I, T) x (T, O D) per example and
    block.
    """
    dtype = working_dtype(a.dtype, d.dtype)
    (n, B, T, I), (O, D) = a.shape, (d.shape[1], d.shape[4])
    flat = d.astype(dtype).transpose(0, 2, 3, 1, 4).reshape(n, B, T, O * D)
    g = jnp.einsum("nbti,nbtk->nbik", a.astype(dtype), flat, precision=precision)
    return g.reshape(n, B, I, O, D).transpose(0, 3, 1, 2, 4).reshape(n, O, B * I * D)
