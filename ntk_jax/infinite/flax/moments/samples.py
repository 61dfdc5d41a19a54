"""Samples of Gaussians at all positions of both examples of a pair.

For a pair of examples z1 = L1 u and z2 = Aᵀu + L2 v, where L1 L1ᵀ = C11, L1 A = C12, L2 L2ᵀ = C22 -
AᵀA: the normals u, v are the same for all pairs, so that kernels are smooth in the examples, and z1
costs one factorization for each example.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from ntk_jax.draws import draw_flat
from ntk_jax.duals.numerics import clip_rounding, correlation, root
from ntk_jax.infinite.flax.moments.gaussians import Gaussians
from ntk_jax.infinite.flax.moments.pair import AskFields, Sides, remembered
from ntk_jax.infinite.flax.values import Field

Fields: TypeAlias = tuple[Field, ...]


class Sampling(NamedTuple):
    """How many samples, and the key of their normals."""

    key: Array | None
    num_samples: int


class Samples:
    """Joint samples of Gaussians, (num_samples, size): their positions one Gaussian after the
    other.
    """

    def __init__(self, gaussians: Gaussians, sampling: Sampling | None, same: Array | None = None):
        self.gaussians, self.dtype, self.sampling = gaussians, gaussians.dtype, sampling
        self.same = same  # whether both examples are one, as in `Moments`
        self.numbers: dict[Field, int] = {}
        self.memory: dict[Any, Any] = {}

    def number(self, g: Field) -> int:
        """Which normals a Gaussian is made of: Gaussians are counted as they are met, in the order
        of the program.
        """
        # Not by what they are: the same model gives the same kernel in every process.
        return self.numbers.setdefault(g, len(self.numbers))

    @remembered
    def of(self, fields: Fields, side: int) -> Array:
        """Of one example."""
        normals = self._normals(fields, 0)
        return self._scales(fields, side) * product(normals, self._root(fields, side).T)

    @remembered
    def of_pair(self, fields1: Fields, fields2: Fields, sides: Sides) -> tuple[Array, Array]:
        """Of Gaussians on one side, and of others on the other side, jointly."""
        if sides[0] != sides[1]:
            first, second = self.of(fields1, sides[0]), self._given_first(fields1, fields2, sides)
            if self.same is not None:
                one, other = self.of_pair(fields1, fields2, (sides[0], sides[0]))
                first, second = (
                    jnp.where(self.same, one, first),
                    jnp.where(self.same, other, second),
                )
            return first, second
        union = tuple(sorted({*fields1, *fields2}, key=self.number))
        z = dict(zip(union, parts(self.of(union, sides[0]), union), strict=True))
        first, second = (jnp.concatenate([z[g] for g in fs], axis=1) for fs in (fields1, fields2))
        return first, second

    def matrix(self, ask: AskFields, fields1: Fields, fields2: Fields, sides: Sides) -> Array:
        """Covariances or tangent kernels of all fields in one matrix."""
        zero = lambda g, h: jnp.zeros((size(g), size(h)), self.dtype)
        flat = lambda k, g, h: zero(g, h) if k is None else k.reshape(size(g), size(h))
        rows = [[flat(ask(g, h, sides, False), g, h) for h in fields2] for g in fields1]
        return jnp.block(rows)

    @remembered
    def _root(self, fields: Fields, side: int) -> Array:
        """The Cholesky factor of the correlations."""
        return jnp.linalg.cholesky(_definite(self._correlations(fields, fields, (side, side))))

    def _given_first(self, fields1: Fields, fields2: Fields, sides: Sides) -> Array:
        # Of correlations, not covariances: their scale tells what is singular (see `_definite`).
        correlations = self._correlations(fields1, fields2, sides)
        A = solve_triangular(self._root(fields1, sides[0]), correlations, lower=True)
        R = self._correlations(fields2, fields2, (sides[1], sides[1]))
        rest = _definite(R) - product(A.T, A)
        u, v = self._normals(fields1, 0), self._normals(fields2, 1)
        z = product(u, A) + product(v, jnp.linalg.cholesky(rest).T)
        return self._scales(fields2, sides[1]) * z

    def _normals(self, fields: Fields, slot: int) -> Array:
        return jnp.concatenate([self._normal(g, slot) for g in fields], axis=1)

    @remembered
    def _normal(self, g: Field, slot: int) -> Array:
        key, n = self.sampling or (None, 0)
        assert key is not None
        key = jax.random.fold_in(jax.random.fold_in(key, self.number(g)), slot)
        return draw_flat(jax.random.normal, key, (n, size(g)), self.dtype)

    def _variances(self, fields: Fields, side: int) -> Array:
        variances = [jnp.broadcast_to(self.gaussians.variance(g, side), g.shape) for g in fields]
        return jnp.concatenate([q.reshape(-1) for q in variances])

    def _scales(self, fields: Fields, side: int) -> Array:
        return root(self._variances(fields, side))[None]

    def _correlations(self, fields1: Fields, fields2: Fields, sides: Sides) -> Array:
        """(size1, size2), 0 next to a zero variance: there the scale is 0, whatever the sample."""
        q1, q2 = self._variances(fields1, sides[0]), self._variances(fields2, sides[1])
        C = self.matrix(self.gaussians.covariance, fields1, fields2, sides)
        q1, q2 = jnp.broadcast_to(q1[:, None], C.shape), jnp.broadcast_to(q2[None], C.shape)
        return clip_rounding(correlation(q1, C, q2), -1, 1)


def size(g: Field) -> int:
    """How many entries of a Gaussian are sampled."""
    return math.prod(g.shape)


def parts(z: Array, fields: Sequence[Field]) -> list[Array]:
    """The last axis cut into the Gaussians' own."""
    ends = [sum(map(size, fields[: i + 1])) for i in range(len(fields))]
    return [z[..., end - size(g) : end] for end, g in zip(ends, fields, strict=True)]


def product(a: Array, b: Array) -> Array:
    """a b in full precision: TF32 would show in every kernel."""
    return jnp.matmul(a, b, precision="highest")


def _definite(R: Array) -> Array:
    """Correlations with what makes a singular matrix of them definite in spite of rounding,
    relative to their size, 1.
    """
    ridge = 10 * len(R) * float(jnp.finfo(R.dtype).eps)
    return jnp.where(jnp.eye(len(R), dtype=bool), 1 + ridge, R)
