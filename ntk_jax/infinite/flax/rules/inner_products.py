"""Products of two wide values, contracted: over a wide axis a number, or scores of attention; over
finite axes a sum of products, as of attention weights and values.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import BY_SAMPLES, NoLimitError
from ntk_jax.infinite.flax.evaluation import CLOSE
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.products import product
from ntk_jax.infinite.flax.sampling import sampled
from ntk_jax.infinite.flax.scores import scores
from ntk_jax.infinite.flax.values import (
    Det,
    Linear,
    Shape,
    Term,
    Wide,
    both_sides,
    fields_of,
    multiple_of,
)
from ntk_jax.jaxprs import Eqn

Axes = Sequence[int]


@rule("inner_product")
def inner_product(
    program: Interpreter, eqn: Eqn, values: tuple[Wide, Wide] | list[Wide]
) -> list[Det | Wide]:
    """The product of two wide values, contracted over a wide axis: the sum of their second
    moments.
    """
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    x, y = values
    units = math.prod(x.wide[a] for a in lc)
    pairs = sorted([*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)])
    partners = [b for a, b in pairs if x.wide[a] > 1]
    if partners != sorted(partners):
        raise NoLimitError(
            "infinite axes meet in a different order: which unit meets which is lost,"
        )
    if units == 1 and program.moments.sampling is not None:
        return [_weighted_sum(program, eqn, x, y)]
    if units == 1 or any(x.wide[a] != y.wide[b] for a, b in pairs):
        raise NoLimitError(
            "two random values are multiplied and summed over a finite axis: the result is not "
            "Gaussian,",
            BY_SAMPLES,
        )
    left, right, out = _labels(x, y, pairs, lb)
    rest = out[len(lb) :]
    counts = dict(zip(left + right, x.wide + y.wide, strict=True))
    apart = any(counts[a] > 1 for a in rest)
    if apart and _related(program, x, y):
        raise NoLimitError(
            "an inner product of related values leaves an infinite axis of one of them: it is no "
            "number,"
        )
    # Of independent values: alike for all units of an axis that one of them has alone, as for all
    # queries that share a key.
    wide = tuple(counts[a] for a in out)
    numbers = program.inner_products == "mean" or _divided(x, units) or _divided(y, units)
    moments = program.moments
    random = None if numbers else scores(moments, x, y, (left, right, out), units, wide)
    if random is not None:
        return [random]

    def sums(side: int) -> Array:
        k = moments.second(x, y, (side, side), False)
        k = jnp.zeros(x.shape + y.shape, moments.dtype) if k is None else k
        return units * jnp.einsum(k, left + right, out)

    return [both_sides(sums, wide, pending=None if numbers else units)]


def _related(program: Interpreter, x: Wide, y: Wide) -> bool:
    return any(program.related(g, h) for g in fields_of([x]) for h in fields_of([y]))


def _labels(
    x: Wide, y: Wide, pairs: Sequence[tuple[int, int]], batch: Axes
) -> tuple[list[int], list[int], list[int]]:
    """The axes of both values and of the result (batch, rest of x, rest of y), as `einsum` takes
    them.
    """
    rank = len(x.shape)
    left, right = list(range(rank)), list(range(rank, rank + len(y.shape)))
    for a, b in pairs:
        right[b] = left[a]
    met = {left[a] for a, _ in pairs}
    rest = [a for a in left + right if a not in met]
    return left, right, [left[a] for a in batch] + rest


def _divided(value: Wide, units: int) -> bool:
    """Whether the value was divided by the width just before."""
    return bool(value.terms) and all(
        any(
            d is not None and d.literal is not None and abs(d.literal * units - 1) < CLOSE
            for d in _factors(t)
        )
        for t in value.random
    )


def _factors(t: Term) -> list[Det]:
    """What a term is a multiple by."""
    if t.gaussian is not None:
        return [factor for _, factor in multiple_of(t.gaussian) if factor is not None]
    return [] if t.map is None or t.map.factor is None else [t.map.factor]


def _weighted_sum(program: Interpreter, eqn: Eqn, x: Wide, y: Wide) -> Wide:
    """The product of two independent wide values, contracted over finite axes."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    free1, free2 = (
        [a for a in range(len(v.shape)) if a not in (*c, *b)]
        for v, c, b in ((x, lc, lb), (y, rc, rb))
    )
    x = _aligned(program, x, (lb, free1, lc), after=len(free2))
    y = _aligned(program, y, (rb, free2, rc), before=len(free1))
    if any(w > 1 and v > 1 and w != v for w, v in zip(x.wide, y.wide, strict=True)):
        raise NoLimitError("infinite axes of different lengths meet in a product,")
    wide = tuple(map(max, x.wide, y.wide))
    both = product(x, y, wide, program.related)
    if both.terms is None:
        raise NoLimitError(
            "two correlated values are multiplied and summed over a finite axis: that has no rule,"
        )
    kept = len(wide) - len(lc)
    axes = tuple(range(kept, len(wide)))
    shape = tuple(np.broadcast_shapes(x.shape, y.shape)[:kept])
    return algebra.mapped(both, Linear(lambda _, z: z.sum(axes), shape), wide[:kept])


def _aligned(
    program: Interpreter,
    value: Wide,
    axes: tuple[Axes, Axes, Axes],
    before: int = 0,
    after: int = 0,
) -> Wide:
    """With axes (batch, `before` ones, free, `after` ones, contracted), as one term without a map
    if it is not Gaussian.
    """
    batch, free, contracted = axes
    order = [*batch, *free, *contracted]

    def align(sizes: Shape) -> Shape:
        pick = lambda axes: tuple(sizes[a] for a in axes)
        return pick(batch) + (1,) * before + pick(free) + (1,) * after + pick(contracted)

    shape, wide = align(value.shape), align(value.wide)
    apply = lambda _, z: jnp.transpose(z, order).reshape(align(z.shape))
    key = (("align", value.shape, tuple(order), shape),)
    moved = algebra.mapped(value, Linear(apply, shape, key), wide)
    if all(t.gaussian is not None for t in moved.random):
        return moved
    return sampled(program.moments, lambda _, arrays: jnp.asarray(arrays[0]), [moved], wide)
