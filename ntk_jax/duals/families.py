"""Families of functions with constants of any value, recognized by their values: what
`activations.py` compares with.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ntk_jax.duals import closed_forms
from ntk_jax.duals.closed_forms import ClosedForm
from ntk_jax.duals.dual_rule import DualRule, Scaled
from ntk_jax.duals.rectifiers import RectifiedSquare, Rectifier, Step

FINE = np.arange(-8, 9) / 64  # resolves sin(200 u)
MAX_DEGREE = 3  # of polynomials


class Candidate(NamedTuple):
    """A dual, the function's values if it is the one, and how fast it varies: it is like one of
    scale 1 / rate.
    """

    rule: DualRule
    values: np.ndarray
    rate: float = 1.0


def scaled(rule: DualRule, scale: float) -> DualRule:
    """The dual of `scale` times a function."""
    return rule if abs(scale) == 1 else Scaled(rule, scale)


def families(x: np.ndarray, values: np.ndarray, eps: float) -> Iterator[Candidate]:
    """One member of each family that could have these values at `x`, which contains -4, ..., 4 in
    steps of 0.2 and `FINE`.
    """
    at = lambda point: float(values[np.argmin(abs(x - point))])
    near = lambda value: _rounded(value, 8 * eps)
    if not np.all(np.isfinite(values[abs(x) <= 4])):
        return
    yield from _polynomial(x, values, near)
    yield Candidate(Step(at(-4.0), at(4.0)), np.where(x > 0, at(4.0), at(-4.0)))
    square = near(at(4.0) / 16)
    yield Candidate(scaled(RectifiedSquare(), square), square * np.maximum(x, 0) ** 2)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        yield from _exponentials(x, values, at, near)
    yield from _sinusoid(x, values, near)


def rectifier(positive: float, negative: float, x: np.ndarray) -> Candidate:
    """positive relu(u) + negative relu(-u)."""
    return Candidate(Rectifier(positive, negative), np.where(x > 0, positive * x, -negative * x))


def _rounded(value: float, tolerance: float) -> float:
    """The short number that was probably meant."""
    if abs(value) <= tolerance:
        return 0.0
    short = float(f"{value:.6g}")
    return short if abs(value - short) <= tolerance * max(abs(short), 1) else value


def _polynomial(x: np.ndarray, values: np.ndarray, near: Any) -> Iterator[Candidate]:
    inside = (abs(x) <= 4) & (x != 0)
    powers = np.vander(x, MAX_DEGREE + 1, increasing=True)
    found = [
        near(c) for c in np.linalg.lstsq(powers[inside], values[inside], rcond=None)[0].tolist()
    ]
    while len(found) > 1 and found[-1] == 0:
        found.pop()
    yield Candidate(
        ClosedForm(closed_forms.polynomial, (tuple(found),)),
        powers[:, : len(found)] @ np.array(found),
    )


def _exponentials(x: np.ndarray, values: np.ndarray, at: Any, near: Any) -> Iterator[Candidate]:
    """a exp(b u) and a exp(b u²)."""
    if at(-4.0) * at(4.0) > 0:
        b, a = near(math.log(at(4.0) / at(-4.0)) / 8), near(at(0.0))
        if a:
            rule = ClosedForm(closed_forms.exponential, (b, math.log(abs(a))))
            yield Candidate(rule, a * np.exp(b * x), abs(b))
    a = near(at(0.0))
    seen = [p for p in (4.0, 2.0, 1.0, 0.4, 0.2) if at(p) * a > 1e-30 * a * a]
    if seen:
        b = near(math.log(at(seen[0]) / at(0.0)) / seen[0] ** 2)
        form = (closed_forms.growing_gaussian, b) if b > 0 else (closed_forms.gaussian, -b)
        bump = scaled(ClosedForm(form[0], (form[1],)), a)
        yield Candidate(bump, a * np.exp(b * x * x), math.sqrt(8 * abs(b)))


def _sinusoid(x: np.ndarray, values: np.ndarray, near: Any) -> Iterator[Candidate]:
    """a sin(b u + c): b from second differences, then by Newton's method on more and more
    points.
    """
    f = values[[int(np.argmin(abs(x - u))) for u in FINE]]
    curved = -float(f[1:-1] @ (f[2:] - 2 * f[1:-1] + f[:-2]))
    norm = 4 * float(f[1:-1] @ f[1:-1])
    if not 0 < curved < norm:
        return
    b, C, S = 2 / (FINE[1] - FINE[0]) * math.asin(math.sqrt(curved / norm)), 1.0, 1.0
    for reach in (0.125, 0.5, 1.0, 2.0, 4.0, 12.0, 30.0, 1e3):
        inside = (abs(x) <= reach) & np.isfinite(values)
        for _ in range(3):
            cos, sin = np.cos(b * x[inside]), np.sin(b * x[inside])
            C, S, turn = np.linalg.lstsq(
                np.stack([cos, sin, x[inside] * (S * cos - C * sin)], 1), values[inside]
            )[0]
            b += float(np.clip(turn, -b / 3, b / 3))
    b, a, c = near(b), near(math.hypot(C, S)), near(math.atan2(C, S))
    if a:
        rule = scaled(ClosedForm(closed_forms.sinusoid, (b, c)), a)
        yield Candidate(rule, a * np.sin(b * x + c), max(1.0, abs(b)))
