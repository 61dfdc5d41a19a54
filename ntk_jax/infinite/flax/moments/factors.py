"""Moments of two factors, entry by entry: where the duals come in."""

import math
from itertools import chain
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from ntk_jax.duals.numerics import covariance_at_poles, root
from ntk_jax.infinite.flax.moments.estimates import Estimates
from ntk_jax.infinite.flax.moments.expectations import Expectations
from ntk_jax.infinite.flax.moments.gaussians import Gaussians
from ntk_jax.infinite.flax.moments.general_series import GeneralSeries
from ntk_jax.infinite.flax.moments.pair import (
    Answer,
    Half,
    Pair,
    lifted,
    random_gaussians,
    remembered,
)
from ntk_jax.infinite.flax.values import Factor, Shape
from ntk_jax.infinite.flax.values.expression import Function
from ntk_jax.infinite.flax.values.linear import outer


class Observed(NamedTuple):
    """What an interpretation met.

    Attributes:
        functions: scalar functions with the variances of their arguments.
        tails: names of other functions, with what their series leave out of E[f²], relative to it.
    """

    functions: list[tuple[Function, Array]]
    tails: list[tuple[str, Array]]


class Factors:
    """Means and second moments of factors and of their derivatives."""

    def __init__(
        self,
        gaussians: Gaussians,
        expectations: Expectations,
        estimates: Estimates,
        observed: Observed | None,
        same: Array | None = None,
    ):
        self.gaussians, self.expectations, self.estimates = gaussians, expectations, estimates
        self.observed, self.same = observed, same
        self.series = GeneralSeries(expectations, observed.tails if observed else None)
        self.memory: dict[Any, Any] = {}

    @remembered
    def mean(self, half: Half) -> Answer:
        """E[f], or of its derivative."""
        by = self.expectations if half.factor.sampled is None else self.estimates
        return by.mean(half)

    def related(self, f: Factor, g: Factor, sides: tuple[int, int]) -> bool:
        """Whether two factors are not independent."""
        related = self.gaussians.related
        return any(related(a, b, sides) for a in f.gaussians for b in g.gaussians)

    def moment(self, pair: Pair) -> Answer:
        """E[f g'] of two factors that may be correlated."""
        f, g = pair.left.factor, pair.right.factor
        if f.sampled is not None or g.sampled is not None:
            related = self.related(f, g, pair.sides)
            return self.estimates.second(pair) if related else self._independent(pair)
        covariances = [
            [pair.between(self.gaussians.covariance, a, b) for b in random_gaussians(g)]
            for a in random_gaussians(f)
        ]
        met = [c for c in chain(*covariances) if c is not None]
        if not met:
            return self._independent(pair)
        if (
            len(f.nondegenerate) == len(g.nondegenerate) == 1
            and (k := self._scalar(pair, met[0])) is not None
        ):
            return k
        return self.series.moment(pair, covariances)

    def _independent(self, pair: Pair) -> Answer:
        a, b = self.mean(pair.left), self.mean(pair.right)
        if a is None or b is None:
            return None
        a, b = (jnp.broadcast_to(m, s) for m, s in zip((a, b), pair.shapes, strict=True))
        return a * b if pair.diag else outer(a, b)

    def _scalar(self, pair: Pair, c: Array) -> Answer:
        """Of functions of one random Gaussian each, of covariance c; None if no dual answers."""
        f, g = pair.left.factor, pair.right.factor
        by_main = [
            h.wrt is not None and h.wrt in h.factor.nondegenerate for h in (pair.left, pair.right)
        ]
        if f.node is None and g.node is None:
            return jnp.ones_like(c) if all(by_main) else None if any(by_main) else c
        if f.node is None or g.node is None:
            return self._stein(pair, c)
        functions = [self.expectations.scalar(h.factor, h.wrt) for h in (pair.left, pair.right)]
        if functions[0] is None or functions[0] != functions[1] or by_main[0] != by_main[1]:
            return None
        # One dual answers for the functions and for their derivatives: asked for without `wrt`.
        plain = pair._replace(left=Half(f, pair.left.side), right=Half(g, pair.right.side))
        return self._dual(plain, functions[0])[1 if by_main[0] else 0]

    def _stein(self, pair: Pair, c: Array) -> Answer:
        """E[u phi(v)] = E[u v] E[phi'(v)] (Stein); of the derivatives, E[phi'(v)]."""
        swapped = pair.right.factor.node is None
        linear, function = (pair.right, pair.left) if swapped else (pair.left, pair.right)
        (main,) = function.factor.nondegenerate
        if function.wrt not in (None, main) or (function.wrt is None) != (linear.wrt is None):
            return None  # such as the mean of a second derivative: left to the series
        slope = self.mean(function._replace(wrt=main))
        assert slope is not None
        slope = lifted(slope, len(pair.shapes[0 if swapped else 1]))
        slope = pair.at_left(slope) if swapped else pair.at_right(slope)
        return c * slope if function.wrt is None else jnp.broadcast_to(slope, c.shape)

    @remembered
    def _dual(self, pair: Pair, function: Function) -> tuple[Array, Array]:
        """E[phi phi'] and that of the slopes, for the same scalar function on both sides."""
        (f, side, _), (g, other, _) = pair.left, pair.right
        (u,), (v,) = random_gaussians(f), random_gaussians(g)
        ask = self.expectations.ask
        alike = u is v and pair.shapes[0] == pair.shapes[1]
        itself = alike and side == other
        q1, q2 = (
            lifted(
                self.expectations.variance(h.factor, h.factor.nondegenerate[0], h.side), len(shape)
            )
            for h, shape in zip((pair.left, pair.right), pair.shapes, strict=True)
        )
        if self.observed is not None and side == 0:
            self.observed.functions.append((function, q1))
        if pair.diag and itself:
            k, k_dot = (jnp.broadcast_to(a, pair.shape) for a in ask(function, "diagonal", q1))
            return k, k_dot
        # What both sides know of q12 = sqrt(q1 q2) at a pole decides which pairs count as there.
        c = pair.between(self.gaussians.covariance, u, v)
        assert c is not None
        at_both = pair.at_left(q1), pair.at_right(q2)
        q12 = covariance_at_poles(c, *at_both, pair.at_left(root(q1)), pair.at_right(root(q2)))
        k, k_dot = ask(function, "pair", q1, q12, q2)
        same = True if itself else self.same
        if alike and same is not None:
            # An example with itself: the dual of equal arguments is known without rounding.
            own = (jnp.broadcast_to(a, pair.shapes[0]) for a in ask(function, "diagonal", q1))
            here = same if pair.diag else same & _diagonal(pair.shapes[0])
            k, k_dot = (
                jnp.where(here, pair.at_left(o), a) for a, o in zip((k, k_dot), own, strict=True)
            )
        return k, k_dot


def _diagonal(shape: Shape) -> Array:
    """Where the positions of (*shape, *shape) are equal."""
    return jnp.eye(math.prod(shape), dtype=bool).reshape(shape + shape)
