"""Moments of functions without a closed form, from samples of the Gaussians below them at all
positions of both examples.

For a pair of examples z1 = L1 u and z2 = Aᵀu + L2 v, where L1 L1ᵀ = C11, L1 A = C12, L2 L2ᵀ = C22 -
AᵀA: the normals u, v are the same for all pairs, so that kernels are smooth in the examples, and z1
costs one factorization for each example.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular

from ntk_jax.draws import draw_flat
from ntk_jax.duals.dual_rule import clip_rounding, correlation, root
from ntk_jax.infinite.flax.moments.expectations import Answer, Expectations, Sides
from ntk_jax.infinite.flax.values.expression import evaluate
from ntk_jax.infinite.flax.values.fields import Field
from ntk_jax.infinite.flax.values.linear import Shape, diagonal
from ntk_jax.infinite.flax.values.values import Det, Factor, Sampled

MOST_ENTRIES = 2**18  # of the products with Jacobians that are held at once


class Sampling(NamedTuple):
    """How many samples, and the key of their normals."""

    key: Any
    num_samples: int


class Draws(Expectations):
    """Expectations of sampled functions.

    Attributes:
        sampling: None where samples are refused.
    """

    def __init__(
        self,
        dtype: Any,
        rules: Mapping[Any, Any] | None = None,
        observe: bool = False,
        sampling: Sampling | None = None,
    ):
        super().__init__(dtype, rules, observe)
        self.sampling = sampling
        self.numbers: dict[Field, int] = {}

    def number(self, g: Field) -> int:
        """Which normals a Gaussian is made of: Gaussians are counted as they are met, in the order
        of the program.
        """
        return self.numbers.setdefault(g, len(self.numbers))

    # Gaussians

    def _drawn(self, fields: Sequence[Field], side: int) -> tuple[Array, Array]:
        """(L, z) of one example: the factor of the correlations, and samples (num_samples,
        size).
        """
        key = ("drawn", tuple(fields), side)
        if key not in self.memory:
            R = self._correlations(fields, fields, (side, side))
            eye = jnp.eye(len(R), dtype=R.dtype)
            L = jnp.linalg.cholesky(jnp.where(eye > 0, 1 + _ridge(R), R))
            self.memory[key] = (
                L,
                self._scales(fields, side) * _product(self._normals(fields, 0), L.T),
            )
        return self.memory[key]

    def _drawn_pair(
        self, fields1: Sequence[Field], fields2: Sequence[Field], sides: Sides
    ) -> tuple[Array, Array]:
        """Samples of Gaussians on one side, and of others on the other side, jointly."""
        key = ("drawn", tuple(fields1), tuple(fields2), sides)
        if key not in self.memory:
            if sides[0] == sides[1]:
                union = sorted({*fields1, *fields2}, key=self.number)
                z = dict(zip(union, _parts(self._drawn(union, sides[0])[1], union), strict=True))
                self.memory[key] = tuple(
                    jnp.concatenate([z[g] for g in fs], axis=1) for fs in (fields1, fields2)
                )
            else:
                self.memory[key] = (
                    self._drawn(fields1, sides[0])[1],
                    self._given_first(fields1, fields2, sides),
                )
        return self.memory[key]

    def _given_first(self, fields1, fields2, sides):
        A = solve_triangular(
            self._drawn(fields1, sides[0])[0],
            self._correlations(fields1, fields2, sides),
            lower=True,
        )
        R = self._correlations(fields2, fields2, (sides[1], sides[1]))
        rest = jnp.where(jnp.eye(len(R), dtype=bool), 1 + _ridge(R), R) - _product(A.T, A)
        u, v = self._normals(fields1, 0), self._normals(fields2, 1)
        z = _product(u, A) + _product(v, jnp.linalg.cholesky(rest).T)
        return self._scales(fields2, sides[1]) * z

    def _normals(self, fields: Sequence[Field], slot: int) -> Array:
        assert self.sampling is not None
        key, n = self.sampling
        keys = [jax.random.fold_in(jax.random.fold_in(key, self.number(g)), slot) for g in fields]
        normals = [
            draw_flat(jax.random.normal, k, (n, _size(g)), self.dtype)
            for k, g in zip(keys, fields, strict=True)
        ]
        return jnp.concatenate(normals, axis=1)

    def _variances(self, fields: Sequence[Field], side: int) -> Array:
        return jnp.concatenate(
            [jnp.broadcast_to(self.variance(g, side), g.shape).reshape(-1) for g in fields]
        )

    def _scales(self, fields: Sequence[Field], side: int) -> Array:
        return root(self._variances(fields, side))[None]

    def _correlations(
        self, fields1: Sequence[Field], fields2: Sequence[Field], sides: Sides
    ) -> Array:
        """(size1, size2), 0 next to a zero variance: there the scale is 0, whatever the sample."""
        q1, q2 = (
            self._variances(fields1, sides[0])[:, None],
            self._variances(fields2, sides[1])[None],
        )
        C = self._blocks(self.covariance, fields1, fields2, sides)
        return clip_rounding(
            correlation(jnp.broadcast_to(q1, C.shape), C, jnp.broadcast_to(q2, C.shape)), -1, 1
        )

    def _blocks(
        self, ask: Any, fields1: Sequence[Field], fields2: Sequence[Field], sides: Sides
    ) -> Array:
        """Covariances or tangent kernels of all fields in one matrix."""
        rows = []
        for g in fields1:
            found = [ask(g, h, sides, False) for h in fields2]
            rows.append(
                [
                    jnp.zeros((_size(g), _size(h)), self.dtype)
                    if k is None
                    else k.reshape(_size(g), _size(h))
                    for h, k in zip(fields2, found, strict=True)
                ]
            )
        return jnp.block(rows)

    # Functions

    def sampled_mean(self, f: Factor, side: int) -> Answer:
        """E[f]."""
        z = self._drawn(_random(f), side)[1]
        return jnp.mean(self._values(f, side, z), axis=0).reshape(f.shape)

    def sampled_second(
        self, f: Factor, g: Factor, sides: Sides, diag: bool, shape1: Shape, shape2: Shape
    ) -> Array:
        """E[f g'] at the positions of the terms that they stand in."""
        key = ("sampled", f, g, sides)
        if key not in self.memory:
            z1, z2 = self._drawn_pair(_random(f), _random(g), sides)
            k = _product(self._values(f, sides[0], z1).T, self._values(g, sides[1], z2)) / len(z1)
            self.memory[key] = k.reshape(f.shape + g.shape)
        return _placed(self.memory[key], f.shape, g.shape, diag, shape1, shape2)

    def sampled_tangent(
        self, ask: Any, f: Factor, g: Factor, sides: Sides, diag: bool, shape1: Shape, shape2: Shape
    ) -> Answer:
        """E[J Theta J'ᵀ] for the tangent kernels Theta (from `ask`) of their Gaussians; None if all
        of them are zero.
        """
        key = ("sampled tangent", f, g, sides)
        if key not in self.memory:
            nothing = all(ask(a, b, sides, False) is None for a in f.gaussians for b in g.gaussians)
            self.memory[key] = None if nothing else self._through(ask, f, g, sides)
        k = self.memory[key]
        return None if k is None else _placed(k, f.shape, g.shape, diag, shape1, shape2)

    def _through(self, ask, f, g, sides):
        """Sample by sample, by derivatives along the columns and then the rows of Theta: no
        Jacobian is formed.
        """
        theta = self._blocks(ask, f.gaussians, g.gaussians, sides)
        z1, z2 = self._drawn_pair(_random(f), _random(g), sides)
        first, second = self._flat(f, sides[0]), self._flat(g, sides[1])

        def one(a, b):
            columns = jax.vmap(jax.linearize(first, a)[1], in_axes=1, out_axes=1)(theta)
            return jax.vmap(jax.linearize(second, b)[1])(columns)

        @jax.checkpoint
        def chunk(total, zs):
            return total + jnp.sum(jax.vmap(one)(*zs), axis=0), None

        n = len(z1)
        most = max(1, MOST_ENTRIES // (theta.shape[0] * theta.shape[1]))
        size = max(c for c in range(1, min(n, most) + 1) if n % c == 0)
        zs = [
            z.reshape(n // size, size, -1) for z in (_with_constants(f, z1), _with_constants(g, z2))
        ]
        zero = jnp.zeros((math.prod(f.shape), math.prod(g.shape)), self.dtype)
        return (lax.scan(chunk, zero, zs)[0] / n).reshape(f.shape + g.shape)

    def _values(self, f: Factor, side: int, z: Array) -> Array:
        """f (num_samples, size) at samples of its random Gaussians."""
        return jax.vmap(self._flat(f, side))(_with_constants(f, z))

    def _flat(self, f: Factor, side: int) -> Callable[[Array], Array]:
        """f of one flat sample of all its Gaussians."""

        def at(z):
            zs = [
                part.reshape(g.shape)
                for part, g in zip(_parts(z, f.gaussians), f.gaussians, strict=True)
            ]
            return self._value_of_factor(f, side, zs, {}).reshape(-1)

        return at

    def _value_of_factor(
        self, f: Factor, side: int, zs: Sequence[Array], memo: dict[Factor, Array]
    ) -> Array:
        if f in memo:
            return memo[f]
        s = f.sampled
        if s is None:
            operands = [jnp.asarray(o.sides[side]) for o in f.operands]
            operands = [
                o.astype(self.dtype) if jnp.issubdtype(o.dtype, jnp.floating) else o
                for o in operands
            ]
            value = zs[0] if f.node is None else evaluate(f.node, zs, operands, self.dtype)
        else:
            # units of a part of an infinite axis are other samples than those of the whole
            inner = memo if f.gaussians == s.variables else {}
            at = dict(zip(s.variables, zs, strict=True))
            value = s.apply(
                side,
                [self._value(v, side, partial(_multiple, s, at, side), inner) for v in s.inputs],
            )
        memo[f] = jnp.broadcast_to(value, f.shape)
        return memo[f]

    def _value(
        self, value: Any, side: int, look: Callable[[Field], Array], memo: dict[Factor, Array]
    ) -> Array:
        """One sample of a value."""
        if isinstance(value, Det):
            return jnp.asarray(value.sides[side])
        total = jnp.zeros(value.shape, self.dtype)
        if value.offset is not None:
            total = total + jnp.asarray(value.offset.sides[side], self.dtype)
        for t in value.random:
            product = jnp.ones(t.base, self.dtype)
            for f in t.factors:
                product = product * self._value_of_factor(
                    f, side, [look(g) for g in f.gaussians], memo
                )
            total = total + (product if t.map is None else t.map.apply(side, product))
        return total


def _multiple(s: Sampled, at: Mapping[Field, Array], side: int, g: Field) -> Array:
    variable, factor = s.multiples[g]
    z = at[variable]
    return z if factor is None else z * jnp.asarray(factor.sides[side], z.dtype)


def _random(f: Factor) -> tuple[Field, ...]:
    return tuple(f.gaussians[i] for i in f.nondegenerate)


def _with_constants(f: Factor, z: Array) -> Array:
    """Samples of all Gaussians: trained constants are 0."""
    random = iter(_parts(z, _random(f)))
    zero = lambda g: jnp.zeros((len(z), _size(g)), z.dtype)
    return jnp.concatenate([zero(g) if g.degenerate else next(random) for g in f.gaussians], axis=1)


def _size(g: Field) -> int:
    return math.prod(g.shape)


def _parts(z: Array, fields: Sequence[Field]) -> list[Array]:
    """The last axis cut into the Gaussians' own."""
    ends = [sum(map(_size, fields[: i + 1])) for i in range(len(fields))]
    return [z[..., end - _size(g) : end] for end, g in zip(ends, fields, strict=True)]


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _ridge(R: Array) -> float:
    """What makes a singular matrix of correlations definite in spite of rounding; relative to their
    size, 1.
    """
    return 10 * len(R) * float(jnp.finfo(R.dtype).eps)


def _placed(k: Array, own1: Shape, own2: Shape, diag: bool, shape1: Shape, shape2: Shape) -> Array:
    """(*own1, *own2) at the positions of terms that both are broadcast into; in diagonal mode,
    equal positions.
    """
    lead = lambda s, full: (1,) * (len(full) - len(s)) + tuple(s)
    if diag and own1 == own2:
        return jnp.broadcast_to(diagonal(k, own1), shape1)
    k = jnp.broadcast_to(k.reshape(lead(own1, shape1) + lead(own2, shape2)), shape1 + shape2)
    return diagonal(k, shape1) if diag else k
