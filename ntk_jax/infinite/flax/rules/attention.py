"""Attention whose scores stay random: inner products of independent queries and keys over the root
of their width.

Infinitely many heads have scores that are independent Gaussian fields (Hron et al. 2020, "Infinite
attention", section 3): a head's units share its scores, so that only means over all heads are
numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter
from ntk_jax.infinite.flax.products import product
from ntk_jax.infinite.flax.rules.sampled import sampled
from ntk_jax.infinite.flax.values.fields import Combination, Field, InnerProduct, Segment
from ntk_jax.infinite.flax.values.linear import Linear
from ntk_jax.infinite.flax.values.slots import chain
from ntk_jax.infinite.flax.values.values import Det, Wide, gaussian, static_det


def scores(
    program: Interpreter, x: Wide, y: Wide, labels: Any, units: int, wide: Sequence[int]
) -> Wide | None:
    """Their inner products as a Gaussian; None if samples are not asked for, or the two are
    related.
    """
    related = program.moments.related
    fields = [algebra.fields_of([v]) for v in (x, y)]
    if program.moments.sampling is None or any(
        related(a, b, (0, 0)) for a in fields[0] for b in fields[1]
    ):
        return None
    check_apart(x)
    check_apart(y)
    heads = math.prod(wide)
    if heads == 1:
        raise NoLimitError(
            "the scores of a single head of attention stay random: only an infinite number of "
            "heads has a limit,",
            "Use several heads, or divide the scores by the width.",
        )
    left, right, out = labels
    sizes = dict(zip([*left, *right], [*x.shape, *y.shape], strict=True))
    g = InnerProduct(
        tuple(sizes[a] for a in out), x, y, (tuple(left), tuple(right), tuple(out)), units, heads
    )
    return gaussian(g, wide)


def settled(program: Interpreter, value: Any) -> Any:
    """Scores divided by the width itself are 0."""
    g = value.gaussian if isinstance(value, Wide) else None
    if g is None:
        return value
    base, factor = chain(g)[-1]
    if not isinstance(base, InnerProduct) or factor is None or factor.literal is None:
        return value
    if abs(abs(float(factor.literal)) * base.units - 1) > 1e-4:
        return value
    zero = static_det(np.zeros(value.shape, program.moments.dtype))
    return Det(zero.sides, value.wide, zero.literal, True)


def weighted_sum(program: Interpreter, eqn: Any, values: Sequence[Any]) -> Wide:
    """The product of two independent wide values, contracted over finite axes, as of attention
    weights and values.
    """
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    x, y = values
    free1, free2 = (
        [a for a in range(len(v.shape)) if a not in (*c, *b)]
        for v, c, b in ((x, lc, lb), (y, rc, rb))
    )
    ones1, ones2 = (1,) * len(free1), (1,) * len(free2)
    x = _aligned(program, x, (lb, free1, lc), ((), ones2))
    y = _aligned(program, y, (rb, free2, rc), (ones1, ()))
    if any(w > 1 and v > 1 and w != v for w, v in zip(x.wide, y.wide, strict=True)):
        raise NoLimitError("infinite axes of different lengths meet in a product,")
    wide = tuple(map(max, x.wide, y.wide))
    both = product(x, y, wide, program.moments)
    if both.terms is None:
        raise NoLimitError(
            "two correlated values are multiplied and summed over a finite axis: that has no rule,"
        )
    axes = tuple(range(len(wide) - len(lc), len(wide)))
    shape = tuple(np.broadcast_shapes(x.shape, y.shape)[: axes[0]])
    return algebra.mapped(both, Linear(lambda _, z: z.sum(axes), shape, None), wide[: axes[0]])


def _aligned(program: Interpreter, value: Wide, axes: Any, ones: Any) -> Wide:
    """With axes (batch, ones, free, ones, contracted), as one term without a map if it is not
    Gaussian.
    """
    batch, free, contracted = map(list, axes)
    order = [*batch, *free, *contracted]

    def align(sizes):
        before, after = ones
        return (
            *(sizes[a] for a in batch),
            *before,
            *(sizes[a] for a in free),
            *after,
            *(sizes[a] for a in contracted),
        )

    def apply(_, z: Array) -> Array:
        return jnp.transpose(z, order).reshape(align(z.shape))

    shape, wide = align(value.shape), align(value.wide)
    key = (("align", value.shape, tuple(order), shape),)
    moved = algebra.mapped(value, Linear(apply, shape, key), wide)
    if all(t.is_gaussian for t in moved.random):
        return moved
    return sampled(program, lambda _, arrays: arrays[0], [moved], wide)


def check_apart(value: Wide) -> None:
    """Refuse what would take the units of one head for independent."""
    units = math.prod(value.wide)
    for g in algebra.fields_of([value]) if value.terms is not None else []:
        if any(heads < units for heads in _heads(g)):
            raise NoLimitError(
                "units of one head of attention share its random scores: a mean over them is not a "
                "number,",
                "Take means over all heads, or divide the scores by the width.",
            )


def _heads(g: Field) -> list[int]:
    if isinstance(g, InnerProduct):
        return [g.heads]
    if isinstance(g, Segment):
        return _heads(g.source)
    return [h for _, part in g.parts for h in _heads(part)] if isinstance(g, Combination) else []
