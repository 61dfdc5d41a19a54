"""The questions that rules ask about values; `moments/` answers them."""

from typing import Any, Protocol, runtime_checkable

from jax import Array

from ntk_jax.infinite.flax.values import Field


@runtime_checkable
class Answers(Protocol):
    """What rules know of `Moments`.

    Attributes:
        dtype: of all arrays.
        sampling: how to draw samples; None if they are not asked for.
    """

    dtype: Any
    sampling: Any

    def related(self, g: Field, h: Field, sides: tuple[int, int]) -> bool:
        """Whether two random Gaussians are not independent."""

    def number(self, g: Field) -> int:
        """The place of a Gaussian among those that are drawn."""

    def mean_of(self, x: Any, side: int) -> Array | None:
        """E[x] of a value of one example; None for 0."""

    def second(self, x: Any, y: Any, sides: tuple[int, int], diag: bool) -> Array | None:
        """E[x y'] of two values; None for 0."""
