"""Moments of products of functions of Gaussians, entry by entry: where the duals come in."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.duals.dual_rule import covariance_at_poles
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.moments import mehler
from ntk_jax.infinite.flax.moments.expectations import Answer, Sides
from ntk_jax.infinite.flax.moments.samples import Draws
from ntk_jax.infinite.flax.values.expression import (
    nodes,
)
from ntk_jax.infinite.flax.values.fields import Field
from ntk_jax.infinite.flax.values.linear import Shape, diagonal, outer
from ntk_jax.infinite.flax.values.values import Factor, Term


class FactorMoments(Draws):
    """Moments of terms on both sides."""

    def spread(
        self, ask: Any, g: Field, h: Field, sides: Sides, diag: bool, shape1: Shape, shape2: Shape
    ) -> Answer:
        """A covariance or tangent kernel of Gaussians, at the positions of values that they are
        broadcast into.
        """
        if diag and g.shape == h.shape:
            k = ask(g, h, sides, True)
            return None if k is None else jnp.broadcast_to(k, shape1)
        k = ask(g, h, sides, False)
        if k is None:
            return None
        lead = lambda s, full: (1,) * (len(full) - len(s)) + tuple(s)
        k = jnp.broadcast_to(
            k.reshape(lead(g.shape, shape1) + lead(h.shape, shape2)), shape1 + shape2
        )
        return diagonal(k, shape1) if diag else k

    # Terms

    def moment(
        self,
        t: Term,
        u: Term,
        sides: Sides,
        diag: bool,
        dt: Any = None,
        du: Any = None,
        skip: Any = (None, None),
    ) -> Answer:
        """E[t u'] before their linear maps; of derivatives if `dt`, `du` name a factor and one of
        its Gaussians.

        Factor number skip[0] of t and skip[1] of u, correlated with no other, are left out.
        """
        pairs = self._matched(t, u, sides)
        if skip != (None, None):
            if skip not in pairs and ((skip[0], None) not in pairs or (None, skip[1]) not in pairs):
                raise NoLimitError(
                    "products of correlated wide vectors meet each other: their moment has no rule,"
                )
            pairs = [(i, j) for i, j in pairs if i != skip[0] and j != skip[1]]
        total: Answer = jnp.ones((), self.dtype) if not pairs else None
        for i, j in pairs:
            d1, d2 = (
                d[1] if d is not None and d[0] == at else None for d, at in ((dt, i), (du, j))
            )
            if i is not None and j is not None:
                k = self._both(t.factors[i], u.factors[j], d1, d2, sides, diag, t.base, u.base)
            else:
                factor, side, d = (
                    (t.factors[i or 0], sides[0], d1) if j is None else (u.factors[j], sides[1], d2)
                )
                k = self.mean(factor, side, d)
                if k is not None:
                    own, other = (t.base, u.base) if j is None else (u.base, t.base)
                    k = jnp.broadcast_to(k, own)
                    if not diag:
                        one = jnp.ones((1,) * len(other), self.dtype)
                        k = outer(k, one) if j is None else outer(one, k)
            if k is None:
                return None
            total = k if total is None else total * k
        return (
            None if total is None else jnp.broadcast_to(total, t.base if diag else t.base + u.base)
        )

    def _matched(self, t: Term, u: Term, sides: Sides) -> list[tuple[int | None, int | None]]:
        """Which factor of t is correlated with which of u."""
        if t is u or len(t.factors) == len(u.factors) == 1:
            return [(i, i) for i in range(len(t.factors))]
        pairs: list[tuple[int | None, int | None]] = []
        for i, f in enumerate(t.factors):
            met = [
                j
                for j, g in enumerate(u.factors)
                if any(self.related(a, b, sides) for a in f.gaussians for b in g.gaussians)
            ]
            if len(met) > 1 or any(j == m for _, j in pairs for m in met):
                raise NoLimitError(
                    "products of correlated wide vectors meet each other: their moment has no rule,"
                )
            pairs.append((i, met[0] if met else None))
        used = {j for _, j in pairs}
        return pairs + [(None, j) for j in range(len(u.factors)) if j not in used]

    def related(self, g: Field, h: Field, sides: Sides) -> bool:
        """Whether two random Gaussians are not independent."""
        if g is h:
            return True
        if g.degenerate or h.degenerate:
            return False
        return self.covariance(g, h, sides, g.shape == h.shape) is not None

    def term_mean(self, t: Term, side: int) -> Answer:
        """E[t] before its map."""
        if t.masked:
            return self.mean_of(t.masked.value, side)
        total: Answer = None
        for f in t.factors:
            m = self.mean(f, side, None)
            if m is None:
                return None
            total = m if total is None else total * m
        return None if total is None else jnp.broadcast_to(total, t.base)

    def mean_of(self, x: Any, side: int) -> Answer:
        """E[x] of a value on one side."""
        raise NotImplementedError

    def _both(self, f, g, d1, d2, sides, diag, shape1, shape2):
        """E[f g'] of two factors that may be correlated, at the positions of the terms that they
        stand in.
        """
        if f.sampled is not None or g.sampled is not None:
            return self._sampled_pair(f, g, sides, diag, shape1, shape2)
        m1, m2 = f.nondegenerate, g.nondegenerate
        links = [
            [
                self.spread(
                    self.covariance, f.gaussians[i], g.gaussians[j], sides, diag, shape1, shape2
                )
                for j in m2
            ]
            for i in m1
        ]
        if not any(c is not None for row in links for c in row):
            return self._unrelated(f, g, d1, d2, sides, diag, shape1, shape2)
        if len(m1) == len(m2) == 1:
            k = self._scalar_pair(f, g, d1, d2, links[0][0], sides, diag, shape1, shape2)
            if k is not None:
                return k
        return self._series_pair(f, g, d1, d2, links, sides, diag, shape1, shape2)

    def _unrelated(self, f, g, d1, d2, sides, diag, shape1, shape2):
        a, b = self.mean(f, sides[0], d1), self.mean(g, sides[1], d2)
        if a is None or b is None:
            return None
        a, b = jnp.broadcast_to(a, shape1), jnp.broadcast_to(b, shape2)
        return a * b if diag else outer(a, b)

    def _sampled_pair(self, f, g, sides, diag, shape1, shape2):
        if any(self.related(a, b, sides) for a in f.gaussians for b in g.gaussians):
            return self.sampled_second(f, g, sides, diag, shape1, shape2)
        return self._unrelated(f, g, None, None, sides, diag, shape1, shape2)

    def _scalar_pair(self, f, g, d1, d2, c, sides, diag, shape1, shape2):
        main1, main2 = (
            d1 is not None and d1 in f.nondegenerate,
            d2 is not None and d2 in g.nondegenerate,
        )
        if f.node is None and g.node is None:
            return jnp.ones_like(c) if main1 and main2 else c if not main1 and not main2 else None
        if f.node is None or g.node is None:  # Stein: E[u phi(v)] = E[u v] E[phi'(v)]
            return self._stein(f, g, d1, d2, c, sides, diag, shape1, shape2)
        function, other = self.scalar(f, d1), self.scalar(g, d2)
        if function is None or function != other or main1 != main2:
            return None
        key = ("dual", f, g, function, sides, diag, shape1, shape2)
        if key not in self.memory:
            self.memory[key] = self._dual(f, g, function, c, sides, diag, shape1, shape2)
        return self.memory[key][1 if main1 else 0]

    def _stein(self, f, g, d1, d2, c, sides, diag, shape1, shape2):
        swapped = g.node is None
        h, d, other, side = (f, d1, d2, sides[0]) if swapped else (g, d2, d1, sides[1])
        if d is not None and d not in h.nondegenerate:
            return None
        slope = self.mean(h, side, h.nondegenerate[0])
        if d is not None:
            if other is None:
                return None  # the mean of a second derivative: left to the series
            factor: Any = slope
        else:
            if other is not None:
                return None
            factor = slope
        own = shape1 if swapped else shape2
        factor = jnp.broadcast_to(factor, own)
        if not diag:
            factor = (
                factor.reshape(shape1 + (1,) * len(shape2))
                if swapped
                else factor.reshape((1,) * len(shape1) + shape2)
            )
        return jnp.broadcast_to(factor, jnp.shape(c)) if d is not None else c * factor

    def _dual(self, f, g, function, c, sides, diag, shape1, shape2):
        rule = self.rule(function)
        same = (
            f.gaussians[f.nondegenerate[0]] is g.gaussians[g.nondegenerate[0]]
            and sides[0] == sides[1]
            and shape1 == shape2
        )
        q1 = _lift(self._variance_in(f, f.nondegenerate[0], sides[0]), len(shape1))
        if self.observe and sides[0] == sides[1]:
            self.seen.append((function, q1))
        if diag and same:
            own = rule.own(q1)
            return tuple(jnp.broadcast_to(k, shape1) for k in own)
        rows1, rows2 = (
            self._rows(f, function, sides[0], len(shape1)),
            self._rows(g, function, sides[1], len(shape2)),
        )
        first, second = q1, _lift(self._variance_in(g, g.nondegenerate[0], sides[1]), len(shape2))
        if not diag:
            rank1, rank2 = len(shape1), len(shape2)
            rows1, first = jax.tree.map(lambda a: a.reshape(a.shape + (1,) * rank2), (rows1, q1))
            rows2, second = jax.tree.map(
                lambda a: a.reshape(
                    a.shape[: a.ndim - rank2] + (1,) * rank1 + a.shape[a.ndim - rank2 :]
                ),
                (rows2, second),
            )
        dual = rule.pair(rows1, covariance_at_poles(c, first, second), rows2)
        full = shape1 if diag else shape1 + shape2
        both = tuple(jnp.broadcast_to(k, full) for k in dual)
        if same:
            own = rule.own(q1)
            both = tuple(
                _with_diagonal(k, jnp.broadcast_to(o, shape1))
                for k, o in zip(both, own, strict=True)
            )
        return both

    def _rows(self, f, function, side, rank):
        key = ("rows", f, function, side, rank)
        if key not in self.memory:
            self.memory[key] = self.rule(function).rows(
                _lift(self._variance_in(f, f.nondegenerate[0], side), rank)
            )
        return self.memory[key]

    def _series_pair(self, f, g, d1, d2, links, sides, diag, shape1, shape2):
        """By the general series: variables of f and g are matched where they are correlated."""
        n = max(len(links), len(links[0]))
        columns: list[int | None] = []
        for row in links:
            met = [j for j, c in enumerate(row) if c is not None]
            if len(met) > 1 or any(j in columns for j in met):
                raise NoLimitError("a nonlinearity of correlated wide vectors has no rule,")
            columns.append(met[0] if met else None)
        free = [j for j in range(n) if j not in columns]
        columns = [free.pop(0) if j is None else j for j in columns] + [None] * (n - len(columns))
        columns = [free.pop(0) if j is None else j for j in columns]
        a, b = (
            self._expanded(f, sides[0], d1, n, shape1),
            self._expanded(g, sides[1], d2, n, shape2),
        )
        b = jnp.transpose(b, (*columns, *range(n, b.ndim)))
        rank1, rank2 = len(shape1), len(shape2)
        if not diag:
            a = a.reshape(a.shape + (1,) * rank2)
            b = b.reshape(b.shape[:n] + (1,) * rank1 + b.shape[n:])
        rhos = [
            self._correlation(f, g, i, j, links, sides, diag, rank1, rank2)
            for i, j in enumerate(columns)
        ]
        out = mehler.total(a, b, rhos, n)
        return jnp.broadcast_to(out, shape1 if diag else shape1 + shape2)

    def _correlation(self, f, g, i, j, links, sides, diag, rank1, rank2):
        if i >= len(links) or j >= len(links[0]) or links[i][j] is None:
            return None
        q1 = _lift(self._variance_in(f, f.nondegenerate[i], sides[0]), rank1)
        q2 = _lift(self._variance_in(g, g.nondegenerate[j], sides[1]), rank2)
        if not diag:
            q1 = q1.reshape(q1.shape + (1,) * rank2)
        return mehler.correlation(q1, links[i][j], q2)

    def _expanded(self, f, side, d, n, shape):
        """Coefficients in n variables, the missing ones constant, at the positions of a term."""
        key = ("coefficients", f, side, d, n, shape)
        if key not in self.memory:
            function, variances = (
                self._function(f, side, d),
                [self._variance_in(f, i, side) for i in f.nondegenerate],
            )
            variances = [jnp.broadcast_to(q, f.shape) for q in variances]
            a = mehler.coefficients(function, variances)
            if self.observe:
                self.tails.append(
                    (", ".join(sorted(_names(f))), mehler.relative_tail(function, variances))
                )
            have = len(variances)
            terms = mehler.TERMS[n]
            a = a[(slice(terms),) * have]
            a = a.reshape(a.shape[:have] + (1,) * (n - have) + a.shape[have:])
            a = jnp.pad(
                a, [(0, 0)] * have + [(0, terms - 1)] * (n - have) + [(0, 0)] * (a.ndim - n)
            )
            lead = (1,) * (len(shape) - (a.ndim - n))
            self.memory[key] = a.reshape(a.shape[:n] + lead + a.shape[n:])
        return self.memory[key]


def _lift(q: Array, rank: int) -> Array:
    return q.reshape((1,) * (rank - q.ndim) + q.shape)


def _names(f: Factor) -> set[str]:
    below = [] if f.node is None else nodes(f.node)
    return {n.label[0].name for n in below if n.kind == "apply"}


def _with_diagonal(k: Array, own: Array) -> Array:
    """k (*shape, *shape) with its diagonal replaced."""
    n = own.size
    if n == 1:
        return own.reshape(k.shape)
    at = jnp.arange(n)
    return k.reshape(n, n).at[at, at].set(own.reshape(n), unique_indices=True).reshape(k.shape)
