"""From what users pass as an activation to its dual: names, function objects, and any scalar JAX
function.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.checks import check_integer, check_option
from ntk_jax.duals import closed_forms
from ntk_jax.duals.closed_forms import ClosedForm
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.duals.families import FINE, Candidate, families, rectifier, scaled
from ntk_jax.duals.hermite_series.fit import find_kink
from ntk_jax.duals.hermite_series.series import Series
from ntk_jax.duals.mixtures import Mixture
from ntk_jax.duals.rectifiers import RectifiedSquare, Rectifier, Step
from ntk_jax.networks.mlp import ACTIVATIONS


def rectified_monomial(order: int) -> DualRule:
    """relu(u)^order for order 0, 1, 2."""
    check_option("order", order, (0, 1, 2))
    return (Step(0.0, 1.0), Rectifier(1.0, 0.0), RectifiedSquare())[order]


def polynomial(coefficients: Any) -> DualRule:
    """sum_i c_i u^i."""
    coefficients = tuple(map(float, coefficients))
    if not coefficients:
        raise ValueError("coefficients: expected at least one, lowest power first; got none.")
    return ClosedForm(closed_forms.polynomial, (coefficients,))


def monomial(degree: int) -> DualRule:
    """u^degree."""
    check_integer("degree", degree, minimum=0)
    return polynomial([0.0] * degree + [1.0])


def hermite(degree: int) -> DualRule:
    """He_degree / sqrt(degree!)."""
    check_integer("degree", degree, minimum=0)
    return ClosedForm(closed_forms.hermite, (int(degree),))


ERF = ClosedForm(closed_forms.erf, partials=closed_forms.erf_partials)
GELU = ClosedForm(closed_forms.gelu, slope=closed_forms.gelu_slope)
SMOOTH_RELU = ClosedForm(closed_forms.smooth_relu, slope=closed_forms.smooth_relu_slope)
CLOSED_FORMS: dict[str, Callable[..., DualRule]] = {
    "abs": lambda: Rectifier(1.0, 1.0),
    "cos": lambda frequency=1.0: ClosedForm(closed_forms.sinusoid, (float(frequency), math.pi / 2)),
    "erf": lambda: ERF,
    "exp": lambda rate=1.0: ClosedForm(closed_forms.exponential, (float(rate), 0.0)),
    "gaussian": lambda rate=1.0: ClosedForm(closed_forms.gaussian, (float(rate),)),
    "gelu": lambda: GELU,
    "hermite": hermite,
    "identity": lambda: Rectifier(1.0, -1.0),
    "leaky_relu": lambda slope=0.01: Rectifier(1.0, -float(slope)),
    "monomial": monomial,
    "normalized_exp": lambda rate=1.0: ClosedForm(
        closed_forms.exponential, (math.sqrt(rate), -float(rate))
    ),
    "polynomial": polynomial,
    "rbf": lambda gamma=1.0: ClosedForm(closed_forms.rbf, (float(gamma),)),
    "rectified_monomial": rectified_monomial,
    "rectifier": lambda positive, negative: Rectifier(float(positive), float(negative)),
    "relu": lambda: Rectifier(1.0, 0.0),
    "sigmoid": lambda: Mixture(ERF, jax.nn.sigmoid, gain=0.5, rate=0.5**0.5, shift=0.5),
    "sign": lambda: Step(-1.0, 1.0),
    "silu": lambda: Mixture(GELU, jax.nn.silu, power=1),
    "sin": lambda: ClosedForm(closed_forms.sinusoid, (1.0, 0.0)),
    "sinusoid": lambda frequency=1.0, phase=0.0: ClosedForm(
        closed_forms.sinusoid, (float(frequency), float(phase))
    ),
    "softplus": lambda: Mixture(SMOOTH_RELU, jax.nn.softplus, power=1),
    "step": lambda: Step(0.0, 1.0),
    "swish": lambda: Mixture(GELU, jax.nn.silu, power=1),
    "tanh": lambda: Mixture(ERF, jnp.tanh, rate=2**0.5),
}

MIXTURES = ("tanh", "sigmoid", "silu", "softplus")

NUMERICAL: dict[str, tuple[float, ...]] = {
    "celu": (),
    "elu": (),
    "gelu_tanh": (),
    "hard_sigmoid": (-3.0, 3.0),
    "hard_swish": (-3.0, 3.0),
    "hard_tanh": (-1.0, 1.0),
    "mish": (),
    "relu6": (6.0,),
    "selu": (),
}
"""Names of `networks.ACTIVATIONS` that are summed as a series, and their kinks away from 0."""


@lru_cache(maxsize=256)
def series_rule(
    phi: Callable[..., Any], kinks: tuple[float, ...] = (), tolerance: float | None = None
) -> Series:
    """The series of a scalar function; a kink at 0 is found, others are named."""
    found = [find_kink(phi, float(c)) for c in sorted({0.0, *kinks})]
    return Series(phi, tuple(k for k in found if k is not None), tolerance=tolerance)


def dual_rule(activation: Any, **options: Any) -> DualRule:
    """The dual of an activation: a name with options, a rule, or a scalar function.

    A function is compared with the closed forms at sample points, and a match must agree with its
    own series.

    Raises:
        ValueError: an unknown name, or something that is neither a name nor an elementwise
            function.
    """
    if isinstance(activation, DualRule):
        return activation
    if callable(activation):
        return _of_function(activation)
    check_option("activation", activation, sorted([*CLOSED_FORMS, *NUMERICAL]))
    if activation in CLOSED_FORMS:
        return CLOSED_FORMS[activation](**options)
    return series_rule(ACTIVATIONS[activation], NUMERICAL[activation])


def check_elementwise(phi: Callable[..., Any]) -> None:
    """Raise unless `phi` is a real function applied element by element, and a number wherever it is
    looked at.
    """
    with jax.ensure_compile_time_eval():
        _elementwise(phi, jnp.asarray(SAMPLES))


FAR = np.array(
    [5.0, 6.5, 8.5, 12.0, 30.0, 100.0, 1000.0]
)  # a ReLU that is cut off at 8 is not a ReLU
SAMPLES = np.concatenate([np.linspace(-4, 4, 41), [-0.013, 0.007, 1e-3], FAR, -FAR, FINE])


@lru_cache(maxsize=256)
def _of_function(phi: Callable[..., Any]) -> DualRule:
    with jax.ensure_compile_time_eval():
        u = jnp.asarray(SAMPLES)
        values = _elementwise(phi, u)
        found = _match(u, values)
        if found is not None and _agrees(found, phi):
            return found.rule
        for name, kinks in NUMERICAL.items():  # the same function, whose kinks are known
            if _close(u, values, np.asarray(ACTIVATIONS[name](u), float)):
                return series_rule(ACTIVATIONS[name], kinks)
    return series_rule(phi)


def _elementwise(phi: Callable[..., Any], u: Array) -> np.ndarray:
    try:
        values = jnp.asarray(
            jax.jvp(phi, (u,), (jnp.ones_like(u),))[0]
        )  # what NumPy's functions cannot
        order = np.random.default_rng(0).permutation(u.size)
        kept = (abs(SAMPLES[order]) <= 2) & (np.arange(u.size) % 2 == 0)
        moved = jnp.asarray(np.where(kept, SAMPLES[order], 0.3 - SAMPLES[order] / 2000), u.dtype)
        elsewhere = np.asarray(jax.jvp(phi, (moved,), (jnp.ones_like(u),))[0])
    except Exception as error:
        raise ValueError(
            f"activation: expected a name or an elementwise JAX function of an array; {phi!r} "
            f"raised {error!r}."
        ) from error
    if values.shape != u.shape or not jnp.issubdtype(values.dtype, jnp.floating):
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


def _match(u: Array, values: np.ndarray) -> Candidate | None:
    x, eps = np.asarray(u, float), float(jnp.finfo(u.dtype).eps)
    at = lambda point: float(values[np.argmin(abs(x - point))])
    exp = np.asarray(jnp.exp(u), float)  # infinite where phi's is
    known: list[tuple[DualRule, np.ndarray]] = [
        (ERF, np.asarray(jax.scipy.special.erf(u), float)),
        (GELU, x * (1 + np.asarray(jax.scipy.special.erf(u / 2**0.5), float)) / 2),
        (ClosedForm(closed_forms.sinusoid, (1.0, 0.0)), np.sin(x)),
        (ClosedForm(closed_forms.sinusoid, (1.0, math.pi / 2)), np.cos(x)),
        (ClosedForm(closed_forms.exponential, (1.0, 0.0)), exp),
        (ClosedForm(closed_forms.gaussian, (1.0,)), np.exp(-x * x)),
        *((CLOSED_FORMS[name](), np.asarray(ACTIVATIONS[name](u), float)) for name in MIXTURES),
    ]
    candidates = [rectifier(at(4.0) / 4, at(-4.0) / 4, x), *(Candidate(*pair) for pair in known)]
    found = next((c for c in candidates if _close(u, values, c.values)), None)
    if found is not None:
        return found
    ratios = (
        (rule, expected, at(1.0) / float(expected[np.argmin(abs(x - 1.0))]))
        for rule, expected in known
    )
    times = (
        Candidate(scaled(rule, a), a * expected)
        for rule, expected, a in ratios
        if a and math.isfinite(a)
    )
    return next(
        (c for c in (*times, *families(x, values, eps)) if _close(u, values, c.values)), None
    )


def _close(u: Array, values: np.ndarray, expected: np.ndarray) -> bool:
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
    q = [jnp.asarray(q) / scale for q in ([0.7, 1.0], [-0.3, 0.5], [1.1, 1.0])]
    summed = replace(series_rule(phi), terms=64)
    pairs = list(zip(*jax.jit(lambda q: (found.rule(*q), summed(*q)))(q), strict=True))
    compared = pairs[:1] if isinstance(found.rule, Step) else pairs
    return all(
        np.allclose(a, b, rtol=1e-3, atol=1e-4 * float(np.max(np.abs(a)))) for a, b in compared
    )
