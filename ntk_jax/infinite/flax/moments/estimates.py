"""Moments of functions without a closed form, from samples of the Gaussians below them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.infinite.flax.moments.expectations import value_at
from ntk_jax.infinite.flax.moments.gaussians import Gaussians
from ntk_jax.infinite.flax.moments.pair import (
    Answer,
    Half,
    Pair,
    Sides,
    random_gaussians,
    remembered,
)
from ntk_jax.infinite.flax.moments.samples import Samples, parts, product, size
from ntk_jax.infinite.flax.values import (
    Det,
    Factor,
    Field,
    Sampled,
    Shape,
    Term,
    Wide,
    bases,
    fields_of_terms,
    linear_map,
)

MOST_ENTRIES = 2**18  # of the products with Jacobians that are held at once


class Estimates:
    """Moments and tangent kernels of `sampled` factors."""

    def __init__(self, gaussians: Gaussians, samples: Samples):
        self.gaussians, self.samples, self.dtype = gaussians, samples, gaussians.dtype
        self.memory: dict[Any, Any] = {}

    def mean(self, half: Half) -> Array:
        """E[f]."""
        f, side, _ = half
        z = self.samples.of(random_gaussians(f), side)
        return jnp.mean(self._values(f, side, z), axis=0).reshape(f.shape)

    def second(self, pair: Pair) -> Array:
        """E[f g']."""
        f, g = pair.left.factor, pair.right.factor
        return pair.placed(self._second(f, g, pair.sides), f.shape, g.shape)

    def tangent(self, pair: Pair) -> Answer:
        """E[J Theta J'ᵀ] for the tangent kernels Theta of their Gaussians; None if all of them are
        zero.
        """
        f, g = pair.left.factor, pair.right.factor
        k = self._tangent(f, g, pair.sides)
        return None if k is None else pair.placed(k, f.shape, g.shape)

    @remembered
    def joint(self, factors: tuple[Factor, ...], base: Shape) -> Factor:
        """A product of factors as one function."""
        if len(factors) == 1 and factors[0].sampled is not None:
            return factors[0]
        product = Term(factors)
        variables = bases(fields_of_terms([product]))
        whole = Wide(base, (1,) * len(base), [product])
        same = lambda _, arrays: jnp.asarray(arrays[0])
        return Factor(variables, sampled=Sampled(same, [whole], variables, base))

    @remembered
    def _second(self, f: Factor, g: Factor, sides: Sides) -> Array:
        z1, z2 = self.samples.of_pair(random_gaussians(f), random_gaussians(g), sides)
        k = product(self._values(f, sides[0], z1).T, self._values(g, sides[1], z2)) / len(z1)
        return k.reshape(f.shape + g.shape)

    @remembered
    def _tangent(self, f: Factor, g: Factor, sides: Sides) -> Answer:
        """Sample by sample, by derivatives along the columns and then the rows of Theta: no
        Jacobian is formed.
        """
        ask = self.gaussians.tangent
        if all(ask(a, b, sides, False) is None for a in f.gaussians for b in g.gaussians):
            return None
        theta = self.samples.matrix(ask, f.gaussians, g.gaussians, sides)
        z1, z2 = self.samples.of_pair(random_gaussians(f), random_gaussians(g), sides)
        first, second = self._flat(f, sides[0]), self._flat(g, sides[1])

        def one(a: Array, b: Array) -> Array:
            columns = jax.vmap(jax.linearize(first, a)[1], in_axes=1, out_axes=1)(theta)
            return jax.vmap(jax.linearize(second, b)[1])(columns)

        # Derivatives compute each chunk again: the Jacobians of all samples would not fit.
        @jax.checkpoint
        def chunk(total: Array, zs: tuple[Array, Array]) -> tuple[Array, None]:
            return total + jnp.sum(jax.vmap(one)(*zs), axis=0), None

        n = len(z1)
        most = max(1, MOST_ENTRIES // (theta.shape[0] * theta.shape[1]))
        # A divisor of the number of samples, so that every chunk has one shape.
        at_once = max(c for c in range(1, min(n, most) + 1) if n % c == 0)
        zs = (_with_constants(f, z1), _with_constants(g, z2))
        chunks = tuple(z.reshape(n // at_once, at_once, -1) for z in zs)
        zero = jnp.zeros((math.prod(f.shape), math.prod(g.shape)), self.dtype)
        return (lax.scan(chunk, zero, chunks)[0] / n).reshape(f.shape + g.shape)

    def _values(self, f: Factor, side: int, z: Array) -> Array:
        """f (num_samples, size) at samples of its random Gaussians."""
        return jax.vmap(self._flat(f, side))(_with_constants(f, z))

    def _flat(self, f: Factor, side: int) -> Callable[[Array], Array]:
        """f of one flat sample of all its Gaussians."""

        def at(z: Array) -> Array:
            cut = zip(parts(z, f.gaussians), f.gaussians, strict=True)
            zs = [part.reshape(g.shape) for part, g in cut]
            return self._factor(f, side, zs, {}).reshape(-1)

        return at

    def _factor(
        self, f: Factor, side: int, zs: Sequence[Array], memo: dict[Factor, Array]
    ) -> Array:
        """One sample of a factor, from one of all its Gaussians."""
        if f in memo:
            return memo[f]
        s = f.sampled
        if s is None:
            value = value_at(f, side, zs, self.dtype)
        else:
            # units of a part of an infinite axis are other samples than those of the whole
            inner = memo if f.gaussians == s.variables else {}
            known = dict(zip(s.variables, zs, strict=True))
            look = partial(linear_map, known=known, side=side)
            value = s.apply(side, [self._value(v, side, look, inner) for v in s.inputs])
        memo[f] = jnp.broadcast_to(value, f.shape)
        return memo[f]

    def _value(
        self,
        value: Det | Wide,
        side: int,
        look: Callable[[Field], Array],
        memo: dict[Factor, Array],
    ) -> Array:
        """One sample of a value."""
        if isinstance(value, Det):
            return jnp.asarray(value.sides[side])
        total = jnp.zeros(value.shape, self.dtype)
        if value.offset is not None:
            total = total + jnp.asarray(value.offset.sides[side], self.dtype)
        for t in value.random:
            term = jnp.ones(t.base, self.dtype)
            for f in t.factors:
                term = term * self._factor(f, side, [look(g) for g in f.gaussians], memo)
            total = total + (term if t.map is None else t.map.apply(side, term))
        return total


def _with_constants(f: Factor, z: Array) -> Array:
    """Samples of all Gaussians: trained constants are 0."""
    random = iter(parts(z, random_gaussians(f)))
    zero = lambda g: jnp.zeros((len(z), size(g)), z.dtype)
    return jnp.concatenate([zero(g) if g.degenerate else next(random) for g in f.gaussians], axis=1)
