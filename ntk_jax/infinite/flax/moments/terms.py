"""Second moments and tangent kernels of terms, products of independent factors, before their linear
maps.
"""

import operator
from functools import reduce
from typing import TypeAlias

import jax.numpy as jnp

from ntk_jax.infinite.flax.errors import BY_SAMPLES, NoLimitError
from ntk_jax.infinite.flax.moments.factors import Factors
from ntk_jax.infinite.flax.moments.pair import Answer, Half, Pair, Sides, plus
from ntk_jax.infinite.flax.values import Term

Derivative: TypeAlias = tuple[int, int]  # a factor, and one of its Gaussians
Matches: TypeAlias = list[tuple[int | None, int | None]]
MEET = "products of correlated wide vectors meet each other: their moment has no rule,"


class Terms:
    """The queries of terms."""

    def __init__(self, factors: Factors):
        self.factors, self.gaussians = factors, factors.gaussians

    def moment(
        self,
        t: Term,
        u: Term,
        sides: Sides,
        diag: bool,
        by: tuple[Derivative, Derivative] | None = None,
        skip: tuple[int, int] | None = None,
    ) -> Answer:
        """E[t u'], of derivatives if `by` names one in each.

        Factor number skip[0] of t and skip[1] of u, correlated with no other, are left out.
        """
        matches = self._matched(t, u, sides)
        if matches is None:
            return self.factors.estimates.second(self._joint(t, u, sides, diag))
        if skip is not None:
            matches = [(i, j) for i, j in matches if i != skip[0] and j != skip[1]]
        wrt = [dict([d]) for d in by] if by else [{}, {}]
        shape = t.base if diag else t.base + u.base
        found = []
        for i, j in sorted(matches, key=lambda at: None not in at):  # most means are 0: asked first
            halves = [
                Half(term.factors[at], side, d.get(at))
                for term, at, side, d in zip((t, u), (i, j), sides, wrt, strict=True)
                if at is not None
            ]
            if len(halves) == 2:
                k = self.factors.moment(Pair(halves[0], halves[1], (t.base, u.base), diag))
            else:
                k = self.factors.mean(halves[0])
                if k is not None and i is not None and not diag:
                    k = jnp.broadcast_to(k, t.base).reshape(t.base + (1,) * len(u.base))
            if k is None:
                return None
            found.append(k)
        total = reduce(operator.mul, found) if found else jnp.ones((), self.gaussians.dtype)
        return jnp.broadcast_to(total, shape)

    def tangent(self, t: Term, u: Term, sides: Sides, diag: bool) -> Answer:
        """The tangent kernel: what passes through each pair of factors, times the moment of the
        others.
        """
        matches = self._matched(t, u, sides)
        if matches is None:
            return self.factors.estimates.tangent(self._joint(t, u, sides, diag))
        total: Answer = None
        for i, f in enumerate(t.factors):
            for j, g in enumerate(u.factors):
                pair = Pair(Half(f, sides[0]), Half(g, sides[1]), (t.base, u.base), diag)
                if f.sampled is not None or g.sampled is not None:
                    k = self.factors.estimates.tangent(pair)
                    if k is not None and not _alone(matches, i, j):
                        return self.factors.estimates.tangent(self._joint(t, u, sides, diag))
                    if k is not None:
                        others = self.moment(t, u, sides, diag, skip=(i, j))
                        total = plus(total, None if others is None else k * others)
                    continue
                for a, one in enumerate(f.gaussians):
                    for b, other in enumerate(g.gaussians):
                        # Most kernels of two Gaussians are 0: asked first, as slopes cost more.
                        k = pair.between(self.gaussians.tangent, one, other)
                        if k is not None:
                            slope = self.moment(t, u, sides, diag, by=((i, a), (j, b)))
                            total = plus(total, None if slope is None else k * slope)
        return total

    def _joint(self, t: Term, u: Term, sides: Sides, diag: bool) -> Pair:
        """Two products as functions known by samples, where no pairs of factors answer."""
        estimates = self.factors.estimates
        if estimates.samples.sampling is None:
            raise NoLimitError(MEET, BY_SAMPLES)
        left, right = (
            Half(estimates.joint(term.factors, term.base), side)
            for term, side in zip((t, u), sides, strict=True)
        )
        return Pair(left, right, (t.base, u.base), diag)

    def _matched(self, t: Term, u: Term, sides: Sides) -> Matches | None:
        """Which factor of t is correlated with which of u; None if one is with several."""
        # Alone or the same, they are matched whether or not they are correlated: nothing is asked.
        if t is u or len(t.factors) == len(u.factors) == 1:
            return [(i, i) for i in range(len(t.factors))]
        matches: Matches = []
        for i, f in enumerate(t.factors):
            met = [j for j, g in enumerate(u.factors) if self.factors.related(f, g, sides)]
            if len(met) > 1 or any(j == m for _, j in matches for m in met):
                return None
            matches.append((i, met[0] if met else None))
        used = {j for _, j in matches}
        return matches + [(None, j) for j in range(len(u.factors)) if j not in used]


def _alone(matches: Matches, i: int, j: int) -> bool:
    """Whether factors i and j are correlated with no others."""
    return (i, j) in matches or {(i, None), (None, j)} <= set(matches)
