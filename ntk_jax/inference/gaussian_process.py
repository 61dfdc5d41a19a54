"""Bayesian regression with a kernel as prior covariance: with an NNGP, Bayes for wide networks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_kernel, check_symmetric
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import default_rcond, matmul
from ntk_jax.modes.kind import (
    as_columns,
    as_matrices,
    as_test_kernel,
    as_variance,
    check_test_test,
    from_columns,
    from_matrices,
    kind_of,
    ridge_of_rows,
    targets_of_kernel,
)


class Posterior(NamedTuple):
    """Mean and covariance (or variance) of the noise-free outputs, and the evidence."""

    mean: Float[Array, "..."]
    covariance: Float[Array, "..."]
    log_marginal_likelihood: Float[Array, ""]


def gp_posterior(
    k_train_train: Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    k_test_train: Float[ArrayLike, "n_test n *outputs"],
    k_test_test: Float[ArrayLike, "..."],
    *,
    noise: ArrayLike,
) -> Posterior:
    """The posterior of a Gaussian process with prior covariance K, observed with noise.

        mean = K_* (K + noise I)⁻¹ y,    covariance = K_** - K_* (K + noise I)⁻¹ K_*ᵀ

    Differentiable in everything, so that hyperparameters can be fitted by the log marginal
    likelihood.

    Args:
        k_train_train: prior covariance on the training examples, (n, n), (n, n, O) or (n, n, O, O).
        y_train: observations (n,) or (n, O); under a kernel (n, n) the outputs are independent,
            with one covariance.
        k_test_train: test rows, training columns, with the output axes of k_train_train.
        k_test_test: (n_test, n_test, ...) for the whole posterior covariance; only its diagonal,
            (n_test,) or (n_test, O), for variances, at the cost of a solve and without n_test²
            memory.
        noise: variance of the observation noise, in units of the kernel, at least 0: a number, or
            one for each example (n,).

    Returns:
        Posterior(mean, covariance, log_marginal_likelihood); the covariance is shaped like
        k_test_test.

    Raises:
        ValueError: shapes that do not fit; K + noise I not positive definite in its dtype; negative
            variances.

    Reference: Rasmussen, Williams 2006, algorithm 2.1; Lee et al. 2018.

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> k_test_train, variance = jnp.array([[2.0, 0.0]]), jnp.array([2.0])
        >>> posterior = ntk_jax.gp_posterior(k, y, k_test_train, variance, noise=1.0)
        >>> print(np.round(posterior.mean, 3), np.round(posterior.covariance, 3))
        [1.] [0.5]
    """
    k = as_kernel("k_train_train", k_train_train)
    kind = kind_of(k)
    y, factor, white = _whiten(k, y_train, noise)
    k_test = as_test_kernel(k_test_train, k)
    prior, diagonal = check_test_test(k_test_test, k_test)
    # One triangular solve of the test kernel serves the mean and the covariance.
    gain = jnp.swapaxes(_solve(factor, jnp.swapaxes(as_matrices(k_test), 1, 2)), 1, 2)  # K_* L⁻ᵀ
    mean = from_columns(matmul(gain, white), kind, (k_test.shape[0], *y.shape[1:]))
    if diagonal is None:
        covariance = from_matrices(prior - matmul(gain, jnp.swapaxes(gain, 1, 2)), kind)
    else:
        variance = as_variance(prior - jnp.sum(jnp.square(gain), axis=2), prior)
        covariance = from_columns(variance[..., None], kind, diagonal)
    return Posterior(mean, covariance, _log_likelihood(factor, white))


def log_marginal_likelihood(
    k_train_train: Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    *,
    noise: ArrayLike,
) -> Float[Array, ""]:
    """The evidence log p(y): how probable the observations are under a Gaussian process prior with
    noise.

        -yᵀ(K + noise I)⁻¹y / 2 - log det(K + noise I) / 2 - n log(2π) / 2

    Args:
        k_train_train: prior covariance, (n, n), (n, n, O) or (n, n, O, O).
        y_train: observations, (n,) or (n, O).
        noise: variance of the observation noise, at least 0: a number, or one for each example
            (n,).

    Returns:
        A scalar, the sum over outputs, differentiable in everything.

    Raises:
        ValueError: as `gp_posterior`.

    Reference: Rasmussen, Williams 2006, eq. 2.30.

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> round(float(ntk_jax.log_marginal_likelihood(k, y, noise=1.0)), 3)
        -3.378
    """
    return _log_likelihood(*_whiten(as_kernel("k_train_train", k_train_train), y_train, noise)[1:])


def _whiten(k: Array, y_train: ArrayLike, noise: ArrayLike) -> tuple[Array, Array, Array]:
    """Checked targets, L with L Lᵀ = K + noise I, and L⁻¹ y."""
    y = targets_of_kernel(y_train, k)
    matrices = as_matrices(k)
    for matrix in matrices:
        check_symmetric("k_train_train", matrix)
    noises = ridge_of_rows("noise", noise, k)
    factor = jnp.linalg.cholesky(
        matrices + jnp.diag(jnp.broadcast_to(noises, matrices.shape[1:2]))[None]
    )
    if is_concrete(factor) and not bool(jnp.all(jnp.isfinite(factor))):
        s = jnp.linalg.eigvalsh(matrices)
        smallest, largest = float(jnp.min(s)), float(jnp.max(s))
        enough = max(-smallest, 0.0) + default_rcond(s.shape[-1], k.dtype) * largest
        raise ValueError(
            f"noise: expected above {enough:.3g}, so that K + noise I is positive definite in "
            f"{k.dtype}; got {float(jnp.min(noises)):.3g}, and the smallest eigenvalue of K is "
            f"{smallest:.3g}."
        )
    return y, factor, _solve(factor, as_columns(y, kind_of(k)))


def _solve(factor: Float[Array, "B N N"], b: Float[Array, "B N m"]) -> Float[Array, "B N m"]:
    return jax.vmap(lambda lower, right: solve_triangular(lower, right, lower=True))(factor, b)


def _log_likelihood(
    factor: Float[Array, "B N N"], white: Float[Array, "B N m"]
) -> Float[Array, ""]:
    log_det = white.shape[2] * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)))
    return (
        -jnp.sum(jnp.square(white)) / 2
        - log_det
        - white.size * jnp.log(2 * jnp.pi).astype(white.dtype) / 2
    )
