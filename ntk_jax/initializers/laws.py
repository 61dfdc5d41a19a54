"""Scalar random variables as functions of one uniform or (truncated) normal variable, and their
exact moments.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

CUT = 12.0  # standard deviations kept of a normal density; beyond lies less than 1e-32
MAX_HALVINGS = 50
MAX_PANELS = 2**14
TOLERANCE = 1e-12
NEGLIGIBLE = 1e-10


@dataclass(frozen=True)
class Base:
    """A variable with a known density on (low, high): "uniform", or a "normal" restricted to that
    interval.
    """

    density: str
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Law:
    """The distribution of fn(z), z drawn from `base`; without a base only the two moments are
    known.
    """

    name: str
    mean: float
    variance: float
    base: Base | None = None
    fn: Callable[[Any], Any] | None = None

    def value(self, z: Any) -> Any:
        """The variable at the points z of its base."""
        return z if self.fn is None else self.fn(z)


UNIFORM = Law("uniform", 0.5, 1 / 12, Base("uniform", 0.0, 1.0))


@cache
def truncated_normal(low: float, high: float) -> Law:
    """A standard normal variable restricted to (low, high), either of which may be infinite."""
    if math.isinf(low) and math.isinf(high):
        return Law("normal", 0.0, 1.0, Base("normal", low, high))
    mass = NormalDist().cdf(high) - NormalDist().cdf(low)
    at_low, at_high = (NormalDist().pdf(max(-2 * CUT, min(2 * CUT, x))) / mass for x in (low, high))
    mean = at_low - at_high
    ends = (low * at_low if math.isfinite(low) else 0.0) - (
        high * at_high if math.isfinite(high) else 0.0
    )
    return Law("truncated normal", mean, 1 + ends - mean**2, Base("normal", low, high))


def inverse_erf_of_uniform(low: float, high: float, epsilon: float) -> Law:
    """sqrt(2) erf⁻¹(u) for u uniform on (low, high); ends within `epsilon` of ±1 are random bits
    short of ±1.
    """

    def end(u: float) -> float:
        return (
            math.copysign(math.inf, u)
            if abs(u) >= 1 - epsilon
            else NormalDist().inv_cdf((1 + u) / 2)
        )

    return truncated_normal(end(low), end(high))


def function_of(law: Law, fn: Callable[[Any], Any]) -> Law:
    """The law of fn(x), x distributed as `law`, which has a base."""
    assert law.base is not None
    at = lambda z: fn(law.value(z))
    with np.errstate(all="ignore"):  # integrals that do not converge
        mean, variance = _moments(at, law.base)
    return Law(f"a function of a {law.base.density} variable", mean, variance, law.base, at)


def _moments(fn: Callable[[Any], Any], base: Base) -> tuple[float, float]:
    """Mean and variance of fn(z): Gauss-Legendre panels, halved where they do not agree with their
    halves.

    A jump is closed in by bisection, so its place need not be known. NaN where the integrals do not
    converge, as for Cauchy's distribution, or have not by the ends of a normal variable.
    """
    low, high = max(base.low, -CUT), min(base.high, CUT)
    a, b = np.linspace(low, high, 25)[:-1], np.linspace(low, high, 25)[1:]
    total, coarse = np.zeros(2), _panels(fn, base, a, b)
    for _ in range(MAX_HALVINGS):
        middle = 0.5 * (a + b)
        halves = _panels(fn, base, np.concatenate([a, middle]), np.concatenate([middle, b]))
        fine = halves[: len(a)] + halves[len(a) :]
        second = total[1] + np.sum(fine[:, 1])
        scale = np.array([np.sqrt(second), second]) + np.finfo(float).tiny
        gap = np.abs(fine - coarse) / scale
        open_ = np.any(~(gap <= TOLERANCE), axis=1)
        total += np.sum(fine[~open_], axis=0)
        a, b = np.concatenate([a[open_], middle[open_]]), np.concatenate([middle[open_], b[open_]])
        coarse = halves[np.concatenate([open_, open_])]
        if not (0 < len(a) <= MAX_PANELS and np.isfinite(second)):
            break
    total += np.sum(coarse, axis=0)
    if (
        np.sum(gap[open_]) > NEGLIGIBLE
        or _left_beyond(fn, base) > NEGLIGIBLE * scale[1]
        or not np.isfinite(second)
    ):
        return math.nan, math.nan
    return float(total[0]), float(max(total[1] - total[0] ** 2, 0.0))


def _panels(fn: Callable[[Any], Any], base: Base, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The integrals of f and f² times the density over each (a, b), (panels, 2)."""
    points, weights = np.polynomial.legendre.leggauss(15)
    z = 0.5 * ((b - a)[:, None] * points + (b + a)[:, None])
    few = np.minimum(
        np.arange(1 << (len(z) - 1).bit_length()), len(z) - 1
    )  # few shapes: each is another compilation
    f = np.asarray(fn(z[few]), float)[: len(z)]
    w = 0.5 * (b - a)[:, None] * weights * _density(base, z)
    return np.stack([np.sum(w * f, axis=1), np.sum(w * f**2, axis=1)], axis=1)


def _density(base: Base, z: np.ndarray) -> np.ndarray:
    if base.density == "uniform":
        return np.full_like(z, 1 / (base.high - base.low))
    mass = NormalDist().cdf(min(base.high, CUT)) - NormalDist().cdf(max(base.low, -CUT))
    return np.asarray(np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) / mass)


def _left_beyond(fn: Callable[[Any], Any], base: Base) -> float:
    """What the integrand of the second moment still is where an unbounded variable is cut."""
    ends = np.array([[math.copysign(CUT, end) for end in (base.low, base.high) if math.isinf(end)]])
    if not ends.size:
        return 0.0
    return float(np.max(np.asarray(fn(ends), float) ** 2 * _density(base, ends)))
