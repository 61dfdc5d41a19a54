"""From an elementwise function read off a trace to its dual."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import outside_traces
from ntk_jax.duals.catalogue import ACTIVATIONS, dual_rule
from ntk_jax.duals.dual_rule import DualRule, Scaled
from ntk_jax.duals.hermite_series.series import Series, series_rule
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.moments.names import name_of
from ntk_jax.infinite.flax.values.expression import (
    Expression,
    PartialDerivative,
    ScalarFunction,
    evaluate,
    nodes,
)

SAMPLES = np.concatenate(
    [np.linspace(-7.93, 7.97, 107), [-0.013, 0.007, 1e-3, -39.0, -21.0, -12.0, 12.0, 21.0, 39.0]]
)
COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne", "max", "min")
STEPPED = ("floor", "ceil", "round", "rem", "nextafter")


@lru_cache(maxsize=256)
def rule_of(function: Any) -> DualRule:
    """The dual of a scalar function: a closed form if one fits its values and its derivative, else
    a series.

    Raises:
        NoLimitError: the function is not smooth between countably many points that can be found.
    """
    return outside_traces(_rule_of, function)


def _rule_of(function: Any) -> DualRule:
    # Of most activations one graph tells the name, and nothing is evaluated.
    if (name := name_of(function.node)) is not None and isinstance(function, ScalarFunction):
        return dual_rule(name)
    values, slopes = _values(function)
    for name, (known, known_slopes) in _named().items():
        scale = _ratio(values, known)
        if scale and all(
            np.allclose(a, scale * b, rtol=1e-6, atol=1e-6)
            for a, b in ((values, known), (slopes, known_slopes))
        ):
            return dual_rule(name) if scale == 1 else Scaled(dual_rule(name), scale)
    rule = dual_rule(function)
    if rule.flat and np.any(slopes):
        raise NoLimitError(
            "a step with a derivative of its own (a straight-through gradient) has no rule,"
        )
    if not rule.exact or any(
        _kinks(function.node, function)
    ):  # closed forms have a kink at 0 at most
        return series_of(function)
    return rule


def _ratio(values: np.ndarray, known: np.ndarray) -> float:
    """By what number one must be multiplied to give the other, if by any."""
    at = int(np.argmax(np.where(np.abs(known) < 20, np.abs(known), 0)))
    scale = float(values[at] / known[at])
    return round(scale) if abs(scale - round(scale)) < 1e-6 else scale


@lru_cache(maxsize=1)
def _named() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values and slopes of the activations that have a name."""
    z = jnp.asarray(SAMPLES)
    with jax.numpy_dtype_promotion("standard"):
        both = jax.jit(
            lambda z: {n: jax.jvp(f, (z,), (jnp.ones_like(z),)) for n, f in ACTIVATIONS.items()}
        )(z)
    return {name: (np.asarray(v, float), np.asarray(s, float)) for name, (v, s) in both.items()}


@lru_cache(maxsize=256)
def series_of(function: Any) -> Series:
    """The series of a scalar function, with the kinks that its expression shows."""
    return outside_traces(_series_of, function)


def _series_of(function: Any) -> Series:
    return series_rule(function, tuple(c for c in _kinks(function.node, function) if c != 0.0))


def _values(f: Any) -> tuple[np.ndarray, np.ndarray]:
    z = jnp.asarray(SAMPLES)
    with jax.numpy_dtype_promotion("standard"):
        value, slope = jax.jit(lambda z: jax.jvp(f, (z,), (jnp.ones_like(z),)))(z)
    return np.asarray(value, float), np.asarray(slope, float)


def _kinks(node: Expression, function: Any) -> list[float]:
    """Where a comparison inside the expression changes its answer."""
    found: set[float] = set()
    main = function.main if isinstance(function, PartialDerivative) else 0
    for n in nodes(node):
        name = n.label[0].name if n.kind == "apply" else ""
        if name in STEPPED:
            raise NoLimitError(
                f"the nonlinearity `{name}` jumps at infinitely many points and has no dual here,"
            )
        gaps: list[tuple[Expression, Expression | None]] = []
        if name in COMPARISONS:
            gaps = [(n.args[0], n.args[1])]
        elif name == "clamp":
            low, x, high = n.args
            gaps = [(x, low), (x, high)]
        elif name in ("abs", "sign"):
            gaps = [(n.args[0], None)]
        for a, b in gaps:
            found.update(_roots(a, b, main))
    return sorted(round(c, 10) + 0.0 for c in found)


def _roots(a: Expression, b: Expression | None, main: int) -> list[float]:
    def gap(z):
        count = 1 + max(
            [
                main,
                *(
                    n.label
                    for e in (a, b)
                    if e is not None
                    for n in nodes(e)
                    if n.kind == "variable"
                ),
            ]
        )
        point = [
            jnp.asarray(z) if i == main else jnp.zeros_like(jnp.asarray(z)) for i in range(count)
        ]
        values = [
            np.asarray(jnp.broadcast_to(evaluate(e, point), np.shape(z)), float)
            for e in (a, b)
            if e is not None
        ]
        return values[0] - values[1] if len(values) == 2 else values[0]

    grid = np.linspace(-40.0137, 40.0191, 4001)
    if any(n.kind == "operand" for e in (a, b) if e is not None for n in nodes(e)):
        return []
    values = gap(grid)
    roots = []
    for i in np.nonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)[0]:
        low, high, sign = grid[i], grid[i + 1], np.sign(values[i])
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if np.sign(gap(np.asarray([middle]))[0]) == sign else (low, middle)
            )
        roots.append(0.0 if abs(low) < 1e-9 else float((low + high) / 2))
    return roots
