"""Sums and functions of wide values, in a form that keeps what is Gaussian Gaussian and what is
scalar scalar.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.moments.moments import Moments
from ntk_jax.infinite.flax.values import linear
from ntk_jax.infinite.flax.values.expression import apply
from ntk_jax.infinite.flax.values.fields import Combination, Field
from ntk_jax.infinite.flax.values.linear import Linear, Shape
from ntk_jax.infinite.flax.values.slots import Slots, chain
from ntk_jax.infinite.flax.values.values import Det, Factor, Term, Wide

MOST_GAUSSIANS = 3


def scaling(d: Det, shape: Shape) -> Linear | None:
    """Multiplication of a value of stored `shape` by a deterministic one; None for 1."""
    target = jnp.broadcast_shapes(shape, d.shape)
    if d.literal == 1 and target == shape:
        return None
    key = () if target == shape else (("broadcast", shape, target),)
    factor = d if target == shape else None

    def times(side, z):
        return jnp.broadcast_to(z * jnp.asarray(d.sides[side], z.dtype), target)

    return Linear(times, target, key, factor)


def broadcasting(shape: Shape, target: Shape) -> Linear | None:
    """Repetition along axes of size 1."""
    if shape == target:
        return None
    return Linear(
        lambda side, z: jnp.broadcast_to(z, target), target, (("broadcast", shape, target),)
    )


def mapped(value: Wide, by: Linear | None, wide: Sequence[int]) -> Wide:
    """A linear map of a value."""
    if by is None:
        return Wide(value.shape, tuple(wide), value.terms, value.offset, value.product)
    terms = [map_term(t, by) for t in value.random]
    offset = None
    if value.offset is not None:
        sides = [
            by.apply(i, jnp.broadcast_to(jnp.asarray(value.offset.sides[i]), value.shape))
            for i in (0, 1)
        ]
        offset = Det((sides[0], sides[1]), tuple(wide))
        if by.factor is not None:
            offset = value.offset.times(by.factor)
    return Wide(by.shape, tuple(wide), tidy(terms, by.shape), offset)


def map_term(t: Term, by: Linear) -> Term:
    """A Gaussian term has no map: a map of a Gaussian is a Gaussian."""
    if t.is_gaussian:
        return Term((Factor((Combination(by.shape, [(by, t.factors[0].gaussians[0])]),)),))
    return t.mapped(by)


def scaled(value: Wide, d: Det, wide: Sequence[int]) -> Wide:
    """A value times a deterministic one."""
    return mapped(value, scaling(d, value.shape), wide)


def shifted(value: Wide, d: Det, wide: Sequence[int]) -> Wide:
    """A value plus a deterministic one."""
    target = jnp.broadcast_shapes(value.shape, d.shape)
    value = mapped(value, broadcasting(value.shape, target), wide)
    if d.is_zero:
        return value
    return Wide(
        target, tuple(wide), value.random, d if value.offset is None else value.offset.plus(d)
    )


def added(x: Wide, y: Wide, wide: Sequence[int]) -> Wide:
    """The sum of two values."""
    target = jnp.broadcast_shapes(x.shape, y.shape)
    x, y = (mapped(v, broadcasting(v.shape, target), wide) for v in (x, y))
    offset = (
        x.offset if y.offset is None else y.offset if x.offset is None else x.offset.plus(y.offset)
    )
    return Wide(target, tuple(wide), tidy([*x.random, *y.random], target), offset)


def tidy(terms: list[Term], shape: Shape) -> list[Term]:
    """One term for each product of functions; one Gaussian if all are; one function of a Gaussian
    where that is all.
    """
    terms = _merged(terms)
    if len(terms) == 1:
        return terms
    if all(t.is_gaussian for t in terms):
        parts = [(broadcasting(t.shape, shape), t.factors[0].gaussians[0]) for t in terms]
        return [Term((Factor((Combination(shape, _flat(parts)),)),))]
    if any(t.masked or any(g.degenerate for f in t.factors for g in f.gaussians) for t in terms):
        return terms
    slots = Slots()
    if any(len(t.factors) > 1 or (t.map is not None and _literal(t.map) is None) for t in terms):
        return terms
    if any(t.factors[0].sampled is not None for t in terms):
        return terms
    node = slots.sum(terms, None)
    if len(slots.roots(terms)) == 1 and not slots.operands:
        return [Term((Factor(slots.gaussians, node),))]
    return terms


def _flat(parts: list[tuple[Linear | None, Field]]) -> list[tuple[Linear | None, Field]]:
    """Parts that are the same Gaussian under several maps become one."""
    found: dict[Field, list[Linear | None]] = {}
    shape: Shape = ()
    for m, g in parts:
        while m is None and isinstance(g, Combination) and len(g.parts) == 1:
            m, g = g.parts[0]
        found.setdefault(g, []).append(m)
        shape = g.shape if m is None else m.shape
    return [(ms[0] if len(ms) == 1 else linear.add(ms, shape), g) for g, ms in found.items()]


def _merged(terms: list[Term]) -> list[Term]:
    groups: dict[Any, list[Term]] = {}
    for t in terms:
        groups.setdefault(t.factors if not t.is_gaussian else t.factors[0].gaussians, []).append(t)
    merged = []
    for group in groups.values():
        first = group[0]
        if len(group) == 1:
            merged.append(first)
            continue
        total = linear.add([t.map for t in group], first.shape)
        merged.append(map_term(Term(first.factors), total))
    return merged


def _literal(by: Linear) -> Any:
    return None if by.factor is None else by.factor.literal


def fields_of(values: Sequence[Any]) -> list[Field]:
    """All Gaussians of the wide values."""
    wides = [v for v in values if isinstance(v, Wide)]
    return list(
        dict.fromkeys(g for v in wides for t in v.random for f in t.factors for g in f.gaussians)
    )


def gathered(values: Sequence[Any], moments: Moments) -> list[Any]:
    """The values, with independent Gaussians that always occur together as a sum made one
    Gaussian.
    """
    out = []
    for v in values:
        if isinstance(v, Wide) and v.terms is not None and len(v.terms) > 1:
            functions = [t for t in v.terms if not t.is_gaussian]
            plain = [
                t for t in v.terms if t.is_gaussian and not t.factors[0].gaussians[0].degenerate
            ]
            taken = {chain(g)[-1][0] for t in functions for f in t.factors for g in f.gaussians}
            free = [t for t in plain if chain(t.factors[0].gaussians[0])[-1][0] not in taken]
            if len(free) > 1:
                rest = [t for t in v.terms if t not in free]
                parts = _flat(
                    [(broadcasting(t.shape, v.shape), t.factors[0].gaussians[0]) for t in free]
                )
                v = Wide(
                    v.shape,
                    v.wide,
                    [*rest, Term((Factor((Combination(v.shape, parts),)),))],
                    v.offset,
                    v.product,
                )
        out.append(v)
    return out


def function(
    primitive: Any, params: Any, values: Sequence[Any], wide: Sequence[int], moments: Moments
) -> Wide:
    """An elementwise function of values, at least one of them wide, as one function of independent
    Gaussians.
    """
    values = gathered(values, moments)
    slots = Slots()
    slots.resolve(fields_of(values))
    nodes = [
        slots.deterministic(v) if isinstance(v, Det) else slots.sum(v.random, v.offset)
        for v in values
    ]
    mains = [g for g in slots.gaussians if not g.degenerate]
    for g, h in itertools.combinations(mains, 2):
        if moments.related(g, h, (0, 0)):
            raise NoLimitError(
                f"the nonlinearity `{primitive.name}` acts on correlated wide vectors that are not "
                "multiples of each other,"
            )
    if len(mains) > MOST_GAUSSIANS:
        raise NoLimitError(
            f"the nonlinearity `{primitive.name}` acts on a function of {len(mains)} independent "
            "Gaussians at each unit: "
            f"more than {MOST_GAUSSIANS} are too many to integrate over,"
        )
    shape = jnp.broadcast_shapes(*(v.shape for v in values))
    factor = Factor(slots.gaussians, apply(primitive, params, nodes), tuple(slots.operands))
    term = Term((factor,))
    if term.base != shape:
        term = term.mapped(
            Linear(
                lambda side, z: jnp.broadcast_to(z, shape),
                shape,
                (("broadcast", term.base, shape),),
            )
        )
    return Wide(shape, tuple(wide), [term])
