"""The test error of kernel regression on part of a pool of examples, predicted from the kernel of
the pool.

Let P keep each of N rows with probability c = n / N, and Q = I - P. Regression on the rows that are
kept rests on G = P (P K P + δ)⁻¹ P, the limit of (K + δ P + μ Q)⁻¹ for μ -> inf: a resolvent with a
random diagonal. Its mean is (K + Ω)⁻¹ with one number per row, Ω_i = δ + (1 - c) / G_ii, which is
what row i adds to all others in the mean (the coherent-potential or cavity equation). Errors,
squares of δ P G y and μ Q G y, follow from derivatives of the mean in δ and μ. With a single number
for all rows this is eigenlearning; rows that resemble no other need their own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

from ntk_jax.checks import (
    Look,
    as_number,
    as_single_kernel,
    as_targets,
    check_in_one_piece,
    check_looks,
    is_zero,
    looks,
)
from ntk_jax.inference.learning_curves import as_counts, check_below_rank, solve_kappa
from ntk_jax.linalg import check_psd, matmul, null_rcond
from ntk_jax.norms import magnitude
from ntk_jax.small_programs import jit_by_size

_MAX_STEPS = 100


class PoolCurve(NamedTuple):
    """Predicted mean squares of errors on rows held out and on training rows, and each row's Ω."""

    test: Float[Array, "*T"]
    train: Float[Array, "*T"]
    kappa: Float[Array, "*T N"]


def learning_curve(
    k: Float[ArrayLike, "N N"],
    y: Num[ArrayLike, "N *O"],
    num_train: Int[ArrayLike, "*T"] | Sequence[int],
    *,
    diag_reg: float = 0.0,
) -> PoolCurve:
    """The mean error of kernel ridge regression on n random rows of N, and on the others.

        Ω_i = δ + (1 - c) / G_ii,   G = (K + Ω)⁻¹,   c = n / N,   A = diag(G_ii²) / (1 - c) - G ∘ G
        test = 1 / (N - n) Σ_i (A⁻¹ c 1)_i (G y)_i²
        train = δ² / n Σ_i (A⁻¹ G_ii² / (1 - c))_i (G y)_i²

    With one κ for all rows, which is where the iteration starts, and δ = 0, that is `eigenlearning`
    times N / (N - n). It is a mean over draws, accurate to a few per cent for some hundred rows; a
    few factorizations of the pool's kernel per n.

    Args:
        k: kernel of the pool (N, N), symmetric positive semi-definite.
        y: targets of the pool, (N,) or (N, O), with whatever noise they have.
        num_train: n, an integer or several, below N.
        diag_reg: δ, the ridge, in units of the kernel.

    Returns:
        PoolCurve(test, train, kappa Ω_i), with the shape of num_train in front; errors are means
        over rows and outputs.

    Raises:
        ValueError: n not below N, or without a ridge not below the rank; not a PSD kernel; shapes
            that do not fit.

    Reference: Soven 1967 (the equation); the errors, Simon et al. 2021 with one κ per row.

    Example:
        >>> x = jnp.linspace(-1.0, 1.0, 12)
        >>> k = jnp.exp(-2 * (x[:, None] - x[None, :]) ** 2)
        >>> curve = ntk_jax.learning_curve(k, jnp.sin(3 * x), [3, 6, 9], diag_reg=1e-3)
        >>> curve.test.shape, bool(curve.test[0] > curve.test[1] > curve.test[2])
        ((3,), True)
    """
    matrix = as_single_kernel("k", k)
    check_in_one_piece("k", matrix)
    size, dtype = matrix.shape[0], matrix.dtype
    inputs = {"k": matrix, "y": as_targets("y", y, size, dtype)}
    ridge, n = as_number("diag_reg", diag_reg, dtype), as_counts(num_train, dtype)
    if np.max(n) >= size:
        raise ValueError(
            f"num_train: expected less than the {size} rows of the pool; got {int(np.max(n))}."
        )
    curve, seen, s = _curve(inputs, n, ridge)
    check_looks(seen, inputs)
    check_psd("k", s)
    known = np.asarray(s)
    if is_zero(diag_reg):
        check_below_rank(n, np.where(known > null_rcond(dtype) * known[0], known, 0))
    missing = ~np.isfinite(np.asarray(curve.test))
    if np.any(missing):
        raise ValueError(
            f"num_train: the equation for Ω has no solution to {dtype} precision at n = "
            f"{np.asarray(n)[missing]}, close to the rank: use diag_reg, or float64."
        )
    return curve


