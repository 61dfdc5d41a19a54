"""Expectations of one function of Gaussians, and which function of how many variables it is."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.duals.hermite_series.series import Series, coefficients
from ntk_jax.duals.rectifiers import Rectifier
from ntk_jax.infinite.flax.moments import mehler
from ntk_jax.infinite.flax.moments.functions import rule_of, series_of
from ntk_jax.infinite.flax.values.expression import (
    PartialDerivative,
    ScalarFunction,
    constant,
    evaluate,
    substitute,
    variable,
)
from ntk_jax.infinite.flax.values.fields import Field
from ntk_jax.infinite.flax.values.values import Factor

Sides = tuple[int, int]
Answer = Array | None
IDENTITY = variable(0)


class Expectations:
    """Expectations of functions of Gaussians on one side.

    Attributes:
        dtype: of all arrays.
        rules: duals to use in place of `rule_of`, with as many terms as the variances ask for.
        seen: scalar functions met, with their variances; `tails` of the others, relative to E[f²].
    """

    def __init__(
        self, dtype: Any, rules: Mapping[Any, DualRule] | None = None, observe: bool = False
    ):
        self.dtype, self.rules, self.observe = dtype, rules or {}, observe
        self.memory: dict[Any, Any] = {}
        self.seen: list[tuple[Any, Array]] = []
        self.tails: list[tuple[str, Array]] = []

    def covariance(self, g: Field, h: Field, sides: Sides, diag: bool) -> Answer:
        """E[g h'] of two Gaussians."""
        raise NotImplementedError

    def sampled_mean(self, f: Factor, side: int) -> Answer:
        """E[f] of a sampled function."""
        raise NotImplementedError

    def rule(self, function: Any) -> DualRule:
        """The dual of a scalar function."""
        return self.rules.get(function) or rule_of(function)

    def variance(self, g: Field, side: int) -> Array:
        """Of a Gaussian at every position."""
        k = self.covariance(g, g, (side, side), True)
        return jnp.zeros(g.shape, self.dtype) if k is None else jnp.maximum(k, 0)

    def mean(self, f: Factor, side: int, d: int | None) -> Answer:
        """E[f], or of its derivative by its d-th Gaussian."""
        key = ("mean", f, side, d)
        if key not in self.memory:
            self.memory[key] = self._mean(f, side, d)
        return self.memory[key]

    def _mean(self, f, side, d):
        if f.sampled is not None:
            return self.sampled_mean(f, side)
        if f.node is None:
            return None if d is None else jnp.ones(f.shape, self.dtype)
        function = self.scalar(f, d)
        mains = f.nondegenerate
        if not mains:
            return self._function(f, side, d)([])
        variances = [self._variance_in(f, i, side) for i in mains]
        if function is None or (d is not None and d in mains):
            return jnp.broadcast_to(mehler.mean(self._function(f, side, d), variances), f.shape)
        (q,) = variances
        rule = self.rule(function)
        if isinstance(rule, Rectifier):
            return (rule.a + rule.b) * jnp.sqrt(1 / (2 * np.pi)) * mehler.root(q)
        rule = rule if isinstance(rule, Series) else series_of(function)
        return coefficients(rule, 0, q).all[0]

    def scalar(self, f: Factor, d: int | None) -> Any:
        """The scalar function of its one random Gaussian that f is (for `d` the derivative by a
        trained constant), or None.
        """
        key = ("scalar", f, d)
        if key not in self.memory:
            self.memory[key] = self._scalar(f, d)
        return self.memory[key]

    def _scalar(self, f, d):
        mains = f.nondegenerate
        if len(mains) != 1 or f.operands:
            return None
        node = IDENTITY if f.node is None else f.node
        (main,) = mains
        if d is None or d == main:
            zero = constant(0.0)
            return ScalarFunction(
                substitute(node, [IDENTITY if i == main else zero for i in range(len(f.gaussians))])
            )
        return PartialDerivative(node, len(f.gaussians), main, d)

    def _function(self, f: Factor, side: int, d: int | None) -> Callable[[list[Array]], Array]:
        """f of its random Gaussians on one side, the others at 0."""
        mains = f.nondegenerate
        operands = [jnp.asarray(o.sides[side]) for o in f.operands]
        operands = [
            o.astype(self.dtype) if jnp.issubdtype(o.dtype, jnp.floating) else o for o in operands
        ]

        def full(*zs):
            value = zs[0] if f.node is None else evaluate(f.node, zs, operands, self.dtype)
            return jnp.broadcast_to(value, jnp.broadcast_shapes(*(z.shape for z in zs), f.shape))

        def at(random):
            zero = jnp.zeros(f.shape, self.dtype)
            zs = [zero] * len(f.gaussians)
            for i, z in zip(mains, random, strict=True):
                zs[i] = z
            return full(*zs) if d is None else mehler.differentiated(full, zs, d)

        return at

    def _variance_in(self, f: Factor, i: int, side: int) -> Array:
        q = self.variance(f.gaussians[i], side)
        return q.reshape((1,) * (len(f.shape) - q.ndim) + q.shape)
