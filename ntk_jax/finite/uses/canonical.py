"""Canonical form of a use of a weight: layer inputs a (B, T, I), output cotangents delta (B, T, D).

Up to the order of its entries, the gradient of the weight is

    G[b, i, d] = sum_t a[b, t, i] delta[b, t, d]

T positions share the weight (examples' pixels, steps of a sequence), B blocks of it are used
independently (groups of a convolution, batch axes of a product, stacked layers). Every function
here sees a single example.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from ntk_jax.jaxprs import Eqn, shape_of

Step: TypeAlias = tuple[Any, ...]
"""One step of a re-indexing, the name of its primitive first."""

Path: TypeAlias = tuple[Step, ...]
"""How a leaf was re-indexed before it was used."""

Signature: TypeAlias = tuple[Any, ...]
"""How a use reads its weight: two uses of one weight can be joined only if these agree."""


@dataclass(frozen=True)
class OutputAxes:
    """Which axes of an output are blocks, positions, features; `groups` blocks are in features."""

    blocks: tuple[int, ...]
    positions: tuple[int, ...]
    features: tuple[int, ...]
    groups: int = 1

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(B, T, D) of an output of `shape`."""
        axes = (self.blocks, self.positions, self.features)
        B, T, D = (math.prod(shape[i] for i in some) for some in axes)
        return B * self.groups, T, D // self.groups

    def transposed(self, permutation: tuple[int, ...]) -> "OutputAxes":
        """The same axes after a transpose of the output."""
        moved = lambda axes: tuple(permutation.index(i) for i in axes)
        return OutputAxes(
            moved(self.blocks), moved(self.positions), moved(self.features), self.groups
        )

    def arrange(self, d: Float[Array, "..."]) -> Float[Array, "B T D"]:
        """Output cotangents in canonical form."""
        B, T, D = self.sizes(d.shape)
        d = jnp.transpose(d, (*self.blocks, *self.positions, *self.features))
        if self.groups == 1:
            return d.reshape(B, T, D)
        # A convolution with groups has the group as the slow part of its feature axis.
        return d.reshape(T, self.groups, D).transpose(1, 0, 2)


@dataclass(frozen=True)
class DotUse:
    """A `dot_general` of something with a weight.

    `input_order` are the axes of the input: blocks, positions, then contracted in the weight's
    order.
    """

    input_order: tuple[int, ...]
    axes: OutputAxes
    signature: Signature

    def arrange(self, h: Float[Array, "..."], out_shape: tuple[int, ...]) -> Float[Array, "B T I"]:
        """Layer inputs in canonical form."""
        B, T, _ = self.axes.sizes(out_shape)
        return jnp.transpose(h, self.input_order).reshape(B, T, -1)

    def transposes(self, other: "Use") -> bool:
        """Whether it is z = W c where `other` is z = a W: it contracts what the other leaves free.

        Then its outputs have the axes of the other's inputs, and its input those of the outputs.
        """
        if not isinstance(other, DotUse):
            return False
        (_, mine, batch), (_, others, other_batch) = self.signature, other.signature
        apart = not set(mine) & set(others)
        return apart and batch == other_batch and len(mine) == len(other.axes.features)