@jit_by_size
def _curve(
    inputs: dict[str, Array], n: Float[Array, "*T"], ridge: Array
) -> tuple[PoolCurve, dict[str, Look | None], Float[Array, " N"]]:
    """The errors, what checks see of the inputs, and the eigenvalues in units of the kernel."""
    k, columns = inputs["k"], inputs["y"].reshape(len(inputs["k"]), -1)
    # Powers of resolvents would over- or underflow: everything is in units of the kernel.
    k_scale, y_scale = magnitude(k), magnitude(columns)
    k, columns = k / k_scale, columns / y_scale
    s = jnp.linalg.eigvalsh(k)[::-1]
    kept = jnp.where(s > null_rcond(k.dtype) * s[0], s, 0)
    found = jax.lax.map(lambda one: _at(k, columns, kept, one, ridge / k_scale), n.reshape(-1))
    test, train, kappa = (part.reshape(*n.shape, *part.shape[1:]) for part in found)
    curve = PoolCurve(test * y_scale * y_scale, train * y_scale * y_scale, kappa * k_scale)
    return curve, looks(inputs, symmetric=("k",)), s


def _at(k: Array, y: Array, s: Array, n: Array, ridge: Array) -> PoolCurve:
    """The errors at one n; NaN if the iteration does not converge."""
    size = k.shape[0]
    c = n / size
    start = solve_kappa(
        s, n, lambda kappa: ridge * jnp.sum(1 / (s + kappa)), jnp.sum(s + ridge) / n
    )
    omega, converged = _row_terms(k, c, ridge, jnp.full(size, start))
    resolvent = _resolvent(k, omega)
    g = jnp.diagonal(resolvent)
    a = jnp.diag(jnp.square(g) / (1 - c)) - jnp.square(resolvent)
    weights = jnp.linalg.solve(a, jnp.stack([jnp.full(size, c), jnp.square(g) / (1 - c)], axis=1))
    power = jnp.mean(jnp.square(matmul(resolvent, y)), axis=1)
    test, train = jnp.sum(weights * power[:, None], axis=0) / jnp.stack([size - n, n])
    return PoolCurve(jnp.where(converged, test, jnp.nan), jnp.square(ridge) * train, omega)


def _row_terms(
    k: Array, c: Array, ridge: Array, start: Float[Array, " N"]
) -> tuple[Float[Array, " N"], Array]:
    """Ω by Newton's method in log Ω, and whether it converged.

    The map Ω -> δ + (1 - c) / G_ii(Ω) is increasing and grows slower than its argument, so its
    fixed point is unique and the matrix of each step is a regular M-matrix.
    """
    tol = jnp.finfo(k.dtype).eps ** 0.5  # which the last step squares

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        omega, _, count = carry
        resolvent = _resolvent(k, omega)
        g = jnp.diagonal(resolvent)
        image = ridge + (1 - c) / g
        gap = jnp.log(image / omega)
        slope = ((1 - c) / (image * jnp.square(g)))[:, None] * jnp.square(resolvent) * omega[None]
        change = jnp.linalg.solve(jnp.eye(omega.size, dtype=omega.dtype) - slope, gap)
        # Far from the fixed point a whole step may overflow: at most a factor of e² at a time.
        return omega * jnp.exp(jnp.clip(change, -2, 2)), jnp.max(jnp.abs(gap)), count + 1

    going = lambda carry: (carry[1] > tol) & (carry[2] < _MAX_STEPS)
    omega, gap, _ = jax.lax.while_loop(
        going, step, (start, jnp.asarray(jnp.inf, k.dtype), jnp.asarray(0))
    )
    return omega, gap <= tol


def _resolvent(k: Array, omega: Float[Array, " N"]) -> Float[Array, "N N"]:
    return jnp.linalg.inv(k + jnp.diag(omega))
