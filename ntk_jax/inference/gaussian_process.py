"""Bayesian regression with a kernel as prior covariance: with an NNGP, Bayes for wide networks."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, overload

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Num

from ntk_jax.checks import Look, as_square_kernel, check_looks, looks
from ntk_jax.compat import is_concrete
from ntk_jax.inference.on_operators import check_no_options
from ntk_jax.inference.posterior_on_operators import evidence_on_operator, posterior_on_operator
from ntk_jax.linalg import ascending_eigenvalues, default_rcond, matmul
from ntk_jax.modes.kind import (
    as_columns,
    as_matrices,
    as_test_kernel,
    as_test_test,
    check_variance,
    from_columns,
    from_matrices,
    kind_of,
    of_each,
    repeated,
    ridge_of_rows,
    targets_of_kernel,
)
from ntk_jax.modes.multiplied import data_of
from ntk_jax.operators.symmetric import SymmetricOperator, is_operator
from ntk_jax.small_programs import jit_by_size
from ntk_jax.types import Estimate


class Posterior(NamedTuple):
    """Mean and covariance (or variance) of the noise-free outputs, and the evidence; its standard
    error where it is an estimate.
    """

    mean: Float[Array, "..."]
    covariance: Float[Array, "..."]
    log_marginal_likelihood: Float[Array, ""]
    standard_error: Float[Array, ""] | None = None


def gp_posterior(
    k_train_train: SymmetricOperator | Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    k_test_train: SymmetricOperator | Float[ArrayLike, "n_test n *outputs"],
    k_test_test: Float[ArrayLike, "..."],
    *,
    noise: ArrayLike,
    solve_options: Mapping[str, Any] | None = None,
) -> Posterior:
    """The posterior of a Gaussian process with prior covariance K, observed with noise.

        mean = K_* (K + noise I)⁻¹ y,    covariance = K_** - K_* (K + noise I)⁻¹ K_*ᵀ

    Differentiable in everything, so that hyperparameters can be fitted by the log marginal
    likelihood.

    Args:
        k_train_train: prior covariance on the training examples, (n, n), (n, n, O) or (n, n, O, O);
            or an operator or store that is only multiplied, (n, n) or (nO, nO): then by conjugate
            gradients, see `solve`, with a solve for every test row, and without derivatives.
        y_train: observations (n,) or (n, O); under a kernel (n, n) the outputs are independent,
            with one covariance.
        k_test_train: test rows, training columns, with the output axes of k_train_train; or an
            operator (n_test, n) with `.T`, or with slices, as a store has.
        k_test_test: (n_test, n_test, ...) for the whole posterior covariance; only its diagonal,
            (n_test,) or (n_test, O), for variances, at the cost of a solve and without n_test²
            memory.
        noise: variance of the observation noise, in units of the kernel, at least 0: a number, or
            one for each example (n,).
        solve_options: of an operator, keywords of `solve`.

    Returns:
        Posterior(mean, covariance, log_marginal_likelihood, standard_error); the covariance is
        shaped like k_test_test. Of an operator the evidence is an estimate, as its determinant is
        (by 16 random probes), with that standard error; of an array there is none.

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
    if is_operator(k_train_train) or is_operator(k_test_train):
        data = data_of(k_train_train, y_train, k_test_train)
        return Posterior(*posterior_on_operator(data, k_test_test, noise, solve_options))
    check_no_options(solve_options)
    k = as_square_kernel("k_train_train", k_train_train)
    y, noises = targets_of_kernel(y_train, k), ridge_of_rows("noise", noise, k)
    k_test = as_test_kernel(k_test_train, k)
    prior, whole = as_test_test(k_test_test, k_test)
    inputs = {"k_train_train": k, "y_train": y, "k_test_train": k_test, "k_test_test": prior}
    found = _posterior(inputs, noises, whole)
    check_looks(found.looks, inputs)
    _check_definite(k, noises, found.definite)
    check_variance(*found.variances)
    return found.posterior


class _Found(NamedTuple):
    """A posterior, and what is checked: of variances the smallest, and the scale of the prior."""

    posterior: Posterior
    looks: dict[str, Look | None]
    definite: Bool[Array, ""]
    variances: tuple[Array, Array]


@partial(jit_by_size, static_argnums=2)
def _posterior(inputs: dict[str, Array], noises: Array, whole: bool) -> _Found:
    k, y, k_test, prior = (
        inputs[name] for name in ("k_train_train", "y_train", "k_test_train", "k_test_test")
    )
    kind = kind_of(k)
    factor, white = _whiten(k, y, noises)
    # One triangular solve of the test kernel serves the mean and the covariance.
    gain = jnp.swapaxes(_solve(factor, jnp.swapaxes(as_matrices(k_test), 1, 2)), 1, 2)  # K_* L⁻ᵀ
    mean = from_columns(matmul(gain, white), kind, (k_test.shape[0], *y.shape[1:]))
    smallest = jnp.zeros((), k.dtype)
    if whole:
        products = matmul(gain, jnp.swapaxes(gain, 1, 2))
        covariance = from_matrices(as_matrices(prior) - products, kind)
    else:
        left = as_columns(prior, kind)[..., 0] - jnp.sum(jnp.square(gain), axis=2)
        smallest = jnp.min(left)
        covariance = from_columns(jnp.maximum(left, 0)[..., None], kind, prior.shape)
    return _Found(
        Posterior(mean, covariance, _log_likelihood(factor, white)),
        looks(inputs, symmetric=("k_train_train",)),
        jnp.all(jnp.isfinite(factor)),
        (smallest, jnp.max(jnp.abs(prior))),
    )


