"""What a product with a weight does to second moments: sums over its inputs, position by
position.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from ntk_jax.infinite.flax.moments.pair import Answer, AskValues, Sides, plus
from ntk_jax.infinite.flax.values import Det, InnerProduct, Shape, Weight
from ntk_jax.infinite.flax.values.linear import diagonal
from ntk_jax.platforms import by_platform, computed_once


@dataclass(frozen=True)
class DotContraction:
    """z = sum over the contracted axes of h times a weight.

    Attributes:
        shape: stored shape of h.
        contracted: axes of h summed over, in the order of the weight's axes.
        batch: axes of h with a weight of their own at every position.
        free: the other axes of h.
        units: how many entries of h each stored contracted one stands for.
    """

    shape: Shape
    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    free: tuple[int, ...]
    units: int

    def __call__(
        self, dtype: DTypeLike, g: Weight, h: Weight, sides: Sides, diag: bool, ask: AskValues
    ) -> Answer:
        """Second moments (or, with `ask` for it, the tangent kernel) of z from those of h."""
        other: DotContraction = h.contract
        rank = len(self.shape)
        alone = all(c.shape[a] == 1 for c in (self, other) for a in c.free)
        small = diag or alone
        met = [(self.contracted, other.contracted), (self.batch, other.batch)]
        met += [(self.free, other.free)] if small else []
        # Labels of axes, as `einsum` takes them: axes that meet have the label of g's.
        same = {b: a for ours, theirs in met for a, b in zip(ours, theirs, strict=True)}
        left, right = list(range(rank)), [same.get(b, rank + b) for b in range(rank)]
        out = [*self.batch, *self.free, *([] if small else (right[b] for b in other.free))]
        if isinstance(g.value, Det) and isinstance(h.value, Det):
            one = _full(g.value, self.shape, dtype, sides[0])
            two = _full(h.value, other.shape, dtype, sides[1])
            k = jnp.einsum(one, left, two, right, out, precision="highest")
        else:
            equal = small and self.shape == other.shape and right == left
            second = ask(g.value, h.value, sides, equal)
            if second is None:
                return None
            k = computed_once(jnp.einsum(second, left if equal else left + right, out))
        return self._placed(k if self.units == 1 else self.units * k, g, h, diag)

    def _placed(self, k: Array, g: Weight, h: Weight, diag: bool) -> Array:
        """From (batch, free[, free']) to the stored shapes of the results."""
        nb = math.prod(self.shape[a] for a in self.batch)
        if diag:
            return k.reshape(g.shape)
        if nb == 1:
            return k.reshape(g.shape + h.shape)
        k = k.reshape(nb, math.prod(self.shape[a] for a in self.free), -1)
        # Weights at different positions are independent.
        full = jnp.einsum("bc,bfg->bfcg", jnp.eye(nb, dtype=k.dtype), k)
        return full.reshape(g.shape + h.shape)


def _full(value: Det, shape: Shape, dtype: DTypeLike, side: int) -> Array:
    return jnp.broadcast_to(jnp.asarray(value.sides[side], dtype), shape)


class Window(NamedTuple):
    """Which entries of one spatial axis an output sums; spacings are 1 unless dilated."""

    taps: int
    stride: int
    padding: tuple[int, int]  # low, high
    spacing: int  # of the input
    tap_spacing: int
    length: int  # of the result


@dataclass(frozen=True)
class ConvContraction:
    """A convolution: z at p is the sum over taps t and channels of h at p + t.

    Attributes:
        shape: stored shape of h.
        order: its axes as (batch, channels, spatial...).
        out_order: where (batch, channels, spatial...) go in the result.
        windows: one per spatial axis.
        units: how many channels each stored one stands for.
    """

    shape: Shape
    order: tuple[int, ...]
    out_order: tuple[int, ...]
    windows: tuple[Window, ...]
    units: int

    def __call__(
        self, dtype: DTypeLike, g: Weight, h: Weight, sides: Sides, diag: bool, ask: AskValues
    ) -> Answer:
        """Second moments (or, with `ask` for it, the tangent kernel) of z from those of h."""
        rank, channels = len(self.shape), self.order[1]
        left = list(range(rank))
        right = [a if a == channels else rank + a for a in left]
        kept = [a for a in self.order if a != channels]
        out = kept if diag else kept + [right[a] for a in kept]
        if isinstance(g.value, Det):
            a, b = (
                _full(v, self.shape, dtype, side)
                for v, side in zip((g.value, h.value), sides, strict=True)
            )
            k = jnp.einsum(a, left, b, left if diag else right, out, precision="highest")
        else:
            second = ask(g.value, h.value, sides, diag)
            if second is None:
                return None
            k = jnp.einsum(second, left if diag else left + right, out)
        k = self._summed(k, diag)
        return self._placed(k if self.units == 1 else self.units * k, g, h, diag)

    def _summed(self, k: Array, diag: bool) -> Array:
        """Over the taps of all windows, (batch, spatial...) or twice that."""
        alone, spatial = all(window.taps == 1 for window in self.windows), len(self.windows)
        most = max(math.prod(k.shape[1:]), math.prod(window.length for window in self.windows))
        if diag and not alone and most <= TOGETHER:
            bands = (_bands(n, w).sum(0) for n, w in zip(k.shape[1:], self.windows, strict=True))
            lengths = [window.length for window in self.windows]
            return _product(k, range(1, k.ndim), reduce(np.kron, bands), lengths)
        for i, window in enumerate(self.windows):
            k = _window_sum(k, (1 + i,) if diag else (1 + i, 2 + spatial + i), window)
        return computed_once(k) if alone else k  # more are summed in a loop

    def _placed(self, k: Array, g: Weight, h: Weight, diag: bool) -> Array:
        halves = 1 if diag else 2
        n = 1 + len(self.windows)
        for half in range(halves):
            k = jnp.expand_dims(k, half * (n + 1) + 1)
        inverse = np.argsort(self.out_order)
        axes = [half * (n + 1) + int(a) for half in range(halves) for a in inverse]
        return jnp.transpose(k, axes).reshape(g.shape if diag else g.shape + h.shape)


# Entries up to which a sum over taps is a product with a matrix: slices would compute their input
# for every tap. Of all axes at once, it reads positions in the order in which they stand.
BANDED, TOGETHER = 64, 256


@lru_cache(maxsize=64)
def _bands(size: int, window: Window) -> np.ndarray:
    """(taps, size, length): 1 where an input is under that tap of an output."""
    taps, stride, padding, spacing, tap_spacing, length = window
    t, p = np.arange(taps)[:, None], np.arange(length)
    at, rest = np.divmod(stride * p + tap_spacing * t - padding[0], spacing)
    # A tap between the entries of a dilated input, or in its padding, meets no entry.
    met = (rest == 0) & (np.arange(size)[:, None, None] == at)
    return met.swapaxes(0, 1).astype(float)


def _window_sum(k: Array, axes: Sequence[int], window: Window) -> Array:
    """Sum over t of k at stride p + tap_spacing t along all `axes` at once: taps are summed, pairs
    of taps are not.
    """
    by_matrix, by_slices = (
        partial(f, axes=axes, window=window) for f in (_by_a_matrix, _by_slices)
    )
    of_axes = math.prod(k.shape[a] for a in axes), window.length ** len(axes)
    if window.taps == 1:
        return by_slices(k)
    if max(of_axes) > BANDED:  # a loop for a CPU, as in `computed_once`
        return by_platform(partial(by_slices, looped=True), by_slices, k)
    return by_matrix(k) if len(axes) == 1 else by_platform(by_matrix, by_slices, k)


def _by_a_matrix(k: Array, axes: Sequence[int], window: Window) -> Array:
    """A product with the sum over taps of the Kronecker products of the axes' bands."""
    bands = (_bands(k.shape[a], window) for a in axes)
    matrix = sum(reduce(np.kron, of_tap) for of_tap in zip(*bands, strict=True))
    return _product(k, axes, matrix, [window.length] * len(axes))


def _product(k: Array, axes: Sequence[int], matrix: np.ndarray, lengths: Sequence[int]) -> Array:
    """With all of `axes` as one, whose entries become those of axes of these lengths."""
    last = range(-len(axes), 0)
    rows = jnp.moveaxis(k, axes, last)
    others, band = rows.shape[: -len(axes)], jnp.asarray(matrix, k.dtype)
    product = jnp.matmul(rows.reshape(*others, -1), band, precision="highest")
    return jnp.moveaxis(product.reshape(*others, *lengths), last, axes)


def _by_slices(k: Array, axes: Sequence[int], window: Window, looped: bool = False) -> Array:
    """Tap by tap, in a loop or in one pass."""
    taps, stride, padding, spacing, tap_spacing, length = window
    summed = [a in axes for a in range(k.ndim)]
    config = [(*padding, spacing - 1) if here else (0, 0, 0) for here in summed]
    k = lax.pad(k, jnp.zeros((), k.dtype), config)
    reach, none = stride * (length - 1) + 1, [0] * k.ndim
    size = [reach if here else n for n, here in zip(k.shape, summed, strict=True)]
    steps = [stride if here else 1 for here in summed]
    at = lambda t, zero: [t * tap_spacing if here else zero for here in summed]
    strided = lambda k: lax.slice(k, none, size, steps)
    if not looped:
        cut = lambda start: lax.slice(k, start, [s + n for s, n in zip(start, size, strict=True)])
        return reduce(operator.add, (strided(cut(at(t, 0))) for t in range(taps)))
    # Unsigned: JAX looks for indices that are negative, axis by axis.
    moved = lambda t: lax.dynamic_slice(k, at(t, np.uint32(0)), size)
    add = lambda total, t: (total + strided(moved(t)), None)
    zeros = jnp.zeros_like(strided(lax.slice(k, none, size)))
    return lax.scan(add, zeros, np.arange(taps, dtype=np.uint32))[0]


def inner_products(
    second: AskValues,
    theta: AskValues,
    g: InnerProduct,
    h: InnerProduct,
    sides: Sides,
    diag: bool,
    tangent: bool,
) -> Answer:
    """Covariance of two inner products, E[x x'] E[y y'] at each unit, or their tangent kernel by
    the product rule.
    """
    total: Answer = None
    # Labels of h's axes that g's do not use.
    left, right, out = (tuple(1000 + a for a in part) for part in h.labels)
    straight = ((g.left, h.left, g.labels[0], left), (g.right, h.right, g.labels[1], right))
    crossed = ((g.left, h.right, g.labels[0], right), (g.right, h.left, g.labels[1], left))
    for one, two in (straight, crossed):
        for ask1, ask2 in ((theta, second), (second, theta)) if tangent else ((second, second),):
            k1 = ask1(one[0], one[1], sides, False)
            k2 = None if k1 is None else ask2(two[0], two[1], sides, False)
            if k1 is not None and k2 is not None:
                axes1, axes2 = [*one[2], *one[3]], [*two[2], *two[3]]
                k = jnp.einsum(k1, axes1, k2, axes2, [*g.labels[2], *out], precision="highest")
                total = plus(total, k)
    if total is None:
        return None
    total = g.units * total
    return diagonal(total, g.shape) if diag else total
