"""Expectations of one function of Gaussians, and which function of how many variables it is."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.flax.moments import mehler
from ntk_jax.infinite.flax.moments.gaussians import Gaussians
from ntk_jax.infinite.flax.moments.pair import Answer, AskDual, Half, lifted, remembered
from ntk_jax.infinite.flax.values import Factor
from ntk_jax.infinite.flax.values.expression import (
    PartialDerivative,
    ScalarFunction,
    constant,
    evaluate,
    substitute,
    variable,
)

IDENTITY = variable(0)


class Expectations:
    """Means of functions of Gaussians on one side, and their duals.

    Attributes:
        ask: who answers for the dual of a scalar function.
    """

    def __init__(self, gaussians: Gaussians, ask: AskDual):
        self.gaussians, self.dtype, self.ask = gaussians, gaussians.dtype, ask
        self.memory: dict[Any, Any] = {}

    def variance(self, f: Factor, i: int, side: int) -> Array:
        """Of its i-th Gaussian, at its positions."""
        return lifted(self.gaussians.variance(f.gaussians[i], side), len(f.shape))

    @remembered
    def mean(self, half: Half) -> Answer:
        """E[f], or of its derivative by one of its Gaussians."""
        f, side, d = half
        if f.node is None:
            return None if d is None else jnp.ones(f.shape, self.dtype)
        function = self.scalar(f, d)
        mains = f.nondegenerate
        if not mains:
            return self.function(half)([])
        variances = [self.variance(f, i, side) for i in mains]
        # A derivative by the random Gaussian has no dual of its own: from the values on a grid.
        if function is None or (d is not None and d in mains):
            return jnp.broadcast_to(mehler.mean(self.function(half), variances), f.shape)
        (q,) = variances
        return self.ask(function, "mean", q)

    @remembered
    def scalar(self, f: Factor, wrt: int | None) -> ScalarFunction | PartialDerivative | None:
        """`scalar_function`, once."""
        return scalar_function(f, wrt)

    def function(self, half: Half) -> Callable[[Sequence[Array]], Array]:
        """f, or its derivative, of its random Gaussians; the others are at 0."""
        f, side, d = half

        def full(*zs: Array) -> Array:
            value = value_at(f, side, zs, self.dtype)
            return jnp.broadcast_to(value, jnp.broadcast_shapes(*(z.shape for z in zs), f.shape))

        def at(random: Sequence[Array]) -> Array:
            zs = [jnp.zeros(f.shape, self.dtype)] * len(f.gaussians)
            for i, z in zip(f.nondegenerate, random, strict=True):
                zs[i] = z
            return full(*zs) if d is None else mehler.differentiated(full, zs, d)

        return at


def scalar_function(f: Factor, wrt: int | None) -> ScalarFunction | PartialDerivative | None:
    """The scalar function of its one random Gaussian that f is (for `wrt` the derivative by a
    trained constant), or None.
    """
    if len(f.nondegenerate) != 1 or f.operands:
        return None
    node = IDENTITY if f.node is None else f.node
    (main,) = f.nondegenerate
    if wrt is not None and wrt != main:
        return PartialDerivative(node, len(f.gaussians), main, wrt)
    zero = constant(0.0)
    at = [IDENTITY if i == main else zero for i in range(len(f.gaussians))]
    return ScalarFunction(substitute(node, at))


def value_at(f: Factor, side: int, zs: Sequence[Array], dtype: Any) -> Array:
    """f, which is not `sampled`, of all its Gaussians."""
    if f.node is None:
        return zs[0]
    operands = [jnp.asarray(o.sides[side]) for o in f.operands]
    floating = [jnp.issubdtype(o.dtype, jnp.floating) for o in operands]
    operands = [o.astype(dtype) if g else o for o, g in zip(operands, floating, strict=True)]
    return evaluate(f.node, zs, operands, dtype)
