"""Eigenvalues: all of a kernel, the largest of an operator, and how many there are in effect."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import (
    Look,
    as_coupled_kernel,
    check_in_one_piece,
    check_integer,
    check_looks,
    check_number,
    check_option,
    look,
)
from ntk_jax.compat import is_concrete, on_device
from ntk_jax.linalg import (
    as_matrix,
    ascending_eigenvalues,
    basis_of,
    check_psd,
    default_rcond,
    matmul,
    symmetric_eigh,
)
from ntk_jax.matrix_functions.basis import Basis, Function
from ntk_jax.matrix_functions.functions import trace
from ntk_jax.modes.modes import spectrum_of
from ntk_jax.norms import magnitude, norm
from ntk_jax.operators.block_lanczos import BlockLanczos, Krylov
from ntk_jax.operators.symmetric import SymmetricOperator, as_operator, multiply
from ntk_jax.small_programs import jit_by_size


class TopEigenvalues(NamedTuple):
    """The largest eigenvalues, their eigenvectors in columns, and |K u - s u| of each pair."""

    eigenvalues: Float[Array, " k"]
    eigenvectors: Float[Array, "n k"]
    residuals: Float[Array, " k"]
    converged: bool
    num_products: int


def eigenvalues(k: Float[ArrayLike, "n n *outputs"]) -> Float[Array, " n_O"]:
    """All eigenvalues of a kernel, K v_i = s_i v_i, largest first.

    Args:
        k: symmetric, (n, n), or full (n, n, O, O), which counts as the (nO, nO) matrix of flattened
            outputs.

    Returns:
        (n,) or (nO,).

    Raises:
        ValueError: not square, symmetric or finite.

    Example:
        >>> print(np.round(ntk_jax.eigenvalues(jnp.array([[2.0, 1.0], [1.0, 2.0]])), 3))
        [3. 1.]
    """
    kernel = as_coupled_kernel("k", k)
    check_in_one_piece("k", kernel)
    values, seen = _eigenvalues(kernel)
    check_looks({"k": seen}, {"k": kernel})
    return values


@jit_by_size
def _eigenvalues(k: Float[Array, "n n *outputs"]) -> tuple[Float[Array, " N"], Look | None]:
    values, seen = spectrum_of(k)
    return values[0], seen


def top_eigenvalues(
    k: SymmetricOperator | ArrayLike,
    num: int,
    *,
    key: Array,
    tol: float | None = None,
    block_size: int | None = None,
    max_dimension: int | None = None,
) -> TopEigenvalues:
    """The largest eigenvalues and eigenvectors, from products K v alone, by block Lanczos.

    Args:
        k: a symmetric kernel, or anything with `@` on columns (n, b) and a square `shape`, such as
            `ntk_operator(...)`.
        num: how many.
        key: random key of the start.
        tol: stop when every |K u - s u| is below this fraction of the largest eigenvalue; default
            eps^(2/3). The error of an eigenvalue is at most its residual, and of the order of the
            residual's square where it stands alone.
        block_size: vectors per product; default `num`. An eigenvalue is found at most this many
            times: smaller blocks need fewer products, and miss copies of eigenvalues that are
            repeated more often (data on a circle: twice).
        max_dimension: of the Krylov space, which is held in memory; default 20 num + 100, at most
            n.

    Returns:
        TopEigenvalues(eigenvalues (num,) largest first, eigenvectors (n, num), residuals (num,),
        converged, num_products): `converged` is False if `max_dimension` was reached first; the
        residuals then say how good they are.

    Raises:
        ValueError: not square, or `num` not between 1 and n.

    Reference: Golub, Underwood 1977; Musco, Musco 2015 (what the start block guarantees).

    Example:
        >>> k = jnp.diag(jnp.arange(1.0, 21.0))
        >>> top = ntk_jax.top_eigenvalues(k, 2, key=jax.random.key(0))
        >>> print(np.round(top.eigenvalues, 3), top.eigenvectors.shape)
        [20. 19.] (20, 2)
    """
    operator = as_operator("k", k)
    n, dtype = operator.shape[0], jnp.dtype(operator.dtype)
    check_integer("num", num, minimum=1)
    if num > n:
        raise ValueError(f"num: expected at most n = {n} eigenvalues; got {num}.")
    block_size = num if block_size is None else block_size
    check_integer("block_size", block_size, minimum=1)
    tol = float(jnp.finfo(dtype).eps) ** (2 / 3) if tol is None else tol
    check_number("tol", tol, max_ndim=0)
    max_dimension = 20 * num + 100 if max_dimension is None else max_dimension
    check_integer("max_dimension", max_dimension, minimum=max(num, block_size))
    if n <= 3 * max(num, block_size):  # three blocks would fill the space
        matrix = multiply(operator, on_device(np.eye(n, dtype=dtype)))
        values, vectors, residuals = _by_diagonalization(matrix, num)
        return TopEigenvalues(values, vectors, residuals, True, n)
    # Whole blocks only: the basis is allocated once.
    max_dimension = min(max_dimension, n) // block_size * block_size
    space = BlockLanczos(
        operator,
        key,
        block_size,
        max(max_dimension, block_size),
    )
    while True:
        krylov = space.grow()
        # Smaller spaces do not hold so many Ritz pairs.
        if space.dimension < num:
            continue
        values, coefficients, residuals = _rayleigh_ritz(krylov, num)
        converged = bool(np.all(residuals <= tol * np.abs(values[0])))
        if converged or space.dimension + block_size > max_dimension:
            vectors = _in_full(krylov.basis, coefficients)
            found = on_device(values), vectors, on_device(residuals)
            return TopEigenvalues(*found, converged, space.dimension)


@jit_by_size
def _in_full(basis: Float[Array, "n m"], coefficients: Float[Array, "d k"]) -> Float[Array, "n k"]:
    return matmul(basis[:, : len(coefficients)], coefficients)


def _rayleigh_ritz(krylov: Krylov, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best eigenvalues, eigenvectors in the basis, and residuals that the space holds."""
    values, vectors = np.linalg.eigh(krylov.projected)
    values, vectors = values[::-1][:num], vectors[:, ::-1][:, :num]
    # K u leaves the space only through the last block of u.
    outside = krylov.remainder @ vectors[-krylov.remainder.shape[0] :]
    scale = np.abs(outside).max() or 1  # squares of small numbers underflow
    residuals = np.linalg.norm(outside / scale, axis=0) * scale
    return values.copy(), vectors.copy(), residuals


