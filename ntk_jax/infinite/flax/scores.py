"""Scores of attention that stay random: inner products of independent queries and keys over the
root of their width.

Infinitely many heads have scores that are independent Gaussian fields (Hron et al. 2020, "Infinite
attention", section 3): a head's units share its scores, so that only means over all heads are
numbers.
"""

import math
from collections.abc import Sequence

import numpy as np

from ntk_jax.infinite.flax.answers import Answers
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.evaluation import CLOSE
from ntk_jax.infinite.flax.values import (
    Combination,
    Det,
    Field,
    InnerProduct,
    Opened,
    Segment,
    Wide,
    fields_of,
    gaussian,
    multiple_of,
    zeros,
)


def scores(
    moments: Answers,
    x: Wide,
    y: Wide,
    labels: tuple[Sequence[int], Sequence[int], Sequence[int]],
    units: int,
    wide: Sequence[int],
) -> Wide | None:
    """Their inner products as a Gaussian; None if samples are not asked for, or the two are
    related.
    """
    fields = [(a, b) for a in fields_of([x]) for b in fields_of([y])]
    if moments.sampling is None or any(moments.related(a, b, (0, 0)) for a, b in fields):
        return None
    check_heads(x)
    check_heads(y)
    heads = math.prod(wide)
    if heads == 1:
        raise NoLimitError(
            "the scores of a single head of attention stay random: only an infinite number of "
            "heads has a limit (Hron et al. 2020, arXiv:2006.10540),",
            "Use several heads, or divide the scores by the width.",
        )
    left, right, out = map(tuple, labels)
    sizes = dict(zip(left + right, x.shape + y.shape, strict=True))
    shape = tuple(sizes[a] for a in out)
    return gaussian(InnerProduct(shape, x, y, (left, right, out), units, heads), wide)


def settled(value: Wide, dtype: np.dtype) -> Wide | Det:
    """Scores divided by the width itself are 0."""
    base, factor = (None, None) if value.gaussian is None else multiple_of(value.gaussian)[-1]
    if not isinstance(base, InnerProduct) or factor is None or factor.literal is None:
        return value
    divided = abs(abs(float(factor.literal)) * base.units - 1) <= CLOSE
    return zeros(value.shape, value.wide, dtype) if divided else value


def check_heads(value: Wide) -> None:
    """Refuse what would take the units of one head for independent."""
    units = math.prod(value.wide)
    for g in fields_of([value]) if value.terms is not None else []:
        if any(heads < units for heads in heads_of(g)):
            raise NoLimitError(
                "units of one head of attention share its random scores: a mean over them is not a "
                "number (Hron et al. 2020, arXiv:2006.10540),",
                "Take means over all heads, or divide the scores by the width.",
            )


def heads_of(g: Field) -> list[int]:
    """How many heads there are of each of the random scores that a Gaussian is made of."""
    if isinstance(g, InnerProduct):
        return [g.heads]
    if isinstance(g, Segment | Opened):
        return heads_of(g.source)
    return [h for _, part in g.parts for h in heads_of(part)] if isinstance(g, Combination) else []
