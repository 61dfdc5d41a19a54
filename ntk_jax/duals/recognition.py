"""Which dual a function has, recognized by its values at sample points.

Candidates are, in this order: rectifiers of any slopes; the functions of the catalogue, then their
multiples; one member of each family whose constants these values allow. A closed form must also
agree with the function's own series: nobody knows what a function does between the samples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ntk_jax.duals import closed_forms, polynomials
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.duals.exponential_linear import ExponentialLinear
from ntk_jax.duals.form import ClosedForm
from ntk_jax.duals.hermite_coefficients import basis, nodes_and_weights
from ntk_jax.duals.hermite_series.expansion import LEVELS
from ntk_jax.duals.hermite_series.resolution import evaluated
from ntk_jax.duals.rectifiers import RectifiedSquare, Rectifier, Step
from ntk_jax.duals.scaled import Scaled
from ntk_jax.host import host_values

Known = Sequence[tuple[Callable[[], DualRule], Callable[..., Any]]]  # duals and their functions

FINE = np.arange(-8, 9) / 64  # resolves sin(200 u)
FAR = np.array(
    [5.0, 6.5, 8.5, 12.0, 30.0, 100.0, 1000.0]
)  # a ReLU that is cut off at 8 is not a ReLU
SAMPLES = np.concatenate([np.linspace(-4, 4, 41), [-0.013, 0.007, 1e-3], FAR, -FAR, FINE])
MAX_DEGREE = 3  # of polynomials


class Candidate(NamedTuple):
    """A dual, the function's values if it is the one, and how fast it varies: it is like one of
    scale 1 / rate.
    """

    rule: DualRule
    values: np.ndarray
    rate: float = 1.0


def recognize(phi: Callable[..., Any], closed: Known, kinked: Known) -> DualRule | None:
    """The dual of one of the functions `closed`, or of a family's, or of one of `kinked`, whose
    series have kinks that are known; None if `phi` is none of them.
    """
    u = SAMPLES.astype(jnp.result_type(float))
    values = _elementwise(phi, u)
    found = next((c for c in _candidates(u, values, closed) if _close(u, values, c.values)), None)
    if found is not None and _agrees(found, phi):
        return found.rule
    series = (rule for rule, v in _catalogued(u, kinked) if _close(u, values, v))
    return next((rule() for rule in series), None)


def check_elementwise(phi: Callable[..., Any]) -> None:
    """Raise unless `phi` is a real function applied element by element, and a number wherever it is
    looked at.
    """
    _elementwise(phi, SAMPLES.astype(jnp.result_type(float)))


def _candidates(u: np.ndarray, values: np.ndarray, closed: Known) -> Iterator[Candidate]:
    x, at = np.asarray(u, float), _Values(u, values)
    positive, negative = at(4.0) / 4, at(-4.0) / 4
    yield Candidate(Rectifier(positive, negative), np.where(x > 0, positive * x, -negative * x))
    known = [(rule(), expected) for rule, expected in _catalogued(u, closed)]
    yield from (Candidate(*pair) for pair in known)
    for rule, expected in known:
        scale = at(1.0) / float(expected[np.argmin(abs(x - 1.0))])
        if scale and math.isfinite(scale):
            yield Candidate(scaled(rule, scale), scale * expected)
    if np.all(np.isfinite(values[abs(x) <= 4])):
        yield from _families(x, values, at)


def _catalogued(u: np.ndarray, known: Known) -> Iterator[tuple[Callable[[], DualRule], np.ndarray]]:
    """What makes each dual, which for a series takes long, and the values of its function."""
    found = _evaluated(tuple(function for _, function in known), u.dtype)
    for (rule, _), expected in zip(known, found, strict=True):
        yield rule, np.asarray(expected, float)


@lru_cache(maxsize=8)
def _evaluated(functions: tuple[Callable[..., Any], ...], dtype: DTypeLike) -> list[np.ndarray]:
    """Once for all functions that are ever recognized."""
    return host_values(lambda u: [function(u) for function in functions], SAMPLES.astype(dtype))


def _elementwise(phi: Callable[..., Any], u: np.ndarray) -> np.ndarray:
    slope = lambda v: jax.jvp(phi, (v,), (jnp.ones_like(v),))[0]  # what NumPy's functions cannot
    try:
        values = np.asarray(host_values(slope, u))
        order = np.random.default_rng(0).permutation(u.size)
        kept = (abs(SAMPLES[order]) <= 2) & (np.arange(u.size) % 2 == 0)
        moved = np.where(kept, SAMPLES[order], 0.3 - SAMPLES[order] / 2000)
        elsewhere = host_values(slope, moved)
    except Exception as error:
        raise ValueError(
            f"activation: expected a name or an elementwise JAX function of an array; {phi!r} "
            f"raised {error!r}."
        ) from error
    if np.shape(values) != u.shape or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            f"activation: expected a real scalar function applied element by element; {phi!r} maps "
            f"shape {u.shape} "
            f"to {values.shape}, {values.dtype}. Duals of functions that mix units do not exist."
        )
    found = np.asarray(values, float)
    if not np.allclose(
        elsewhere[kept].astype(float), found[order][kept], rtol=1e-4, atol=1e-12, equal_nan=True
    ):
        raise ValueError(
            f"activation: expected a function applied element by element; the value of {phi!r} at "
            "one entry changes with the "
            "others, or with its place. Duals of functions that mix units do not exist."
        )
    undefined = SAMPLES[np.isnan(found) & (abs(SAMPLES) <= 4) & (SAMPLES != 0)]
    if undefined.size:
        raise ValueError(
            f"activation: expected a function that is a number on the whole real line; {phi!r} is "
            f"NaN at u = {undefined[0]:.3g}. "
            "Gaussian inputs take every value: use one that is defined there, such as log(1 + |u|) "
            "for log(u)."
        )
    return found


def _close(u: np.ndarray, values: np.ndarray, expected: np.ndarray) -> bool:
    """Equal up to rounding at every sample point but 0: the value of a step there is nobody's
    business.

    The rounding of an exponent is that of the exponential's logarithm.
    """
    x, tolerance = np.asarray(u, float), 64 * float(jnp.finfo(u.dtype).eps)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = expected.astype(u.dtype).astype(float)  # infinite where the function is
        size = np.abs(expected)
        rounding = size * np.maximum(1, np.abs(np.log(np.maximum(size, 1e-300))) / 8)
        close = np.abs(values - expected) <= tolerance * (rounding + 1e-3 + np.abs(x))
    return bool(np.all((close & np.isfinite(expected) | (values == expected))[x != 0]))


def _agrees(found: Candidate, phi: Callable[..., Any]) -> bool:
    """The closed form against the series at moderate correlations, where the latter is sharp for
    any function.
    """
    scale = max(1.0, found.rate) ** 2
    q = [np.array(q) / scale for q in ([0.7, 1.0], [-0.3, 0.5], [1.1, 1.0])]
    closed = host_values(lambda *q: tuple(found.rule(*q)), *q)
    pairs = list(zip(closed, (_summed(phi, order, *q) for order in (0, 1)), strict=True))
    compared = pairs[:1] if found.rule.flat else pairs
    return all(
        np.allclose(a, b, rtol=1e-3, atol=1e-4 * float(np.max(np.abs(a)))) for a, b in compared
    )


def _summed(
    phi: Callable[..., Any], order: int, q11: np.ndarray, q12: np.ndarray, q22: np.ndarray
) -> np.ndarray:
    """E[phi^(order)(u) phi^(order)(v)] by 64 terms of the series."""
    s = np.sqrt(np.stack([q11, q22]))
    values = evaluated(phi, order, s[..., None] * nodes_and_weights(LEVELS)[0])
    a, b = values @ basis(LEVELS, 64)
    return np.sum(a * b * (q12 / (s[0] * s[1]))[:, None] ** np.arange(64), axis=1)


class _Values:
    """What a function is at a sample point, and the short number that was probably meant by one
    computed from these values.
    """

    def __init__(self, u: np.ndarray, values: np.ndarray):
        self.x, self.values = np.asarray(u, float), values
        self.tolerance = 8 * float(jnp.finfo(u.dtype).eps)

    def __call__(self, point: float) -> float:
        return float(self.values[np.argmin(abs(self.x - point))])

    def meant(self, value: float) -> float:
        if abs(value) <= self.tolerance:
            return 0.0
        short = float(f"{value:.6g}")
        return short if abs(value - short) <= self.tolerance * max(abs(short), 1) else value


def scaled(rule: DualRule, scale: float) -> DualRule:
    """The dual of `scale` times a function."""
    return rule if scale == 1 else Scaled(rule, scale)


def _families(x: np.ndarray, values: np.ndarray, at: _Values) -> Iterator[Candidate]:
    """One member of each family that could have these values at `x`, which contains -4, ..., 4 in
    steps of 0.2 and `FINE`.
    """
    yield from _polynomial(x, values, at)
    yield from _exponential_linear(x, at)
    yield Candidate(Step(at(-4.0), at(4.0)), np.where(x > 0, at(4.0), at(-4.0)))
    square = at.meant(at(4.0) / 16)
    yield Candidate(scaled(RectifiedSquare(), square), square * np.maximum(x, 0) ** 2)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        yield from _exponentials(x, at)
    yield from _sinusoid(x, values, at)


def _polynomial(x: np.ndarray, values: np.ndarray, at: _Values) -> Iterator[Candidate]:
    inside = (abs(x) <= 4) & (x != 0)
    powers = np.vander(x, MAX_DEGREE + 1, increasing=True)
    found = [
        at.meant(c) for c in np.linalg.lstsq(powers[inside], values[inside], rcond=None)[0].tolist()
    ]
    while len(found) > 1 and found[-1] == 0:
        found.pop()
    yield Candidate(
        ClosedForm(polynomials.POLYNOMIAL, (tuple(found),)),
        powers[:, : len(found)] @ np.array(found),
    )


def _exponential_linear(x: np.ndarray, at: _Values) -> Iterator[Candidate]:
    """slope u above 0, c (exp(rate u) - 1) below."""
    slope, c = at.meant(at(4.0) / 4), at.meant(-at(-1e3))
    if math.isfinite(c) and c and 1e-6 < -at(-1.0) / c < 1:
        rate = at.meant(-math.log1p(at(-1.0) / c))
        a = c if math.isclose(slope / rate, c, rel_tol=at.tolerance) else slope / rate
        rule = ExponentialLinear(a, c, rate)
        yield Candidate(rule, np.where(x > 0, slope * x, c * np.expm1(rate * np.minimum(x, 0))))


def _exponentials(x: np.ndarray, at: _Values) -> Iterator[Candidate]:
    """a exp(b u) and a exp(b u²)."""
    if at(-4.0) * at(4.0) > 0:
        b, a = at.meant(math.log(at(4.0) / at(-4.0)) / 8), at.meant(at(0.0))
        if a:
            rule = ClosedForm(closed_forms.EXPONENTIAL, (b, math.log(abs(a))))
            yield Candidate(scaled(rule, math.copysign(1, a)), a * np.exp(b * x), abs(b))
    a = at.meant(at(0.0))
    seen = [p for p in (4.0, 2.0, 1.0, 0.4, 0.2) if at(p) * a > 1e-30 * a * a]
    if seen:
        b = at.meant(math.log(at(seen[0]) / at(0.0)) / seen[0] ** 2)
        form = (closed_forms.GROWING_GAUSSIAN, b) if b > 0 else (closed_forms.GAUSSIAN, -b)
        bump = scaled(ClosedForm(form[0], (form[1],)), a)
        yield Candidate(bump, a * np.exp(b * x * x), math.sqrt(8 * abs(b)))


def _sinusoid(x: np.ndarray, values: np.ndarray, at: _Values) -> Iterator[Candidate]:
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
    b, a, c = at.meant(b), at.meant(math.hypot(C, S)), at.meant(math.atan2(C, S))
    if a:
        rule = scaled(ClosedForm(closed_forms.SINUSOID, (b, c)), a)
        yield Candidate(rule, a * np.sin(b * x + c), max(1.0, abs(b)))
