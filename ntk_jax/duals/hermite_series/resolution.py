"""What the quadrature of a series sees of its function f(z) = phi^(order)(s z), and what it does
not.

Let e be what f has beyond the polynomials through its nodes, panel by panel, and out of the panels'
reach. Coefficients are off by those of e, so that a dual is off by at most 2 |f| |e| + |e|², norms
of L²(normal), at any correlation.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ntk_jax.duals.dual_rule import derivative
from ntk_jax.duals.hermite_coefficients import (
    NODES,
    RANGE,
    WIDE,
    breakpoints,
    nodes_and_weights,
    panel_rule,
)
from ntk_jax.duals.hermite_series.expansion import Expansion
from ntk_jax.duals.kinks.kinks import Kink
from ntk_jax.duals.kinks.kinks import values as singular
from ntk_jax.host import host_values

FEW = 1e-22  # a share of E[f²] whose square root is below every tolerance
NEXT_TO_ZERO = 2.0 ** np.array([-10.0, -40.0])  # of the innermost panel


class Seen(NamedTuple):
    """r = f - S at the nodes, S being split off; E[f²], E[r²], E[S²]; |e| / |f|; the share of E[f²]
    out of reach.
    """

    smooth: np.ndarray
    second: float
    rest: float
    split: float
    unseen: float
    outside: float


class Places(NamedTuple):
    """Where f is looked at: its nodes, those of E[f²], between the former, out of reach, on both
    sides of 0; with weights.
    """

    nodes: np.ndarray
    moment: np.ndarray
    between: np.ndarray
    outside: np.ndarray
    zero: np.ndarray
    moment_weights: np.ndarray
    between_weights: np.ndarray
    outside_weights: np.ndarray


@lru_cache(maxsize=64)
def _places(levels: int, reach: float, breaks: tuple[float, ...]) -> Places:
    fixed, wide = breakpoints(levels, reach), breakpoints(0, WIDE)
    moment, moment_weights = panel_rule(np.sort([*fixed, *breaks]))
    between, between_weights = panel_rule(fixed, NODES + 1)
    sides = [panel_rule(side) for side in (wide[wide <= fixed[0]], wide[wide >= fixed[-1]])]
    outside, outside_weights = (np.concatenate(part) for part in zip(*sides, strict=True))
    zero = np.outer([1, -1], NEXT_TO_ZERO * fixed[fixed > 0][0]).ravel()
    nodes = nodes_and_weights(levels, reach)[0]
    return Places(
        nodes, moment, between, outside, zero, moment_weights, between_weights, outside_weights
    )


@lru_cache(maxsize=1)
def _interpolation() -> np.ndarray:
    """Values between the nodes of a panel from those at its nodes, of polynomials, (NODES + 1,
    NODES).
    """
    x, between = (np.polynomial.legendre.leggauss(n)[0] for n in (NODES, NODES + 1))
    vandermonde = np.polynomial.legendre.legvander(np.concatenate([x, between]), NODES - 1)
    return vandermonde[NODES:] @ np.linalg.inv(vandermonde[:NODES])


def evaluated(phi: Any, order: int, v: np.ndarray) -> np.ndarray:
    """The `order`-th derivative of phi."""
    return np.asarray(host_values(derivative(phi, order), v), float)


def look(series: Expansion, order: int, q: float, dtype: Any) -> Seen:
    """What there is to see of phi^(order) at variance `q`.

    Raises:
        ValueError: it is NaN somewhere, its second moment is infinite or out of range, or it varies
            faster than can be resolved.
    """
    s = math.sqrt(q)
    at = _places(series.levels, series.reach, _breaks(series.kinks, s))
    f = evaluated(series.phi, order, s * np.concatenate(at[:5]))
    nodes, moment, between, outside, zero = np.split(f, np.cumsum([len(u) for u in at[:4]]))
    inside = f[: -len(outside) - len(zero)]
    _check_numbers(series.phi, order, s * np.concatenate(at[:3]), inside)
    if not np.max(np.abs(inside)) <= float(jnp.finfo(dtype).max):
        raise _infinite(series.phi, order, q, dtype)
    smooth = nodes - singular(series.kinks, order, s * at.nodes)
    error = (
        between
        - singular(series.kinks, order, s * at.between)
        - (smooth.reshape(-1, NODES) @ _interpolation().T).ravel()
    )
    mass, far, gaps = _squared(at, moment, outside, error, dtype)
    second, lost = float(np.sum(mass)), float(np.sum(far))
    if (
        not second + lost <= float(jnp.finfo(dtype).max)
        or _at_the_ends(at, mass, far) > FEW * (second + lost)
        or _is_singular(zero)
    ):
        raise _infinite(series.phi, order, q, dtype)
    total = max(second + lost, 1e-300)
    unseen = math.sqrt((float(np.sum(gaps)) + lost) / total)
    rest = float(np.sum((smooth * np.sqrt(nodes_and_weights(series.levels, series.reach)[1])) ** 2))
    return Seen(
        smooth,
        second,
        rest,
        split_moment(series.kinks, order, series.levels, q),
        unseen,
        lost / total,
    )


def _squared(
    at: Places, moment: np.ndarray, outside: np.ndarray, error: np.ndarray, dtype: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted squares: of f where it is seen, where it is not, of what interpolation misses."""
    largest = float(jnp.finfo(jnp.result_type(float)).max)
    outside = np.nan_to_num(outside, nan=0.0, posinf=largest, neginf=-largest)
    weighted = (
        (moment, at.moment_weights),
        (np.clip(outside, -largest, largest), at.outside_weights),
        (error, at.between_weights),
    )
    with np.errstate(over="ignore", invalid="ignore"):
        mass, far, gaps = ((g * np.sqrt(w)) ** 2 for g, w in weighted)
    if dtype != jnp.float64:  # the density is 0 there
        far = np.append(far, mass[abs(at.moment) > 12.75])
    return mass, far, gaps


