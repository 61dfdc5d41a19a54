"""The Krylov spaces of a symmetric operator, orthonormal to rounding: in one block, or one space
per probe vector.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import as_kernel, check_symmetric
from ntk_jax.linalg import as_matrix, matmul
from ntk_jax.norms import norm
from ntk_jax.types import SymmetricOperator


class Krylov(NamedTuple):
    """An orthonormal basis (n, m), the operator in that basis (m, m), and what of it leaves the
    space (b, b).
    """

    basis: Float[Array, "n m"]
    projected: Float[np.ndarray, "m m"]
    remainder: Float[np.ndarray, "b b"]


class Quadrature(NamedTuple):
    """Gauss nodes and weights for vᵀ f(K) v, one row per probe v; the weights of a row add up to
    1.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]


def as_operator(name: str, k: Any) -> Any:
    """A kernel as a symmetric matrix (n, n), or an operator with `@` and a square `shape` as it is.

    Raises:
        ValueError: neither, not square, an array that is not symmetric, an operator that is not in
            float32 or float64.
    """
    if isinstance(k, SymmetricOperator) and not isinstance(k, Array | np.ndarray):
        if len(k.shape) != 2 or k.shape[0] != k.shape[1]:
            raise ValueError(
                f"{name}: expected a square operator; got shape {k.shape}. Make it with x2=None."
            )
        if jnp.dtype(k.dtype) not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"{name}: expected an operator in float32 or float64; got {k.dtype}. Convert its "
                "products."
            )
        return k
    matrix = as_matrix(as_kernel(name, k))
    check_symmetric(name, matrix)
    return matrix


def multiply(k: Any, v: Float[Array, "n b"]) -> Float[Array, "n b"]:
    """K v, in full precision for an array."""
    return matmul(k, v) if isinstance(k, Array) else jnp.asarray(k @ v)


class BlockLanczos:
    """Grows a Krylov space block by block, each block orthogonalized against all before it."""

    def __init__(self, k: Any, start: Float[Array, "n b"], max_dimension: int):
        self.k, self.block = k, jnp.linalg.qr(start)[0]
        n, self.size = start.shape
        self.basis = jnp.zeros((n, max_dimension), start.dtype)
        self.projected = np.zeros((max_dimension, max_dimension), start.dtype)
        self.dimension = 0

    def grow(self) -> Krylov:
        """Add the next block to the basis."""
        m, b = self.dimension, self.size
        product = multiply(self.k, self.block)
        self.basis, self.block, column, remainder = _orthogonalize(
            self.basis, self.block, m, product
        )
        self.projected[:, m : m + b] = column
        self.dimension = m + b
        inside = self.projected[: m + b, : m + b]
        return Krylov(self.basis, np.triu(inside) + np.triu(inside, 1).T, np.asarray(remainder))


@jax.jit
def _orthogonalize(
    basis: Array, block: Array, m: Any, product: Array
) -> tuple[Array, Array, Array, Array]:
    """The basis with the block, the next block, K's coefficients in the basis, and those in the
    next block.

    Each projection is made twice, as rounding needs; the second factorization makes directions that
    were only rounding (the space is invariant) orthogonal to the basis too.
    """
    basis = jax.lax.dynamic_update_slice(basis, block, (0, m))
    coefficients = matmul(basis.T, product)
    rest = product - matmul(basis, coefficients)
    correction = matmul(basis.T, rest)
    block, remainder = jnp.linalg.qr(rest - matmul(basis, correction))
    for _ in range(2):
        block, factor = jnp.linalg.qr(block - matmul(basis, matmul(basis.T, block)))
        remainder = matmul(factor, remainder)
    return basis, block, coefficients + correction, remainder


def gauss_quadrature(k: Any, probes: Float[Array, "n p"], num_steps: int) -> Quadrature:
    """The Gauss rule of the measure Σ_i (u_iᵀ v)² δ(s - s_i) / |v|² of each probe v, by that many
    Lanczos steps.
    """
    vectors = probes / norm(probes, axis=0)[None]
    basis = jnp.zeros((num_steps + 1, *probes.shape), probes.dtype).at[0].set(vectors)
    diagonal, off_diagonal = [], []
    for step in range(num_steps):
        basis, vectors, alpha, beta = _lanczos_step(basis, step, multiply(k, vectors))
        diagonal.append(alpha)
        off_diagonal.append(beta)
    return _gauss_rule(jnp.stack(diagonal, 1), jnp.stack(off_diagonal, 1)[:, :-1])


@jax.jit
def _lanczos_step(
    basis: Float[Array, "m n p"], step: Any, product: Float[Array, "n p"]
) -> tuple[Array, Array, Array, Array]:
    """One step for every probe; a space that is exhausted goes on with zero vectors, which have
    weight 0.
    """

    def project_out(w: Array) -> tuple[Array, Array]:
        inner = jnp.einsum("mnp,np->mp", basis, w, precision="highest")
        return w - jnp.einsum("mnp,mp->np", basis, inner, precision="highest"), inner[step]

    rest, alpha = project_out(product)
    rest, correction = project_out(rest)
    beta = norm(rest, axis=0)
    exhausted = beta <= 10 * jnp.finfo(beta.dtype).eps * norm(product, axis=0)
    following = jnp.where(exhausted[None], 0, rest / jnp.where(exhausted, 1, beta)[None])
    return (
        basis.at[step + 1].set(following),
        following,
        alpha + correction,
        jnp.where(exhausted, 0, beta),
    )


@jax.jit
def _gauss_rule(diagonal: Float[Array, "p m"], off_diagonal: Float[Array, "p k"]) -> Quadrature:
    """Golub, Welsch 1969: eigenvalues of the tridiagonal matrix, squared first entries of its
    eigenvectors.
    """
    build = lambda a, b: jnp.diag(a) + jnp.diag(b, 1) + jnp.diag(b, -1)
    nodes, vectors = jnp.linalg.eigh(jax.vmap(build)(diagonal, off_diagonal))
    return Quadrature(nodes, vectors[:, 0, :] ** 2)
