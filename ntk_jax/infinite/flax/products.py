"""Products of wide values, in a form that keeps independent factors apart and functions of one
Gaussian scalar.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ntk_jax.infinite.flax.algebra import (
    MOST_GAUSSIANS,
    broadcasting,
    fields_of,
    function,
    map_term,
    scaled,
    scaling,
    tidy,
)
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.moments.moments import Moments
from ntk_jax.infinite.flax.values.linear import Shape
from ntk_jax.infinite.flax.values.primitives import MUL
from ntk_jax.infinite.flax.values.slots import Slots, chain
from ntk_jax.infinite.flax.values.values import Det, Factor, Masked, Term, Wide


def product(x: Wide, y: Wide, wide: Sequence[int], moments: Moments) -> Wide:
    """The product of two wide values."""
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    out = Wide(shape, tuple(wide), None, product=(x, y))
    if x.terms is None or y.terms is None:
        return out
    if any(t.masked for t in [*x.terms, *y.terms]):
        found = _inside_masks(x, y, wide, moments) or _inside_masks(y, x, wide, moments)
        return (
            out
            if found is None
            else Wide(shape, tuple(wide), tidy(found.random, shape), found.offset, (x, y))
        )
    fields = fields_of([x, y])
    roots = {chain(g)[-1][0] for g in fields}
    if len(roots) == 1 and not any(g.degenerate for g in fields):
        try:
            out.terms = function(MUL[0], MUL[1], [x, y], wide, moments).terms
        except NoLimitError:
            out.terms = None
        return out
    terms = []
    for t in [*x.terms, *([x.offset] if x.offset is not None else [])]:
        for u in [*y.terms, *([y.offset] if y.offset is not None else [])]:
            term = _times(t, u, shape, moments)
            if term is NOTHING:
                continue
            if term is None:
                return out
            terms.append(term)
    out.terms = tidy(terms, shape)
    if x.offset is not None and y.offset is not None:
        out.offset = x.offset.times(y.offset)
    return out


def _inside_masks(x: Wide, y: Wide, wide: Sequence[int], moments: Moments) -> Wide | None:
    """The product if x alone has masked terms: each mask is left outside; None if it has no
    form.
    """
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    if any(t.masked for t in y.random) or any(
        t.map is not None and t.map.factor is None for t in x.random if t.masked
    ):
        return None
    rest = Wide(x.shape, x.wide, [t for t in x.random if not t.masked], x.offset)
    total = (
        product(rest, y, wide, moments)
        if rest.terms or rest.offset is not None
        else Wide(shape, tuple(wide), [])
    )
    terms = total.terms
    for t in x.random:
        if terms is None or not t.masked:
            continue
        value = t.masked.value if t.map is None else scaled(t.masked.value, t.map.factor, wide)
        inner = product(value, y, wide, moments)
        if inner.terms is None or inner.shape != shape:
            return None
        terms = [
            *terms,
            Term((Masked(inner, t.masked.source, t.masked.mask_shape, t.masked.keep),)),
        ]
    return None if terms is None else Wide(shape, tuple(wide), terms, total.offset)


NOTHING: Any = object()


def _times(t: Any, u: Any, shape: Shape, moments: Moments) -> Any:
    """The product of two terms or offsets; NOTHING for two offsets, None where it has no form."""
    if isinstance(t, Det) and isinstance(u, Det):
        return NOTHING
    if isinstance(t, Det) or isinstance(u, Det):
        term, d = (u, t) if isinstance(t, Det) else (t, u)
        by = scaling(d, term.shape)
        term = term if by is None else map_term(term, by)
        by = broadcasting(term.shape, shape)
        return term if by is None else map_term(term, by)
    t, u = _scale_only(t), _scale_only(u)
    maps = [m for m in (t.map, u.map) if m is not None]
    for m, other in ((t.map, u), (u.map, t)):
        # A map moves past a factor that is the same everywhere, or scales where it stands.
        if (
            m is not None
            and m.factor is None
            and (any(s != 1 for s in other.base) or other.map is not None)
        ):
            return None
    factors = _joined(t.factors, u.factors, moments)
    if factors is None:
        return None
    term = Term(factors)
    for m in maps:
        term = term.mapped(m if m.factor is None else scaling(m.factor, term.shape) or m)
    by = broadcasting(term.shape, shape)
    return term if by is None else term.mapped(by)


def _scale_only(t: Term) -> Term:
    """A map of a single entry (a mean over positions, broadcast to all of them) is its
    multiplication by what 1 becomes.
    """
    if t.map is None or t.map.factor is not None or math.prod(t.base) != 1:
        return t
    one = [t.map.apply(side, jnp.ones(t.base)) for side in (0, 1)]
    return Term(t.factors, scaling(Det((one[0], one[1]), (1,) * one[0].ndim), t.base))


def _joined(
    left: tuple[Factor, ...], right: tuple[Factor, ...], moments: Moments
) -> tuple[Factor, ...] | None:
    """The factors of a product: functions of the same Gaussian become one."""
    factors = list(left)
    for g in right:
        met = []
        for f in factors:
            roots1, roots2 = (
                {chain(a)[-1][0] for a in x.gaussians if not a.degenerate} for x in (f, g)
            )
            if roots1 & roots2:
                met.append(f)
            elif any(moments.related(a, b, (0, 0)) for a in f.gaussians for b in g.gaussians):
                return None
        if not met:
            factors.append(g)
            continue
        if any(f.sampled is not None for f in (*met, g)):
            return None
        slots = Slots()
        slots.resolve(list(dict.fromkeys(a for f in [*met, g] for a in f.gaussians)))
        node = slots.term(Term((*met, g)))
        mains = [a for a in slots.gaussians if not a.degenerate]
        if (
            any(moments.related(a, b, (0, 0)) for a, b in itertools.combinations(mains, 2))
            or len(mains) > MOST_GAUSSIANS
        ):
            return None
        factors = [f for f in factors if f not in met] + [
            Factor(slots.gaussians, node, tuple(slots.operands))
        ]
    return tuple(factors)
