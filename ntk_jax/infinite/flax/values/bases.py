"""Gaussians that others are linear maps of: what has to be sampled, and what follows from it."""

import operator
from collections.abc import Iterable
from functools import reduce

import jax

from ntk_jax.infinite.flax.values.fields import Combination, Field


def bases(fields: Iterable[Field]) -> tuple[Field, ...]:
    """Gaussians without a common part that all `fields` are linear maps of: h alone for h, 2 h and
    the mean of h over positions; the fields themselves where they share nothing.
    """
    # Samples of h and of its mean, each on its own, would agree up to the rounding of a root only.
    found = dict.fromkeys(fields)
    while (g := next((g for g in found if _overlaps(g, found)), None)) is not None:
        del found[g]
        found |= dict.fromkeys(_parts(g))
    return tuple(found)


def linear_map(g: Field, known: dict[Field, jax.Array], side: int) -> jax.Array:
    """g of one example, from the values `known`, to which it is added."""
    if g not in known:
        assert isinstance(g, Combination)
        zs = [(by, linear_map(part, known, side)) for by, part in g.parts]
        known[g] = reduce(operator.add, (z if by is None else by.apply(side, z) for by, z in zs))
    return known[g]


def _overlaps(g: Field, others: Iterable[Field]) -> bool:
    """Whether g has a part in common with another one that it is not itself a part of."""
    own = _below(g)
    return any(h is not g and g not in (met := _below(h)) and own & met for h in others)


def _below(g: Field) -> set[Field]:
    """g, its parts, their parts."""
    found, left = {g}, [g]
    while left:
        new = set(_parts(left.pop())) - found
        found |= new
        left += new
    return found


def _parts(g: Field) -> list[Field]:
    return [part for _, part in g.parts] if isinstance(g, Combination) else []
