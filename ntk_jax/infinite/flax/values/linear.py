"""Linear maps over finite axes, applied to either half of a covariance or, where that is enough, to
its diagonal.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from ntk_jax.infinite.flax.values.deterministic import Det, Shape

Key = tuple[Hashable, ...]
Sides = tuple[int, int]


@dataclass(eq=False)
class Linear:
    """A linear map between arrays of internal shape, which may differ between the two examples of a
    pair.

    Attributes:
        apply: (side, array) -> array.
        shape: of the result.
        key: which entry each result takes, as a comparable description; None if entries are added
            up. Two maps of equal key keep the diagonal of a covariance a diagonal.
        factor: the deterministic value that it multiplies by, if it does nothing else.
        scale: the number that it multiplies every entry by, if besides it only moves them.
    """

    apply: Callable[[int, jax.Array], jax.Array]
    shape: Shape
    key: Key | None = None
    factor: Det | None = None
    scale: float | None = None


def then(first: Linear | None, second: Linear) -> Linear:
    """`second` after `first`."""
    if first is None:
        return second
    key = None if first.key is None or second.key is None else (*first.key, *second.key)
    factor = None
    if first.factor is not None and second.factor is not None:
        factor = first.factor.times(second.factor)
    scale = None if first.scale is None or second.scale is None else first.scale * second.scale
    apply = lambda side, z: second.apply(side, first.apply(side, z))
    return Linear(apply, second.shape, key, factor, scale)


def add_maps(maps: Sequence[Linear | None], shape: Shape) -> Linear:
    """The sum of maps of one argument."""
    keys: set[Key | None] = {() if m is None else m.key for m in maps}

    def apply(side: int, z: jax.Array) -> jax.Array:
        total = z if maps[0] is None else maps[0].apply(side, z)
        for m in maps[1:]:
            total = total + (z if m is None else m.apply(side, z))
        return jnp.broadcast_to(total, shape)

    return Linear(apply, shape, keys.pop() if len(keys) == 1 else None)


def on_both(
    left: Linear | None,
    right: Linear | None,
    sides: Sides,
    k: jax.Array,
    shape1: Shape,
    shape2: Shape,
) -> jax.Array:
    """left k rightᵀ for k of shape (*shape1, *shape2)."""
    if left is not None:
        flat = k.reshape(*shape1, -1)
        k = jax.vmap(partial(left.apply, sides[0]), in_axes=-1, out_axes=-1)(flat)
        shape1 = left.shape
    if right is not None:
        k = jax.vmap(partial(right.apply, sides[1]))(k.reshape(-1, *shape2))
        shape2 = right.shape
    return k.reshape(*shape1, *shape2)


def on_diagonal(
    left: Linear | None, right: Linear | None, sides: Sides, k: jax.Array, shape: Shape
) -> jax.Array:
    """The diagonal of left diag(k) rightᵀ, for maps of equal key: each result takes one entry,
    times a factor per side.
    """
    if left is not None:
        k = left.apply(sides[0], k)
    if right is not None:
        k = k * right.apply(sides[1], jnp.ones(shape, k.dtype))
    return k


def keeps_diagonal(left: Linear | None, right: Linear | None) -> bool:
    """Whether `on_diagonal` applies."""
    if left is right:
        return left is None or left.key is not None
    keys: set[Key | None] = {() if m is None else m.key for m in (left, right)}
    return len(keys) == 1 and None not in keys


def diagonal(k: jax.Array, shape: Shape) -> jax.Array:
    """The entries (p, p) of (*shape, *shape)."""
    n = math.prod(shape)
    return jnp.diagonal(k.reshape(n, n)).reshape(shape)


def outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """All products, (*a.shape, *b.shape)."""
    return a.reshape(a.shape + (1,) * b.ndim) * b
