"""Deterministic values of a tensor program: one array per example of a pair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Shape = tuple[int, ...]
AnyArray = Array | np.ndarray | np.number | np.bool_
Number = bool | int | float


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

    sides: tuple[AnyArray, AnyArray]
    wide: Shape
    literal: Number | None = None
    static: bool = False
    pending: int | None = None

    @property
    def shape(self) -> Shape:
        """The stored shape."""
        return tuple(np.shape(self.sides[0]))

    def times(self, other: "Det") -> "Det":
        """The product, broadcast."""
        return _combined(self, other, lambda a, b: a * b)

    def plus(self, other: "Det") -> "Det":
        """The sum, broadcast."""
        return _combined(self, other, lambda a, b: a + b)

    def mapped(self, f: Callable[[Any], AnyArray], wide: Shape | None = None) -> "Det":
        """`f` of both arrays, which moves entries only: a number stays that number."""
        sides = (f(self.sides[0]), f(self.sides[1]))
        return Det(sides, self.wide if wide is None else tuple(wide), self.literal, self.static)

    @property
    def is_zero(self) -> bool:
        """Whether it is known to be 0 everywhere."""
        return self.static and not np.any(np.asarray(self.sides[0]))


def _combined(a: Det, b: Det, f: Callable[[Any, Any], Any]) -> Det:
    literal = None if a.literal is None or b.literal is None else f(a.literal, b.literal)
    left, right = (f(x, y) for x, y in zip(a.sides, b.sides, strict=True))
    static = a.static and b.static
    return Det((left, left if static else right), joint_wide([a, b]), literal, static)


def both_sides(
    f: Callable[[int], AnyArray], wide: Sequence[int], pending: int | None = None
) -> Det:
    """The value that is f(side) on each side."""
    return Det((f(0), f(1)), tuple(wide), pending=pending)


def joint_wide(values: Sequence[Any]) -> Shape:
    """The multiplicities of a broadcast result: an axis that any value stores in full is stored in
    full.
    """
    rank = max(len(v.wide) for v in values)
    wides = [(1,) * (rank - len(v.wide)) + tuple(v.wide) for v in values]
    shape = np.broadcast_shapes(*(v.shape for v in values))
    shape = (1,) * (rank - len(shape)) + tuple(shape)
    return tuple(1 if size > 1 else max(w) for size, *w in zip(shape, *wides, strict=True))


def number(value: Number, rank: int = 0) -> Det:
    """A constant number, with `rank` axes of size 1."""
    array = np.full((1,) * rank, value)
    return Det((array, array), (1,) * rank, value, True)


def zeros(shape: Shape, wide: Shape, dtype: np.dtype) -> Det:
    """Constant zeros."""
    array = np.zeros(shape, dtype)
    return Det((array, array), tuple(wide), 0.0 if array.size else None, True)


def is_key(value: object) -> bool:
    """Whether it is an array of random keys."""
    return jnp.issubdtype(getattr(value, "dtype", type(value)), jax.dtypes.prng_key)


def fixed_key(key: Array) -> Det:
    """Random keys that are constants: so are the numbers drawn from them."""
    return Det((key, key), (1,) * key.ndim, static=True)


def static_det(array: AnyArray | Number) -> Det:
    """A constant array; a number if all its entries are equal."""
    array = np.asarray(array)
    literal = array.flat[0].item() if array.size and np.all(array == array.flat[0]) else None
    return Det((array, array), (1,) * array.ndim, literal, True)
