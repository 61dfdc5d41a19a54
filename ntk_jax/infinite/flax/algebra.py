"""Sums and functions of wide values, in a form that keeps what is Gaussian Gaussian and what is
scalar scalar.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax.numpy as jnp
from jax.extend.core import Primitive

from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.values import (
    Combination,
    Det,
    ExpressionBuilder,
    Factor,
    Field,
    Linear,
    PrimitiveParams,
    Shape,
    Term,
    Wide,
    add_maps,
    apply,
    both_sides,
    fields_of,
    fields_of_terms,
    root,
)

# Expectations are integrated on a grid over all Gaussians of a function: 4 of them for two examples
# would be a grid in 8 dimensions.
MOST_GAUSSIANS = 3

Related = Callable[[Field, Field], bool]
"""Whether two random fields are not independent."""
Parts = list[tuple[Linear | None, Field]]
AnyValue = TypeVar("AnyValue")


def scaling(d: Det, shape: Shape) -> Linear | None:
    """Multiplication of a value of stored `shape` by a deterministic one; None for 1."""
    target = jnp.broadcast_shapes(shape, d.shape)
    if d.literal == 1 and target == shape:
        return None

    times = lambda side, z: jnp.broadcast_to(z * jnp.asarray(d.sides[side], z.dtype), target)
    scale = None if d.literal is None else float(d.literal)
    if target == shape:
        return Linear(times, target, (), d, scale)
    return Linear(times, target, (("broadcast", shape, target),), scale=scale)


def broadcasting(shape: Shape, target: Shape) -> Linear | None:
    """Repetition along axes of size 1."""
    if shape == target:
        return None
    spread = lambda side, z: jnp.broadcast_to(z, target)
    return Linear(spread, target, (("broadcast", shape, target),), scale=1.0)


def mapped(value: Wide, by: Linear | None, wide: Sequence[int]) -> Wide:
    """A linear map of a value."""
    if by is None:
        return Wide(value.shape, tuple(wide), value.terms, value.offset, value.product)
    terms, offset = [map_term(t, by) for t in value.random], value.offset
    if offset is not None and by.factor is not None:
        offset = offset.times(by.factor)
    elif offset is not None:
        full = [jnp.broadcast_to(jnp.asarray(a), value.shape) for a in offset.sides]
        offset = both_sides(lambda side: by.apply(side, full[side]), wide)
    return Wide(by.shape, tuple(wide), tidy(terms, by.shape), offset)


def map_term(t: Term, by: Linear | None) -> Term:
    """A Gaussian term has no map: a map of a Gaussian is a Gaussian."""
    if by is None:
        return t
    if t.gaussian is not None:
        return gaussian_term([(by, t.gaussian)], by.shape)
    return t.mapped(by)


def gaussian_term(parts: Parts, shape: Shape) -> Term:
    """A linear combination of Gaussians."""
    return Term((Factor((Combination(shape, parts),)),))


def scaled(value: Wide, d: Det, wide: Sequence[int]) -> Wide:
    """A value times a deterministic one."""
    return mapped(value, scaling(d, value.shape), wide)


def shifted(value: Wide, d: Det, wide: Sequence[int]) -> Wide:
    """A value plus a deterministic one."""
    target = jnp.broadcast_shapes(value.shape, d.shape)
    value = mapped(value, broadcasting(value.shape, target), wide)
    if d.is_zero:
        return value
    return Wide(target, tuple(wide), value.random, _sum_of_offsets(value.offset, d))


def added(x: Wide, y: Wide, wide: Sequence[int]) -> Wide:
    """The sum of two values."""
    target = jnp.broadcast_shapes(x.shape, y.shape)
    x, y = (mapped(v, broadcasting(v.shape, target), wide) for v in (x, y))
    terms = tidy([*x.random, *y.random], target)
    return Wide(target, tuple(wide), terms, _sum_of_offsets(x.offset, y.offset))


def sum_of(x: Wide | Det, y: Wide | Det, wide: Sequence[int]) -> Wide | Det:
    """The sum of two values of either kind."""
    if isinstance(x, Wide):
        return added(x, y, wide) if isinstance(y, Wide) else shifted(x, y, wide)
    return shifted(y, x, wide) if isinstance(y, Wide) else x.plus(y)


def _sum_of_offsets(a: Det | None, b: Det | None) -> Det | None:
    return a if b is None else b if a is None else a.plus(b)


def tidy(terms: list[Term], shape: Shape) -> list[Term]:
    """One term for each product of functions; one Gaussian if all are; one function of a Gaussian
    where that is all.
    """
    terms = _merged(terms)
    gaussians: Parts = [(broadcasting(t.shape, shape), t.gaussian) for t in terms if t.gaussian]
    if len(terms) == 1 or any(t.masked for t in terms):
        return terms
    if len(gaussians) == len(terms):
        return [gaussian_term(_merged_parts(gaussians), shape)]
    # Degenerate fields stay apart: as a variable, one would hide that it is 0 at initialization.
    scalar = all(len(t.factors) == 1 and t.factors[0].sampled is None for t in terms)
    factors = [t.map.factor for t in terms if t.map is not None]
    numbers = all(d is not None and d.literal is not None for d in factors)
    if not scalar or not numbers or any(g.degenerate for g in fields_of_terms(terms)):
        return terms
    builder = ExpressionBuilder()
    node = builder.sum(terms, None)
    if len(builder.variables) == 1 and not builder.operands:
        return [Term((Factor(builder.variables, node),))]
    return terms


def _merged_parts(parts: Parts) -> Parts:
    """Parts that are the same Gaussian under several maps become one."""
    found: dict[Field, list[Linear | None]] = {}
    shape: Shape = ()
    for m, g in parts:
        while m is None and isinstance(g, Combination) and len(g.parts) == 1:
            m, g = g.parts[0]
        found.setdefault(g, []).append(m)
        shape = g.shape if m is None else m.shape
    return [(ms[0] if len(ms) == 1 else add_maps(ms, shape), g) for g, ms in found.items()]


def by_law(terms: Sequence[tuple[AnyValue, Term]]) -> list[list[tuple[AnyValue, Term]]]:
    """Labelled terms, grouped by what they are linear maps of."""
    groups: dict[object, list[tuple[AnyValue, Term]]] = {}
    for label, t in terms:
        groups.setdefault(t.law, []).append((label, t))
    return list(groups.values())


def _merged(terms: list[Term]) -> list[Term]:
    merged = []
    for group in by_law([(None, t) for t in terms]):
        (_, first), *more = group
        total = add_maps([t.map for _, t in group], first.shape) if more else None
        merged.append(map_term(Term(first.factors), total) if more else first)
    return merged


def gathered(value: AnyValue) -> AnyValue | Wide:
    """The value, with independent Gaussians that always occur together as a sum made one Gaussian:
    a function of it is then one of a single variable.
    """
    if not isinstance(value, Wide) or value.terms is None or len(value.terms) < 2:
        return value
    taken = {root(g) for g in fields_of_terms([t for t in value.terms if t.gaussian is None])}
    parts: Parts = []
    rest: list[Term] = []
    for t in value.terms:
        g = t.gaussian
        if g is None or g.degenerate or root(g) in taken:
            rest.append(t)
        else:
            parts.append((broadcasting(t.shape, value.shape), g))
    if len(parts) < 2:
        return value
    terms = [*rest, gaussian_term(_merged_parts(parts), value.shape)]
    return Wide(value.shape, value.wide, terms, value.offset, value.product)


def function(
    primitive: Primitive,
    params: PrimitiveParams,
    values: Sequence[Wide | Det],
    wide: Sequence[int],
    related: Related,
) -> Wide:
    """An elementwise function of values, at least one of them wide, as one function of independent
    Gaussians.
    """
    values = [gathered(v) for v in values]
    builder = ExpressionBuilder(fields_of(values))
    nodes = [
        builder.deterministic(v) if isinstance(v, Det) else builder.sum(v.random, v.offset)
        for v in values
    ]
    check_integrable(primitive, builder.random, related)
    shape = jnp.broadcast_shapes(*(v.shape for v in values))
    node = apply(primitive, params, nodes)
    term = Term((Factor(builder.variables, node, tuple(builder.operands)),))
    by = broadcasting(term.base, shape)
    return Wide(shape, tuple(wide), [term if by is None else Term(term.factors, by)])


def check_integrable(primitive: Primitive, fields: Sequence[Field], related: Related) -> None:
    """Raise unless the random variables of a function are few, and independent."""
    if any(related(g, h) for g, h in itertools.combinations(fields, 2)):
        raise NoLimitError(
            f"the nonlinearity `{primitive.name}` acts on correlated wide vectors that are not "
            "multiples of each other,"
        )
    if len(fields) > MOST_GAUSSIANS:
        raise NoLimitError(
            f"the nonlinearity `{primitive.name}` acts on a function of {len(fields)} independent "
            f"Gaussians at each unit: more than {MOST_GAUSSIANS} are too many to integrate over,"
        )
