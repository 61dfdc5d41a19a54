"""A wide value is born where a random weight is contracted with a value: matrix products,
embeddings; `convolutions.py` has convolutions.
"""

import math
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import RULES, Interpreter, rule
from ntk_jax.infinite.flax.layouts import shape_after
from ntk_jax.infinite.flax.moments.contractions import ConvContraction, DotContraction
from ntk_jax.infinite.flax.parameter_views import check_norm
from ntk_jax.infinite.flax.rules.opening import can_open, opened
from ntk_jax.infinite.flax.values import (
    Det,
    Linear,
    Param,
    Shape,
    Value,
    Weight,
    Wide,
    both_sides,
    gaussian,
)
from ntk_jax.jaxprs import Eqn, shape_of

Contraction = DotContraction | ConvContraction


@rule("dot_general")
def dot_general(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> Sequence[Value]:
    """A product of matrices: with a weight, with a constant, or of two wide values."""
    params = [isinstance(v, Param) for v in values]
    if all(params):
        raise NoLimitError(
            "two parameters are multiplied with each other: a product of weights is not Gaussian,"
        )
    if any(params):
        return [_with_weight(program, eqn, values, params.index(True))]
    if all(isinstance(v, Wide) for v in values):
        return RULES["inner_product"](program, eqn, values)
    return [_with_constant(eqn, values)]


def _with_weight(program: Interpreter, eqn: Eqn, values: Sequence[Value], at: int) -> Wide:
    """A contraction of a value with a weight, the operand number `at`."""
    contract, batch = eqn.params["dimension_numbers"]
    param = cast(Param, values[at])
    full = shape_of(eqn.invars[1 - at])
    value, wide = checked_input(param, values[1 - at], full)
    # By the axes of the leaf: x @ W and another order of the same contraction are one use of it.
    pairs = sorted(
        zip(contract[at], contract[1 - at], strict=True), key=lambda ph: axis_of_leaf(param, ph[0])
    )
    summed, batched = tuple(h for _, h in pairs), tuple(batch[1 - at])
    free = tuple(a for a in range(len(full)) if a not in summed and a not in batched)
    kept = [a for a in (*free, *batched) if wide[a] > 1]
    if kept and isinstance(value, Wide) and can_open(value, kept):
        value, kept = opened(value, kept), []
        wide = value.wide
    if kept:
        raise NoLimitError(
            "a weight is contracted with a value of which another axis is infinite (weights that "
            "mix positions for every channel, or differ by channel): its units are not independent,"
        )
    stored = tuple(s // w for s, w in zip(full, wide, strict=True))
    units = math.prod(wide[a] for a in summed)
    check_width(value, units)
    check_norm(param, [p for p, h in pairs if wide[h] > 1])
    met = {*contract[at], *batch[at]}
    new = tuple(s for a, s in enumerate(param.shape) if a not in met)
    free_shape, ones = tuple(stored[a] for a in free), (1,) * len(free)
    new_ones = (1,) * len(new)
    lead = tuple(stored[a] for a in batched)
    shape = lead + (new_ones + free_shape if at == 0 else free_shape + new_ones)
    counts = (1,) * len(lead) + (new + ones if at == 0 else ones + new)
    axes = tuple(axis_of_leaf(param, p) for p, _ in pairs)
    use: tuple = (axes, tuple(axis_of_leaf(param, a) for a in batch[at]))
    if isinstance(value, Wide) and value.interleaved:  # units meet other rows of the weight
        use = (*use, "interleaved", tuple(stored[a] for a in summed))
    contraction = DotContraction(stored, summed, batched, free, units)
    return weighted(program, param, ("weight", use), shape, value, units, contraction, counts)


def weighted(
    program: Interpreter,
    param: Param,
    use: tuple[str, tuple],
    shape: Sequence[int],
    value: Wide | Det,
    units: int,
    contraction: Contraction,
    wide: Sequence[int],
) -> Wide:
    """The Gaussian that a weight makes of a value."""
    key = program.uses.add(param, *use)
    eta, variance = param.eta, param.variance
    g = Weight(param.leaf, tuple(shape), variance, eta, key, value, units, contraction)
    return gaussian(g, wide)


def axis_of_leaf(param: Param, a: int) -> int:
    """The axis of the leaf that axis a of the view is; a negative number for one that was added."""
    axis = param.axes[a]
    return -1 - a if axis is None else axis


def checked_input(param: Param, value: Value, full: Shape) -> tuple[Wide | Det, Shape]:
    """The value that meets a weight, and its multiplicities."""
    if param.factor is not None or param.gain is not None:
        raise NoLimitError(f"weight {param.leaf} is multiplied by an array before it is used,")
    if param.mean != 0:
        raise NoLimitError(
            f"the entries of weight {param.leaf} have mean {param.mean:.3g} at initialization: its "
            "products grow with the width,",
            "Initialize weights with mean 0, or give init_stats.",
        )
    if isinstance(value, Wide):
        if value.random or value.offset is None:
            return value, value.wide
        value = value.offset
    fixed, ones = cast(Det, value), (1,) * len(full)
    return Det(fixed.sides, ones, fixed.literal, fixed.static), ones


def check_width(value: Wide | Det, units: int) -> None:
    """Raise unless a weight sums over infinitely many units, or over numbers."""
    if isinstance(value, Wide) and units == 1 and not value.degenerate:
        raise NoLimitError(
            "a weight is contracted with finitely many random entries (a layer of one unit, or "
            "positions): the sum is not Gaussian (bottlenecks: Agrawal et al. 2020, "
            "arXiv:2001.00921),",
            "Sum over many units, or estimate with ntk_jax.monte_carlo_kernels.",
        )


def _with_constant(eqn: Eqn, values: Sequence[Value]) -> Wide:
    """A product with a constant matrix: a linear map over finite axes."""
    numbers = eqn.params["dimension_numbers"]
    left = isinstance(values[1], Wide)  # the constant is the first operand
    value, d = cast(tuple[Wide, Det], (values[1], values[0]) if left else tuple(values))
    (vc, _), (vb, db) = (pair[::-1] for pair in numbers) if left else numbers
    differs = [b for a, b in zip(db, vb, strict=True) if _differ(d, a)]
    meeting = [b for b in (*vc, *differs) if value.wide[b] > 1]
    if meeting and can_open(value, meeting):
        value = opened(value, meeting)
    if any(value.wide[a] > 1 for a in vc):
        raise NoLimitError(
            "an infinite axis is contracted with a fixed array: its units are not alike under it,",
            "Use a parameter in its place, or a mean over the axis.",
        )
    shape = list(shape_of(eqn.invars[0 if left else 1]))
    for a, b in zip(db, vb, strict=True):
        if value.wide[b] > 1:
            if _differ(d, a):
                raise NoLimitError("a fixed array differs along an infinite axis,")
            shape[a] = 1
    sides = [jnp.broadcast_to(jnp.asarray(s), tuple(shape)) for s in d.sides]

    def apply(side: int, z: jax.Array) -> jax.Array:
        m = sides[side].astype(z.dtype)
        return jax.lax.dot_general(*((m, z) if left else (z, m)), numbers, precision="highest")

    out = shape_after(lambda z: apply(0, z), value.shape)
    lead = tuple(value.wide[a] for a in vb)
    free = tuple(w for a, w in enumerate(value.wide) if a not in vb and a not in vc)
    kept = (1,) * (len(out) - len(lead) - len(free))
    wide = lead + (kept + free if left else free + kept)
    return algebra.mapped(value, Linear(apply, out), wide)


def _differ(d: Det, axis: int) -> bool:
    """Whether a fixed array differs along an axis."""
    return bool(d.shape) and d.shape[axis] > 1


@rule("embedding")
def embedding(
    program: Interpreter, eqn: Eqn, values: tuple[Param, Det] | list[Param | Det]
) -> list[Wide]:
    """Rows of a table: the product of one-hot vectors with it."""
    param, indices = cast(tuple[Param, Det], values)
    p, table = eqn.params["dimension_numbers"], shape_of(eqn.invars[0])
    whole_rows = p.start_index_map == p.collapsed_slice_dims == (0,)
    if len(table) != 2 or not whole_rows or eqn.params["slice_sizes"] != (1, table[1]):
        raise NoLimitError(
            f"parameter {param.leaf} is indexed in a way that has no rule (only rows of a table "
            "do),"
        )
    if p.offset_dims != (len(shape_of(eqn.outvars[0])) - 1,):
        raise NoLimitError(f"the rows of table {param.leaf} are not the last axis of the result,")

    def hot(side: int) -> jax.Array:
        rows = jnp.broadcast_to(jnp.asarray(indices.sides[side]), shape_of(eqn.invars[1]))[..., 0]
        return jax.nn.one_hot(
            jnp.clip(rows, 0, table[0] - 1), table[0], dtype=program.moments.dtype
        )

    stored = (*shape_of(eqn.invars[1])[:-1], table[0])
    ones = (1,) * len(stored)
    value, _ = checked_input(param, both_sides(hot, ones), stored)
    check_norm(param, [])
    last = len(stored) - 1
    contraction = DotContraction(stored, (last,), (), tuple(range(last)), 1)
    use = ((axis_of_leaf(param, 0),), ())
    shape, counts = (*stored[:-1], 1), (*ones[:-1], table[1])
    return [weighted(program, param, ("weight", use), shape, value, 1, contraction, counts)]
