"""Infinite axes taken as finite ones, where what meets them tells their entries apart: experts with
gates or weights of their own, heads of attention with biases of their own, units of a head that
are turned by angles of their own.

The entries of an infinite axis are independent and alike; as a finite axis they are so still, if
another infinite axis is left whose units make means over them numbers.
"""

import math
from collections.abc import Sequence

import jax
from jax import Array

from ntk_jax.infinite.flax.scores import heads_of
from ntk_jax.infinite.flax.values import Factor, Linear, Opened, Shape, Term, Wide


def can_open(value: Wide, axes: Sequence[int], *, few: bool = False) -> bool:
    """Whether these infinite axes may be taken as finite: more units than they have must be left,
    or with `few` any, as heads are fewer than the units of each.
    """
    entries = math.prod(value.wide[a] for a in axes)
    left = math.prod(value.wide) // entries
    whole = value.terms is not None and not value.interleaved
    enough = left > 1 if few else left >= entries
    return whole and enough and all(_can_open_term(t, value, axes) for t in value.random)


def _can_open_term(t: Term, value: Wide, axes: Sequence[int]) -> bool:
    if t.masked or any(f.sampled is not None for f in t.factors):
        return False
    fields = [g for f in t.factors for g in f.gaussians]
    if any(heads_of(g) for g in fields):  # of finitely many heads, random scores do not average out
        return False
    ranked = len(t.base) == len(value.shape) and all(len(g.shape) == len(t.base) for g in fields)
    return ranked and all(t.base[a] == value.shape[a] == 1 for a in axes)


def opened(value: Wide, axes: Sequence[int]) -> Wide:
    """The value with infinite axes in full: see `can_open`."""
    for a in axes:
        size = value.wide[a]
        grown = lambda shape, a=a, size=size: _with(shape, a, size)
        terms = [_opened_term(t, a, size) for t in value.random]
        value = Wide(grown(value.shape), _with(value.wide, a, 1), terms, value.offset)
    return value


def _opened_term(t: Term, axis: int, size: int) -> Term:
    factors = tuple(
        Factor(tuple(Opened(g, axis, size) for g in f.gaussians), f.node, f.operands)
        for f in t.factors
    )
    by = t.map
    if by is None:
        return Term(factors)
    shape = _with(by.shape, axis, size)

    # Entries of the axis go through the map one by one, as they did when all were one.
    def apply(side: int, z: Array) -> Array:
        one = lambda part: by.apply(side, part[(slice(None),) * axis + (None,)]).squeeze(axis)
        return jax.vmap(one, in_axes=axis, out_axes=axis)(z)

    key = None if by.key is None else (("opened", axis, size, by.key),)
    return Term(factors, Linear(apply, shape, key, by.factor, by.scale))


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])
