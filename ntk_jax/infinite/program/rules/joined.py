"""Values joined along an infinite axis, as in densely connected networks: every operation acts on the parts."""

from types import SimpleNamespace
from typing import Any

import jax

from ntk_jax.infinite.program import algebra
from ntk_jax.infinite.program.interpreter import ELEMENTWISE, Interpreter, rule
from ntk_jax.infinite.program.refusal import NoLimitError
from ntk_jax.infinite.program.rules.parameters import cut
from ntk_jax.infinite.program.values import Det, Joined, Param, Wide


@rule("joined")
def joined(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """An operation with at least one joined operand."""
    name = eqn.primitive.name
    whole = next(v for v in values if isinstance(v, Joined))
    if any(isinstance(v, Joined) and (v.axis, v.sizes) != (whole.axis, whole.sizes) for v in values):
        raise NoLimitError("values joined in different places along an infinite axis meet,")
    if name in ELEMENTWISE:
        return [Joined(whole.axis, whole.sizes, _each(program, eqn, values, whole, whole.axis))]
    if name == "reduce_sum" and whole.axis in eqn.params["axes"]:
        return [_total(_each(program, eqn, values, whole, None))]
    if name in ("dot_general", "conv_general_dilated") and _contracted(eqn, values, whole):
        return [_total(_each(program, eqn, values, whole, None))]
    raise NoLimitError("values joined along an infinite axis go through an operation that has no rule for them,")


def _contracted(eqn: Any, values: list[Any], whole: Joined) -> bool:
    """Whether the joined axis is summed over with a weight."""
    if not any(isinstance(v, Param) for v in values):
        return False
    if eqn.primitive.name == "conv_general_dilated":
        return whole.axis == eqn.params["dimension_numbers"].lhs_spec[1] and eqn.params["feature_group_count"] == 1
    contract, _ = eqn.params["dimension_numbers"]
    return whole.axis in contract[0 if isinstance(values[0], Joined) else 1]


def _param_axis(eqn: Any, values: list[Any], at: int, whole: Joined) -> int | None:
    """Which axis of a parameter lies along the joined one."""
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        return int(eqn.params["dimension_numbers"].rhs_spec[1])
    if name == "dot_general":
        contract, _ = eqn.params["dimension_numbers"]
        return int(contract[at][list(contract[1 - at]).index(whole.axis)])
    rank = eqn.outvars[0].aval.ndim
    axis = whole.axis - (rank - len(values[at].shape))
    return axis if axis >= 0 and values[at].shape[axis] > 1 else None


def _each(program: Interpreter, eqn: Any, values: list[Any], whole: Joined, out_axis: int | None) -> list[Any]:
    results, start = [], 0
    for i, size in enumerate(whole.sizes):
        parts, avals = [], []
        for at, (v, var) in enumerate(zip(values, eqn.invars, strict=True)):
            shape = list(var.aval.shape)
            if isinstance(v, Joined):
                v = v.parts[i]
                shape[whole.axis] = size
            elif isinstance(v, Param):
                axis = _param_axis(eqn, values, at, whole)
                if axis is not None:
                    starts = [start if a == axis else 0 for a in range(len(shape))]
                    stops = [start + size if a == axis else s for a, s in enumerate(shape)]
                    v, shape[axis] = cut(v, starts, stops), size
            elif len(shape) > whole.axis and shape[whole.axis] > 1:
                if isinstance(v, Wide) or v.shape[whole.axis] > 1:
                    raise NoLimitError("a value meets one that is joined along an infinite axis,")
                shape[whole.axis] = size
            parts.append(v)
            avals.append(SimpleNamespace(aval=jax.ShapeDtypeStruct(tuple(shape), var.aval.dtype)))
        out = eqn.outvars[0].aval
        out_shape = tuple(size if a == out_axis else s for a, s in enumerate(out.shape))
        part = SimpleNamespace(
            primitive=eqn.primitive,
            params=eqn.params,
            invars=avals,
            outvars=[SimpleNamespace(aval=jax.ShapeDtypeStruct(out_shape, out.dtype))],
            source_info=eqn.source_info,
        )
        results.append(program.step(part, parts)[0])
        start += size
    return results


def _total(results: list[Any]) -> Any:
    total = results[0]
    for r in results[1:]:
        if isinstance(total, Det) and isinstance(r, Det):
            total = total.plus(r)
        elif isinstance(total, Det) or isinstance(r, Det):
            d, v = (total, r) if isinstance(total, Det) else (r, total)
            total = algebra.shifted(v, d, v.wide)
        else:
            total = algebra.added(total, r, total.wide)
    return total
