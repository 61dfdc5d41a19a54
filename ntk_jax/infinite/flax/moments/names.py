"""Activations by their graphs, as the interpreter writes them: known without evaluation."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ntk_jax.duals.catalogue import ACTIVATIONS
from ntk_jax.infinite.flax.values.expression import Expression, apply, constant, variable
from ntk_jax.infinite.flax.values.primitives import ADD, MUL
from ntk_jax.jaxprs import INNER, Eqn, evaluate, inner_jaxpr

SAME = ("convert_element_type", "copy", "stop_gradient")


def name_of(node: Expression) -> str | None:
    """The activation of that graph, or None: the same function may be written in other ways."""
    names = ("relu", *ACTIVATIONS)
    found = (n for d in (jnp.float32, jnp.float64) for n in names if _graph(n, d) is node)
    return next(found, None)


@lru_cache(maxsize=256)
def _graph(name: str, dtype: DTypeLike) -> Expression:
    return graph_of(ACTIVATIONS[name], dtype)


def graph_of(function: Callable[..., Any], dtype: DTypeLike) -> Expression:
    """The graph of an elementwise function of one array."""

    def step(eqn: Eqn, values: list[Expression]) -> list[Expression]:
        if eqn.primitive.name in INNER:
            jaxpr, consts = inner_jaxpr(eqn)
            return evaluate(jaxpr, list(map(number, consts)), values, step, constant=number)
        return [_applied(eqn, values)]

    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), dtype))
    consts = list(map(number, closed.consts))
    (graph,) = evaluate(closed.jaxpr, consts, [variable(0)], step, constant=number)
    return graph


def number(value: Any) -> Expression:
    """A constant of the trace."""
    return constant(float(value))


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
