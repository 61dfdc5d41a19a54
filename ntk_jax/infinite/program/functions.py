"""From an elementwise function read off a trace to its dual."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.activations import CLOSED_FORMS, NUMERICAL, dual_rule, series_rule
from ntk_jax.infinite.dual import DualRule
from ntk_jax.infinite.program.expression import Expression, PartialDerivative, ScalarFunction, evaluate, nodes
from ntk_jax.infinite.program.refusal import NoLimitError
from ntk_jax.infinite.rectifiers import Step
from ntk_jax.infinite.series import Series
from ntk_jax.networks import ACTIVATIONS

SAMPLES = np.concatenate([np.linspace(-7.93, 7.97, 107), [-0.013, 0.007, 1e-3]])
COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne", "max", "min")
STEPPED = ("floor", "ceil", "round", "rem", "nextafter")


@lru_cache(maxsize=256)
def rule_of(function: Any) -> DualRule:
    """The dual of a scalar function: a closed form if one fits its values and its derivative, else a series.

    Raises:
        NoLimitError: the function is not smooth between countably many points that can be found.
    """
    with jax.ensure_compile_time_eval():
        for name, kinks in NUMERICAL.items():
            if name not in CLOSED_FORMS and _equal(function, ACTIVATIONS[name]):
                return series_rule(ACTIVATIONS[name], kinks)
        rule = dual_rule(function)
        if isinstance(rule, Step) and np.any(_values(function)[1]):
            raise NoLimitError("a step with a derivative of its own (a straight-through gradient) has no rule,")
        return series_of(function) if isinstance(rule, Series) else rule


@lru_cache(maxsize=256)
def series_of(function: Any) -> Series:
    """The series of a scalar function, with the kinks that its expression shows."""
    with jax.ensure_compile_time_eval():
        kinks = tuple(c for c in _kinks(function.node, function) if c != 0.0)
        return series_rule(function, kinks)


def _equal(f: Any, g: Any) -> bool:
    """Whether two functions have the same values and derivatives at the sample points."""
    return all(np.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(_values(f), _values(g), strict=True))


@lru_cache(maxsize=512)
def _values(f: Any) -> tuple[np.ndarray, np.ndarray]:
    z = jnp.asarray(SAMPLES)
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        value, slope = jax.jvp(f, (z,), (jnp.ones_like(z),))
    return np.asarray(value, float), np.asarray(slope, float)


def _kinks(node: Expression, function: Any) -> list[float]:
    """Where a comparison inside the expression changes its answer."""
    found: set[float] = set()
    main = function.main if isinstance(function, PartialDerivative) else 0
    for n in nodes(node):
        name = n.label[0].name if n.kind == "apply" else ""
        if name in STEPPED:
            raise NoLimitError(f"the nonlinearity `{name}` jumps at infinitely many points and has no dual here,")
        gaps = []
        if name in COMPARISONS:
            gaps = [tuple(n.args)]
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
        count = 1 + max([main, *(n.label for e in (a, b) if e is not None for n in nodes(e) if n.kind == "variable")])
        point = [jnp.asarray(z) if i == main else jnp.zeros_like(jnp.asarray(z)) for i in range(count)]
        values = [np.asarray(jnp.broadcast_to(evaluate(e, point), np.shape(z)), float) for e in (a, b) if e is not None]
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
            low, high = (middle, high) if np.sign(gap(np.asarray([middle]))[0]) == sign else (low, middle)
        roots.append(0.0 if abs(low) < 1e-9 else float((low + high) / 2))
    return roots


def scalar_function(node: Expression) -> ScalarFunction:
    """The function of an expression of one variable."""
    return ScalarFunction(node)