@dataclass(frozen=True)
class ConvUse:
    """A convolution with a weight as its kernel, whose spatial shape is `kernel`."""

    numbers: lax.ConvDimensionNumbers
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    axes: OutputAxes
    signature: Signature

    def arrange(self, h: Float[Array, "..."], out_shape: tuple[int, ...]) -> Float[Array, "B T I"]:
        """The patches that each output position reads."""
        B, _, _ = self.axes.sizes(out_shape)
        batch, channels, *space = self.numbers.lhs_spec
        positions = [out_shape[i] for i in self.axes.positions[1:]]
        patches = self._patches(jnp.transpose(h, (batch, *space, channels)), positions)
        T, K = math.prod(patches.shape[: 1 + len(space)]), math.prod(self.kernel)
        if B == 1:
            return patches.reshape(1, T, -1)
        return patches.reshape(T, K, B, -1).transpose(2, 0, 1, 3).reshape(B, T, -1)

    def _patches(self, h: Array, positions: list[int]) -> Array:
        """(batch, *positions, *kernel, channels) by one gather.

        Slices, one per kernel entry, compile and run several times slower on CPU; an identity
        kernel slower still.
        """
        pads = [(*p, d - 1) for p, d in zip(self.padding, self.input_dilation, strict=True)]
        h = lax.pad(h, jnp.zeros((), h.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
        dilated = zip(self.kernel, self.kernel_dilation, strict=True)
        offsets = [np.arange(k) * dilation for k, dilation in dilated]
        starts = [np.arange(m) * step for m, step in zip(positions, self.strides, strict=True)]
        mesh, d = np.ix_(*starts, *offsets), len(positions)
        return h[(slice(None), *(s + o for s, o in zip(mesh[:d], mesh[d:], strict=True)))]


@dataclass(frozen=True)
class BiasUse:
    """A bias added to the output of a weight: its layer input is the constant 1 everywhere."""

    axes: OutputAxes
    signature: Signature

    def arrange(self, h: Float[Array, ""], out_shape: tuple[int, ...]) -> Float[Array, "B T 1"]:
        """The scale of the bias, at every position."""
        B, T, _ = self.axes.sizes(out_shape)
        return jnp.broadcast_to(h, (B, T, 1))


Use: TypeAlias = DotUse | ConvUse | BiasUse


def dot_use(eqn: Eqn, weight_side: int, h_ndim: int) -> DotUse:
    """The use of the operand `weight_side` (0 or 1) of a `dot_general` equation."""
    contracted, batch = eqn.params["dimension_numbers"]
    (h_contract, w_contract), (h_batch, w_batch) = (
        (pair[1 - weight_side], pair[weight_side]) for pair in (contracted, batch)
    )
    # Two uses of one weight must contract its axes in one order, whatever the inputs' order is.
    order = sorted(range(len(w_contract)), key=lambda i: w_contract[i])
    summed = tuple(h_contract[i] for i in order)
    free = tuple(i for i in range(h_ndim) if i not in summed and i not in h_batch)
    blocks, ndim = len(h_batch), len(shape_of(eqn.outvars[0]))
    # After the blocks come the free axes of the left operand, then those of the right one.
    cut = blocks + len(free) if weight_side == 1 else ndim - len(free)
    first, second = tuple(range(blocks, cut)), tuple(range(cut, ndim))
    positions, features = (first, second) if weight_side == 1 else (second, first)
    axes = OutputAxes(tuple(range(blocks)), positions, features)
    signature = ("dot", tuple(sorted(w_contract)), tuple(w_batch))
    return DotUse((*h_batch, *free, *summed), axes, signature)


def conv_use(eqn: Eqn) -> ConvUse | None:
    """The use of the kernel of a convolution; None for the one kind not covered (batch groups)."""
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    if p["batch_group_count"] != 1:
        return None
    kernel = tuple(shape_of(eqn.invars[1])[i] for i in numbers.rhs_spec[2:])
    batch, feature, *space = numbers.out_spec
    axes = OutputAxes((), (batch, *space), (feature,), p["feature_group_count"])
    signature = ("conv", numbers.rhs_spec, p["feature_group_count"])
    padding = tuple((int(low), int(high)) for low, high in p["padding"])
    dilations = tuple(p["lhs_dilation"]), tuple(p["rhs_dilation"])
    strides = tuple(p["window_strides"])
    return ConvUse(numbers, kernel, strides, padding, *dilations, axes, signature)


def over_scan(kind: str, canonical: Array) -> Array:
    """Fold a scan axis, (L, B, T, X), into blocks (stacked weights) or positions (one weight)."""
    L, B, T, X = canonical.shape
    if kind == "blocks":
        return canonical.reshape(L * B, T, X)
    return canonical.transpose(1, 0, 2, 3).reshape(B, L * T, X)


def canonical(
    arrange: Callable[[Array], Array], scans: tuple[str, ...], array: Array
) -> Float[Array, "B T X"]:
    """`arrange` under the scans that enclose the use, outermost first."""
    if not scans:
        return arrange(array)
    return over_scan(scans[0], jax.vmap(lambda inner: canonical(arrange, scans[1:], inner))(array))