def _at_the_ends(at: Places, mass: np.ndarray, far: np.ndarray) -> float:
    """What lies at the ends of the range: much of it, and the moment does not converge."""
    parts = ((mass, at.moment), (far[: len(at.outside)], at.outside))
    with np.errstate(over="ignore", invalid="ignore"):
        return sum(float(np.sum(m[abs(u) > WIDE - 0.75])) for m, u in parts)


def _breaks(kinks: tuple[Kink, ...], s: float) -> tuple[float, ...]:
    return tuple(float(np.clip(c / s, -RANGE, RANGE)) for c, _ in kinks if c and s)


def split_moment(kinks: tuple[Kink, ...], order: int, levels: int, q: float) -> float:
    """E[S^(order)(s z)²] of what is split off."""
    s = math.sqrt(q)
    at = _places(levels, RANGE, _breaks(kinks, s))
    return float(at.moment_weights @ singular(kinks, order, s * at.moment) ** 2)


def _infinite(phi: Any, order: int, q: float, dtype: Any) -> ValueError:
    return ValueError(
        f"activation: expected a finite E[{_name(order)}²] at variance {q:.3g}; that of {phi!r} is "
        "infinite, or out of "
        f"the range of {jnp.dtype(dtype)}. Use smaller weights, or a function that grows less."
    )


def _name(order: int) -> str:
    return "phi" + "'" * order + "(u)"


def _check_numbers(phi: Any, order: int, v: np.ndarray, f: np.ndarray) -> None:
    bad = np.isnan(f)
    if np.any(bad):
        at = v[bad][np.argmin(np.abs(v[bad]))]
        raise ValueError(
            "activation: expected a function that is a number on the whole real line, with its "
            f"derivative; {_name(order)} of "
            f"{phi!r} is NaN at u = {at:.3g}. Gaussian inputs take every value: use one that is "
            "defined there; what "
            "jnp.where does not choose must have a derivative, too."
        )


def _is_singular(zero: np.ndarray) -> bool:
    """Whether f² grows like 1/u towards 0, from one of the sides."""
    sides = np.abs(np.nan_to_num(zero).reshape(2, 2)) * np.sqrt(NEXT_TO_ZERO)
    return bool(np.any((sides[:, 1] > 0.7 * sides[:, 0]) & (sides[:, 1] > 0)))


def check_resolved(series: Expansion, order: int, q: float, seen: Seen) -> None:
    """Raise where quadrature knows nothing of the function."""
    if seen.unseen > 0.5:
        raise ValueError(
            f"activation: expected a function that varies little over {0.4 * math.sqrt(q):.2g}, "
            "which quadrature resolves at "
            f"variance {q:.3g}; of {_name(order)} of {series.phi!r} it misses "
            f"{min(seen.unseen, 1):.0%}. Use smaller weights, an "
            "activation with a closed form, or name the points where it is not smooth: "
            "duals.series(phi, kinks=(...))."
        )
