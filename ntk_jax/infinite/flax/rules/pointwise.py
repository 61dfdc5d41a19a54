"""Entry by entry: sums stay sums, everything else becomes one function of independent Gaussians."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, check_pending, deterministic, rule
from ntk_jax.infinite.flax.products import product
from ntk_jax.infinite.flax.rules import sampled
from ntk_jax.infinite.flax.rules.attention import settled
from ntk_jax.infinite.flax.rules.parameters import inverse, param_arithmetic, promoted
from ntk_jax.infinite.flax.values.values import (
    Det,
    Param,
    Wide,
    joint_wide,
    number,
    static_det,
    with_view,
)

SAME = ("copy", "reduce_precision")


@rule("elementwise")
def elementwise(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """Any elementwise primitive with at least one random operand."""
    name = eqn.primitive.name
    check_pending(eqn, values)
    out = eqn.outvars[0].aval
    if name in SAME or (name == "convert_element_type" and _float_to_float(eqn)):
        return [values[0]]
    values = _ranked(values, out.ndim)
    if any(isinstance(v, Param) for v in values):
        view = param_arithmetic(name, values)
        if view is not None:
            return [view]
        values = promoted(program, eqn, _regrouped(name, values))
        if not any(isinstance(v, Wide) for v in values):
            return deterministic(program, eqn, values)
    values = [_fit(v, values) for v in values]
    wide = _wide(values, out.shape)
    found = _linear(name, values, wide)
    if found is not None:
        return [settled(program, found)]
    wides = [v for v in values if isinstance(v, Wide)]
    sampling = program.moments.sampling is not None
    if name == "mul" and len(wides) == 2:
        result = product(wides[0], wides[1], wide, program.moments)
        if result.terms is None and sampling:
            result.terms = sampled.elementwise(program, eqn, values, wide).terms
        return [result]
    squared = name == "square" or (name == "integer_pow" and eqn.params["y"] == 2)
    if squared and wides[0].terms is not None:
        try:
            result = algebra.function(eqn.primitive, eqn.params, values, wide, program.moments)
        except NoLimitError:
            result = (
                sampled.elementwise(program, eqn, values, wide)
                if sampling
                else Wide(wides[0].shape, wide, None)
            )
        result.product = (wides[0], wides[0])
        return [result]
    try:
        return [algebra.function(eqn.primitive, eqn.params, values, wide, program.moments)]
    except NoLimitError:
        if not sampling:
            raise
        return [sampled.elementwise(program, eqn, values, wide)]


def _regrouped(name: str, values: list[Any]) -> list[Any]:
    """x (d p) as (x d) p: a Gaussian times a deterministic value is one, and what follows stays a
    function of it alone.
    """
    if name != "mul" or len(values) != 2:
        return values
    value, param = values if isinstance(values[1], Param) else values[::-1]
    if not isinstance(value, Wide) or not isinstance(param, Param) or param.factor is None:
        return values
    factor = _fit(param.factor, [value])
    return [algebra.scaled(value, factor, value.wide), with_view(param, factor=None)]


def _float_to_float(eqn: Any) -> bool:
    return all(
        jnp.issubdtype(t, jnp.floating) for t in (eqn.invars[0].aval.dtype, eqn.params["new_dtype"])
    )


def _ranked(values: list[Any], rank: int) -> list[Any]:
    """Numbers get axes of size 1."""
    return [
        number(v.literal, rank) if isinstance(v, Det) and v.literal is not None else v
        for v in values
    ]


def _fit(value: Any, values: list[Any]) -> Any:
    """A deterministic operand must be constant along wide axes."""
    if not isinstance(value, Det):
        return value
    wide = np.max([v.wide for v in values if isinstance(v, Wide)], axis=0)
    if len(value.shape) != len(wide):
        return value
    axes = tuple(a for a, w in enumerate(wide) if w > 1 and value.shape[a] > 1)
    if not axes:
        return value
    array = np.asarray(value.sides[0]) if value.static else None
    if array is None or np.any(np.ptp(array, axis=axes)):
        raise NoLimitError(
            "a fixed array that differs along an infinite axis meets a wide value (trained batch "
            "statistics, a sinusoidal "
            "embedding, the raw input added to a hidden layer): its units are not alike,",
            "Use the statistics of initialization, or embed the input by a linear layer first.",
        )
    at = tuple(slice(0, 1) if a in axes else slice(None) for a in range(array.ndim))
    fitted = static_det(array[at])
    return Det(
        fitted.sides,
        tuple(
            int(w) if a in axes else v
            for a, (w, v) in enumerate(zip(wide, value.wide, strict=True))
        ),
        fitted.literal,
        True,
    )


def _wide(values: list[Any], full: tuple[int, ...]) -> tuple[int, ...]:
    """The multiplicities of the result; a random value shared by the units of a wide axis has no
    limit.
    """
    wides = [v for v in values if isinstance(v, Wide)]
    out = tuple(int(w) for w in np.max([v.wide for v in wides], axis=0))
    for v in wides:
        for a, w in enumerate(out):
            if w > 1 and v.wide[a] != w:
                raise NoLimitError(
                    f"a random value of length {v.wide[a] * v.shape[a]} along an axis meets a wide "
                    f"one of length {w}: all "
                    "units would share it, and no average over them is deterministic,"
                )
    stored = np.broadcast_shapes(*(v.shape for v in values))
    if any(s * w != f for s, w, f in zip(stored, out, full, strict=True) if w > 1):
        raise NoLimitError("an infinite axis is repeated,")
    return out


def _linear(name: str, values: list[Any], wide: tuple[int, ...]) -> Wide | None:
    """Sums, and products with deterministic values."""
    if name == "neg":
        return algebra.scaled(values[0], number(-1.0, len(wide)), wide)
    if name in ("add", "add_any", "sub"):
        x, y = values
        if name == "sub":
            y = (
                y.times(number(-1.0, len(wide)))
                if isinstance(y, Det)
                else algebra.scaled(y, number(-1.0, len(wide)), wide)
            )
        if isinstance(x, Wide) and isinstance(y, Wide):
            return algebra.added(x, y, wide)
        v, d = (x, y) if isinstance(x, Wide) else (y, x)
        return algebra.shifted(v, d, wide)
    if name == "mul" and sum(isinstance(v, Wide) for v in values) == 1:
        v, d = values if isinstance(values[0], Wide) else values[::-1]
        return algebra.scaled(v, d, wide)
    if name == "div" and isinstance(values[1], Det):
        return algebra.scaled(values[0], inverse(values[1]), wide)
    if name == "select_n" and isinstance(values[0], Det) and len(values) == 3:
        return _selected(values[0], values[1], values[2], wide)
    return None


def _selected(which: Det, no: Any, yes: Any, wide: tuple[int, ...]) -> Wide:
    """A choice by a deterministic mask: no (1 - mask) + yes mask."""
    total: Any = None
    for value, chosen in ((yes, True), (no, False)):
        masks = [jnp.asarray(a, bool) if chosen else ~jnp.asarray(a, bool) for a in which.sides]
        if isinstance(value, Det):
            sides = [
                jnp.where(m, jnp.asarray(a), 0) for m, a in zip(masks, value.sides, strict=True)
            ]
            part: Any = Det((sides[0], sides[1]), joint_wide([which, value]))
        else:
            mask = Det((masks[0].astype(float), masks[1].astype(float)), which.wide)
            part = algebra.scaled(value, mask, wide)
        if total is None:
            total = part
        elif isinstance(part, Det) or isinstance(total, Det):
            v, d = (total, part) if isinstance(part, Det) else (part, total)
            total = algebra.shifted(v, d, wide) if isinstance(v, Wide) else v.plus(d)
        else:
            total = algebra.added(total, part, wide)
    return total
