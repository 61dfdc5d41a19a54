"""A Gaussian process with a covariance that is only multiplied: posterior and evidence."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import as_array, as_dtype, check_finite
from ntk_jax.compat import on_device
from ntk_jax.inference.on_operators import options_of
from ntk_jax.linalg import as_matrix
from ntk_jax.modes.kind import check_variance
from ntk_jax.modes.multiplied import Data, product, ridge_of
from ntk_jax.operators.iteration import Options, preconditioner_of
from ntk_jax.operators.lanczos import gauss_quadrature
from ntk_jax.operators.solve import Solved, solve_system
from ntk_jax.operators.symmetric import Operator, multiply
from ntk_jax.progress import progress_bar
from ntk_jax.small_programs import jit_by_size
from ntk_jax.tiling import row_slices
from ntk_jax.types import Estimate

ROWS = 256
"""Test rows whose variances are solved for at a time."""

PROBES, STEPS = 16, 50
"""Of the log determinant: random vectors, and products with each."""


class Ridged:
    """K + noise, as an operator."""

    def __init__(self, k: Operator, noise: Array) -> None:
        self.k, self.noise = k, noise
        self.shape, self.dtype = k.shape, k.dtype

    def __matmul__(self, v: Float[Array, "n b"]) -> Float[Array, "n b"]:
        return _ridged(multiply(self.k, v), self.noise, v)


@jit_by_size
def _ridged(product: Array, noise: Array, v: Array) -> Array:
    return product + (noise[:, None] if noise.ndim else noise) * v


def posterior_on_operator(
    data: Data,
    k_test_test: ArrayLike,
    noise: ArrayLike,
    solve_options: Mapping[str, Any] | None,
) -> tuple[Array, Array, Array, Array]:
    """Mean, covariance or variances, and the evidence with its standard error."""
    ridge, options = ridge_of(data, "noise", noise), options_of(solve_options)
    prior, whole = _as_prior(data, k_test_test)
    inverse = preconditioner_of(data.k, np.asarray(ridge), options)
    options = options._replace(preconditioner=inverse)
    solved = _solved(data, data.flat(data.y), ridge, options)
    mean = product(data, solved.solution.value)
    # A checkpoint is of the mean alone: the variances are many short solves.
    options = options._replace(checkpoint=None, progress=False)
    parts = []
    with progress_bar(len(prior), "variances", enabled=True, delay=2.0) as bar:
        for columns in columns_at_test(data.k_test):
            gain = _solved(data, columns, ridge, options).solution.value
            parts.append(multiply(data.k_test, gain) if whole else _squares(columns, gain))
            bar.update(columns.shape[1])
    left = prior - jnp.concatenate(parts, axis=1 if whole else 0)
    if not whole:
        check_variance(jnp.min(left), jnp.max(jnp.abs(prior)))
        left = jnp.maximum(left, 0)
    evidence = _log_likelihood(data, ridge, solved.solution.value)
    return mean, _shaped(left, k_test_test), *evidence


def evidence_on_operator(
    data: Data, noise: ArrayLike, solve_options: Mapping[str, Any] | None
) -> Estimate:
    """The evidence alone."""
    ridge, options = ridge_of(data, "noise", noise), options_of(solve_options)
    solved = _solved(data, data.flat(data.y), ridge, options)
    return _log_likelihood(data, ridge, solved.solution.value)


def _solved(data: Data, b: Array, ridge: Array, options: Options) -> Solved:
    return solve_system(data.k, b, ridge, options, stacklevel=5, name="k_train_train")


@jit_by_size
def _squares(columns: Float[Array, "n b"], gain: Float[Array, "n b"]) -> Float[Array, " b"]:
    return jnp.sum(columns * gain, axis=0)


def _as_prior(data: Data, k_test_test: ArrayLike) -> tuple[Array, bool]:
    """The test-test kernel as a matrix or its diagonal, and whether it is whole."""
    k = as_array("k_test_test", k_test_test)
    n_test, outputs = data.k_test.shape[0] // data.coupled, (data.coupled,) * (data.coupled > 1)
    wholes = {(n_test * data.coupled,) * 2, (n_test, n_test, *outputs, *outputs)}
    diagonals = {(n_test * data.coupled,), (n_test, *outputs)}
    if k.shape not in wholes | diagonals:
        raise ValueError(
            f"k_test_test: expected one of the shapes {sorted(wholes)} for the whole covariance, "
            f"or {sorted(diagonals)} for its diagonal alone; got {k.shape}."
        )
    k = as_dtype("k_test_test", k, data.k.dtype)
    check_finite("k_test_test", k)
    if k.shape in diagonals and k.shape not in wholes:
        return k.reshape(-1), False
    return as_matrix(k), True


def _shaped(covariance: Array, like: ArrayLike) -> Array:
    shape = np.shape(like)
    if len(shape) < 4:
        return covariance.reshape(shape)
    n, _, O, _ = shape
    return covariance.reshape(n, O, n, O).transpose(0, 2, 1, 3)


def columns_at_test(k_test: Operator) -> Iterator[Float[Array, "n b"]]:
    """Rows of the test kernel as columns, some at a time."""
    for rows in row_slices(k_test.shape[0], ROWS):
        if isinstance(k_test, Array):
            yield k_test[rows].T
        elif (transpose := getattr(k_test, "T", None)) is not None:
            yield jnp.asarray(transpose.columns(np.arange(rows.start, rows.stop)))
        elif hasattr(k_test, "__getitem__"):
            yield jnp.asarray(np.asarray(k_test[rows.start : rows.stop])).T
        else:
            raise ValueError(
                "k_test_train: expected an array, or an operator that gives rows, by .T.columns or "
                f"by slices; got a {type(k_test).__name__}."
            )


def _log_likelihood(data: Data, ridge: Array, alpha: Array) -> Estimate:
    """log p(y), its determinant estimated from random probes, whose spread is the error."""
    columns, n = alpha.reshape(len(alpha), -1).shape[1], data.k.shape[0]
    steps = min(STEPS, n)
    rule = gauss_quadrature(Ridged(data.k, ridge), jax.random.key(0), PROBES, steps)
    nodes, weights = np.asarray(rule.nodes, float), np.asarray(rule.weights, float)
    # Rounding may leave a node below the smallest eigenvalue that there can be.
    least = max(float(np.min(np.asarray(ridge))), np.finfo(float).tiny)
    log_dets = n * np.sum(weights * np.log(np.maximum(nodes, least)), axis=1)
    fit = float(np.vdot(np.asarray(data.flat(data.y), float), np.asarray(alpha, float)))
    value = -fit / 2 - columns * (log_dets.mean() + n * math.log(2 * math.pi)) / 2
    error = columns / 2 * log_dets.std(ddof=1) / PROBES**0.5
    dtype = jnp.dtype(data.k.dtype)
    return Estimate(*(on_device(np.asarray(part, dtype)) for part in (value, error)))
