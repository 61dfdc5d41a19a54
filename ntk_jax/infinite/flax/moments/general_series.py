"""Moments of functions of several Gaussians, by the Mehler series in each variable."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.moments import mehler
from ntk_jax.infinite.flax.moments.expectations import Expectations
from ntk_jax.infinite.flax.moments.pair import (
    Answer,
    Half,
    Pair,
    lifted,
    random_gaussians,
    remembered,
)
from ntk_jax.infinite.flax.values import Factor, Shape
from ntk_jax.infinite.flax.values.expression import nodes


class GeneralSeries:
    """E[f g'] where no dual answers.

    Attributes:
        tails: if not None, gets (functions, what the series leave out of E[f²], relative to it).
    """

    def __init__(self, expectations: Expectations, tails: list[tuple[str, Array]] | None):
        self.expectations, self.tails = expectations, tails
        self.memory: dict[Any, Answer] = {}

    def moment(self, pair: Pair, covariances: list[list[Answer]]) -> Array:
        """E[f g'], given the covariances of f's random Gaussians and g's: variables of both are
        matched where they are correlated.
        """
        n = max(len(covariances), len(covariances[0]))
        columns = _matched(covariances, n)
        a = self._coefficients(pair.left, n, pair.shapes[0])
        b = self._coefficients(pair.right, n, pair.shapes[1])
        b = jnp.transpose(b, (*columns, *range(n, b.ndim)))
        # The same for all derivatives.
        left, right = (h._replace(wrt=None) for h in (pair.left, pair.right))
        plain = pair._replace(left=left, right=right)
        rhos = [self._correlation(plain, i, j) for i, j in enumerate(columns)]
        out = mehler.total(pair.at_left(a), pair.at_right(b), rhos, n)
        return jnp.broadcast_to(out, pair.shape)

    @remembered
    def _correlation(self, pair: Pair, i: int, j: int) -> Answer:
        """Of the i-th random Gaussian of f and the j-th of g; None where one has fewer."""
        us, vs = (random_gaussians(h.factor) for h in (pair.left, pair.right))
        if i >= len(us) or j >= len(vs):
            return None
        c = pair.between(self.expectations.gaussians.covariance, us[i], vs[j])
        if c is None:
            return None
        q1, q2 = (
            lifted(
                self.expectations.variance(h.factor, h.factor.nondegenerate[at], h.side), len(shape)
            )
            for h, at, shape in zip((pair.left, pair.right), (i, j), pair.shapes, strict=True)
        )
        return mehler.correlation(pair.at_left(q1), c, pair.at_right(q2))

    @remembered
    def _coefficients(self, half: Half, n: int, shape: Shape) -> Array:
        """Coefficients in n variables, the missing ones constant, at the positions of a term."""
        f, function = half.factor, self.expectations.function(half)
        variances = [
            jnp.broadcast_to(self.expectations.variance(f, i, half.side), f.shape)
            for i in f.nondegenerate
        ]
        a = mehler.coefficients(function, variances)
        if self.tails is not None and half.side == 0:
            self.tails.append((_names(f), mehler.relative_tail(function, variances)))
        have, terms = len(variances), mehler.TERMS[n]
        a = a[(slice(terms),) * have]
        a = a.reshape(a.shape[:have] + (1,) * (n - have) + a.shape[have:])
        # In a variable that f does not have, its only coefficient is that of the constant.
        widths = [(0, 0)] * have + [(0, terms - 1)] * (n - have) + [(0, 0)] * (a.ndim - n)
        lead = (1,) * (len(shape) - (a.ndim - n))
        return jnp.pad(a, widths).reshape((terms,) * n + lead + a.shape[n:])


def _matched(covariances: list[list[Answer]], n: int) -> list[int]:
    """For each of n variables of f, that of g which it meets: a free one where it meets none."""
    columns: list[int | None] = []
    for row in covariances:
        met = [j for j, c in enumerate(row) if c is not None]
        if len(met) > 1 or any(j in columns for j in met):
            raise NoLimitError("a nonlinearity of correlated wide vectors has no rule,")
        columns.append(met[0] if met else None)
    free = iter([j for j in range(n) if j not in columns])
    columns += [None] * (n - len(columns))
    return [next(free) if j is None else j for j in columns]


def _names(f: Factor) -> str:
    below = [] if f.node is None else nodes(f.node)
    return ", ".join(sorted({n.label[0].name for n in below if n.kind == "apply"}))
