"""Elementwise functions read from a trace: a graph of primitives over variables, operands and
constants.

Equal graphs are one object, so that two layers with the same activation share its dual, and
compilation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
from jax import Array


class Expression:
    """A node: `kind` is "variable" or "operand" (`label` its number), "constant" (its value), or
    "apply" (primitive, params).
    """

    __slots__ = ("__weakref__", "args", "kind", "label")

    def __init__(self, kind: str, label: Any, args: tuple["Expression", ...] = ()):
        self.kind, self.label, self.args = kind, label, args


_NODES: WeakValueDictionary[Any, Expression] = WeakValueDictionary()


def _node(kind: str, label: Any, key: Any, args: tuple[Expression, ...] = ()) -> Expression:
    full = (kind, key, tuple(map(id, args)))
    found = _NODES.get(full)
    if found is None:
        found = _NODES[full] = Expression(kind, label, args)
    return found


def variable(i: int) -> Expression:
    """The i-th Gaussian."""
    return _node("variable", i, i)


def operand(i: int) -> Expression:
    """The i-th deterministic array."""
    return _node("operand", i, i)


def constant(value: Any) -> Expression:
    """A Python number."""
    return _node("constant", value, (type(value), value))


def apply(primitive: Any, params: dict[str, Any], args: Sequence[Expression]) -> Expression:
    """One elementwise primitive."""
    items = tuple(sorted(params.items(), key=lambda item: item[0]))
    key: Any = (primitive, items)
    try:
        hash(key)
    except TypeError:
        key = (primitive, repr(items))
    return _node("apply", (primitive, params), key, tuple(args))


def substitute(
    node: Expression, variables: Sequence[Expression], operands: Sequence[Expression] = ()
) -> Expression:
    """The same function of other variables and operands."""
    memo: dict[Expression, Expression] = {}

    def visit(n):
        if n not in memo:
            if n.kind == "variable":
                memo[n] = variables[n.label]
            elif n.kind == "operand":
                memo[n] = operands[n.label] if operands else n
            elif n.kind == "constant":
                memo[n] = n
            else:
                memo[n] = apply(*n.label, [visit(a) for a in n.args])
        return memo[n]

    return visit(node)


def nodes(node: Expression) -> list[Expression]:
    """All nodes below and including this one, each once, arguments first."""
    found: dict[Expression, None] = {}

    def visit(n):
        if n not in found:
            for a in n.args:
                visit(a)
            found[n] = None

    visit(node)
    return list(found)


def evaluate(
    node: Expression, variables: Sequence[Any], operands: Sequence[Any] = (), dtype: Any = None
) -> Array:
    """The value at broadcastable arrays; floats are of one dtype."""
    dtype = dtype or jnp.result_type(*variables)
    values: dict[Expression, Any] = {}
    for n in nodes(node):
        if n.kind == "apply":
            primitive, params = n.label
            values[n] = bind_elementwise(primitive, params, [values[a] for a in n.args], dtype)
        else:
            values[n] = (
                {"variable": variables, "operand": operands}[n.kind][n.label]
                if n.kind != "constant"
                else n.label
            )
    return jnp.asarray(values[node], dtype if node.kind == "constant" else None)


def bind_elementwise(
    primitive: Any, params: dict[str, Any], args: Sequence[Any], dtype: Any
) -> Array:
    """One elementwise primitive at broadcastable arrays and Python numbers, with floats in
    `dtype`.
    """
    name = primitive.name
    integral = name == "convert_element_type" and not jnp.issubdtype(
        params["new_dtype"], jnp.floating
    )
    if name in ("convert_element_type", "reduce_precision", "copy", "copy_p"):
        return jnp.asarray(args[0]).astype(params["new_dtype"] if integral else dtype)
    arrays = [_typed(a, dtype) for a in args]
    kinds = [a.dtype for i, a in enumerate(arrays) if not (name == "select_n" and i == 0)]
    if any(jnp.issubdtype(k, jnp.floating) for k in kinds):
        arrays = [
            a if name == "select_n" and i == 0 else a.astype(dtype) for i, a in enumerate(arrays)
        ]
    shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
    out: Array = primitive.bind(*(jnp.broadcast_to(a, shape) for a in arrays), **params)
    return out.astype(dtype) if jnp.issubdtype(out.dtype, jnp.floating) else out


def _typed(a: Any, dtype: Any) -> Array:
    if isinstance(a, float):
        return jnp.asarray(a, dtype)
    return jnp.asarray(a)


@dataclass(frozen=True)
class ScalarFunction:
    """An expression of one variable without operands, as a function of arrays; hashable, equal by
    its graph.
    """

    node: Expression

    def __call__(self, z: Array) -> Array:
        """The value at each entry."""
        return jnp.broadcast_to(evaluate(self.node, [z]), z.shape)


@dataclass(frozen=True)
class PartialDerivative:
    """d f / d v_wrt at (z, 0, .., 0), with z in place of the variable `main`."""

    node: Expression
    num_variables: int
    main: int
    wrt: int

    def __call__(self, z: Array) -> Array:
        """The value at each entry."""
        zero = jnp.zeros_like(z)
        point = [z if i == self.main else zero for i in range(self.num_variables)]
        tangent = [jnp.ones_like(z) if i == self.wrt else zero for i in range(self.num_variables)]
        f = partial(_full, self.node, z.shape)
        return jax.jvp(f, tuple(point), tuple(tangent))[1]


def _full(node, shape, *variables):
    return jnp.broadcast_to(evaluate(node, variables), shape)


Scalar = Callable[[Array], Array]
