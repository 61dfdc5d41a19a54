"""What a series needs to know of its function: how many terms, and where it is not smooth. All in NumPy: nothing compiles."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.infinite.dual import DualRule, derivative
from ntk_jax.infinite.hermite import basis, breakpoints, nodes_and_weights, panel_rule, step_coefficients
from ntk_jax.infinite.kinks import Kink, powers, values

ORDERS = 6  # phi and its derivatives whose jumps are split off
SIZES = (16, 32, 48, 64, 96, 128, 160, 256, 384, 512, 1024)  # few distinct numbers of terms, hence few compilations


@dataclass(frozen=True)
class Expansion(DualRule):
    """A scalar function, where it is not smooth, and how far its Hermite series goes.

    Attributes:
        phi: a scalar JAX function, applied to arrays element by element.
        kinks: where it is not smooth.
        terms: how many terms of the series; None leaves it to the variances, or takes 64 where they are not known (inside jit).
        levels: the quadrature resolves 0 for standard deviations up to about 2^levels.
        tolerance: of the tail; None for 1e-10 in float64 and 1e-7 in float32.
    """

    phi: Callable[[Array], Array]
    kinks: tuple[Kink, ...] = ()
    terms: int | None = None
    levels: int = 12
    tolerance: float | None = None

    @property
    def count(self) -> int:
        """How many terms are summed."""
        return self.terms or 64


E = TypeVar("E", bound=Expansion)


def fitted_rule(caller: str, rule: DualRule, q_max: float, dtype: Any, *, stacklevel: int) -> DualRule:
    """`rule.fitted`, at few distinct variances and hence with few compilations, with a warning where it is not exact."""
    if not rule.adaptive:
        return rule
    q_max = 4.0 ** math.ceil(math.log(max(q_max, 1e-30), 4.0))
    fitted = rule.fitted(q_max, dtype)
    shortfall = fitted.shortfall(q_max, dtype)
    if shortfall is not None:
        warnings.warn(f"{caller}: {shortfall}", stacklevel=stacklevel + 1)
    return fitted


def enough_terms(series: E, q_max: float, dtype: jnp.dtype) -> E:
    """Enough terms for the tails of phi and phi' to fall below the tolerance at variances up to `q_max`."""
    tolerance = series.tolerance or (1e-10 if jnp.dtype(dtype) == jnp.float64 and not series.kinks else 1e-7)
    levels = int(np.clip(math.ceil(math.log2(max(q_max, 1e-30)) / 2) + 2, 6, 40))
    series = replace(series, levels=levels)
    series = replace(series, kinks=_kept(series, q_max, dtype))
    for most in (512, SIZES[-1]):
        rest = np.max([_left_out(series, order, q, most) for q in (q_max, q_max / 4) for order in (0, 1)], axis=0)
        enough = [size for size in SIZES if size <= most and rest[size] <= tolerance]
        if enough:
            return replace(series, terms=enough[0])
    return replace(series, terms=most)


def relative_error(series: Expansion, q: float, dtype: jnp.dtype) -> float:
    """A bound, relative to E[phi²] and E[phi'²], on the dual's error at variance `q`: terms left out, and cancellation."""
    left_out = max(_left_out(series, order, q, 2 * series.count)[series.count] for order in (0, 1))
    return max(left_out, _cancellation(series, series.kinks, q, dtype))


def _left_out(series: Expansion, order: int, q: float, terms: int) -> np.ndarray:
    """The share of E[phi^(order)²] in the terms from k on, for k up to `terms`, as far as no singular part holds it."""
    u, _ = nodes_and_weights(series.levels)
    s = math.sqrt(q)
    smooth = (_values(series, order, s * u) - values(series.kinks, order, s * u)) @ basis(series.levels, terms)
    singular = np.zeros(terms)
    for kink in series.kinks:
        threshold = np.array([abs(kink.at) / max(s, 1e-300)])
        for power in powers((kink,), order):
            part = kink.factor(power, order) * s**power * step_coefficients(threshold, terms, power)[:, 0]
            singular += part * float(kink.sign) ** np.arange(terms)
    second = max(_second_moment(series, lambda v: _values(series, order, v), q), 1e-300)
    energy = np.abs((smooth + singular) ** 2 - singular**2)
    beyond = 0.0 if series.kinks else max(second - float(np.sum(energy)), 0.0)
    rest = np.append(np.cumsum(energy[::-1])[::-1], 0.0) + beyond
    return (2 if series.kinks else 1) * rest / second


