"""Canonical form of a use of a weight: layer inputs a (B, T, I) and output cotangents delta (B, T,
D).

Up to the order of its entries, the gradient of the weight is G[b, i, d] = sum_t a[b, t, i] delta[b,
t, d]: T positions share the weight (examples' pixels, steps of a sequence), B blocks of it are used
independently (groups of a convolution, batch axes of a product, stacked layers). Every function
here sees a single example.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float


@dataclass(frozen=True)
class Layout:
    """Which axes of an output are blocks, positions and features; `groups` blocks are split off the
    features.
    """

    blocks: tuple[int, ...]
    positions: tuple[int, ...]
    features: tuple[int, ...]
    groups: int = 1

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(B, T, D) of an output of `shape`."""
        B, T, D = (
            math.prod(shape[i] for i in axes)
            for axes in (self.blocks, self.positions, self.features)
        )
        return B * self.groups, T, D // self.groups

    def transposed(self, permutation: tuple[int, ...]) -> "Layout":
        """The same axes after a transpose of the output."""
        moved = lambda axes: tuple(permutation.index(i) for i in axes)
        return Layout(moved(self.blocks), moved(self.positions), moved(self.features), self.groups)

    def arrange(self, d: Float[Array, "..."]) -> Float[Array, "B T D"]:
        """Output cotangents in canonical form."""
        B, T, D = self.sizes(d.shape)
        d = jnp.transpose(d, (*self.blocks, *self.positions, *self.features))
        if self.groups == 1:
            return d.reshape(B, T, D)
        return d.reshape(T, self.groups, D).transpose(1, 0, 2)


@dataclass(frozen=True)
class DotUse:
    """A `dot_general` of something with a weight."""

    input_order: tuple[
        int, ...
    ]  # axes of the input: blocks, positions, then contracted in the weight's order
    num_blocks: int
    num_positions: int
    layout: Layout
    signature: tuple[Any, ...]  # two uses of one weight can be joined only if these agree

    def arrange(self, h: Float[Array, "..."], out_shape: tuple[int, ...]) -> Float[Array, "B T I"]:
        """Layer inputs in canonical form."""
        B, T, _ = self.layout.sizes(out_shape)
        return jnp.transpose(h, self.input_order).reshape(B, T, -1)


@dataclass(frozen=True)
class ConvUse:
    """A convolution with a weight as its kernel."""

    numbers: Any
    kernel: tuple[int, ...]  # spatial shape
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    layout: Layout
    signature: tuple[Any, ...]

    def arrange(self, h: Float[Array, "..."], out_shape: tuple[int, ...]) -> Float[Array, "B T I"]:
        """The patches that each output position reads."""
        B, _, _ = self.layout.sizes(out_shape)
        batch, channels, *space = self.numbers.lhs_spec
        patches = self._patches(
            jnp.transpose(h, (batch, *space, channels)), [out_shape[i] for i in self._space]
        )
        T, K = math.prod(patches.shape[: 1 + len(space)]), math.prod(self.kernel)
        if B == 1:
            return patches.reshape(1, T, -1)
        return patches.reshape(T, K, B, -1).transpose(2, 0, 1, 3).reshape(B, T, -1)

    @property
    def _space(self) -> tuple[int, ...]:
        return self.layout.positions[1:]

    def _patches(self, h: Array, space: list[int]) -> Array:
        """(batch, *space, *kernel, channels) by one gather.

        Slices, one per kernel entry, compile and run several times slower on CPU; an identity
        kernel slower still.
        """
        pads = [
            (lo, hi, d - 1) for (lo, hi), d in zip(self.padding, self.input_dilation, strict=True)
        ]
        h = lax.pad(h, jnp.zeros((), h.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
        offsets = [
            np.arange(k) * dilation
            for k, dilation in zip(self.kernel, self.kernel_dilation, strict=True)
        ]
        starts = [np.arange(m) * step for m, step in zip(space, self.strides, strict=True)]
        mesh = np.ix_(*starts, *offsets)
        return h[
            (
                slice(None),
                *(start + offset for start, offset in zip(mesh, mesh[len(space) :], strict=False)),
            )
        ]


@dataclass(frozen=True)
class BiasUse:
    """A bias added to the output of a weight: its layer input is the constant 1 at every
    position.
    """

    layout: Layout
    signature: tuple[Any, ...]

    def arrange(self, h: Float[Array, ""], out_shape: tuple[int, ...]) -> Float[Array, "B T 1"]:
        """The scale of the bias, at every position."""
        B, T, _ = self.layout.sizes(out_shape)
        return jnp.broadcast_to(h, (B, T, 1))


Use = DotUse | ConvUse | BiasUse


def dot_use(eqn: Any, weight_side: int, h_ndim: int) -> DotUse:
    """The use of the operand `weight_side` (0 or 1) of a `dot_general` equation."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    if weight_side == 1:
        h_contract, h_batch, w_contract, w_batch = lhs_contract, lhs_batch, rhs_contract, rhs_batch
    else:
        h_contract, h_batch, w_contract, w_batch = rhs_contract, rhs_batch, lhs_contract, lhs_batch
    order = sorted(range(len(w_contract)), key=lambda i: w_contract[i])
    contracted = tuple(h_contract[i] for i in order)
    free = tuple(i for i in range(h_ndim) if i not in contracted and i not in h_batch)
    nb, nf, ndim = len(h_batch), len(free), len(eqn.outvars[0].aval.shape)
    rest = tuple(
        range(nb, ndim)
    )  # after the blocks come the free axes of the left operand, then of the right one
    cut = nf if weight_side == 1 else len(rest) - nf
    first, second = rest[:cut], rest[cut:]
    positions, features = (first, second) if weight_side == 1 else (second, first)
    layout = Layout(tuple(range(nb)), positions, features)
    signature = ("dot", tuple(sorted(w_contract)), tuple(w_batch))
    return DotUse((*h_batch, *free, *contracted), nb, nf, layout, signature)


def conv_use(eqn: Any) -> ConvUse | None:
    """The use of the kernel of a convolution; None for the one kind that is not covered (batch
    groups).
    """
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    if p["batch_group_count"] != 1:
        return None
    kernel = tuple(eqn.invars[1].aval.shape[i] for i in numbers.rhs_spec[2:])
    batch, feature, *space = numbers.out_spec
    layout = Layout((), (batch, *space), (feature,), p["feature_group_count"])
    signature = ("conv", numbers.rhs_spec, p["feature_group_count"])
    padding = tuple((int(low), int(high)) for low, high in p["padding"])
    input_dilation, kernel_dilation = tuple(p["lhs_dilation"]), tuple(p["rhs_dilation"])
    strides = tuple(p["window_strides"])
    return ConvUse(
        numbers, kernel, strides, padding, input_dilation, kernel_dilation, layout, signature
    )


def over_scan(kind: str, canonical: Array) -> Array:
    """Fold a leading scan axis (L, B, T, X) into blocks (stacked weights) or positions (one weight
    reused).
    """
    L, B, T, X = canonical.shape
    if kind == "blocks":
        return canonical.reshape(L * B, T, X)
    return canonical.transpose(1, 0, 2, 3).reshape(B, L * T, X)


def canonical(arrange: Any, scans: tuple[str, ...], array: Array) -> Float[Array, "B T X"]:
    """`arrange` under the scans that enclose the use, outermost first."""
    if not scans:
        return arrange(array)
    return over_scan(scans[0], jax.vmap(lambda inner: canonical(arrange, scans[1:], inner))(array))
