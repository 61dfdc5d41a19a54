"""Products of wide values, in a form that keeps independent factors apart and functions of one
Gaussian scalar.
"""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import jax.numpy as jnp

from ntk_jax.infinite.flax.algebra import (
    Related,
    broadcasting,
    check_integrable,
    function,
    map_term,
    scaled,
    scaling,
    tidy,
)
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.values import (
    MUL,
    Det,
    ExpressionBuilder,
    Factor,
    Masked,
    Shape,
    Term,
    Wide,
    both_sides,
    fields_of,
    root,
)


def product(x: Wide, y: Wide, wide: Sequence[int], related: Related) -> Wide:
    """The product of two wide values; without terms if it has no form but for a mean over it."""
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    out = Wide(shape, tuple(wide), None, product=(x, y))
    if x.terms is None or y.terms is None:
        return out
    if any(t.masked for t in [*x.terms, *y.terms]):
        found = _inside_masks(x, y, wide, related) or _inside_masks(y, x, wide, related)
        if found is not None:
            out.terms, out.offset = tidy(found.random, shape), found.offset
        return out
    # Functions of one Gaussian multiply to one function of it, whose dual is exact. A degenerate
    # field stays apart: at its value, 0, the product would lose the other factor.
    fields = fields_of([x, y])
    of_one = len({root(g) for g in fields}) == 1 and not any(g.degenerate for g in fields)
    terms = None if of_one else _products_of_terms(x, y, shape, related)
    if terms is None:
        # Also z γ Φ(z γ + β) with trained constants γ and β, which are variables as z is.
        out.terms = _one_function(x, y, wide, related)
        return out
    out.terms = tidy(terms, shape)
    if x.offset is not None and y.offset is not None:
        out.offset = x.offset.times(y.offset)
    return out


def _one_function(x: Wide, y: Wide, wide: Sequence[int], related: Related) -> list[Term] | None:
    """The product as one function of independent Gaussians; None if it is not."""
    try:
        return function(*MUL, [x, y], wide, related).terms
    except NoLimitError:
        return None


def _products_of_terms(x: Wide, y: Wide, shape: Shape, related: Related) -> list[Term] | None:
    """All products but that of both offsets; None if one of them has no form."""
    terms = []
    parts: list[list[Term | Det]] = [
        [*v.random, *([] if v.offset is None else [v.offset])] for v in (x, y)
    ]
    for t, u in itertools.product(*parts):
        if isinstance(t, Det) and isinstance(u, Det):
            continue
        term = _times(t, u, shape, related)
        if term is None:
            return None
        terms.append(term)
    return terms


def _inside_masks(x: Wide, y: Wide, wide: Sequence[int], related: Related) -> Wide | None:
    """The product if x alone has masked terms: each mask is left outside; None if it has no
    form.
    """
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    masked = [(t, t.masked) for t in x.random if t.masked]
    if any(t.masked for t in y.random) or any(t.map and t.map.factor is None for t, _ in masked):
        return None
    rest = Wide(x.shape, x.wide, [t for t in x.random if not t.masked], x.offset)
    empty = not rest.terms and rest.offset is None
    total = Wide(shape, tuple(wide), []) if empty else product(rest, y, wide, related)
    if total.terms is None:
        return None
    terms = list(total.terms)
    for t, mask in masked:
        scale = None if t.map is None else t.map.factor
        value = mask.value if scale is None else scaled(mask.value, scale, wide)
        inner = product(value, y, wide, related)
        if inner.terms is None or inner.shape != shape:
            return None
        terms.append(Term((Masked(inner, mask.source, mask.mask_shape, mask.keep),)))
    return Wide(shape, tuple(wide), terms, total.offset)


def _times(t: Term | Det, u: Term | Det, shape: Shape, related: Related) -> Term | None:
    """The product of two terms, or of one and an offset; None where it has no form."""
    if isinstance(t, Det) or isinstance(u, Det):
        term, d = cast(tuple[Term, Det], (u, t) if isinstance(t, Det) else (t, u))
        term = map_term(term, scaling(d, term.shape))
        return map_term(term, broadcasting(term.shape, shape))
    t, u = _scale_only(t), _scale_only(u)
    for m, other in ((t.map, u), (u.map, t)):
        # A map moves past a factor that is the same everywhere, or scales where it stands.
        alike = other.map is None and all(s == 1 for s in other.base)
        if m is not None and m.factor is None and not alike:
            return None
    factors = _product_of_factors(t.factors, u.factors, related)
    if factors is None:
        return None
    term = Term(factors)
    for m in (t.map, u.map):
        if m is not None:
            by = m if m.factor is None else scaling(m.factor, term.shape) or m
            term = term.mapped(by)
    spread = broadcasting(term.shape, shape)
    return term if spread is None else term.mapped(spread)


def _scale_only(t: Term) -> Term:
    """A map of a single entry (a mean over positions, broadcast to all of them) is its
    multiplication by what 1 becomes.
    """
    by = t.map
    if by is None or by.factor is not None or math.prod(t.base) != 1:
        return t
    one = both_sides(lambda side: by.apply(side, jnp.ones(t.base)), (1,) * len(by.shape))
    return Term(t.factors, scaling(one, t.base))


def _product_of_factors(
    left: Sequence[Factor], right: Sequence[Factor], related: Related
) -> tuple[Factor, ...] | None:
    """The factors of a product: functions of the same Gaussian become one; None where functions of
    different but related ones meet.
    """
    factors = list(left)
    for g in right:
        met = [f for f in factors if _random_roots(f) & _random_roots(g)]
        others = [f for f in factors if f not in met]
        if any(related(a, b) for f in others for a in f.gaussians for b in g.gaussians):
            return None
        if met and any(f.sampled is not None for f in (*met, g)):
            return None
        last = _joint_function([*met, g], related) if met else g
        if last is None:
            return None
        factors = [*others, last]
    return tuple(factors)


def _joint_function(factors: Sequence[Factor], related: Related) -> Factor | None:
    """The product of functions of the same variables as one function."""
    builder = ExpressionBuilder(list(dict.fromkeys(g for f in factors for g in f.gaussians)))
    node = builder.term(Term(tuple(factors)))
    try:
        check_integrable(MUL[0], builder.random, related)
    except NoLimitError:
        return None
    return Factor(builder.variables, node, tuple(builder.operands))


def _random_roots(f: Factor) -> set:
    return {root(g) for g in f.gaussians if not g.degenerate}
