"""Which entry of its leaf each entry of a gradient is: factors keep the order of their product."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from ntk_jax.finite.uses.canonical import Path, Signature
from ntk_jax.finite.uses.taps import UseAtTap


class Order(NamedTuple):
    """How a use reads its leaf: gradients have their entries in the same order if these agree."""

    shape: tuple[int, ...]
    path: Path
    signature: Signature
    stacked: bool


def order_of(found: UseAtTap, shape: tuple[int, ...]) -> Order:
    """The order of a leaf of `shape` used in this way."""
    return Order(shape, found.path, found.use.signature, bool(found.stacked))


def entries(order: Order) -> Int[Array, " p"]:
    """The flat index in the leaf of every entry of G[b, i, d]."""
    index = jnp.arange(math.prod(order.shape)).reshape(order.shape)
    arrange = {"dot": _of_product, "conv": _of_convolution, "bias": _of_bias}[order.signature[0]]
    return arrange(index, order).reshape(-1)


def in_order_of_leaf(gradient: Float[Array, "n O p"], order: Order) -> Float[Array, "n O p"]:
    """The gradient with its entries where the leaf has them."""
    index = entries(order)
    # The inverse permutation by a scatter: sorting the indices would take longer.
    places = jnp.zeros_like(index).at[index].set(jnp.arange(index.size, dtype=index.dtype))
    return jnp.take(gradient, places, axis=2)


def _of_product(index: Array, order: Order) -> Array:
    """(layers, batch axes, contracted axes, free axes), as in `DotUse`."""
    index, lead = _reindexed(index, order.path)
    _, contracted, batch = order.signature
    free = [i for i in range(index.ndim - lead) if i not in (*contracted, *batch)]
    return index.transpose(_behind(lead, (*batch, *contracted, *free)))


def _of_convolution(index: Array, order: Order) -> Array:
    """(layers, groups, kernel and input channels, output channels of a group), as in `ConvUse`."""
    index, lead = _reindexed(index, order.path)
    _, (out, into, *space), groups = order.signature
    index = index.transpose(_behind(lead, (*space, into, out)))
    layers, outputs = math.prod(index.shape[:lead]), index.shape[-1] // groups
    return index.reshape(layers, -1, groups, outputs).transpose(0, 2, 1, 3)


def _of_bias(index: Array, order: Order) -> Array:
    """(layers, the leaf's axes in order of those of the output); all other axes have one entry."""
    axes = ((0,) if order.stacked else ()) + order.signature[1]
    return index.transpose((*axes, *(i for i in range(index.ndim) if i not in axes)))


def _reindexed(index: Array, path: Path) -> tuple[Array, int]:
    """The operand of the product, and how many axes of layers (1 or 0) are in front of it."""
    lead = 0
    for name, *details in path:
        if name == "slice":
            lead = 1
        elif name == "transpose":
            index = index.transpose(_behind(lead, details[0]))
        else:
            shape = details[1] if name == "reshape" else details[0]
            index = index.reshape(*index.shape[:lead], *shape)
    return index, lead


def _behind(lead: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """A permutation of the axes behind the first `lead`."""
    return (*range(lead), *(lead + axis for axis in axes))
