"""Preconditioners from a few columns: K ≈ F Fᵀ + δ, whose inverse costs two thin products.

    F = K[:, I] L⁻ᵀ,  L Lᵀ = K[I, I];    D = ridge + δ,  δ = mean of diag(K - F Fᵀ)
    (F Fᵀ + D)⁻¹ = D⁻¹ - B Bᵀ,  B = D⁻¹ F C⁻ᵀ,  C Cᵀ = 1 + Fᵀ D⁻¹ F

δ is what the columns leave of the mean diagonal: the scale of the eigenvalues that F does not hold.
References: Williams, Seeger 2001; Frangella, Tropp, Udell 2023; Chen, Epperly, Tropp, Webber 2024.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ntk_jax.checks import Number
from ntk_jax.compat import on_device
from ntk_jax.linalg import matmul
from ntk_jax.operators.power_iteration import largest_eigenvalue
from ntk_jax.operators.symmetric import Operator, columns
from ntk_jax.small_programs import jit_by_size


class LowRank(NamedTuple):
    """(F Fᵀ + D)⁻¹ = diag(inverse) - B Bᵀ, and the largest eigenvalue of F Fᵀ."""

    basis: Float[Array, "n r"]
    inverse: Float[Array, " n"]
    largest: Float[Array, ""]

    def __call__(self, v: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """(F Fᵀ + D)⁻¹ v."""
        return self.inverse[:, None] * v - matmul(self.basis, matmul(self.basis.T, v))


SAMPLED = 32
"""Entries of the diagonal that tell its mean, where it is not known."""


def default_rank(n: int) -> int:
    """5 sqrt(n): as much memory and work as a few vectors, and iterations that grow slowly."""
    return min(n, int(5 * n**0.5))


def uniform(k: Operator, ridge: Number, rank: int, rng: np.random.Generator) -> LowRank:
    """From columns drawn uniformly."""
    n, diagonal = k.shape[0], diagonal_of(k)
    drawn = rng.permutation(n)[: min(n, rank + SAMPLED)]
    chosen, others = np.sort(drawn[:rank]), drawn[rank:]
    found = columns(k, chosen)
    if diagonal is not None:
        return _of_columns(found, chosen, ridge, np.arange(n), diagonal)
    if not len(others):
        return _of_columns(found, chosen, ridge, chosen, _at(found, chosen))
    return _of_columns(found, chosen, ridge, others, _at(columns(k, others), others))


@jit_by_size
def _at(found: Float[Array, "n r"], rows: Int[ArrayLike, " r"]) -> Float[Array, " r"]:
    return found[jnp.asarray(rows), jnp.arange(found.shape[1])]


def nystrom(k: Operator, ridge: Number, rank: int, rng: np.random.Generator) -> LowRank:
    """From columns drawn in proportion to what those before them leave of the diagonal.

    This is randomly pivoted Cholesky. Columns are made in blocks; inside a block, draws that were
    made in proportion to an older diagonal are rejected as needed (Epperly, Tropp, Webber 2024).
    Uniform draws where the diagonal is not known, or spread over several devices.
    """
    diagonal = diagonal_of(k)
    if diagonal is None or (isinstance(diagonal, Array) and len(diagonal.devices()) > 1):
        return uniform(k, ridge, rank, rng)
    left = np.asarray(diagonal, float).copy()
    n, chosen = len(left), np.zeros(0, int)
    least = 10 * float(jnp.finfo(k.dtype).eps) * left.sum()
    drawn_from: list[np.ndarray] = []
    block = min(n, max(rank // 8, 16))
    factor = np.zeros((n, rank), jnp.dtype(k.dtype))
    while len(chosen) < rank and left.sum() > least:
        # Blocks of one size run one program; draws that are too many are rejected as copies.
        size = min(block, int(np.count_nonzero(left)))
        share = np.asarray(left / left.sum())
        drawn = np.resize(rng.choice(n, size, replace=False, p=share), block)
        found, held = np.asarray(columns(k, drawn)), factor[:, : len(chosen)]
        new = found - held @ held[drawn].T
        kept = _accepted(new[drawn].astype(float), rng)[: rank - len(chosen)]
        if not kept:  # rounding alone is left of them
            left[drawn] = 0
            continue
        lower = _lower(new[drawn[kept]][:, kept].astype(float))
        part = np.linalg.solve(lower, new[:, kept].T.astype(float)).T
        factor[:, len(chosen) : len(chosen) + len(kept)] = part
        chosen = np.concatenate([chosen, drawn[kept]])
        drawn_from.append(found[:, kept])
        left = np.maximum(left - np.einsum("ij,ij->i", part, part), 0)
        left[chosen] = 0
    rows = np.arange(n)
    return _of_columns(on_device(np.concatenate(drawn_from, axis=1)), chosen, ridge, rows, diagonal)


def diagonal_of(k: Operator) -> ArrayLike | None:
    """The diagonal, where the operator knows it.

    Raises:
        ValueError: no diagonal of a kernel.
    """
    if isinstance(k, Array):
        diagonal = jnp.diagonal(k)
    elif hasattr(k, "diagonal"):
        diagonal = jnp.asarray(k.diagonal())
    else:
        return None
    least, most = float(jnp.min(diagonal)), float(jnp.max(diagonal))
    if least < 0 or not 0 < most < np.inf:
        raise ValueError(
            "operator: expected a positive semi-definite matrix; its diagonal goes from "
            f"{least:.3g} to {most:.3g}. Check that it is a kernel at all."
        )
    return diagonal


def _accepted(block: Float[np.ndarray, "b b"], rng: np.random.Generator) -> list[int]:
    """Which draws stay: each with the share of its diagonal that those before it leave."""
    block, first, kept = block.copy(), np.diagonal(block).copy(), []
    for i in range(len(block)):
        if block[i, i] > max(rng.uniform(), 1e-9) * first[i]:
            row = block[i] / block[i, i] ** 0.5
            block -= np.outer(row, row)
            kept.append(i)
    return kept


def _lower(block: Float[np.ndarray, "b b"]) -> Float[np.ndarray, "b b"]:
    """The Cholesky factor of a block of what is left, which rounding may have made indefinite."""
    values, vectors = np.linalg.eigh((block + block.T) / 2)
    floor = 1e-9 * values[-1]
    return np.linalg.cholesky((vectors * np.maximum(values, floor)) @ vectors.T)


@jit_by_size
def _of_columns(
    found: Float[Array, "n r"],
    chosen: Int[ArrayLike, " r"],
    ridge: Float[ArrayLike, "*n"],
    rows: Int[ArrayLike, " k"],
    diagonal: Float[ArrayLike, " k"],
) -> LowRank:
    """From columns, and entries of the diagonal at some rows."""
    (n, r), dtype = found.shape, found.dtype
    pivots = found[jnp.asarray(chosen)]
    pivots = (pivots + pivots.T) / 2
    eye, eps = jnp.eye(r, dtype=dtype), float(jnp.finfo(dtype).eps)
    # The shift is what rounding does to eigenvalues.
    lower = _cholesky(pivots, eye, 2 * eps * jnp.trace(pivots))
    factor = _right_solve(lower, found)
    held = jnp.sum(jnp.square(factor[jnp.asarray(rows)]), axis=1)
    mean = jnp.mean(jnp.asarray(diagonal))
    delta = jnp.maximum(mean - jnp.mean(held), 4 * eps * mean)
    spread = jnp.broadcast_to(jnp.asarray(ridge), (n,)) + delta
    scaled = factor / spread[:, None]
    gram = matmul(factor.T, scaled)
    outer = _cholesky(eye + gram, eye, eps * jnp.trace(gram))
    product = lambda v: matmul(factor.T, matmul(factor, v))
    return LowRank(
        _right_solve(outer, scaled), 1 / spread, largest_eigenvalue(product, (r,), dtype)
    )


def _cholesky(matrix: Array, eye: Array, shift: Array) -> Float[Array, "r r"]:
    """The factor, with ten times the shift as long as that is too small."""

    def fails(state: tuple[Array, Array, Array]) -> Array:
        return jnp.any(jnp.isnan(state[0])) & (state[2] < 12)

    def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, shift, tries = state
        return jnp.linalg.cholesky(matrix + shift * eye), 10 * shift, tries + 1

    first = jnp.full_like(matrix, jnp.nan), shift, jnp.asarray(0)
    return jax.lax.while_loop(fails, again, first)[0]


def _right_solve(lower: Float[Array, "r r"], rows: Float[Array, "n r"]) -> Float[Array, "n r"]:
    return solve_triangular(lower, rows.T, lower=True).T
