"""The inverse of a kernel, with a ridge or as a pseudo-inverse, and reports of what it met."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.compat import is_concrete, on_device
from ntk_jax.linalg import basis_of, default_rcond
from ntk_jax.matrix_functions.basis import Constants, Function, fixed, matmul
from ntk_jax.matrix_functions.functions import apply
from ntk_jax.operators.cholesky import factor_on_host
from ntk_jax.operators.power_iteration import largest_eigenvalue
from ntk_jax.platforms import by_platform


class SolveReport(NamedTuple):
    """What a linear solve did: numerical rank, the eigenvalue range it met, and their ratio."""

    rank: Array
    smallest_eigenvalue: Array
    largest_eigenvalue: Array
    condition_number: Array


def _with_ridge(s: Array, ridge: Array, _: Constants) -> Array:
    return s + ridge


def _reciprocal(s: Array, ridge: Array, _: Constants) -> Array:
    x = s + ridge
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


inverse = Function(value=_reciprocal, reach=_with_ridge)
"""1 / (s + ridge), 0 for a null mode without ridge: (K + ridge)⁻¹, or the pseudo-inverse."""


def pseudo_solve(
    k: Float[Array, "n n"], b: Float[Array, "n m"], rcond: Array, traced: bool
) -> tuple[Float[Array, "n m"], SolveReport, Float[Array, " n"]]:
    """K⁺ b for a symmetric PSD kernel: eigenvalues up to `rcond` of the largest count as zero.

    For compiled programs, which return the eigenvalues as well, for `check_psd`; `traced` is what
    the kernel is outside.
    """
    basis = basis_of(k, traced)
    s, U = basis.eigenvalues, fixed(basis.eigenvectors)
    kept = basis._replace(eigenvalues=jnp.where(s > rcond * s[0], s, 0))
    alpha = apply(inverse, kept, matmul(U.T, b), jnp.zeros((), k.dtype))
    rank = jnp.sum(s > rcond * s[0])
    smallest = s[jnp.maximum(rank - 1, 0)]
    return matmul(U, alpha), SolveReport(rank, smallest, s[0], s[0] / smallest), s


def ridge_solve(
    k: Float[Array, "n n"], b: Float[Array, "n m"], diag_reg: Float[Array, "*n"]
) -> tuple[Float[Array, "n m"], SolveReport]:
    """(K + diag(diag_reg))⁻¹ b by Cholesky, and the extreme eigenvalues of K + diag(diag_reg).

    These are found by power iteration on the matrix and on its inverse: good to a few per cent. For
    compiled programs; `check_definite` raises where the factorization failed.
    """
    # Extreme eigenvalues from products alone, since a report must not cost more than the solve.
    regularized = k + jnp.diag(jnp.broadcast_to(diag_reg, k.shape[:1]))
    factor = cho_factor(regularized, lower=True)
    largest = largest_eigenvalue(lambda v: matmul(regularized, v), k.shape[:1], k.dtype)
    smallest = 1 / by_platform(_of_inverse, _of_formed_inverse, factor[0])
    report = SolveReport(jnp.asarray(k.shape[0]), smallest, largest, largest / smallest)
    return cho_solve(factor, b), report


def ridge_solve_in_place(
    matrix: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n m"], diag_reg: Float[np.ndarray, "*n"]
) -> tuple[Float[np.ndarray, "n m"], SolveReport]:
    """`ridge_solve` on the host, in the memory of the matrix."""
    largest = _largest_eigenvalue(matrix, np.broadcast_to(diag_reg, matrix.shape[:1]))
    factor, smallest, alpha = factor_on_host(matrix, diag_reg), np.nan, b
    if factor is not None:
        alpha, smallest = factor.solve(b), factor.smallest_eigenvalue()
    sizes = (np.asarray(x, matrix.dtype) for x in (smallest, largest, largest / smallest))
    return alpha, SolveReport(on_device(np.asarray(len(matrix))), *map(on_device, sizes))


def _largest_eigenvalue(
    matrix: Float[np.ndarray, "n n"], ridge: Float[np.ndarray, " n"], num_steps: int = 30
) -> float:
    v = w = np.random.default_rng(0).uniform(-1, 1, len(matrix)).astype(matrix.dtype)
    for _ in range(num_steps + 1):
        v = w / (np.abs(w).max() or 1)
        w = matrix @ v + ridge * v
    return float(np.vdot(v, w) / np.vdot(v, v))


def _of_inverse(lower: Float[Array, "n n"]) -> Float[Array, ""]:
    """The largest eigenvalue of (L Lᵀ)⁻¹."""
    multiply = lambda v: cho_solve((lower, True), v)
    return largest_eigenvalue(multiply, lower.shape[:1], lower.dtype)


def _of_formed_inverse(lower: Float[Array, "n n"]) -> Float[Array, ""]:
    """The same by products with L⁻¹: an accelerator solves for all columns in the time of a few."""
    inverse = solve_triangular(lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True)
    multiply = lambda v: matmul(matmul(inverse, v), inverse)
    return largest_eigenvalue(multiply, lower.shape[:1], lower.dtype)


def check_definite(report: SolveReport, size: int, diag_reg: ArrayLike) -> None:
    """Raise if the Cholesky factorization of a matrix of `size` rows failed, of several if any."""
    if not is_concrete(report.smallest_eigenvalue):
        return
    finite = np.isfinite(np.asarray(report.smallest_eigenvalue)).reshape(-1)
    if finite.all():
        return
    largest, dtype = float(np.reshape(report.largest_eigenvalue, -1)[~finite][0]), report[1].dtype
    raise ValueError(
        "k_train_train + diag_reg I: expected a positive definite matrix; its Cholesky "
        f"factorization failed (n = {size}, {dtype}, diag_reg = {float(np.min(diag_reg)):.3g}, "
        f"largest eigenvalue {largest:.3g}). Use diag_reg above "
        f"{10 * default_rcond(size, dtype) * largest:.3g}, or float64, or diag_reg=0 for the "
        "pseudo-inverse."
    )
