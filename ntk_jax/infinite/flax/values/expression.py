"""Elementwise functions read from a trace: a graph of primitives over variables, operands and
constants.

Equal graphs are one object, so that two layers with the same activation share its dual, and
compilation.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.typing import ArrayLike

from ntk_jax.compat import in_dtype
from ntk_jax.infinite.flax.values.deterministic import Number, Shape

PrimitiveParams = dict[str, Any]


class Expression:
    """A node: `kind` is "variable" or "operand" (`label` its number), "constant" (its value), or
    "apply" (primitive, params).
    """

    __slots__ = ("__weakref__", "args", "kind", "label")

    def __init__(self, kind: str, label: Any, args: tuple["Expression", ...] = ()):
        self.kind, self.label, self.args = kind, label, args


# Weak: what no model uses any more goes, with the duals that are kept by it.
_NODES: WeakValueDictionary[Hashable, Expression] = WeakValueDictionary()


def _node(kind: str, label: Any, key: Hashable, args: tuple[Expression, ...] = ()) -> Expression:
    full = (kind, key, tuple(map(id, args)))
    found = _NODES.get(full) or Expression(kind, label, args)
    _NODES[full] = found
    return found


def variable(i: int) -> Expression:
    """The i-th Gaussian."""
    return _node("variable", i, i)


def operand(i: int) -> Expression:
    """The i-th deterministic array."""
    return _node("operand", i, i)


def constant(value: Number) -> Expression:
    """A Python number."""
    return _node("constant", value, (type(value), value))


def apply(primitive: Primitive, params: PrimitiveParams, args: Sequence[Expression]) -> Expression:
    """One elementwise primitive."""
    items = tuple(sorted(params.items(), key=lambda item: item[0]))
    # Parameters that cannot be hashed are compared as they are printed.
    key: Hashable = (primitive, items)
    try:
        hash(key)
    except TypeError:
        key = (primitive, repr(items))
    return _node("apply", (primitive, params), key, tuple(args))


def substitute(
    node: Expression, variables: Sequence[Expression], operands: Sequence[Expression] = ()
) -> Expression:
    """The same function of other variables and operands."""
    found: dict[Expression, Expression] = {}
    for n in nodes(node):
        if n.kind == "apply":
            primitive, params = n.label
            found[n] = apply(primitive, params, [found[a] for a in n.args])
        elif n.kind == "variable":
            found[n] = variables[n.label]
        else:
            found[n] = operands[n.label] if n.kind == "operand" and operands else n
    return found[node]


def nodes(node: Expression) -> list[Expression]:
    """All nodes below and including this one, each once, arguments first."""
    found: dict[Expression, None] = {}

    def visit(n: Expression) -> None:
        if n not in found:
            for a in n.args:
                visit(a)
            found[n] = None

    visit(node)
    return list(found)


def evaluate(
    node: Expression,
    variables: Sequence[ArrayLike],
    operands: Sequence[ArrayLike] = (),
    dtype: np.dtype | None = None,
) -> jax.Array:
    """The value at broadcastable arrays; floats are of one dtype."""
    dtype = dtype or jnp.result_type(*variables)
    leaves = {"variable": variables, "operand": operands}
    values: dict[Expression, ArrayLike] = {}
    for n in nodes(node):
        if n.kind == "apply":
            primitive, params = n.label
            values[n] = bind_elementwise(primitive, params, [values[a] for a in n.args], dtype)
        else:
            values[n] = n.label if n.kind == "constant" else leaves[n.kind][n.label]
    return jnp.asarray(values[node], dtype if node.kind == "constant" else None)


def bind_elementwise(
    primitive: Primitive, params: PrimitiveParams, args: Sequence[ArrayLike], dtype: np.dtype
) -> jax.Array:
    """One elementwise primitive at broadcastable arrays and Python numbers, with floats in
    `dtype`.
    """
    name = primitive.name
    floating = lambda a: jnp.issubdtype(a, jnp.floating)
    if name in ("convert_element_type", "reduce_precision", "copy", "copy_p"):
        integral = name == "convert_element_type" and not floating(params["new_dtype"])
        return in_dtype(_array(args[0], None), params["new_dtype"] if integral else dtype)
    arrays = [_array(a, dtype if isinstance(a, float) else None) for a in args]
    chosen = 1 if name == "select_n" else 0  # the first operand of a choice stays what it is
    if any(floating(a.dtype) for a in arrays[chosen:]):
        arrays = [*arrays[:chosen], *(in_dtype(a, dtype) for a in arrays[chosen:])]
    shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
    whole = (a if a.shape == shape else jnp.broadcast_to(a, shape) for a in arrays)
    out: jax.Array = primitive.bind(*whole, **params)
    return in_dtype(out, dtype) if floating(out.dtype) else out


def _array(value: ArrayLike, dtype: np.dtype | None) -> jax.Array:
    """Of JAX: one is not asked again, which takes longer than what is done with it."""
    return value if isinstance(value, jax.Array) else jnp.asarray(value, dtype)


@dataclass(frozen=True)
class ScalarFunction:
    """An expression of one variable without operands, as a function of arrays; hashable, equal by
    its graph.
    """

    node: Expression

    def __call__(self, z: jax.Array) -> jax.Array:
        """The value at each entry."""
        return jnp.broadcast_to(evaluate(self.node, [z]), z.shape)


@dataclass(frozen=True)
class PartialDerivative:
    """d f / d v_wrt at (z, 0, .., 0), with z in place of the variable `main`."""

    node: Expression
    num_variables: int
    main: int
    wrt: int

    def __call__(self, z: jax.Array) -> jax.Array:
        """The value at each entry."""
        zero = jnp.zeros_like(z)
        point = [z if i == self.main else zero for i in range(self.num_variables)]
        tangent = [jnp.ones_like(z) if i == self.wrt else zero for i in range(self.num_variables)]
        f = partial(_full, self.node, z.shape)
        return jax.jvp(f, tuple(point), tuple(tangent))[1]


Function: TypeAlias = ScalarFunction | PartialDerivative


def _full(node: Expression, shape: Shape, *variables: jax.Array) -> jax.Array:
    return jnp.broadcast_to(evaluate(node, variables), shape)
