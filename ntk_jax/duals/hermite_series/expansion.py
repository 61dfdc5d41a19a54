"""What a Hermite series is of, and how far it goes: what fit, quadrature and sum share."""

from collections.abc import Callable
from dataclasses import dataclass

from jax import Array

from ntk_jax.duals.hermite_coefficients import RANGE
from ntk_jax.duals.kinks.kinks import Kink


@dataclass(frozen=True)
class Expansion:
    """A scalar function, where it is not smooth, and how far its Hermite series goes.

    Attributes:
        phi: a scalar JAX function, applied to arrays element by element.
        kinks: where it is not smooth.
        terms: how many terms of the series; None leaves it to the variances, or takes 64 where they
            are not known (inside jit).
        levels: the quadrature resolves 0 for standard deviations up to about 2^levels.
        tolerance: of the tail; None for 1e-10 in float64 and 1e-7 in float32.
        reach: the quadrature ends at this many standard deviations.
    """

    phi: Callable[[Array], Array]
    kinks: tuple[Kink, ...] = ()
    terms: int | None = None
    levels: int = 12
    tolerance: float | None = None
    reach: float = RANGE

    @property
    def count(self) -> int:
        """How many terms are summed."""
        return self.terms or 64
