"""Deterministic values of a tensor program: one array per example of a pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.infinite.flax.values.linear import Shape


@dataclass(eq=False)
class Det:
    """A deterministic value: one array per side, axes of size 1 standing for repeated ones.

    Attributes:
        sides: the arrays of both examples.
        wide: multiplicity of each axis that is stored with size 1 because its entries are equal.
        literal: the Python number that it is, if it is one everywhere.
        static: whether it is a constant, equal on both sides and known now.
        pending: the width over which it is a sum of products of wide vectors, until that is divided
            by.
    """

    sides: tuple[Any, Any]
    wide: Shape
    literal: Any = None
    static: bool = False
    pending: int | None = None

    @property
    def shape(self) -> Shape:
        """The stored shape."""
        return tuple(np.shape(self.sides[0]))

    def times(self, other: "Det") -> "Det":
        """The product, broadcast."""
        literal = (
            None if self.literal is None or other.literal is None else self.literal * other.literal
        )
        return _combined(
            self, other, [a * b for a, b in zip(self.sides, other.sides, strict=True)], literal
        )

    def plus(self, other: "Det") -> "Det":
        """The sum, broadcast."""
        literal = (
            None if self.literal is None or other.literal is None else self.literal + other.literal
        )
        return _combined(
            self, other, [a + b for a, b in zip(self.sides, other.sides, strict=True)], literal
        )

    @property
    def is_zero(self) -> bool:
        """Whether it is known to be 0 everywhere."""
        return self.static and not np.any(np.asarray(self.sides[0]))


def _combined(a: Det, b: Det, sides: list[Any], literal: Any) -> Det:
    static = a.static and b.static
    return Det((sides[0], sides[0] if static else sides[1]), joint_wide([a, b]), literal, static)


def joint_wide(values: Sequence[Any]) -> Shape:
    """The multiplicities of a broadcast result: an axis that any value stores in full is stored in
    full.
    """
    rank = max(len(v.wide) for v in values)
    wides = [(1,) * (rank - len(v.wide)) + tuple(v.wide) for v in values]
    shape = np.broadcast_shapes(*(v.shape for v in values))
    shape = (1,) * (rank - len(shape)) + tuple(shape)
    return tuple(1 if size > 1 else max(w) for size, *w in zip(shape, *wides, strict=True))


def number(value: Any, rank: int = 0) -> Det:
    """A constant number, with `rank` axes of size 1."""
    array = np.full((1,) * rank, value)
    return Det((array, array), (1,) * rank, value, True)


def static_det(array: Any) -> Det:
    """A constant array; a number if all its entries are equal."""
    array = np.asarray(array)
    literal = array.flat[0].item() if array.size and np.all(array == array.flat[0]) else None
    return Det((array, array), (1,) * array.ndim, literal, True)
