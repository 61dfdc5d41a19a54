"""What the parts of `Moments` are asked: two factors on their sides of a pair of examples.

Every answer is for one block of the pair, `sides` = (0, 1) between the examples, (0, 0) and (1, 1)
of one with itself, and either in full, (*shape1, *shape2), or `diag`, (*shape): equal positions
only. None is a structural zero.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.flax.values import Det, Factor, Field, Shape, Wide
from ntk_jax.infinite.flax.values.linear import diagonal

Sides: TypeAlias = tuple[int, int]
Answer: TypeAlias = Array | None
AskFields: TypeAlias = Callable[[Field, Field, Sides, bool], Answer]
AskValues: TypeAlias = Callable[[Det | Wide, Det | Wide, Sides, bool], Answer]
AskDual: TypeAlias = Callable[..., Any]
"""(function, "mean", q) -> E[f] and (function, "diagonal", q) -> its `Dual`, like q; (function,
"pair", q1, q12, q2) -> its `Dual`, like q12: of equal positions, or (*q1.shape, *q2.shape).
"""
Method = TypeVar("Method", bound=Callable[..., Any])


class Half(NamedTuple):
    """A factor of one side's example, or its derivative by its Gaussian number `wrt`."""

    factor: Factor
    side: int
    wrt: int | None = None


class Pair(NamedTuple):
    """Two factors, at the positions of the terms that they stand in (`shapes`)."""

    left: Half
    right: Half
    shapes: tuple[Shape, Shape]
    diag: bool

    @property
    def sides(self) -> Sides:
        """Of the block."""
        return self.left.side, self.right.side

    @property
    def shape(self) -> Shape:
        """Of answers."""
        return self.shapes[0] if self.diag else self.shapes[0] + self.shapes[1]

    def at_left(self, a: Array) -> Array:
        """What the left half has at its positions, (.., *shape1), to be broadcast over the right
        one's.
        """
        return with_axes(a, a.ndim, 0 if self.diag else len(self.shapes[1]))

    def at_right(self, a: Array) -> Array:
        """What the right half has at its positions, (.., *shape2), to be broadcast over the left
        one's.
        """
        return with_axes(a, a.ndim - len(self.shapes[1]), 0 if self.diag else len(self.shapes[0]))

    def between(self, ask: AskFields, g: Field, h: Field) -> Answer:
        """A covariance or tangent kernel of the halves' Gaussians, at the terms' positions."""
        small = self.diag and g.shape == h.shape
        k = ask(g, h, self.sides, small)
        if k is None or small:
            return None if k is None else jnp.broadcast_to(k, self.shape)
        return self.placed(k, g.shape, h.shape)

    def placed(self, k: Array, own1: Shape, own2: Shape) -> Array:
        """(*own1, *own2), of shapes that may be broadcast into those of the terms, at their
        positions.
        """
        if self.diag and own1 == own2:
            return jnp.broadcast_to(diagonal(k, own1), self.shape)
        shape1, shape2 = self.shapes
        lead = lambda own, shape: (1,) * (len(shape) - len(own)) + own
        k = jnp.broadcast_to(k.reshape(lead(own1, shape1) + lead(own2, shape2)), shape1 + shape2)
        return diagonal(k, shape1) if self.diag else k


def lifted(a: Array, rank: int) -> Array:
    """With leading axes of length 1."""
    return with_axes(a, 0, rank - a.ndim)


def with_axes(a: Array, at: int, count: int) -> Array:
    """With so many axes of length 1 in that place."""
    return a.reshape(a.shape[:at] + (1,) * count + a.shape[at:])


def plus(a: Answer, b: Answer) -> Answer:
    """The sum of two answers, either of which may be a structural zero."""
    return b if a is None else a if b is None else a + b


def times(scale: float, k: Answer) -> Answer:
    """A multiple of an answer, which may be a structural zero."""
    return None if k is None or not scale else scale * k


def random_gaussians(f: Factor) -> tuple[Field, ...]:
    """Those that are not trained constants."""
    return tuple(f.gaussians[i] for i in f.nondegenerate)


def remembered(method: Method) -> Method:
    """A method whose answers are computed once, and kept in `self.memory`."""

    @wraps(method)
    def ask(self: Any, *question: Any) -> Any:
        key = (method.__name__, *question)
        if key not in self.memory:
            self.memory[key] = method(self, *question)
        return self.memory[key]

    return ask  # type: ignore[return-value]


def remembered_block(method: Method) -> Method:
    """The same of a query (x, y, sides, diag), whose diagonal is taken from the full block where
    that is known.
    """

    @wraps(method)
    def ask(self: Any, x: Any, y: Any, sides: Sides, diag: bool) -> Answer:
        key = (method.__name__, x, y, sides)
        if (*key, diag) not in self.memory:
            full = self.memory.get((*key, False)) if diag else None
            self.memory[*key, diag] = (
                method(self, x, y, sides, diag) if full is None else diagonal(full, x.shape)
            )
        return self.memory[*key, diag]

    return ask  # type: ignore[return-value]