@partial(jit_by_size, static_argnums=1)
def _by_diagonalization(matrix: Float[Array, "n n"], num: int) -> tuple[Array, Array, Array]:
    values, vectors = symmetric_eigh((matrix + matrix.T) / 2)
    values, vectors = values[:num], vectors[:, :num]
    return values, vectors, norm(matmul(matrix, vectors) - vectors * values[None], axis=0)


def effective_rank(
    k: Float[ArrayLike, "n n *outputs"], *, kind: str = "entropy"
) -> Float[Array, ""]:
    """How many eigenvalues count, between 1 and n, whatever the scale of the kernel.

        "entropy":        exp(-Σ p_i log p_i),  p_i = s_i / Σ_j s_j
        "participation":  (Σ s_i)² / Σ s_i², which is smaller and needs no eigenvalues

    Args:
        k: symmetric positive semi-definite, (n, n) or full (n, n, O, O).
        kind: "entropy" or "participation".

    Returns:
        A scalar; NaN, inside jit alone, for a kernel that is zero.

    Raises:
        ValueError: not symmetric and positive semi-definite to within rounding; zero; unknown kind.

    Reference: Roy, Vetterli 2007 (entropy).

    Example:
        >>> round(float(ntk_jax.effective_rank(jnp.eye(4))), 3)
        4.0
        >>> k = jnp.diag(jnp.array([3.0, 1.0]))
        >>> round(float(ntk_jax.effective_rank(k, kind="participation")), 3)
        1.6
    """
    check_option("kind", kind, ("entropy", "participation"))
    kernel = as_coupled_kernel("k", k)
    check_in_one_piece("k", kernel)
    found = _effective_rank(kernel, kind, not is_concrete(kernel))
    check_looks({"k": found.look}, {"k": kernel})
    if is_concrete(kernel) and is_concrete(found.scale) and not float(found.scale) > 0:
        raise ValueError(
            "k: expected a kernel that is not zero, which has no directions to count; got zeros."
        )
    if kind == "entropy":
        check_psd("k", found.eigenvalues)
    elif is_concrete(kernel) and is_concrete(found.rounding) and not np.isfinite(found.pivot):
        raise ValueError(
            "k: expected a positive semi-definite kernel; got eigenvalues below "
            f"-{float(found.rounding):.3g} times the largest entry. Compute it in float64, or "
            "check that it is a kernel at all."
        )
    return found.rank


class _Rank(NamedTuple):
    """An effective rank, and what is checked: max |K|, eigenvalues, or a Cholesky factor's last
    pivot with what was added to the diagonal, in units of max |K|.
    """

    rank: Float[Array, ""]
    look: Look | None
    scale: Float[Array, ""]
    eigenvalues: Float[Array, " n"] | None = None
    pivot: Float[Array, ""] | None = None
    rounding: Float[Array, ""] | None = None


@partial(jit_by_size, static_argnums=(1, 2))
def _effective_rank(k: Float[Array, "n n *outputs"], kind: str, traced: bool) -> _Rank:
    matrix, seen = as_matrix(k), look(k, symmetric=True)
    # Sums of squares would overflow, or underflow, at scales far from 1.
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(matrix)))
    matrix = matrix / magnitude(matrix)
    if kind == "participation":
        rank = jnp.trace(matrix) ** 2 / jnp.sum(jnp.square(matrix))
        # `check_psd` without eigenvalues: K, raised by rounding, has a Cholesky factor.
        fixed_matrix = jax.lax.stop_gradient(matrix)
        rounding = 10 * default_rcond(len(matrix), matrix.dtype) * norm(fixed_matrix)
        raised = fixed_matrix + rounding * jnp.eye(len(matrix), dtype=matrix.dtype)
        pivot = jnp.linalg.cholesky(raised)[-1, -1]
        return _Rank(rank, seen, largest, pivot=pivot, rounding=rounding)
    if traced:
        basis = basis_of(matrix, traced)
    else:
        basis = Basis(ascending_eigenvalues(matrix)[::-1], matrix[:0], None)
    total = jnp.sum(jnp.maximum(basis.eigenvalues, 0))
    rank = jnp.exp(trace(_entropy, basis, total))
    return _Rank(rank, seen, largest, basis.eigenvalues)


def _share_times_log(s: Array, total: Array, _: Any) -> Array:
    p = jnp.where(s > 0, s, total) / total  # rounding may leave -eps, whose share is none
    return jnp.where(s > 0, -p * jnp.log(p), 0)


_entropy = Function(value=_share_times_log, reach=lambda s, total, _: jnp.maximum(s, 0))
