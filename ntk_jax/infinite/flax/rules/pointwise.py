"""Entry by entry: sums stay sums, everything else becomes one function of independent Gaussians."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.evaluation import check_pending, deterministic
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.parameter_views import (
    inverse,
    param_arithmetic,
    promoted,
    squares_of,
)
from ntk_jax.infinite.flax.products import product
from ntk_jax.infinite.flax.rules.opening import can_open, opened
from ntk_jax.infinite.flax.sampling import sampled_elementwise
from ntk_jax.infinite.flax.scores import settled
from ntk_jax.infinite.flax.values import (
    Det,
    Param,
    Shape,
    Value,
    Wide,
    both_sides,
    joint_wide,
    number,
    static_det,
)
from ntk_jax.jaxprs import Eqn, dtype_of, shape_of

Operand = Wide | Det


@rule("elementwise")
def elementwise(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> Sequence[Value]:
    """Any elementwise primitive with at least one random operand."""
    name, full = eqn.primitive.name, shape_of(eqn.outvars[0])
    check_pending(eqn, values)
    if name in ("copy", "reduce_precision") or (
        name == "convert_element_type" and _float_to_float(eqn)
    ):
        return [values[0]]
    values = _ranked(values, len(full))
    if any(isinstance(v, Param) for v in values):
        # Scaled by a number, a parameter can still be a weight; as a value it cannot.
        view = squares_of(eqn, values) or param_arithmetic(name, values)
        if view is not None:
            return [view]
        values = promoted(program.uses, eqn, _regrouped(name, values))
    # Joined values and noise have rules of their own, before this one.
    operands = cast(list[Operand], values)
    if all(isinstance(v, Det) for v in operands):
        return deterministic(eqn, cast(list[Det], operands), program.moments.dtype)
    operands = _told_apart(operands)
    operands = [_fit(v, operands) if isinstance(v, Det) else v for v in operands]
    wide = _wide(operands, full)
    found = _linear(name, operands, wide)
    if found is not None:
        return [settled(found, program.moments.dtype)]
    return [_nonlinear(program, eqn, operands, wide)]


def _nonlinear(program: Interpreter, eqn: Eqn, values: Sequence[Operand], wide: Shape) -> Wide:
    """A function of Gaussians, or known by samples; of products what a mean over them needs."""
    name, moments = eqn.primitive.name, program.moments
    (x, *more) = [v for v in values if isinstance(v, Wide)]
    if name == "mul" and more:
        result = product(x, more[0], wide, program.related)
        if result.terms is None and moments.sampling is not None:
            result.terms = sampled_elementwise(moments, eqn, values, wide).terms
        return result
    squared = name == "square" or (name == "integer_pow" and eqn.params["y"] == 2)
    squared = squared and x.terms is not None
    try:
        result = algebra.function(eqn.primitive, eqn.params, values, wide, program.related)
    except NoLimitError:
        if moments.sampling is not None:
            result = sampled_elementwise(moments, eqn, values, wide)
        elif squared:
            result = Wide(x.shape, wide, None)
        else:
            raise
    if squared:  # a mean over it, as of normalization, needs its second moment alone
        result.product = (x, x)
    return result


def _regrouped(name: str, values: Sequence[Value]) -> Sequence[Value]:
    """x (d p) as (x d) p: a Gaussian times a deterministic value is one, and what follows stays a
    function of it alone.
    """
    if name != "mul" or len(values) != 2:
        return values
    value, param = values if isinstance(values[1], Param) else values[::-1]
    if not isinstance(value, Wide) or not isinstance(param, Param) or param.factor is None:
        return values
    factor = _fit(param.factor, [value])
    return [algebra.scaled(value, factor, value.wide), replace(param, factor=None)]


def _float_to_float(eqn: Eqn) -> bool:
    return all(
        jnp.issubdtype(t, jnp.floating) for t in (dtype_of(eqn.invars[0]), eqn.params["new_dtype"])
    )


def _ranked(values: Sequence[Value], rank: int) -> list[Value]:
    """Numbers get axes of size 1."""
    return [
        number(v.literal, rank) if isinstance(v, Det) and v.literal is not None else v
        for v in values
    ]


def _told_apart(values: Sequence[Operand]) -> list[Operand]:
    """Random values with infinite axes in full where fixed arrays differ along them, if others are
    left: units of many heads, each turned by an angle of its own (rotary embedding, Su et al. 2021,
    arXiv:2104.09864).
    """
    met, wide = [v for v in values if isinstance(v, Wide)], _widest(values)
    axes = sorted({a for d in values if isinstance(d, Det) for a in _differing(d, wide)})
    if not axes or not all(can_open(v, axes, few=True) for v in met):
        return list(values)
    return [opened(v, axes) if isinstance(v, Wide) else v for v in values]


def _widest(values: Sequence[Operand]) -> Shape:
    """The largest multiplicity of the random values along each axis."""
    return tuple(np.max([v.wide for v in values if isinstance(v, Wide)], axis=0).tolist())


def _listed(value: Det, wide: Shape) -> list[int]:
    """The infinite axes along which a fixed array has entries."""
    if len(value.shape) != len(wide):
        return []
    return [a for a, w in enumerate(wide) if w > 1 and value.shape[a] > 1]


def _differing(value: Det, wide: Shape) -> list[int]:
    """The infinite axes along which its entries differ, or may do so."""
    axes = _listed(value, wide)
    return [a for a in axes if not value.static or np.any(np.ptp(value.sides[0], axis=a))]


def _fit(value: Det, values: Sequence[Operand]) -> Det:
    """A deterministic operand must be constant along wide axes."""
    wide = _widest(values)
    axes = _listed(value, wide)
    if not axes:
        return value
    if _differing(value, wide):
        raise NoLimitError(
            "a fixed array that differs along an infinite axis meets a wide value (trained batch "
            "statistics, a sinusoidal embedding, a rotary one of a single head, the raw input "
            "added to a hidden layer): its units are not alike,",
            "Use the statistics of initialization, embed the input by a linear layer first, or use "
            "several heads.",
        )
    array = np.asarray(value.sides[0])
    at = tuple(slice(0, 1) if a in axes else slice(None) for a in range(array.ndim))
    counts = [w if a in axes else v for a, (w, v) in enumerate(zip(wide, value.wide, strict=True))]
    return replace(static_det(array[at]), wide=tuple(counts))


def _wide(values: Sequence[Operand], full: Shape) -> Shape:
    """The multiplicities of the result; a random value shared by the units of a wide axis has no
    limit.
    """
    wides, out = [v for v in values if isinstance(v, Wide)], _widest(values)
    for v in wides:
        for a, w in enumerate(out):
            if w > 1 and v.wide[a] != w:
                raise NoLimitError(
                    f"a random value of length {v.wide[a] * v.shape[a]} along an axis meets a wide "
                    f"one of length {w}: all units would share it, and no average over them is "
                    "deterministic,"
                )
    stored = np.broadcast_shapes(*(v.shape for v in values))
    if any(s * w != f for s, w, f in zip(stored, out, full, strict=True) if w > 1):
        raise NoLimitError("an infinite axis is repeated,")
    return out


def _linear(name: str, values: Sequence[Operand], wide: Shape) -> Wide | None:
    """Sums, and products with deterministic values."""
    x, minus_one = values[0], number(-1.0, len(wide))
    found: Operand | None = None
    if name == "neg":
        found = algebra.scaled(cast(Wide, x), minus_one, wide)
    elif name in ("add", "add_any", "sub"):
        y = values[1]
        if name == "sub" and isinstance(y, Det):
            y = y.times(minus_one)
        elif name == "sub":
            y = algebra.scaled(cast(Wide, y), minus_one, wide)
        found = algebra.sum_of(x, y, wide)
    elif name == "mul" and sum(isinstance(v, Wide) for v in values) == 1:
        v, d = values if isinstance(x, Wide) else values[::-1]
        found = algebra.scaled(cast(Wide, v), cast(Det, d), wide)
    elif name == "div" and isinstance(values[1], Det):
        found = algebra.scaled(cast(Wide, x), inverse(values[1]), wide)
    elif name == "select_n" and isinstance(x, Det) and len(values) == 3:
        found = _selected(x, values[1], values[2], wide)
    return cast(Wide | None, found)


def _selected(which: Det, no: Operand, yes: Operand, wide: Shape) -> Operand:
    """A choice by a deterministic mask: no (1 - mask) + yes mask."""
    masks = [jnp.asarray(a, bool) for a in which.sides]
    chosen = _kept(yes, masks, which.wide, wide)
    return algebra.sum_of(chosen, _kept(no, [~m for m in masks], which.wide, wide), wide)


def _kept(value: Operand, masks: Sequence[Array], mask_wide: Shape, wide: Shape) -> Operand:
    """The value where a mask is true, else 0."""
    if isinstance(value, Wide):
        mask = both_sides(lambda side: masks[side].astype(float), mask_wide)
        return algebra.scaled(value, mask, wide)
    # Chosen, not multiplied: what is hidden may be infinite.
    choose = lambda side: jnp.where(masks[side], jnp.asarray(value.sides[side]), 0)
    return both_sides(choose, joint_wide([Det((masks[0], masks[1]), mask_wide), value]))
