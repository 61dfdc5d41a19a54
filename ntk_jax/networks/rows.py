"""A proof that rows of a batch do not meet, from two traces of a network with 3 and 4 rows.

Both programs are read side by side, and nothing is compiled. An axis that is 3 long in one and 4 in
the other is that of the rows. A value without it must be made alike in both, and of no rows; one
with it, by an operation that does the same to every row. "Not proved" says nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr

from ntk_jax.compat import Literal, is_concrete, scan_counts
from ntk_jax.jaxprs import (
    ELEMENTWISE,
    INNER,
    Atom,
    Eqn,
    inner_jaxpr,
    open_jaxpr,
    same_value,
    shape_of,
)

FEW, MORE = 3, 4
"""Rows of the two traces."""

Axis: TypeAlias = int | None
"""Which axis of a value has the rows."""


class _NotProvedError(Exception):
    """An operation may mix rows, or use their number."""


def rows_are_apart(few: ClosedJaxpr, more: ClosedJaxpr) -> bool:
    """Whether the results of `few` and `more`, rows in front, are proved to keep rows apart."""
    try:
        _programs((few.jaxpr, few.consts), (more.jaxpr, more.consts))
        outs = map(_axis, few.jaxpr.outvars, more.jaxpr.outvars)
        return all(axis == 0 for axis in outs)
    except _NotProvedError:
        return False


def _require(truth: bool) -> None:
    if not truth:
        raise _NotProvedError


def _axis(a: Atom, b: Atom) -> Axis:
    """The axis of the rows, which the shapes tell."""
    s, t = shape_of(a), shape_of(b)
    axes = [i for i, (few, more) in enumerate(zip(s, t, strict=False)) if few != more]
    _require(len(s) == len(t) and len(axes) <= 1)
    _require(not axes or (s[axes[0]], t[axes[0]]) == (FEW, MORE))
    return axes[0] if axes else None


def _programs(a: tuple[Any, list[Any]], b: tuple[Any, list[Any]]) -> None:
    """Both jaxprs, with their constants, do the same to every row."""
    (first, consts_a), (second, consts_b) = a, b
    _require(len(first.eqns) == len(second.eqns))
    _require(all(map(_same_const, consts_a, consts_b)))
    numbers: dict[Any, int] = {}

    def bind(us: Sequence[Any], vs: Sequence[Any]) -> None:
        _require(len(us) == len(vs))
        for u, v in zip(us, vs, strict=True):
            numbers[u] = numbers[v] = len(numbers)

    def check(us: Sequence[Any], vs: Sequence[Any]) -> None:
        _require(len(us) == len(vs))
        for u, v in zip(us, vs, strict=True):
            known = isinstance(u, Literal), isinstance(v, Literal)
            _require(known[0] == known[1])
            _require(same_value(u.val, v.val) if known[0] else numbers[u] == numbers[v])

    bind([*first.constvars, *first.invars], [*second.constvars, *second.invars])
    for e, f in zip(first.eqns, second.eqns, strict=True):
        _require(e.primitive is f.primitive)
        check(e.invars, f.invars)
        _equations(e, f)
        bind(e.outvars, f.outvars)
    check(first.outvars, second.outvars)


def _same_const(a: object, b: object) -> bool:
    if a is b:
        return True
    if not (isinstance(a, Array | np.ndarray) and isinstance(b, Array | np.ndarray)):
        return same_value(a, b)
    is_known = is_concrete(a) and is_concrete(b) and jnp.issubdtype(a.dtype, np.number)
    return is_known and same_value(np.asarray(a), np.asarray(b))


def _equations(e: Eqn, f: Eqn) -> None:
    """What the same equation of both programs does to rows."""
    name = e.primitive.name
    axes, outs = list(map(_axis, e.invars, f.invars)), list(map(_axis, e.outvars, f.outvars))
    if name in INNER:
        _programs(inner_jaxpr(e), inner_jaxpr(f))
    elif name == "scan":
        _require(all(axis != 0 for axis in axes[sum(scan_counts(e.params)) :]))
        _same_params(e, f, {"jaxpr"})
        _programs(open_jaxpr(e.params["jaxpr"]), open_jaxpr(f.params["jaxpr"]))
    else:
        _same_params(e, f, _SIZES)
        if any(axis is not None for axis in axes):
            # Rows come in and rows go out: they have not met.
            out = outs[0]
            _require(None not in outs and name in _RULES)
            _require(out is not None and _RULES[name](e, axes, out))
        elif any(axis is not None for axis in outs):
            counts = name == "iota" and e.params["dimension"] != outs[0]
            _require(name == "broadcast_in_dim" or counts)


def _same_params(e: Eqn, f: Eqn, but: set[str]) -> None:
    _require(e.params.keys() == f.params.keys())
    _require(all(k in but or same_value(v, f.params[k]) for k, v in e.params.items()))


def _reshape(e: Eqn, axes: list[Any], out: int) -> bool:
    before, after = shape_of(e.invars[0])[: axes[0]], shape_of(e.outvars[0])[:out]
    return e.params["dimensions"] is None and math.prod(before) == math.prod(after)


def _conv(e: Eqn, axes: list[Any], out: int) -> bool:
    numbers = e.params["dimension_numbers"]
    is_batch = axes == [numbers.lhs_spec[0], None] and out == numbers.out_spec[0]
    return is_batch and e.params["batch_group_count"] == 1


def _window(e: Eqn, axes: list[Any], out: int) -> bool:
    one = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    is_one = all(e.params[k][out] == 1 for k in one if k in e.params)
    return is_one and e.params["padding"][out] == (0, 0)


def _gather(e: Eqn, axes: list[Any], out: int) -> bool:
    (of_operand, of_indices), numbers = axes, e.params["dimension_numbers"]
    if of_indices == len(shape_of(e.invars[1])) - 1:
        return False
    if of_operand is None:
        return True
    if of_indices is None:
        return bool(e.params["slice_sizes"][of_operand] == FEW)
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    return (of_operand, of_indices) in pairs


def _along(parameter: str) -> Callable[[Eqn, list[Any], int], bool]:
    """Whether what is done along an axis, or several, is not done along that of the rows."""

    def apart(e: Eqn, axes: list[Any], out: int) -> bool:
        value = e.params[parameter]
        return out not in (value if isinstance(value, tuple) else (value,))

    return apart


# Parameters that hold sizes of results, which are compared by themselves.
_SIZES = {"shape", "new_sizes", "limit_indices", "slice_sizes", "sharding", "sizes"}

# Where a result has as many rows as the operands, each row of it is of one row, and of all alike.
_ALIKE = (
    *ELEMENTWISE,
    *"lgamma digamma stop_gradient copy copy_p reduce_precision real imag complex conj".split(),
    *"shift_left shift_right_logical shift_right_arithmetic".split(),
    *"transpose squeeze expand_dims split broadcast_in_dim concatenate stack unstack".split(),
    *"reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split(),
    *"dot_general tile slice dynamic_slice".split(),
)

# By name of an equation: whether each row of the first result is of one row, and of all alike.
_RULES: dict[str, Callable[[Eqn, list[Any], int], bool]] = {
    **dict.fromkeys(_ALIKE, lambda e, axes, out: True),
    "reshape": _reshape,
    "conv_general_dilated": _conv,
    "pad": lambda e, axes, out: e.params["padding_config"][out] == (0, 0, 0),
    "rev": _along("dimensions"),
    "sort": _along("dimension"),
    "gather": _gather,
    **{f"cum{kind}": _along("axis") for kind in ("sum", "prod", "max", "min", "logsumexp")},
    **{f"reduce_window{kind}": _window for kind in ("", "_sum", "_max", "_min")},
}
