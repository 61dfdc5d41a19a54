"""Parameters before they meet data: views of them, and the sums of their squares."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

from ntk_jax.infinite.flax.values.deterministic import Det, Shape


class Cut(NamedTuple):
    """Entries start to stop of one axis of a parameter that is read as `layout`."""

    layout: Hashable
    axis: int | None
    start: int
    stop: int


@dataclass(eq=False)
class Param:
    """A view of a parameter leaf with independent entries, scaled by a number.

    Attributes:
        leaf: its path.
        shape: of the view.
        mean, variance: of each entry.
        eta: learning-rate multiplier, times the square of the scale.
        axes: for each axis of the view, which axis of `layout` it is; None for an axis of length 1
            that was added.
        layout: the shape as which the leaf is read; a reshape that splits or merges axes starts a
            new one.
        box: the part of the leaf that the view covers: every cut.
        factor: a deterministic value that multiplies it, entry by entry.
        normed: the layout and its axes over which the squares were summed, if it is divided by its
            norm.
        gain: a parameter that multiplies it, one entry for each unit of what it makes.
    """

    leaf: str
    shape: Shape
    mean: float
    variance: float
    eta: float
    axes: tuple[int | None, ...]
    layout: tuple[Hashable, ...]
    box: tuple[Cut, ...] = ()
    factor: Det | None = None
    normed: tuple[Hashable, tuple[int | None, ...]] | None = None
    gain: "Param | None" = None

    @property
    def frozen(self) -> bool:
        """Whether it is a constant, neither random nor trained."""
        return self.variance == 0 and self.eta == 0


@dataclass(eq=False)
class Squares:
    """The squares of a parameter's entries; summed over many of them a number (the law of large
    numbers), and so is a function of that: the parameter's norm.

    Attributes:
        param: the parameter.
        number: the mean of one entry, or the sum, or the function of it.
        summed: these axes of the parameter; None before the sum.
    """

    param: Param
    number: Det
    summed: tuple[int, ...] | None = None
