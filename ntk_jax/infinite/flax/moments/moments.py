"""The questions asked of a tensor program: covariance, second moment and tangent kernel of its
values, answered backwards.

Every answer is for one block of the pair, `sides` = (0, 1) between the examples, (0, 0) and (1, 1)
of one with itself, and either in full, (*shape1, *shape2), or `diagonal`, (*shape): equal positions
only. None is a structural zero.
"""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.moments.contractions import inner_products
from ntk_jax.infinite.flax.moments.factors import FactorMoments
from ntk_jax.infinite.flax.values.fields import (
    Combination,
    Entries,
    Field,
    InnerProduct,
    Segment,
    Weight,
)
from ntk_jax.infinite.flax.values.linear import (
    diagonal,
    keeps_diagonal,
    on_both,
    on_diagonal,
    outer,
)
from ntk_jax.infinite.flax.values.values import Det, Masked, Term, Wide, offsets

Sides = tuple[int, int]
Answer = Array | None


class Moments(FactorMoments):
    """All answers about one pair, each computed once."""

    def covariance(self, g: Field, h: Field, sides: Sides, diag: bool) -> Answer:
        """E[g h'] of two Gaussians."""
        return self._memo("covariance", g, h, sides, diag, self._gaussians, False)

    def tangent(self, g: Field, h: Field, sides: Sides, diag: bool) -> Answer:
        """The tangent kernel of two Gaussians: sum over parameters of eta dg/dp dh'/dp."""
        return self._memo("tangent", g, h, sides, diag, self._gaussians, True)

    def second(self, x: Any, y: Any, sides: Sides, diag: bool) -> Answer:
        """E[x y'] of two values."""
        return self._memo("second", x, y, sides, diag, self._second)

    def theta(self, x: Any, y: Any, sides: Sides, diag: bool) -> Answer:
        """The tangent kernel of two values."""
        return self._memo("theta", x, y, sides, diag, self._theta)

    def _memo(self, kind, x, y, sides, diag, compute, *args):
        key = (kind, x, y, sides, diag)
        if key not in self.memory:
            full = self.memory.get((kind, x, y, sides, False)) if diag else None
            if full is not None:
                self.memory[key] = diagonal(full, x.shape)
            else:
                self.memory[key] = compute(x, y, sides, diag, *args)
        return self.memory[key]

    # Gaussians

    def _gaussians(self, g, h, sides, diag, tangent):
        ask = self.tangent if tangent else self.covariance
        if isinstance(g, Combination) or isinstance(h, Combination):
            return self._combinations(g, h, sides, diag, ask)
        if isinstance(g, Segment) or isinstance(h, Segment):
            return self._segments(g, h, sides, diag, ask)
        if isinstance(g, InnerProduct) or isinstance(h, InnerProduct):
            both = isinstance(g, InnerProduct) and isinstance(h, InnerProduct)
            return inner_products(self, g, h, sides, diag, tangent) if both else None
        assert isinstance(g, Weight | Entries) and isinstance(h, Weight | Entries)
        if (
            g.leaf != h.leaf or g.key != h.key
        ):  # parts of one leaf with different keys do not overlap: see Uses
            return None
        if isinstance(g, Entries) or isinstance(h, Entries):
            return self._entries(g, h, diag, tangent)
        second = g.contract(self, g, h, sides, diag, self.second) if tangent or g.variance else None
        if not tangent:
            return None if second is None else g.variance * second
        own = None if second is None or not g.eta else g.eta * second
        if not g.variance or isinstance(g.value, Det) or isinstance(h.value, Det):
            return own
        below = g.contract(self, g, h, sides, diag, self.theta)
        return plus(own, None if below is None else g.variance * below)

    def _entries(self, g, h, diag, tangent):
        scale = g.eta if tangent else g.variance
        if not scale:
            return None
        n = math.prod(g.shape)
        eye = (
            jnp.ones(g.shape, self.dtype)
            if diag
            else jnp.eye(n, dtype=self.dtype).reshape(g.shape + h.shape)
        )
        return scale * eye

    def _combinations(self, g, h, sides, diag, ask):
        parts = [x.parts if isinstance(x, Combination) else [(None, x)] for x in (g, h)]
        total = None
        for m1, g1 in parts[0]:
            for m2, h2 in parts[1]:
                k = self._mapped(
                    m1, m2, g1.shape, h2.shape, sides, diag, partial(ask, g1, h2, sides)
                )
                total = plus(total, k)
        return total

    def _segments(self, g, h, sides, diag, ask):
        if isinstance(g, Segment) and isinstance(h, Segment):
            (axis1, start1, stop1), (axis2, start2, stop2) = g.tag, h.tag
            if g.tag == h.tag:
                return ask(g.source, h.source, sides, diag)
            if axis1 == axis2 and (stop1 <= start2 or stop2 <= start1):
                return None
        inside = [x.source if isinstance(x, Segment) else x for x in (g, h)]
        if ask(*inside, sides, diag) is None:
            return None
        raise NoLimitError(
            "overlapping parts of one infinite axis meet: their covariance has no rule,"
        )

    def _mapped(self, m1, m2, shape1, shape2, sides, diag, ask):
        """m1 k m2ᵀ, where ask(diag) gives k; in diagonal mode only that."""
        if diag and shape1 == shape2 and keeps_diagonal(m1, m2):
            k = ask(True)
            return None if k is None else on_diagonal(m1, m2, sides, k, shape1)
        k = ask(False)
        if k is None:
            return None
        k = on_both(m1, m2, sides, k, shape1, shape2)
        if not diag:
            return k
        return diagonal(k, shape1 if m1 is None else m1.shape)

    # Values

    def _second(self, x, y, sides, diag):
        if isinstance(x, Det) or isinstance(y, Det):
            a, b = self.mean_of(x, sides[0]), self.mean_of(y, sides[1])
            return None if a is None or b is None else (a * b if diag else outer(a, b))
        total = None
        if x.offset is not None or y.offset is not None:
            (cx, cy), means = (
                (offsets(v, self.dtype) for v in (x, y)),
                (self.mean_of(x, sides[0]), self.mean_of(y, sides[1])),
            )
            combine = (lambda a, b: a * b) if diag else outer
            a, b = cx[sides[0]], cy[sides[1]]
            mx, my = (
                jnp.zeros(v.shape, self.dtype) if m is None else m
                for v, m in zip((x, y), means, strict=True)
            )
            total = combine(a, my) + combine(mx, b) - combine(a, b)
        for t in x.random:
            for u in y.random:
                ask = lambda d, t=t, u=u: self._of_terms(self.second, self.moment, t, u, sides, d)
                total = plus(total, self._mapped(t.map, u.map, t.base, u.base, sides, diag, ask))
        return total

    def _theta(self, x, y, sides, diag):
        if isinstance(x, Det) or isinstance(y, Det):
            return None
        total = None
        for t in x.random:
            for u in y.random:
                ask = lambda d, t=t, u=u: self._of_terms(
                    self.theta, self._term_tangent, t, u, sides, d
                )
                total = plus(total, self._mapped(t.map, u.map, t.base, u.base, sides, diag, ask))
        return total

    def _of_terms(self, of_values, of_terms, t: Term, u: Term, sides: Sides, diag: bool) -> Answer:
        """Before their maps; of masked values, those of the values, times the second moment of a
        mask that they share.
        """
        if not t.masked and not u.masked:
            return of_terms(t, u, sides, diag)
        k = of_values(self._inside(t), self._inside(u), sides, diag)
        if (
            k is None
            or not t.masked
            or not u.masked
            or t.masked.source != u.masked.source
            or sides[0] != sides[1]
        ):
            return k
        return _with_mask(k, t.masked, diag)

    def _inside(self, t: Term) -> Wide:
        """A term as a value before its map, without its mask."""
        if t.masked:
            return t.masked.value
        return self.memory.setdefault(
            ("inside", t), Wide(t.base, (1,) * len(t.base), [Term(t.factors)])
        )

    def _term_tangent(self, t: Term, u: Term, sides: Sides, diag: bool) -> Answer:
        total = None
        for i, f in enumerate(t.factors):
            for j, other in enumerate(u.factors):
                if f.sampled is not None or other.sampled is not None:
                    total = plus(total, self._sampled_part(t, u, i, j, sides, diag))
                    continue
                for a, g in enumerate(f.gaussians):
                    for b, h in enumerate(other.gaussians):
                        k = self.spread(self.tangent, g, h, sides, diag, t.base, u.base)
                        if k is not None:
                            slope = self.moment(t, u, sides, diag, (i, a), (j, b))
                            total = plus(total, None if slope is None else k * slope)
        return total

    def _sampled_part(self, t: Term, u: Term, i: int, j: int, sides: Sides, diag: bool) -> Answer:
        """What passes through factors i and j, of which one is sampled, times the moment of the
        others.
        """
        k = self.sampled_tangent(
            self.tangent, t.factors[i], u.factors[j], sides, diag, t.base, u.base
        )
        if k is None:
            return None
        others = self.moment(t, u, sides, diag, skip=(i, j))
        return None if others is None else k * others

    def mean_of(self, x: Any, side: int) -> Answer:
        """E[x] of a value on one side, None for a structural zero."""
        if isinstance(x, Det):
            return jnp.broadcast_to(jnp.asarray(x.sides[side], self.dtype), x.shape)
        total = None if x.offset is None else offsets(x, self.dtype)[side]
        for t in x.random:
            m = self.term_mean(t, side)
            if m is not None:
                total = plus(
                    total, jnp.broadcast_to(m if t.map is None else t.map.apply(side, m), x.shape)
                )
        return total


def plus(a: Answer, b: Answer) -> Answer:
    """The sum of two answers, either of which may be a structural zero."""
    return b if a is None else a if b is None else a + b


def _with_mask(k: Array, masked: Masked, diag: bool) -> Array:
    """A mask of mean 1 and second moment 1 / keep, where one example meets itself."""
    if diag:
        return k / masked.keep
    shape = masked.mask_shape
    extra = (1 / masked.keep - 1) * jnp.eye(math.prod(shape), dtype=k.dtype)
    return k * (1 + extra.reshape(shape + shape))