@overload
def log_marginal_likelihood(
    k_train_train: SymmetricOperator | Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    *,
    noise: ArrayLike,
    solve_options: Mapping[str, Any] | None = None,
    return_error: Literal[False] = False,
) -> Float[Array, ""]: ...


@overload
def log_marginal_likelihood(
    k_train_train: SymmetricOperator | Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    *,
    noise: ArrayLike,
    solve_options: Mapping[str, Any] | None = None,
    return_error: Literal[True],
) -> Estimate: ...


def log_marginal_likelihood(
    k_train_train: SymmetricOperator | Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    *,
    noise: ArrayLike,
    solve_options: Mapping[str, Any] | None = None,
    return_error: bool = False,
) -> Float[Array, ""] | Estimate:
    """The evidence log p(y): how probable the observations are under a Gaussian process prior with
    noise.

        -yᵀ(K + noise I)⁻¹y / 2 - log det(K + noise I) / 2 - n log(2π) / 2

    Args:
        k_train_train: prior covariance, (n, n), (n, n, O) or (n, n, O, O); or an operator or store,
            whose determinant is estimated by random probes: then without derivatives.
        y_train: observations, (n,) or (n, O).
        noise: variance of the observation noise, at least 0: a number, or one for each example
            (n,).
        solve_options: of an operator, keywords of `solve`.
        return_error: also the standard error of the determinant's estimate.

    Returns:
        A scalar, the sum over outputs, differentiable in everything. With `return_error`
        Estimate(value, standard_error), whose error is 0 for an array.

    Raises:
        ValueError: as `gp_posterior`.

    Reference: Rasmussen, Williams 2006, eq. 2.30.

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> round(float(ntk_jax.log_marginal_likelihood(k, y, noise=1.0)), 3)
        -3.378
    """
    if is_operator(k_train_train):
        found = evidence_on_operator(data_of(k_train_train, y_train), noise, solve_options)
        return found if return_error else found.value
    check_no_options(solve_options)
    k = as_square_kernel("k_train_train", k_train_train)
    y, noises = targets_of_kernel(y_train, k), ridge_of_rows("noise", noise, k)
    inputs = {"k_train_train": k, "y_train": y}
    evidence, seen, definite = _evidence(inputs, noises)
    check_looks(seen, inputs)
    _check_definite(k, noises, definite)
    return Estimate(evidence, jnp.zeros_like(evidence)) if return_error else evidence


@jit_by_size
def _evidence(
    inputs: dict[str, Array], noises: Array
) -> tuple[Float[Array, ""], dict[str, Look | None], Bool[Array, ""]]:
    factor, white = _whiten(inputs["k_train_train"], inputs["y_train"], noises)
    seen = looks(inputs, symmetric=("k_train_train",))
    return _log_likelihood(factor, white), seen, jnp.all(jnp.isfinite(factor))


def _whiten(k: Array, y: Array, noises: Array) -> tuple[Array, Array]:
    """L with L Lᵀ = K + noise I, and L⁻¹ y."""
    matrices, kind = as_matrices(k), kind_of(k)
    noises = jnp.broadcast_to(repeated(noises, kind), matrices.shape[1:2])
    factor = of_each(jnp.linalg.cholesky, matrices + jnp.diag(noises)[None])
    return factor, _solve(factor, as_columns(y, kind))


def _check_definite(k: Array, noises: ArrayLike, definite: Array) -> None:
    """Raise if the Cholesky factorization failed."""
    if not all(map(is_concrete, (k, noises, definite))) or definite:
        return
    s = ascending_eigenvalues(as_matrices(k))
    smallest, largest = float(jnp.min(s)), float(jnp.max(s))
    enough = max(-smallest, 0.0) + default_rcond(s.shape[-1], k.dtype) * largest
    raise ValueError(
        f"noise: expected above {enough:.3g}, so that K + noise I is positive definite in "
        f"{k.dtype}; got {float(np.min(noises)):.3g}, and the smallest eigenvalue of K is "
        f"{smallest:.3g}."
    )


def _solve(factor: Float[Array, "B N N"], b: Float[Array, "B N m"]) -> Float[Array, "B N m"]:
    return of_each(lambda lower, right: solve_triangular(lower, right, lower=True), factor, b)


def _log_likelihood(
    factor: Float[Array, "B N N"], white: Float[Array, "B N m"]
) -> Float[Array, ""]:
    log_det = white.shape[2] * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)))
    return (
        -jnp.sum(jnp.square(white)) / 2
        - log_det
        - white.size * jnp.log(2 * jnp.pi).astype(white.dtype) / 2
    )
