"""The questions asked of a tensor program: covariance, second moment and tangent kernel of its
values, answered backwards, each once. See `pair.py` for what an answer is.

Composed of parts that ask each other: `Gaussians` (of values, through weights), `Expectations` (of
one factor), `Samples` of Gaussians and `Estimates` from them, `Factors` and `Terms`.
"""

import math
import operator
import weakref
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.flax.moments.estimates import Estimates
from ntk_jax.infinite.flax.moments.expectations import Expectations
from ntk_jax.infinite.flax.moments.factors import Factors, Observed
from ntk_jax.infinite.flax.moments.gaussians import Gaussians, Mapped, mapped
from ntk_jax.infinite.flax.moments.pair import (
    Answer,
    AskDual,
    AskValues,
    Half,
    Sides,
    plus,
    remembered,
    remembered_block,
)
from ntk_jax.infinite.flax.moments.samples import Samples, Sampling
from ntk_jax.infinite.flax.moments.terms import Terms
from ntk_jax.infinite.flax.values import Det, Masked, Term, Wide
from ntk_jax.infinite.flax.values.linear import outer
from ntk_jax.infinite.flax.values.values import offsets


class Moments:
    """All answers about one pair.

    Attributes:
        dtype: of all arrays.
        observed: what was met, if asked for.
        sampling: None where samples are refused.
        same: whether both examples are one, which is then known without rounding on sides (0, 1) as
            well; None: they are taken for two.
        covariance, tangent, related: the queries of Gaussians.
        number: which normals a Gaussian is made of.
    """

    def __init__(
        self,
        dtype: Any,
        ask: AskDual,
        observed: Observed | None = None,
        sampling: Sampling | None = None,
        same: Array | None = None,
    ):
        # Weakly, the one way back: in a cycle of references the tracers in `memory` would outlive
        # their trace until they are collected, which `jax.check_tracer_leaks` reports.
        values = weakref.proxy(self)
        gaussians = Gaussians(
            dtype, lambda *query: values.second(*query), lambda *query: values.theta(*query)
        )
        samples = Samples(gaussians, sampling, same)
        factors = Factors(
            gaussians,
            Expectations(gaussians, ask),
            Estimates(gaussians, samples),
            observed,
            same,
        )
        self.dtype, self.observed, self.sampling, self.same = dtype, observed, sampling, same
        self.covariance, self.tangent = gaussians.covariance, gaussians.tangent
        self.related, self.number = gaussians.related, samples.number
        self.factors, self.terms = factors, Terms(factors)
        self.memory: dict[Any, Any] = {}

    @remembered_block
    def second(self, x: Det | Wide, y: Det | Wide, sides: Sides, diag: bool) -> Answer:
        """E[x y'] of two values."""
        times: Callable[[Array, Array], Array] = operator.mul if diag else outer
        if isinstance(x, Det) or isinstance(y, Det):
            a, b = self.mean_of(x, sides[0]), self.mean_of(y, sides[1])
            return None if a is None or b is None else times(a, b)
        total: Answer = None
        if x.offset is not None or y.offset is not None:
            a, b = (offsets(v, self.dtype)[side] for v, side in zip((x, y), sides, strict=True))
            # E[(a + t)(b + u)] = a E[b + u] + E[a + t] b - a b + E[t u], of offsets a, b
            mx, my = (
                jnp.zeros(v.shape, self.dtype) if (m := self.mean_of(v, side)) is None else m
                for v, side in zip((x, y), sides, strict=True)
            )
            total = times(a, my) + times(mx, b) - times(a, b)
        return self._over_terms(self.second, self.terms.moment, x, y, sides, diag, total)

    @remembered_block
    def theta(self, x: Det | Wide, y: Det | Wide, sides: Sides, diag: bool) -> Answer:
        """The tangent kernel of two values."""
        if isinstance(x, Det) or isinstance(y, Det):
            return None
        return self._over_terms(self.theta, self.terms.tangent, x, y, sides, diag)

    def mean_of(self, x: Det | Wide, side: int) -> Answer:
        """E[x] of a value on one side, None for a structural zero."""
        if isinstance(x, Det):
            return jnp.broadcast_to(jnp.asarray(x.sides[side], self.dtype), x.shape)
        total = None if x.offset is None else offsets(x, self.dtype)[side]
        for t in x.random:
            if (m := self._mean_of_term(t, side)) is not None:
                m = m if t.map is None else t.map.apply(side, m)
                total = plus(total, jnp.broadcast_to(m, x.shape))
        return total

    def _mean_of_term(self, t: Term, side: int) -> Answer:
        """Before its map."""
        if t.masked:
            return self.mean_of(t.masked.value, side)
        means = [self.factors.mean(Half(f, side)) for f in t.factors]
        known = [m for m in means if m is not None]
        if len(known) < len(means):
            return None
        return jnp.broadcast_to(reduce(operator.mul, known), t.base)

    def _over_terms(
        self,
        of_values: AskValues,
        of_terms: Callable[[Term, Term, Sides, bool], Answer],
        x: Wide,
        y: Wide,
        sides: Sides,
        diag: bool,
        total: Answer = None,
    ) -> Answer:
        for t in x.random:
            for u in y.random:
                ask = partial(self._before_maps, of_values, of_terms, t, u, sides)
                left, right = Mapped(t.map, t.base), Mapped(u.map, u.base)
                total = plus(total, mapped(left, right, sides, diag, ask))
        return total

    def _before_maps(
        self,
        of_values: AskValues,
        of_terms: Callable[[Term, Term, Sides, bool], Answer],
        t: Term,
        u: Term,
        sides: Sides,
        diag: bool,
    ) -> Answer:
        """Of masked values, the answer of the values, times the second moment of a mask that they
        share.
        """
        if not t.masked and not u.masked:
            return of_terms(t, u, sides, diag)
        k = of_values(self._inside(t), self._inside(u), sides, diag)
        same = True if sides[0] == sides[1] else self.same
        if k is None or same is None or not t.masked or not u.masked:
            return k
        if t.masked.source != u.masked.source:
            return k
        return jnp.where(same, _with_mask(k, t.masked, diag), k)

    @remembered
    def _inside(self, t: Term) -> Wide:
        """A term as a value before its map, without its mask."""
        if t.masked:
            return t.masked.value
        return Wide(t.base, (1,) * len(t.base), [Term(t.factors)])


def _with_mask(k: Array, masked: Masked, diag: bool) -> Array:
    """A mask of mean 1 and second moment 1 / keep, where one example meets itself."""
    if diag:
        return k / masked.keep
    eye = jnp.eye(math.prod(masked.mask_shape), dtype=k.dtype).reshape(masked.mask_shape * 2)
    return k * (1 + (1 / masked.keep - 1) * eye)
