"""Covariance and tangent kernel of Gaussians, followed backwards through the weights that make
them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.moments.contractions import inner_products
from ntk_jax.infinite.flax.moments.pair import (
    Answer,
    AskFields,
    AskValues,
    Sides,
    plus,
    remembered,
    remembered_block,
    times,
)
from ntk_jax.infinite.flax.values import (
    Combination,
    Det,
    Entries,
    Field,
    InnerProduct,
    Linear,
    Opened,
    Segment,
    Shape,
    Weight,
)
from ntk_jax.infinite.flax.values.linear import diagonal, keeps_diagonal, on_both, on_diagonal


class Gaussians:
    """The queries of Gaussians.

    Attributes:
        second, theta: second moments and tangent kernels of the values that weights multiply.
    """

    def __init__(self, dtype: Any, second: AskValues, theta: AskValues):
        self.dtype, self.second, self.theta = dtype, second, theta
        self.memory: dict[Any, Any] = {}

    @remembered_block
    def covariance(self, g: Field, h: Field, sides: Sides, diag: bool) -> Answer:
        """E[g h'] of two Gaussians."""
        return self._of(g, h, sides, diag, tangent=False)

    @remembered_block
    def tangent(self, g: Field, h: Field, sides: Sides, diag: bool) -> Answer:
        """The tangent kernel of two Gaussians: sum over parameters of eta dg/dp dh'/dp."""
        return self._of(g, h, sides, diag, tangent=True)

    def variance(self, g: Field, side: int) -> Array:
        """Of a Gaussian at every position."""
        k = self.covariance(g, g, (side, side), True)
        return jnp.zeros(g.shape, self.dtype) if k is None else jnp.maximum(k, 0)

    @remembered
    def related(self, g: Field, h: Field, sides: Sides) -> bool:
        """Whether two random Gaussians are not independent."""
        if g is h:
            return True
        if _apart(g, h) or g.degenerate or h.degenerate:
            return False
        if isinstance(g, Combination) or isinstance(h, Combination):
            each = product(*([p for _, p in _parts(x)] for x in (g, h)))
            return any(self.related(a, b, sides) for a, b in each)
        # A diagonal is cheaper, and tells as much.
        return self.covariance(g, h, sides, g.shape == h.shape) is not None

    def _of(self, g: Field, h: Field, sides: Sides, diag: bool, *, tangent: bool) -> Answer:
        ask = self.tangent if tangent else self.covariance
        if isinstance(g, Combination) or isinstance(h, Combination):
            return _combinations(g, h, sides, diag, ask)
        if isinstance(g, Opened) or isinstance(h, Opened):
            return _opened(g, h, sides, diag, ask)
        if isinstance(g, Segment) or isinstance(h, Segment):
            return _segments(g, h, sides, diag, ask)
        if isinstance(g, InnerProduct) or isinstance(h, InnerProduct):
            if not (isinstance(g, InnerProduct) and isinstance(h, InnerProduct)):
                return None
            return inner_products(self.second, self.theta, g, h, sides, diag, tangent)
        assert isinstance(g, Weight | Entries) and isinstance(h, Weight | Entries)
        if g.leaf != h.leaf or g.key != h.key:
            return None  # parts of one leaf with different keys do not overlap: see Uses
        scale = g.eta if tangent else g.variance
        if isinstance(g, Entries) or isinstance(h, Entries):
            return self._entries(g.shape, scale, diag) if scale else None
        if tangent and not isinstance(g.value, Det) and not isinstance(h.value, Det):
            return g.contract(self.dtype, g, h, sides, diag, partial(self._tangent_below, g))
        return times(scale, self._contracted(g, h, sides, diag))

    @remembered
    def _contracted(self, g: Weight, h: Weight, sides: Sides, diag: bool) -> Answer:
        return g.contract(self.dtype, g, h, sides, diag, self.second)

    def _tangent_below(self, g: Weight, *query: Any) -> Answer:
        """The gradient by the weight itself, then what passes through the values it multiplies."""
        return plus(times(g.eta, self.second(*query)), times(g.variance, self.theta(*query)))

    def _entries(self, shape: Shape, scale: float, diag: bool) -> Array:
        if diag:
            return scale * jnp.ones(shape, self.dtype)
        return scale * jnp.eye(math.prod(shape), dtype=self.dtype).reshape(shape + shape)


class Mapped(NamedTuple):
    """A linear map (None: the identity) of an array of some shape."""

    map: Linear | None
    shape: Shape


def mapped(
    left: Mapped, right: Mapped, sides: Sides, diag: bool, ask: Callable[[bool], Answer]
) -> Answer:
    """left k rightᵀ, where ask(diag) gives k; its diagonal from that of k alone if the maps allow
    it.
    """
    small = diag and left.shape == right.shape and keeps_diagonal(left.map, right.map)
    k = ask(small)
    if k is None:
        return None
    if small:
        return on_diagonal(left.map, right.map, sides, k, left.shape)
    k = on_both(left.map, right.map, sides, k, left.shape, right.shape)
    return diagonal(k, left.shape if left.map is None else left.map.shape) if diag else k


def _combinations(g: Field, h: Field, sides: Sides, diag: bool, ask: AskFields) -> Answer:
    total: Answer = None
    for (m1, g1), (m2, h2) in product(_parts(g), _parts(h)):
        if not _apart(g1, h2):  # as most of the parts of a deep residual network are
            k = partial(ask, g1, h2, sides)
            total = plus(total, mapped(Mapped(m1, g1.shape), Mapped(m2, h2.shape), sides, diag, k))
    return total


def _parts(g: Field) -> Sequence[tuple[Linear | None, Field]]:
    return g.parts if isinstance(g, Combination) else [(None, g)]


def _apart(g: Field, h: Field) -> bool:
    """Whether they are known to be made of different parameters."""
    return g.leaves is not None and h.leaves is not None and g.leaves.isdisjoint(h.leaves)


def _opened(g: Field, h: Field, sides: Sides, diag: bool, ask: AskFields) -> Answer:
    """Entries of an axis in full are independent of each other."""
    one, other = (x.source if isinstance(x, Opened) else x for x in (g, h))
    k = ask(one, other, sides, diag)
    if k is None:
        return None
    if (
        not isinstance(g, Opened)
        or not isinstance(h, Opened)
        or (g.axis, g.size) != (h.axis, h.size)
    ):
        raise NoLimitError("an infinite axis meets itself in two different forms,")
    if diag:
        return jnp.broadcast_to(k, g.shape)
    shape = [1] * k.ndim
    shape[g.axis] = shape[len(g.shape) + h.axis] = g.size
    return k * jnp.eye(g.size, dtype=k.dtype).reshape(shape)


def _segments(g: Field, h: Field, sides: Sides, diag: bool, ask: AskFields) -> Answer:
    if isinstance(g, Segment) and isinstance(h, Segment):
        (axis1, start1, stop1), (axis2, start2, stop2) = g.tag, h.tag
        if g.tag == h.tag:
            return ask(g.source, h.source, sides, diag)
        if axis1 == axis2 and (stop1 <= start2 or stop2 <= start1):
            return None
    one, other = (x.source if isinstance(x, Segment) else x for x in (g, h))
    if ask(one, other, sides, diag) is None:
        return None
    raise NoLimitError(
        "overlapping parts of one infinite axis meet, or infinite axes change places: which unit "
        "meets which is lost,"
    )
