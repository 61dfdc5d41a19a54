"""Symmetric factorizations that report what they did."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve, eigh
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.compat import is_concrete
from ntk_jax.draws import draw_flat
from ntk_jax.matrix_functions import NULL, Basis, Function, apply, fixed, matmul


class SolveReport(NamedTuple):
    """What a linear solve did: numerical rank, the eigenvalue range it met, and their ratio."""

    rank: Array
    smallest_eigenvalue: Array
    largest_eigenvalue: Array
    condition_number: Array


def default_rcond(size: int, dtype: jnp.dtype) -> float:
    """n · eps: a bound of what rounding may do to a matrix of n rows, in units of its largest
    eigenvalue.
    """
    return size * float(jnp.finfo(dtype).eps)


def null_rcond(dtype: jnp.dtype) -> float:
    """Eigenvalues up to this fraction of the largest count as 0: what rounding does to them in
    fact, whatever N.
    """
    return NULL * float(jnp.finfo(dtype).eps)


def as_matrix(k: Float[Array, "n1 n2 ..."]) -> Float[Array, "n1_O n2_O"]:
    """A kernel (n1, n2) as it is, a full one (n1, n2, O, O) as the (n1·O, n2·O) matrix of flattened
    outputs.
    """
    if k.ndim == 2:
        return k
    return k.transpose(0, 2, 1, 3).reshape(k.shape[0] * k.shape[2], k.shape[1] * k.shape[3])


@jax.custom_jvp
def symmetric_eigh(k: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues, largest first, and eigenvectors in columns: K = U diag(s) Uᵀ.

    Derivatives are finite: eigenvectors of equal eigenvalues are kept from turning into each other,
    which no function of K depends on. What is a function of K as a whole goes by `matrix_functions`
    instead, exact to any order.
    """
    values, vectors = eigh(k)
    return values[::-1], vectors[:, ::-1]


@symmetric_eigh.defjvp
def _symmetric_eigh_jvp(primals, tangents):
    s, U = symmetric_eigh(*primals)
    omega = matmul(U.T, matmul(tangents[0], U))
    omega = (omega + omega.T) / 2
    gap = s[None, :] - s[:, None]
    equal = jnp.abs(gap) <= null_rcond(s.dtype) * jnp.max(jnp.abs(s))
    return (s, U), (
        jnp.diagonal(omega),
        matmul(U, jnp.where(equal, 0, omega / jnp.where(equal, 1, gap))),
    )


def _with_ridge(s: Array, ridge: Array, _: Any) -> Array:
    return s + ridge


def _reciprocal(s: Array, ridge: Array, _: Any) -> Array:
    x = s + ridge
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


inverse = Function(value=_reciprocal, reach=_with_ridge)
"""1 / (s + ridge), 0 for a null mode without ridge: (K + ridge)⁻¹, or the pseudo-inverse."""


def check_psd(name: str, eigenvalues: Float[Array, " n"]) -> None:
    """Raise if the smallest eigenvalue (the last) is negative beyond rounding: below -10 n eps
    times the largest.
    """
    if not is_concrete(eigenvalues):
        return
    largest, smallest = float(eigenvalues[0]), float(eigenvalues[-1])
    rounding = (
        10 * default_rcond(eigenvalues.size, eigenvalues.dtype) * max(abs(largest), abs(smallest))
    )
    if not smallest >= -rounding:
        negative = int(jnp.sum(eigenvalues < -rounding))
        raise ValueError(
            f"{name}: expected a positive semi-definite kernel; got {negative} of "
            f"{eigenvalues.size} eigenvalues "
            f"below -{rounding:.3g} (smallest {smallest:.6g}, largest {largest:.6g}). "
            "Compute it in float64 or with full-precision matrix products, or check that it is a "
            "kernel at all."
        )


def eigh_report(eigenvalues: Float[Array, " n"], rcond: float) -> SolveReport:
    """The report of a pseudo-inverse that drops eigenvalues up to `rcond` times the largest."""
    rank = jnp.sum(eigenvalues > rcond * eigenvalues[0])
    smallest = eigenvalues[jnp.maximum(rank - 1, 0)]
    return SolveReport(rank, smallest, eigenvalues[0], eigenvalues[0] / smallest)


def pseudo_solve(
    k: Float[Array, "n n"], b: Float[Array, "n m"], *, rcond: float
) -> tuple[Float[Array, "n m"], SolveReport]:
    """K⁺ b for a symmetric PSD kernel: eigenvalues up to `rcond` times the largest count as
    zero.
    """
    values, vectors = symmetric_eigh(k)
    check_psd("k_train_train", values)
    basis = Basis(
        jnp.where(values > rcond * values[0], values, 0), vectors, None if is_concrete(k) else k
    )
    alpha = apply(inverse, basis, matmul(fixed(vectors).T, b), jnp.zeros((), k.dtype))
    return matmul(fixed(vectors), alpha), eigh_report(values, rcond)


def ridge_solve(
    k: Float[Array, "n n"], b: Float[Array, "n m"], *, diag_reg: Float[ArrayLike, "*n"]
) -> tuple[Float[Array, "n m"], SolveReport]:
    """(K + diag(diag_reg))⁻¹ b by Cholesky; the reported eigenvalues are those of the regularized
    matrix.

    They are found by power iteration on the matrix and on its inverse (30 steps: good to a few per
    cent).
    """
    solution, smallest, largest = _ridge(k, b, jnp.asarray(diag_reg, k.dtype))
    if is_concrete(smallest) and not bool(jnp.isfinite(smallest)):
        raise ValueError(
            "k_train_train + diag_reg I: expected a positive definite matrix; its Cholesky "
            "factorization failed "
            f"(n = {len(k)}, {k.dtype}, diag_reg = {float(np.min(diag_reg)):.3g}, largest "
            f"eigenvalue {float(largest):.3g}). "
            f"Use diag_reg above {10 * default_rcond(k.shape[0], k.dtype) * float(largest):.3g}, "
            "or float64, "
            "or diag_reg=0 for the pseudo-inverse."
        )
    rank = jnp.asarray(k.shape[0])
    return solution, SolveReport(rank, smallest, largest, largest / smallest)


@jax.jit
def _ridge(k: Array, b: Array, diag_reg: Any) -> tuple[Array, Array, Array]:
    """The solution, and the extreme eigenvalues: compiled once for any ridge."""
    regularized = k + jnp.diag(jnp.broadcast_to(diag_reg, k.shape[:1]))
    factor = cho_factor(regularized, lower=True)
    largest = largest_eigenvalue(lambda v: matmul(regularized, v), k.shape[:1], k.dtype)
    smallest = 1 / largest_eigenvalue(lambda v: cho_solve(factor, v), k.shape[:1], k.dtype)
    return cho_solve(factor, b), smallest, largest


def largest_eigenvalue(
    multiply: Callable[[Array], Array],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    num_steps: int = 30,
) -> Float[Array, ""]:
    """The largest eigenvalue of a PSD operator on arrays of `shape`, by power iteration from a
    fixed random start.

    A lower bound, good to a few per cent after 30 steps whatever the gap below it.
    """

    def step(_, v):
        w = multiply(v)
        norm = jnp.linalg.norm(w)
        return jnp.where(norm == 0, w, w / jnp.where(norm == 0, 1, norm))

    start = draw_flat(jax.random.normal, jax.random.key(0), shape, dtype)
    v = jax.lax.fori_loop(0, num_steps, step, start / jnp.linalg.norm(start))
    return jnp.vdot(v, multiply(v))
