"""What a Hermite series is of, and how far it goes: what fit, quadrature and sum share."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from jax import Array

from ntk_jax.duals.content import by_content
from ntk_jax.duals.hermite_coefficients import RANGE
from ntk_jax.duals.kinks.kinks import Kink

LEVELS = 12  # resolve variances up to 4^10: one quadrature serves nearly every fit
CUBIC = 4  # terms of a polynomial of degree 3


@dataclass(frozen=True)
class Expansion:
    """A scalar function, where it is not smooth, and how far its Hermite series goes.

    Attributes:
        phi: a scalar JAX function, applied to arrays element by element; equal series have
            functions that compute the same.
        kinks: where it is not smooth.
        terms: how many terms of the series; None leaves it to the variances, or takes 64 where they
            are not known (inside jit).
        piecewise: whether phi is polynomial between its kinks, of degree 3 at most: what remains
            when these are split off has four terms, whatever the variances are.
        levels: the quadrature resolves 0 for standard deviations up to about 2^levels.
        tolerance: of the tail; None for 1e-10 in float64 and 1e-7 in float32.
        reach: the quadrature ends at this many standard deviations.
        chords: whether gaps of nearly parallel pairs are exact: that takes long to compile.
    """

    phi: Callable[[Array], Array]
    kinks: tuple[Kink, ...] = ()
    terms: int | None = None
    piecewise: bool = False
    levels: int = LEVELS
    tolerance: float | None = None
    reach: float = RANGE
    chords: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi", by_content(self.phi))

    @property
    def count(self) -> int:
        """How many terms are summed."""
        return self.terms or (CUBIC if self.piecewise else 64)

    @property
    def complete(self) -> bool:
        """Whether no terms are left out: then what the sum lacks of E[phi²] is rounding."""
        return self.piecewise and self.count == CUBIC

    @property
    def slope(self) -> "Expansion":
        """What phi' is almost everywhere: where phi jumps, a network has no delta function."""
        jumps = any(kink.jumps[0] for kink in self.kinks)
        return replace(self, kinks=kinks_of_derivative(self.kinks, 1)) if jumps else self


def kinks_of_derivative(kinks: tuple[Kink, ...], order: int) -> tuple[Kink, ...]:
    """Of the derivative almost everywhere, as networks have it: no deltas where phi jumps."""
    return tuple(Kink(c, (0.0,) * order + jumps[order:]) for c, jumps in kinks)