def _values(series: Expansion, order: int, v: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        return np.asarray(derivative(series.phi, order)(jnp.asarray(v)), float)


def _second_moment(series: Expansion, f: Callable[[np.ndarray], np.ndarray], q: float) -> float:
    s = math.sqrt(q)
    breaks = [float(np.clip(c / s, -14, 14)) for c, _ in series.kinks if c and s]
    u, w = panel_rule(np.sort([*breakpoints(series.levels), *breaks]))
    return float(w @ f(s * u) ** 2)


def _kept(series: Expansion, q: float, dtype: jnp.dtype) -> tuple[Kink, ...]:
    """The jumps worth splitting off: one-sided powers that outgrow phi cancel, and cost more digits than they save.

    At 0 terms left out cost little, and a kernel stays positive definite: there, less may cancel in single precision.
    """
    double, kept = jnp.dtype(dtype) == jnp.float64, series.kinks
    strict = 1e-11 if double else 1e-6
    for everywhere in (False, True):
        loss = 1e-9 if double else 1e-4 if everywhere else 1e-5
        for highest in range(ORDERS - 2, -1, -1):
            # from the fourth derivative on, jumps are split off for speed of convergence only
            if _cancellation(series, kept, q, dtype) <= (loss if highest < 3 else strict):
                break
            kept = _cut(kept, highest, everywhere)
    return kept


def _cut(kinks: tuple[Kink, ...], highest: int, everywhere: bool) -> tuple[Kink, ...]:
    """Without the jumps beyond those of a derivative; at 0 that of the slope stays, which never outgrows phi."""
    away = highest if everywhere else ORDERS
    cut = [
        Kink(c, tuple(j * (p <= (away if c else max(highest, 1))) for p, j in enumerate(jumps))) for c, jumps in kinks
    ]
    return tuple(kink for kink in cut if any(kink.jumps))


def _cancellation(series: Expansion, kinks: tuple[Kink, ...], q: float, dtype: jnp.dtype) -> float:
    """Rounding of the singular part's dual, relative to E[phi²]."""
    whole = _second_moment(series, lambda v: _values(series, 0, v), q)
    return float(jnp.finfo(dtype).eps) * _second_moment(series, lambda v: values(kinks, 0, v), q) / max(whole, 1e-300)


def find_kink(phi: Callable[[Array], Array], at: float = 0.0) -> Kink | None:
    """The jumps of phi and of its first derivatives at a point; None if those up to the third are 0."""
    if not any(_jumps(phi, at, 4)):  # higher derivatives take long to trace
        return None
    return Kink(at, _jumps(phi, at, ORDERS))


@partial(jax.jit, static_argnums=(0, 1))
def _derivatives(phi: Callable[[Array], Array], orders: int, v: Array) -> Array:
    """Phi and its first derivatives, (orders, *v.shape), in one program."""
    return jnp.stack([derivative(phi, p)(v) for p in range(orders)])


def _jumps(phi: Callable[[Array], Array], at: float, orders: int) -> tuple[float, ...]:
    gap = 1e-30 if at == 0.0 else abs(at) * 2.0**-8
    with jax.ensure_compile_time_eval():
        sides = np.asarray(_derivatives(phi, orders, jnp.asarray([at - gap, at + gap])), float).T.tolist()
    low, high = (
        [sum(d[p + i] * h**i / math.factorial(i) for i in range(orders - p)) for p in range(orders)]
        for d, h in zip(sides, (gap, -gap), strict=True)
    )
    jumps = (round(b - a, 12) for a, b in zip(low, high, strict=True))
    return tuple(j if abs(j) > 1e-5 else 0.0 for j in jumps)
