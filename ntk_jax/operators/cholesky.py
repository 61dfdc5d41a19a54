"""(K + ridge) x = b by Cholesky in one copy of K: in place on the host, where LAPACK takes it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve
from jaxtyping import Bool, Float

from ntk_jax.checks import Number
from ntk_jax.compat import is_on_host, on_device, scipy_linalg
from ntk_jax.small_programs import jit_by_size


class HostFactor(NamedTuple):
    """The lower triangle of L, in the memory that held K + ridge; above it is what K left there."""

    lower: Float[np.ndarray, "n n"]

    def solve(self, b: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
        """(L Lᵀ)⁻¹ b."""
        potrs = scipy_linalg().lapack.get_lapack_funcs("potrs", (self.lower,))
        return potrs(self.lower, b, lower=True)[0]

    def log_determinant(self) -> float:
        """log det (L Lᵀ)."""
        return 2 * float(np.sum(np.log(np.diagonal(self.lower)), dtype=float))

    def smallest_eigenvalue(self, num_steps: int = 30) -> float:
        """Of L Lᵀ by power iteration on the inverse: an upper bound, good to a few per cent."""
        v = w = np.random.default_rng(0).uniform(-1, 1, len(self.lower)).astype(self.lower.dtype)
        trsv = scipy_linalg().blas.get_blas_funcs(
            "trsv", (self.lower,)
        )  # several times faster than potrs
        for _ in range(num_steps + 1):
            v = w / np.abs(w).max()
            w = trsv(self.lower, trsv(self.lower, v, lower=1), lower=1, trans=1)
        return float(np.vdot(v, v) / np.vdot(v, w))


def factor_on_host(matrix: Float[np.ndarray, "n n"], ridge: np.ndarray) -> HostFactor | None:
    """L Lᵀ = matrix + diag(ridge) in the memory of the matrix; None if that is not definite."""
    np.einsum("ii->i", matrix)[...] += ridge
    potrf = scipy_linalg().lapack.get_lapack_funcs("potrf", (matrix,))
    # LAPACK counts by columns: of a symmetric matrix, the transpose is the same, and no copy.
    lower, failed = potrf(matrix.T, lower=True, overwrite_a=True, clean=False)
    assert np.shares_memory(lower, matrix)
    return None if failed else HostFactor(lower)


def factors_on_host(k: Array | np.ndarray) -> bool:
    """Whether K is where LAPACK finds it: on one CPU device, for a caller outside of traces."""
    return is_on_host(k) and (not isinstance(k, Array) or len(k.devices()) == 1)


def cholesky_solve(
    k: Array, ridge: Number, b: Float[Array, "n m"]
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]] | None:
    """x and b - (K + ridge) x, after one step of refinement; None if K + ridge is not definite."""
    if not factors_on_host(k):
        value, residual, definite = _on_device(k, ridge, b)
        return (value, residual) if definite else None
    matrix, right = np.asarray(k), np.asarray(b)
    factor = factor_on_host(matrix.copy(), np.asarray(ridge))
    if factor is None:
        return None
    scale = np.asarray(ridge).reshape(-1, 1)
    value = factor.solve(right)
    value = value + factor.solve(right - matrix @ value - scale * value)
    return on_device(value), on_device(right - matrix @ value - scale * value)


@jit_by_size
def _on_device(
    k: Array, ridge: Array, b: Array
) -> tuple[Float[Array, "n m"], Float[Array, "n m"], Bool[Array, ""]]:
    ridges = jnp.broadcast_to(ridge, k.shape[:1])
    factor = jnp.linalg.cholesky(k + jnp.diag(ridges)), True
    left = lambda x: b - jnp.matmul(k, x, precision="highest") - ridges[:, None] * x
    value = cho_solve(factor, b)
    value = value + cho_solve(factor, left(value))
    return value, left(value), jnp.all(jnp.isfinite(value))
