"""From an elementwise function read off a trace to its dual: by the graph of an activation, or by
its values.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from ntk_jax.compat import outside_traces
from ntk_jax.duals.catalogue import ACTIVATIONS, dual_rule
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.duals.hermite_series.series import Series, series_rule
from ntk_jax.duals.scaled import Scaled
from ntk_jax.host import host_values
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.values.expression import (
    Expression,
    PartialDerivative,
    ScalarFunction,
    apply,
    constant,
    evaluate,
    nodes,
    variable,
)
from ntk_jax.infinite.flax.values.primitives import ADD, MUL
from ntk_jax.jaxprs import INNER, Eqn, inner_jaxpr
from ntk_jax.jaxprs import evaluate as evaluate_jaxpr

SAMPLES = np.concatenate(
    [np.linspace(-7.93, 7.97, 107), [-0.013, 0.007, 1e-3, -39.0, -21.0, -12.0, 12.0, 21.0, 39.0]]
)
POINTS = 4001  # at which a change of sign is looked for
COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne", "max", "min")
SAME = ("convert_element_type", "copy", "stop_gradient")
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
    if (name := _name_of(function.node)) is not None and isinstance(function, ScalarFunction):
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


def _name_of(node: Expression) -> str | None:
    """The activation of that graph, or None: the same function may be written in other ways."""
    names = ("relu", *ACTIVATIONS)
    found = (n for d in (jnp.float32, jnp.float64) for n in names if _graph(n, d) is node)
    return next(found, None)


@lru_cache(maxsize=256)
def _graph(name: str, dtype: DTypeLike) -> Expression:
    return _graph_of(ACTIVATIONS[name], dtype)


def _graph_of(function: Callable[..., Any], dtype: DTypeLike) -> Expression:
    """The graph of an elementwise function of one array."""

    def step(eqn: Eqn, values: list[Expression]) -> list[Expression]:
        if eqn.primitive.name in INNER:
            jaxpr, consts = inner_jaxpr(eqn)
            return evaluate_jaxpr(jaxpr, list(map(_number, consts)), values, step, constant=_number)
        return [_applied(eqn, values)]

    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), dtype))
    consts = list(map(_number, closed.consts))
    (graph,) = evaluate_jaxpr(closed.jaxpr, consts, [variable(0)], step, constant=_number)
    return graph


def _number(value: ArrayLike) -> Expression:
    """A constant of the trace."""
    return constant(float(np.asarray(value)))


def _applied(eqn: Eqn, values: list[Expression]) -> Expression:
    """One operation, its numbers where the interpreter has them."""
    name, (x, *others) = eqn.primitive.name, values
    if name in SAME:
        return x
    if name == "neg":
        return _times(x, -1.0)
    y = others[0] if others else x
    if name == "mul" and "constant" in (x.kind, y.kind):
        return _times(x, y.label) if y.kind == "constant" else _times(y, x.label)
    if name == "div" and y.kind == "constant":
        return _times(x, 1 / y.label)
    if name == "add" and "constant" in (x.kind, y.kind):
        return _plus(x, y.label) if y.kind == "constant" else _plus(y, x.label)
    if name == "sub" and y.kind == "constant":
        return _plus(x, -y.label)
    return apply(eqn.primitive, eqn.params, values)


def _times(x: Expression, by: float) -> Expression:
    if x.kind == "constant":
        return constant(x.label * by)
    if x.kind == "apply" and x.args[-1].kind == "constant":
        if x.label[0].name == "mul":
            return _times(x.args[0], x.args[1].label * by)
        if x.label[0].name == "add":
            return _plus(_times(x.args[0], by), x.args[1].label * by)
    return x if by == 1 else apply(*MUL, [x, constant(by)])


def _plus(x: Expression, by: float) -> Expression:
    if x.kind == "constant":
        return constant(x.label + by)
    return x if by == 0 else apply(*ADD, [x, constant(by)])


def _ratio(values: np.ndarray, known: np.ndarray) -> float:
    """By what number one must be multiplied to give the other, if by any."""
    at = int(np.argmax(np.where(np.abs(known) < 20, np.abs(known), 0)))
    scale = float(values[at] / known[at])
    return round(scale) if abs(scale - round(scale)) < 1e-6 else scale


@lru_cache(maxsize=256)
def multiple_of(function: object, of: object) -> tuple[float, float]:
    """(c, d) if a scalar function is c times the function `of`, or d times its derivative; 0 where
    it is not.
    """
    found, known = _values(function)[0], _values(of)
    ratios = [_ratio(found, values) if np.any(values) else 0.0 for values in known]
    alike = [np.allclose(found, r * v, 1e-6, 1e-6) for r, v in zip(ratios, known, strict=True)]
    c, d = (r if same else 0.0 for r, same in zip(ratios, alike, strict=True))
    return c, d


@lru_cache(maxsize=1)
def _named() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values and slopes of the activations that have a name."""
    return {name: _values(f) for name, f in ACTIVATIONS.items()}


@lru_cache(maxsize=256)
def series_of(function: Any) -> Series:
    """The series of a scalar function, with the kinks that its expression shows."""
    return outside_traces(_series_of, function)


def _series_of(function: Any) -> Series:
    return series_rule(function, tuple(c for c in _kinks(function.node, function) if c != 0.0))


def _values(f: Any) -> tuple[np.ndarray, np.ndarray]:
    with jax.numpy_dtype_promotion("standard"):
        value, slope = host_values(lambda z: jax.jvp(f, (z,), (jnp.ones_like(z),)), SAMPLES)
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
    """Where the one passes the other, or 0."""
    both = [a] if b is None else [a, b]
    leaves = [n for e in both for n in nodes(e) if n.kind in ("variable", "operand")]
    if any(n.kind == "operand" for n in leaves):
        return []
    count = 1 + max([main, *(n.label for n in leaves)])

    def difference(z: jax.Array) -> jax.Array:
        point = [z if i == main else jnp.zeros_like(z) for i in range(count)]
        first, *second = (jnp.asarray(evaluate(e, point), z.dtype) for e in both)
        return jnp.broadcast_to(first - second[0] if second else first, z.shape)

    def sign(z: np.ndarray) -> np.ndarray:
        return np.sign(host_values(difference, z))

    grid = np.linspace(-40.0137, 40.0191, POINTS)
    signs = sign(grid)
    passed = np.nonzero(signs[:-1] * signs[1:] < 0)[0]
    return [_where(sign, *grid[i : i + 2]) for i in passed]


def _where(sign: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """The place of the first change of sign between two."""
    for _ in range(4):
        z = np.linspace(low, high, POINTS)
        signs = sign(z)
        i = max(1, int(np.argmax(signs != signs[0])))
        low, high = z[i - 1], z[i]
    return 0.0 if abs(low) < 1e-9 else float((low + high) / 2)
