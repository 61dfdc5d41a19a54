"""Values joined along an infinite axis, as in densely connected networks: every operation acts on
the parts.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.joining import side_by_side, with_size
from ntk_jax.infinite.flax.layouts import axis_groups
from ntk_jax.infinite.flax.parameter_views import cut_of_each
from ntk_jax.infinite.flax.values import ELEMENTWISE, Det, Joined, Param, Part, Shape, Value, Wide
from ntk_jax.jaxprs import Eqn, dtype_of, new_variables, shape_of

NO_RULE = "values joined along an infinite axis go through an operation that has no rule for them,"


@rule("joined")
def joined(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> Sequence[Value]:
    """An operation with at least one joined operand."""
    name = eqn.primitive.name
    whole = next(v for v in values if isinstance(v, Joined))
    if name == "concatenate" and eqn.params["dimension"] == whole.axis and whole.repeats == 1:
        return [side_by_side(values, whole.axis, [shape_of(a) for a in eqn.invars])]
    if any(isinstance(v, Joined) and v.places != whole.places for v in values):
        raise NoLimitError("values joined in different places along an infinite axis meet,")
    if name in ELEMENTWISE or name == "concatenate":
        return [_rejoined(whole, whole.axis, _each(program, eqn, values, whole, whole.axis))]
    if name in ("slice", "split") and (found := _whole_parts(eqn, whole)) is not None:
        return found
    if name == "reduce_sum" and whole.axis in eqn.params["axes"]:
        return [_total(_each(program, eqn, values, whole, None))]
    if name in ("dot_general", "conv_general_dilated") and _contracted(eqn, values, whole):
        return [_total(_each(program, eqn, values, whole, None))]
    axis, repeats = _moved(eqn, values, whole)
    parts = _each(program, eqn, values, whole, axis, repeats)
    return [_rejoined(whole, axis, parts, repeats)]


def _rejoined(
    whole: Joined, axis: int, parts: Sequence[Part], repeats: int | None = None
) -> Joined:
    repeats = repeats or whole.repeats
    sizes = tuple(size * repeats // whole.repeats for size in whole.sizes)
    return Joined(axis, sizes, list(parts), repeats)


def _contracted(eqn: Eqn, values: Sequence[Value], whole: Joined) -> bool:
    """Whether the joined axis is summed over: with a weight, or with another value that is joined
    in the same places.
    """
    if eqn.primitive.name == "conv_general_dilated":
        channel = eqn.params["dimension_numbers"].lhs_spec[1]
        return (
            isinstance(values[1], Param)
            and whole.axis == channel
            and eqn.params["feature_group_count"] == 1
        )
    contract, _ = eqn.params["dimension_numbers"]
    if all(isinstance(v, Joined) for v in values):
        return (whole.axis, whole.axis) in zip(*contract, strict=True)
    at = 0 if isinstance(values[0], Joined) else 1
    return isinstance(values[1 - at], Param) and whole.axis in contract[at]


def _moved(eqn: Eqn, values: Sequence[Value], whole: Joined) -> tuple[int, int]:
    """Where the joined axis is after an operation that leaves it whole, and how often the parts
    take turns along it.
    """
    name, p, axis = eqn.primitive.name, eqn.params, whole.axis
    if name == "transpose":
        return p["permutation"].index(axis), whole.repeats
    if name == "broadcast_in_dim":
        return p["broadcast_dimensions"][axis], whole.repeats
    if name == "reduce_sum":
        return axis - sum(a < axis for a in p["axes"]), whole.repeats
    if name in ("reshape", "squeeze", "expand_dims"):
        return _regrouped(eqn, whole)
    of_params = isinstance(whole.parts[0], Param)
    if name == "dot_general" and (of_params or any(isinstance(v, Det) for v in values)):
        return _left_over(eqn, 0 if values[0] is whole else 1, axis), whole.repeats
    untouched = {
        "slice": lambda: (
            (p["start_indices"][axis], p["limit_indices"][axis]) == (0, sum(whole.sizes))
        ),
        "pad": lambda: tuple(p["padding_config"][axis]) == (0, 0, 0),
        "reduce_window_sum": lambda: (
            p["window_dimensions"][axis] == 1 and p["window_strides"][axis] == 1
        ),
        "cumsum": lambda: p["axis"] != axis,
        "rev": lambda: axis not in p["dimensions"],
    }
    if name in untouched and untouched[name]():
        return axis, whole.repeats
    raise NoLimitError(NO_RULE)


def _regrouped(eqn: Eqn, whole: Joined) -> tuple[int, int]:
    """A reshape that keeps the joined axis, or lists it for every position: then the parts take
    turns.
    """
    old, new = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    before, after = next((b, a) for b, a, _ in axis_groups(old, new) if whole.axis in b)
    before = [a for a in before if old[a] > 1]
    after = [a for a in after if new[a] > 1]
    if len(after) != 1 or before[-1] != whole.axis:
        raise NoLimitError(NO_RULE)
    return after[0], whole.repeats * math.prod(old[a] for a in before[:-1])


def _left_over(eqn: Eqn, at: int, axis: int) -> int:
    """Where an axis of operand `at` is in the result of a product that does not contract it."""
    contract, batch = eqn.params["dimension_numbers"]
    if axis in contract[at] or axis in batch[at]:
        raise NoLimitError(NO_RULE)
    free = [
        [a for a in range(len(shape_of(v))) if a not in c and a not in b]
        for v, c, b in zip(eqn.invars, contract, batch, strict=True)
    ]
    return len(batch[0]) + (len(free[0]) if at == 1 else 0) + free[at].index(axis)


def _whole_parts(eqn: Eqn, whole: Joined) -> list[Value] | None:
    """Cuts along the joined axis, None for cuts along others; only between parts."""
    p, axis = eqn.params, whole.axis
    if eqn.primitive.name == "split":
        if p["axis"] != axis:
            raise NoLimitError(NO_RULE)
        stops = [sum(p["sizes"][: i + 1]) for i in range(len(p["sizes"]))]
        bounds = list(zip([0, *stops], stops, strict=False))
    else:
        bounds = [(p["start_indices"][axis], p["limit_indices"][axis])]
        others = [a for a in range(len(p["start_indices"])) if a != axis]
        full = shape_of(eqn.invars[0])
        if bounds == [(0, full[axis])] and (p["strides"] is None or p["strides"][axis] == 1):
            return None
        if any((p["start_indices"][a], p["limit_indices"][a]) != (0, full[a]) for a in others):
            raise NoLimitError(
                "a finite and an infinite axis are cut at once,", "Cut one after the other."
            )
    edges = [sum(whole.sizes[:i]) for i in range(len(whole.sizes) + 1)]
    if (
        whole.repeats > 1
        or set(p.get("strides") or (1,)) != {1}
        or any(b not in edges for ab in bounds for b in ab)
    ):
        raise NoLimitError(
            "values joined along an infinite axis are cut elsewhere than between each other,"
        )
    chosen = [(edges.index(start), edges.index(stop)) for start, stop in bounds]
    return [
        whole.parts[i] if j == i + 1 else Joined(axis, whole.sizes[i:j], whole.parts[i:j])
        for i, j in chosen
    ]


def _param_axis(eqn: Eqn, param: Param, at: int, whole: Joined) -> int | None:
    """Which axis of a parameter, operand number `at`, lies along the joined one."""
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        return int(eqn.params["dimension_numbers"].rhs_spec[1])
    if name == "dot_general":
        contract, _ = eqn.params["dimension_numbers"]
        return int(contract[at][list(contract[1 - at]).index(whole.axis)])
    axis = whole.axis - (len(shape_of(eqn.outvars[0])) - len(param.shape))
    return axis if axis >= 0 and param.shape[axis] > 1 else None


def _each(
    program: Interpreter,
    eqn: Eqn,
    values: Sequence[Value],
    whole: Joined,
    out_axis: int | None,
    repeats: int | None = None,
) -> list[Part]:
    """The results for all parts: the equation with the joined axis as long as each part is."""
    results: list[Part] = []
    start = 0
    for i, size in enumerate(whole.sizes):
        operands = [_operand(eqn, values, at, whole, i, start) for at in range(len(values))]
        out_size = size * (repeats or whole.repeats) // whole.repeats
        out = with_size(shape_of(eqn.outvars[0]), out_axis, out_size)
        shapes = [*(shape for _, shape in operands), out]
        dtypes = [dtype_of(v) for v in [*eqn.invars, *eqn.outvars]]
        variables = new_variables(shapes, dtypes)
        params = _params(eqn, whole, size, out_axis)
        part = eqn.replace(invars=[*variables[:-1]], outvars=variables[-1:], params=params)
        (result,) = program.step(part, [v for v, _ in operands])
        results.append(cast(Part, result))
        start += size
    return results


def _operand(
    eqn: Eqn, values: Sequence[Value], at: int, whole: Joined, i: int, start: int
) -> tuple[Value, Shape]:
    """Operand number `at` next to part i, whose entries begin at `start`, and its full shape."""
    v, shape, size = values[at], shape_of(eqn.invars[at]), whole.sizes[i]
    if isinstance(v, Joined):
        return v.parts[i], with_size(shape, whole.axis, size)
    if isinstance(v, Param):
        axis = _param_axis(eqn, v, at, whole)
        if axis is None:
            return v, shape
        return cut_of_each(v, axis, start, size, whole.repeats), with_size(shape, axis, size)
    if not _beside(eqn, shape, whole):
        return v, shape
    if not isinstance(v, Det) or v.shape[whole.axis] > 1:
        raise NoLimitError("a value meets one that is joined along an infinite axis,")
    return v, with_size(shape, whole.axis, size)


def _beside(eqn: Eqn, shape: Shape, whole: Joined) -> bool:
    """Whether another operand has an axis of units next to the joined one."""
    beside = eqn.primitive.name in ELEMENTWISE or eqn.primitive.name == "concatenate"
    return beside and len(shape) > whole.axis and shape[whole.axis] > 1


def _params(eqn: Eqn, whole: Joined, size: int, out_axis: int | None) -> dict[str, Any]:
    """The parameters of an equation with the joined axis of another length."""
    p, name = eqn.params, eqn.primitive.name
    if name == "slice":
        return {**p, "limit_indices": with_size(p["limit_indices"], whole.axis, size)}
    if name == "broadcast_in_dim":
        return {**p, "shape": with_size(p["shape"], out_axis, size)}
    return p


def _total(results: Sequence[Part]) -> Wide | Det:
    return reduce(_sum, cast(Sequence[Wide | Det], results))


def _sum(x: Wide | Det, y: Wide | Det) -> Wide | Det:
    total = algebra.sum_of(x, y, (x if isinstance(x, Wide) else y).wide)
    if isinstance(x, Det) and isinstance(y, Det) and isinstance(total, Det):
        # Inner products that wait for a division by their width: by that of all parts together.
        total.pending = (x.pending or 0) + (y.pending or 0) or None
    return total
