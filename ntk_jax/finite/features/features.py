"""Tangent features: what each parameter adds to each output, per example: factors or gradients.

A block is a group of leaves that share their cotangents.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import working_dtype
from ntk_jax.finite.uses.entries import Order, in_order_of_leaf

Node: TypeAlias = Any
"""An array, or what JAX puts in its place in a pytree."""

Kind: TypeAlias = tuple[object, ...]
"""What two blocks must share to be contracted with each other."""


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

    inputs: tuple[Node, ...]
    cotangents: Node
    leaves: tuple[str, ...] = field(default=())
    orders: tuple[Order, ...] = field(default=())
    scales: Node = None

    @property
    def num_outputs(self) -> int:
        """O."""
        return int(self.cotangents.shape[1])

    def kind_of(self, i: int) -> Kind:
        """What two blocks must share for the factors of a leaf to be contracted with each other."""
        _, _, B, _, D = self.cotangents.shape
        return FactoredBlock, self.orders[i], self.inputs[i].shape[3], B, D

    def only(self, leaves: tuple[str, ...]) -> "FactoredBlock":
        """The block of some of the leaves."""
        at = [self.leaves.index(leaf) for leaf in leaves]
        inputs, orders = tuple(self.inputs[i] for i in at), tuple(self.orders[i] for i in at)
        return replace(self, inputs=inputs, leaves=leaves, orders=orders)

    def rows(self, rows: slice) -> "FactoredBlock":
        """The block of some of the rows."""
        inputs = tuple(a[rows] for a in self.inputs)
        return replace(self, inputs=inputs, cotangents=self.cotangents[rows])

    def with_rows_of(self, others: "list[FactoredBlock]") -> "FactoredBlock":
        """The block with the rows of others after its own."""
        parts = [self, *others]
        inputs = tuple(map(jnp.concatenate, zip(*(b.inputs for b in parts), strict=True)))
        cotangents = jnp.concatenate([b.cotangents for b in parts])
        return replace(self, inputs=inputs, cotangents=cotangents)

    def weighted(self, dtype: jnp.dtype) -> "FactoredBlock":
        """One side of a product, with the weights of shared cotangents."""
        if self.scales is None:
            return self
        scales = self.scales[None, None].astype(dtype)
        return replace(self, cotangents=self.cotangents.astype(dtype) * scales, scales=None)

    def gradients(self, precision: str) -> "GradientBlock":
        """The same block with the sum over positions carried out."""
        scales = None
        if self.scales is not None:
            B, _, D = self.scales.shape
            spread = lambda size: jnp.broadcast_to(self.scales, (B, size, D)).reshape(-1)
            scales = tuple(spread(a.shape[3]) for a in self.inputs)
        jacobians = tuple(_outer(a, self.cotangents, precision) for a in self.inputs)
        return GradientBlock(jacobians, self.leaves, self.orders, scales)

    def squared_norms(self, precision: str) -> Float[Array, "n O"]:
        """|d f_o(x_i) / d leaves|², without the gradients."""
        dtype = working_dtype(self.cotangents.dtype)
        d = self.cotangents.astype(dtype)
        gram = lambda a: jnp.einsum("nbsi,nbti->nbst", a, a, precision=precision)
        a_gram = sum(gram(a.astype(dtype)) for a in self.inputs)
        return jnp.einsum("nbst,nobsd,nobtd->no", a_gram, d, d, precision=precision)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["jacobians", "scales"],
    meta_fields=["leaves", "orders"],
)
@dataclass(frozen=True, eq=False)
class GradientBlock:
    """Explicit gradients: one array (n, O, p) per leaf.

    Attributes:
        jacobians: the gradients.
        leaves: names of the leaves.
        orders: which entry of its leaf each entry of a gradient belongs to, if not the same.
        scales: of gradients that all outputs share, their weights in the mean over outputs, (p,).
    """

    jacobians: tuple[Node, ...]
    leaves: tuple[str, ...] = field(default=())
    orders: tuple[Order, ...] = field(default=())
    scales: tuple[Node, ...] | None = None

    @property
    def num_outputs(self) -> int:
        """O."""
        return int(self.jacobians[0].shape[1])

    def kind_of(self, i: int) -> Kind:
        """What two blocks must share for the gradients of a leaf to be contracted."""
        return GradientBlock, self.orders[i] if self.orders else None

    def only(self, leaves: tuple[str, ...]) -> "GradientBlock":
        """The block of some of the leaves."""
        at = [self.leaves.index(leaf) for leaf in leaves]
        orders = tuple(self.orders[i] for i in at) if self.orders else ()
        jacobians = tuple(self.jacobians[i] for i in at)
        return replace(self, jacobians=jacobians, leaves=leaves, orders=orders)

    def by_leaf(self) -> dict[str, Array]:
        """The gradient (n, O, p) of each leaf, with its entries where the leaf has them."""
        orders = self.orders or (None,) * len(self.leaves)
        ordered = lambda j, order: j if order is None else in_order_of_leaf(j, order)
        return dict(zip(self.leaves, map(ordered, self.jacobians, orders), strict=True))

    def rows(self, rows: slice) -> "GradientBlock":
        """The block of some of the rows."""
        return replace(self, jacobians=tuple(j[rows] for j in self.jacobians))

    def with_rows_of(self, others: "list[GradientBlock]") -> "GradientBlock":
        """The block with the rows of others after its own."""
        parts = zip(*(block.jacobians for block in (self, *others)), strict=True)
        return replace(self, jacobians=tuple(jnp.concatenate(j) for j in parts))

    def weighted(self, dtype: jnp.dtype) -> "GradientBlock":
        """One side of a product, with the weights of shared gradients."""
        if self.scales is None:
            return self
        scaled = lambda j, s: j.astype(dtype) * s[None, None].astype(dtype)
        return replace(self, jacobians=tuple(map(scaled, self.jacobians, self.scales)), scales=None)

    def gradients(self, precision: str) -> "GradientBlock":
        """The block itself."""
        return self

    def squared_norms(self, precision: str) -> Float[Array, "n O"]:
        """|d f_o(x_i) / d leaves|²."""
        dtype = working_dtype(*(j.dtype for j in self.jacobians))
        return jnp.stack([jnp.sum(j.astype(dtype) ** 2, axis=2) for j in self.jacobians]).sum(0)


Block: TypeAlias = FactoredBlock | GradientBlock


class Projection(NamedTuple):
    """The number of dimensions, and the random key in words: "" in jit, where it is not known."""

    num_dimensions: int
    key: str


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["blocks"],
    meta_fields=["num_rows", "num_outputs", "dtype", "parameters", "projection"],
)
@dataclass(frozen=True, eq=False)
class TangentFeatures:
    """The tangent features of a batch: `contract` two of them to get the kernel of every pair.

    Attributes:
        blocks: `FactoredBlock`s and `GradientBlock`s; each leaf that is read is in one of them. A
            single one if projected.
        num_rows: n.
        num_outputs: O.
        dtype: of the kernel.
        parameters: path and shape of every leaf.
        projection: None if exact.
    """

    blocks: tuple[Block, ...]
    num_rows: int
    num_outputs: int
    dtype: Any
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = field(default=())
    projection: Projection | None = None

    def rows(self, start: int, stop: int) -> "TangentFeatures":
        """The features of some of the rows."""
        blocks = tuple(block.rows(slice(start, stop)) for block in self.blocks)
        return replace(self, blocks=blocks, num_rows=stop - start)

    def in_forms(self, forms: tuple[str, ...], precision: str) -> "TangentFeatures":
        """The features with each block in the form asked for, "factors" or "gradients"."""
        blocks = tuple(
            block.gradients(precision) if form == "gradients" else block
            for block, form in zip(self.blocks, forms, strict=True)
        )
        return replace(self, blocks=blocks)

    def matrix(self) -> Float[Array, "n_O dimensions"]:
        """The features as one matrix Phi: Phi Phiᵀ is the kernel of all outputs, or its estimate.

        Returns:
            (n O, dimensions), with rows in order example · O + output, so that `reshape(n, O, -1)`
            splits them: the random projection of each gradient, or without one the gradient itself,
            all leaves one after the other.
        """
        if self.projection is None:
            return _matrix(self)
        (projected,) = self.blocks[0].gradients("highest").jacobians
        return projected.reshape(self.num_rows * self.num_outputs, -1)


def join_rows(parts: tuple[TangentFeatures, ...]) -> TangentFeatures:
    """The features of all rows, from those of some rows each."""
    same = zip(*(part.blocks for part in parts), strict=True)
    blocks = tuple(block.with_rows_of(list(others)) for block, *others in same)
    return replace(parts[0], blocks=blocks, num_rows=sum(part.num_rows for part in parts))


@jax.jit
def _matrix(features: TangentFeatures) -> Float[Array, "n_O dimensions"]:
    rows = features.num_rows * features.num_outputs
    found = gradients_by_leaf(features.blocks, "highest")
    unread = lambda shape: jnp.zeros((rows, math.prod(shape)), features.dtype)
    parts = [found.get(name, unread(shape)) for name, shape in features.parameters]
    return jnp.concatenate([p.reshape(rows, -1).astype(features.dtype) for p in parts], axis=1)


def gradients_by_leaf(blocks: Iterable[Block], precision: str) -> dict[str, Array]:
    """The gradient (n, O, p) of every leaf of some blocks, in the order of the leaf's entries."""
    return {leaf: g for block in blocks for leaf, g in block.gradients(precision).by_leaf().items()}


def _outer(
    a: Float[Array, "n B T I"], d: Float[Array, "n O B T D"], precision: str
) -> Float[Array, "n O p"]:
    """sum_t a delta for every example and output: one product (I, T) x (T, O D) per example."""
    dtype = working_dtype(a.dtype, d.dtype)
    (n, B, T, I), (O, D) = a.shape, (d.shape[1], d.shape[4])
    # Outputs folded into the columns: one larger product instead of O small ones.
    flat = d.astype(dtype).transpose(0, 2, 3, 1, 4).reshape(n, B, T, O * D)
    g = jnp.einsum("nbti,nbtk->nbik", a.astype(dtype), flat, precision=precision)
    return g.reshape(n, B, I, O, D).transpose(0, 3, 1, 2, 4).reshape(n, O, B * I * D)
