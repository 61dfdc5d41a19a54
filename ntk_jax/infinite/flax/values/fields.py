"""Gaussian fields: what random weights make of their inputs, and the linear combinations and parts
of such.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ntk_jax.infinite.flax.values.linear import Linear, Shape


class Field:
    """A Gaussian for each position (internal shape), independent and alike along wide axes."""

    shape: Shape
    degenerate: bool
    """Zero variance at initialization: only its tangent counts."""

    @property
    def leaves(self) -> frozenset[str] | None:
        """The parameters that it is linear in, if it is so: Gaussians without a common one are
        independent.
        """
        return None


@dataclass(eq=False)
class OfParameter(Field):
    """What is linear in one parameter: its leaf, the law of its entries and their learning rate;
    fields of equal leaf and key are made of the same entries.
    """

    leaf: str
    shape: Shape
    variance: float
    eta: float
    key: Hashable

    @property
    def degenerate(self) -> bool:  # type: ignore[override]
        """Whether it is a trained constant."""
        return self.variance == 0

    @cached_property
    def leaves(self) -> frozenset[str]:
        """Its one."""
        return frozenset({self.leaf})


class Entries(OfParameter):
    """The entries of a parameter themselves: a bias, a scale, a positional embedding."""


@dataclass(eq=False)
class Weight(OfParameter):
    """A weight contracted with a value, z = sum h W over `fan_in` alike entries for each finite
    one.

    `contract` takes the second moments of two such h (a request object) to those of z: see
    rules/weights.py.
    """

    value: Any
    fan_in: int
    contract: Any


@dataclass(eq=False)
class InnerProduct(Field):
    """Sums over `units` alike entries of products of two independent values, as scores of attention
    before their scaling.

    Attributes:
        left, right: the values.
        labels: of the axes of left, of right and of the result, as `einsum` takes them.
        heads: how many independent ones there are.
    """

    shape: Shape
    left: Any
    right: Any
    labels: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    units: int
    heads: int
    degenerate: bool = False


@dataclass(eq=False)
class Combination(Field):
    """A linear combination of Gaussians."""

    shape: Shape
    parts: list[tuple[Linear | None, Field]]

    @property
    def degenerate(self) -> bool:  # type: ignore[override]
        """Whether it is a trained constant."""
        return all(g.degenerate for _, g in self.parts)

    @cached_property
    def leaves(self) -> frozenset[str] | None:
        """Those of all parts."""
        each = [g.leaves for _, g in self.parts]
        known = [leaves for leaves in each if leaves is not None]
        return frozenset().union(*known) if len(known) == len(each) else None


@dataclass(eq=False)
class Segment(Field):
    """A part of the wide axis of another Gaussian: parts with different tags are independent."""

    source: Field
    tag: tuple[Hashable, int, int]

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        """That of the source."""
        return self.source.shape

    @property
    def degenerate(self) -> bool:  # type: ignore[override]
        """Whether it is a trained constant."""
        return self.source.degenerate


@dataclass(eq=False)
class Opened(Field):
    """A Gaussian of which a wide axis is stored in full, as `size` independent entries."""

    source: Field
    axis: int
    size: int

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        """That of the source, with the axis in full."""
        shape = self.source.shape
        return (*shape[: self.axis], self.size, *shape[self.axis + 1 :])

    @property
    def degenerate(self) -> bool:  # type: ignore[override]
        """Whether it is a trained constant."""
        return self.source.degenerate
