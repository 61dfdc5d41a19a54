"""The catalogue of activations: everything that is known of each, in one table; and from what users
pass as an activation to its dual.

A new activation is one entry here (and, to be called by its name, one function in `functions.py`):
networks, recursions, recognition of functions, tests and benchmarks take it from the table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy import special

from ntk_jax.checks import check_integer, check_option
from ntk_jax.duals import closed_forms, polynomials
from ntk_jax.duals.content import by_content, remembered
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.duals.exponential_linear import ExponentialLinear
from ntk_jax.duals.form import ClosedForm
from ntk_jax.duals.hermite_series.series import series_rule
from ntk_jax.duals.mixtures import Mixture
from ntk_jax.duals.recognition import recognize
from ntk_jax.duals.rectifiers import RectifiedSquare, Rectifier, Step

ScalarFunction = Callable[..., Any]  # of an array, element by element, and of options


class Entry(NamedTuple):
    """What is known of one activation.

    Attributes:
        function: phi(u, **options), a JAX function applied element by element.
        rule: options -> its dual.
        kinks: of a dual that is summed as a series: the points other than 0 where phi is not
            smooth; None for a closed form.
        example: options with which tests and benchmarks take it.
        in_networks: whether `MLP` knows the name.
        in_family: whether `recognition` finds it by the constants of a family of functions, and
            need not compare with it.
    """

    function: ScalarFunction
    rule: Callable[..., DualRule]
    kinks: tuple[float, ...] | None = None
    example: Mapping[str, Any] = {}
    in_networks: bool = False
    in_family: bool = False


def gelu_tanh(u: Array) -> Array:
    """The GELU of most code; a function of this module, as a partial one could not be pickled."""
    return jax.nn.gelu(u, approximate=True)


def _rectified_monomial(order: int) -> DualRule:
    check_option("order", order, (0, 1, 2))
    return (Step(0.0, 1.0), Rectifier(1.0, 0.0), RectifiedSquare())[order]


def _polynomial(coefficients: Sequence[float]) -> DualRule:
    coefficients = tuple(map(float, coefficients))
    if not coefficients:
        raise ValueError("coefficients: expected at least one, lowest power first; got none.")
    return ClosedForm(polynomials.POLYNOMIAL, (coefficients,))


def _monomial(degree: int) -> DualRule:
    check_integer("degree", degree, minimum=0)
    return _polynomial([0.0] * degree + [1.0])


def _hermite(degree: int) -> DualRule:
    check_integer("degree", degree, minimum=0)
    return ClosedForm(polynomials.HERMITE, (int(degree),))


def _hermite_function(u: Array, degree: int) -> Array:
    """By the recurrence of He_k / sqrt(k!)."""
    before, value = jnp.zeros_like(u), jnp.ones_like(u)
    for k in range(degree):
        before, value = value, (u * value - k**0.5 * before) / (k + 1) ** 0.5
    return value


def _series(function: ScalarFunction, *kinks: float) -> Entry:
    return Entry(function, partial(series_rule, function, kinks), kinks, in_networks=True)


def _sinusoid(frequency: float, phase: float) -> DualRule:
    return ClosedForm(closed_forms.SINUSOID, (float(frequency), float(phase)))


_network, _family = partial(Entry, in_networks=True), partial(Entry, in_family=True)
ERF, GELU = ClosedForm(closed_forms.ERF), ClosedForm(closed_forms.GELU)
SMOOTH_RELU = ClosedForm(closed_forms.SMOOTH_RELU)
ELU = ExponentialLinear(1.0, 1.0)
SELU = ExponentialLinear(1.0507009873554804934, 1.0507009873554804934 * 1.6732632423543772848)
CATALOGUE: dict[str, Entry] = {
    "abs": _family(jnp.abs, lambda: Rectifier(1.0, 1.0)),
    "celu": _network(jax.nn.celu, lambda: ELU),
    "cos": Entry(
        lambda u, frequency=1.0: jnp.cos(frequency * u),
        lambda frequency=1.0: _sinusoid(frequency, math.pi / 2),
    ),
    "elu": _network(jax.nn.elu, lambda: ELU),
    "erf": _network(special.erf, lambda: ERF),
    "exp": Entry(
        lambda u, rate=1.0: jnp.exp(rate * u),
        lambda rate=1.0: ClosedForm(closed_forms.EXPONENTIAL, (float(rate), 0.0)),
        example={"rate": 0.5},
    ),
    "gaussian": Entry(
        lambda u, rate=1.0: jnp.exp(-rate * u * u),
        lambda rate=1.0: ClosedForm(closed_forms.GAUSSIAN, (float(rate),)),
    ),
    "gelu": _network(lambda u: jax.nn.gelu(u, approximate=False), lambda: GELU),
    "gelu_tanh": _series(gelu_tanh),
    "hard_sigmoid": _series(jax.nn.hard_sigmoid, -3.0, 3.0),
    "hard_swish": _series(jax.nn.hard_swish, -3.0, 3.0),
    "hard_tanh": _series(jax.nn.hard_tanh, -1.0, 1.0),
    "hermite": _family(_hermite_function, _hermite, example={"degree": 2}),
    "identity": _family(lambda u: u, lambda: Rectifier(1.0, -1.0), in_networks=True),
    "leaky_relu": _family(
        lambda u, slope=0.01: jax.nn.leaky_relu(u, slope),
        lambda slope=0.01: Rectifier(1.0, -float(slope)),
        in_networks=True,
    ),
    "mish": _series(jax.nn.mish),
    "monomial": _family(lambda u, degree: u**degree, _monomial, example={"degree": 2}),
    "normalized_exp": _family(
        lambda u, rate=1.0: jnp.exp(rate**0.5 * u - rate),
        lambda rate=1.0: ClosedForm(closed_forms.EXPONENTIAL, (math.sqrt(rate), -float(rate))),
        example={"rate": 0.25},
    ),
    "polynomial": _family(
        lambda u, coefficients: sum(c * u**i for i, c in enumerate(coefficients)),
        _polynomial,
        example={"coefficients": (0.3, 1.0, -0.2)},
    ),
    "rbf": _family(
        lambda u, gamma=1.0: 2**0.5 * jnp.sin((2 * gamma) ** 0.5 * u + math.pi / 4),
        lambda gamma=1.0: ClosedForm(closed_forms.RBF, (float(gamma),)),
    ),
    "rectified_monomial": _family(
        lambda u, order: jnp.where(u > 0, u**order, 0), _rectified_monomial, example={"order": 2}
    ),
    "rectifier": _family(
        lambda u, positive, negative: jnp.where(u > 0, positive * u, -negative * u),
        lambda positive, negative: Rectifier(float(positive), float(negative)),
        example={"positive": 1.0, "negative": 0.5},
    ),
    "relu": _family(jax.nn.relu, lambda: Rectifier(1.0, 0.0), in_networks=True),
    "relu6": _series(jax.nn.relu6, 6.0),
    "selu": _network(jax.nn.selu, lambda: SELU),
    "sigmoid": _network(
        jax.nn.sigmoid,
        lambda: Mixture(ERF, jax.nn.sigmoid, gain=0.5, rate=0.5**0.5, shift=0.5),
    ),
    "sign": _family(jnp.sign, lambda: Step(-1.0, 1.0)),
    "silu": _network(jax.nn.silu, lambda: Mixture(GELU, jax.nn.silu, power=1)),
    "sin": _network(jnp.sin, lambda: _sinusoid(1.0, 0.0)),
    "sinusoid": _family(
        lambda u, frequency=1.0, phase=0.0: jnp.sin(frequency * u + phase),
        lambda frequency=1.0, phase=0.0: _sinusoid(frequency, phase),
        example={"frequency": 1.5, "phase": 0.4},
    ),
    "softplus": _network(jax.nn.softplus, lambda: Mixture(SMOOTH_RELU, jax.nn.softplus, power=1)),
    "step": _family(lambda u: jnp.where(u > 0, 1.0, 0.0).astype(u.dtype), lambda: Step(0.0, 1.0)),
    "tanh": _network(jnp.tanh, lambda: Mixture(ERF, jnp.tanh, rate=2**0.5)),
}
CATALOGUE["swish"] = CATALOGUE["silu"]

ACTIVATIONS = {
    name: entry.function for name, entry in sorted(CATALOGUE.items()) if entry.in_networks
}
"""The functions that `MLP` knows by name."""

CLOSED_FORM_NAMES = tuple(sorted(name for name, e in CATALOGUE.items() if e.kinks is None))
SERIES_NAMES = tuple(sorted(name for name, e in CATALOGUE.items() if e.kinks is not None))


def dual_rule(activation: Any, **options: Any) -> DualRule:
    """The dual of an activation: a name with options, a rule, or a scalar function.

    A function is compared with those of the catalogue and their families at sample points, and a
    closed form must agree with its own series.

    Raises:
        ValueError: an unknown name or option, or something that is neither a name nor an
            elementwise function.
    """
    if isinstance(activation, DualRule):
        return activation
    if callable(activation):
        return _of_function(activation)
    check_option("activation", activation, sorted(CATALOGUE))
    try:
        return CATALOGUE[activation].rule(**options)
    except TypeError as error:
        raise ValueError(
            f"activation: expected the options of {activation!r}; got {sorted(options)}: {error}. "
            "Pass the function itself where an option is missing, as lambda u: jax.nn.elu(u, 2.0)."
        ) from error


def _of_function(phi: ScalarFunction) -> DualRule:
    phi = by_content(phi)
    return remembered(phi, "recognized", lambda: _recognized(phi)) or series_rule(phi)


def _recognized(phi: ScalarFunction) -> DualRule | None:
    compared = [CATALOGUE[name] for name in CLOSED_FORM_NAMES if not CATALOGUE[name].in_family]
    summed = [CATALOGUE[name] for name in SERIES_NAMES]
    known = [tuple((entry.rule, entry.function) for entry in part) for part in (compared, summed)]
    return recognize(phi, *known)
