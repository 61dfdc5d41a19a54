"""What a series needs to know of its function: how many terms, and where it is not smooth. All in
NumPy: nothing compiles.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.compat import is_concrete
from ntk_jax.duals.content import remembered
from ntk_jax.duals.dual_rule import DualRule, derivative
from ntk_jax.duals.hermite_coefficients import WIDE, basis, step_coefficients
from ntk_jax.duals.hermite_series.expansion import (
    CUBIC,
    LEVELS,
    Expansion,
    kinks_of_derivative,
)
from ntk_jax.duals.hermite_series.resolution import (
    FEW,
    Seen,
    check_resolved,
    evaluated,
    look,
    split_moment,
)
from ntk_jax.duals.kinks.kinks import Kink, powers
from ntk_jax.duals.kinks.kinks import values as singular
from ntk_jax.host import host_values

ORDERS = 6  # phi and its derivatives whose jumps are split off
SIZES = (
    16,
    32,
    48,
    64,
    96,
    128,
    160,
    256,
    384,
    512,
    1024,
)  # few distinct numbers of terms, hence few compilations


E = TypeVar("E", bound=Expansion)


def fitted_rule(
    caller: str, rule: DualRule, q_max: float, dtype: Any, *, stacklevel: int
) -> DualRule:
    """`rule.fitted`, at few distinct variances and hence with few compilations, with a warning
    where it is not exact.
    """
    if not rule.adaptive:
        return rule
    rounded = 4.0 ** math.ceil(math.log(max(q_max, 1e-30), 4.0))
    try:
        fitted, q_max = rule.fitted(rounded, dtype), rounded
    except (
        ValueError
    ):  # of a function that grows, moments may be finite at the one and not at the other
        fitted = rule.fitted(q_max, dtype)
    shortfall = fitted.shortfall(q_max, dtype)
    if shortfall is not None:
        warnings.warn(f"{caller}: {shortfall}", stacklevel=stacklevel + 1)
    return fitted


def fitted_to(rule: DualRule, moments: list[Array]) -> DualRule:
    """The rule for these (q11, q12, q22); itself in a trace, where nothing can be looked at."""
    if not all(map(is_concrete, moments)):
        return rule
    q_max = max(float(np.max(np.asarray(q), initial=0)) for q in (moments[0], moments[2]))
    return fitted_rule("duals", rule, q_max, moments[0].dtype, stacklevel=3)


def enough_terms(series: E, q_max: float, dtype: jnp.dtype) -> E:
    """Enough terms for the tails of phi and phi' to fall below the tolerance at variances up to
    `q_max`.
    """

    def fit() -> dict[str, Any]:
        found = _enough_terms(series, q_max, dtype)
        return {name: getattr(found, name) for name in ("kinks", "terms", "levels", "reach")}

    return replace(series, **remembered(series.phi, (*_known(series, q_max, dtype), "fit"), fit))


def _known(series: Expansion, q: float, dtype: jnp.dtype) -> tuple[Any, ...]:
    """What a fit depends on besides the function."""
    goal = series.kinks, series.tolerance, series.terms, series.levels, series.reach
    return (*goal, q, jnp.dtype(dtype))


def _enough_terms(series: E, q_max: float, dtype: jnp.dtype) -> E:
    double = jnp.dtype(dtype) == jnp.float64
    tolerance = series.tolerance or (1e-10 if double and not series.kinks else 1e-7)
    levels = int(np.clip(math.ceil(math.log2(max(q_max, 1e-30)) / 2) + 2, LEVELS, 40))
    series = replace(series, levels=levels)
    second = look(series, 0, q_max, dtype).second
    series = replace(series, kinks=_kept(series, second, q_max, dtype))
    cases = [(order, q) for q in (q_max, q_max / 4) for order in (0, 1)]
    seen = [look(series, *case, dtype) for case in cases]
    if double and max(s.outside for s in seen) > FEW:
        series = replace(series, reach=WIDE)
        seen = [look(series, *case, dtype) for case in cases]
    for (order, q), what in zip(cases, seen, strict=True):
        if (
            order == 0 or q * what.second > 1e-12 * seen[0].second
        ):  # else the slope is nothing to the function
            check_resolved(series, order, q, what)
    for most in (512, SIZES[-1]):
        rest = np.max(
            [_left_out(series, *c, s, most) for c, s in zip(cases, seen, strict=True)], axis=0
        )
        sizes = (CUBIC, *SIZES) if series.piecewise else SIZES
        enough = [size for size in sizes if size <= most and rest[size] <= tolerance]
        if enough:
            return replace(series, terms=enough[0])
    return replace(series, terms=most)


def relative_error(series: Expansion, q: float, dtype: jnp.dtype) -> float:
    """A bound, relative to E[phi²] and E[phi'²], on the dual's error at variance `q`."""
    worst = lambda: max(share for _, share in errors(series, q, dtype))
    return remembered(series.phi, (*_known(series, q, dtype), "error"), worst)


def errors(series: Expansion, q: float, dtype: jnp.dtype) -> list[tuple[float, float]]:
    """E[phi²] and E[phi'²], each with a bound on the dual's error relative to it: what is left out,
    not seen, and cancels.
    """
    seen = [look(series, order, q, dtype) for order in (0, 1)]
    rounding = _cancellation(series.kinks, seen[0].second, series.levels, q, dtype)
    return [
        (s.second, max(_error_share(series, order, q, s), rounding)) for order, s in enumerate(seen)
    ]


def _error_share(series: Expansion, order: int, q: float, seen: Seen) -> float:
    """Of terms left out and of what quadrature does not see, relative to E[phi^(order)²]."""
    terms = 2 * series.count
    left_out, second = (
        _left_out(series, order, q, seen, terms)[series.count],
        max(seen.second, 1e-300),
    )
    if (
        series.kinks
    ):  # with r the smooth and S the singular part: |(r + S)² - S²| summed over all further terms
        smooth, singular = _coefficients(series, order, q, seen, terms)
        r, S = (
            max(whole - float(np.sum(c**2)), 0.0)
            for whole, c in ((seen.rest, smooth), (seen.split, singular))
        )
        crossed = (r + 2 * math.sqrt(r * S)) / second if r > 1e-12 * seen.rest else 0.0
        left_out = max(left_out, left_out / 2 + crossed)
    return float(left_out + 2 * seen.unseen + seen.unseen**2)


def _coefficients(
    series: Expansion, order: int, q: float, seen: Seen, terms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the smooth and of the singular part."""
    s, singular = math.sqrt(q), np.zeros(terms)
    for kink in kinks_of_derivative(series.kinks, order):
        threshold = np.array([abs(kink.at) / max(s, 1e-300)])
        for power in powers((kink,), order):
            part = (
                kink.factor(power, order)
                * s**power
                * step_coefficients(threshold, terms, power)[:, 0]
            )
            singular += part * float(kink.sign) ** np.arange(terms)
    return seen.smooth @ basis(series.levels, terms, series.reach), singular


def _left_out(series: Expansion, order: int, q: float, seen: Seen, terms: int) -> np.ndarray:
    """The share of E[phi^(order)²] in the terms from k on, for k up to `terms`, as far as no
    singular part holds it.
    """
    smooth, singular = _coefficients(series, order, q, seen, terms)
    energy = np.abs((smooth + singular) ** 2 - singular**2)
    unseen = 0.0 if series.kinks else max(seen.second - float(np.sum(energy)), 0.0)
    rest = np.append(np.cumsum(energy[::-1])[::-1], 0.0) + unseen
    return (2 if series.kinks else 1) * rest / max(seen.second, 1e-300)


def _kept(series: Expansion, second: float, q: float, dtype: jnp.dtype) -> tuple[Kink, ...]:
    """The jumps worth splitting off: one-sided powers that outgrow phi cancel, and cost more digits
    than they save.

    At 0 terms left out cost little, and a kernel stays positive definite: there, less may cancel in
    single precision.
    """
    double, kept = jnp.dtype(dtype) == jnp.float64, series.kinks
    strict = 1e-11 if double else 1e-6
    for everywhere in (False, True):
        loss = 1e-9 if double else 1e-4 if everywhere else 1e-5
        for highest in range(ORDERS - 2, -1, -1):
            # from the fourth derivative on, jumps are split off for speed of convergence only
            if _cancellation(kept, second, series.levels, q, dtype) <= (
                loss if highest < 3 else strict
            ):
                break
            kept = _cut(kept, highest, everywhere)
    return kept


def _cut(kinks: tuple[Kink, ...], highest: int, everywhere: bool) -> tuple[Kink, ...]:
    """Without the jumps beyond those of a derivative; at 0 that of the slope stays, which never
    outgrows phi.
    """
    away = highest if everywhere else ORDERS
    cut = [
        Kink(c, tuple(j * (p <= (away if c else max(highest, 1))) for p, j in enumerate(jumps)))
        for c, jumps in kinks
    ]
    return tuple(kink for kink in cut if any(kink.jumps))


def _cancellation(
    kinks: tuple[Kink, ...], second: float, levels: int, q: float, dtype: jnp.dtype
) -> float:
    """Rounding of the singular part's dual, relative to E[phi²], `second`."""
    return float(jnp.finfo(dtype).eps) * split_moment(kinks, 0, levels, q) / max(second, 1e-300)


def find_kinks(phi: Callable[[Array], Array], at: Sequence[float]) -> tuple[Kink, ...]:
    """Those of the points `at` which are kinks."""
    points = tuple(sorted({float(c) for c in at}))
    found = remembered(phi, (points, "kinks"), lambda: [find_kink(phi, c) for c in points])
    return tuple(kink for kink in found if kink is not None)


def is_piecewise(phi: Callable[[Array], Array], kinks: tuple[Kink, ...]) -> bool:
    """Whether a polynomial of degree 3 at most remains of phi when its kinks are split off."""

    def fits() -> bool:
        end = 8 + 2 * max(abs(c) for c, _ in kinks)
        v = np.linspace(-end, end, 64)
        f = evaluated(phi, 0, v)
        rest = f - singular(kinks, 0, v)
        if not np.all(np.isfinite(rest)):
            return False
        powers_of = np.polynomial.legendre.legvander(v / end, CUBIC - 1)
        fitted = powers_of @ np.linalg.lstsq(powers_of, rest)[0]
        rounding = 64 * float(jnp.finfo(jnp.result_type(float)).eps) + 1e-11  # of jumps
        return bool(np.max(np.abs(rest - fitted)) <= rounding * np.max(np.abs(f)))

    return bool(kinks) and remembered(phi, (kinks, "piecewise"), fits)


def find_kink(phi: Callable[[Array], Array], at: float = 0.0) -> Kink | None:
    """The jumps of phi and of its first derivatives at a point; None if those up to the third are
    0.
    """
    if not any(_jumps(phi, at, 4)):  # higher derivatives take long to trace
        return None
    return Kink(at, _jumps(phi, at, ORDERS))


def _jumps(phi: Callable[[Array], Array], at: float, orders: int) -> tuple[float, ...]:
    """At two distances from 0, where powers with a fraction have no jump that can be split off, and
    so differ.
    """
    gaps = (1e-15, 1e-30) if at == 0.0 else (abs(at) * 2.0**-8,)
    v = np.array([at + side * gap for gap in gaps for side in (-1, 1)])
    derivatives = host_values(lambda v: [derivative(phi, p)(v) for p in range(orders)], v)
    sides = np.array(derivatives, float).T.tolist()
    found = [
        _jumps_between(low, high, gap)
        for low, high, gap in zip(sides[::2], sides[1::2], gaps, strict=True)
    ]
    jumps = [round(j, 15) if math.isfinite(j) else math.inf for j in found[-1]]
    same = [abs(a - b) <= 1e-6 * (1 + abs(b)) for a, b in zip(found[0], jumps, strict=True)]
    return tuple(j if ok and abs(j) > 1e-5 else 0.0 for j, ok in zip(jumps, same, strict=True))


def _jumps_between(low: list[float], high: list[float], gap: float) -> list[float]:
    """From the derivatives on both sides, by Taylor's formula."""
    orders = len(low)
    ends = [
        [sum(d[p + i] * h**i / math.factorial(i) for i in range(orders - p)) for p in range(orders)]
        for d, h in ((low, gap), (high, -gap))
    ]
    return [b - a for a, b in zip(*ends, strict=True)]
