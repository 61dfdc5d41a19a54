"""From random probes: the trace of a function of a kernel, its determinant, its eigenvalues."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from ntk_jax.checks import as_number, check_integer, check_number
from ntk_jax.linalg import default_rcond
from ntk_jax.norms import standard_error
from ntk_jax.operators.lanczos import Quadrature, gauss_quadrature
from ntk_jax.operators.symmetric import SymmetricOperator, as_operator
from ntk_jax.small_programs import jit_by_size
from ntk_jax.types import Estimate


class SpectralDensity(NamedTuple):
    """Eigenvalues as a probability distribution: point masses, whose weights add up to 1."""

    nodes: Float[Array, " m"]
    weights: Float[Array, " m"]


def stochastic_trace(
    k: SymmetricOperator | ArrayLike,
    function: Callable[[Array], Array] | None = None,
    *,
    key: Array,
    num_probes: int = 16,
    num_steps: int = 30,
) -> Estimate:
    """The trace of f(K) from products K v with random signs v: the mean of vᵀ f(K) v.

    Args:
        k: a symmetric kernel, or anything with `@` on columns (n, b) and a square `shape`, such as
            `ntk_operator(...)`.
        function: f of the eigenvalues, elementwise; None is the identity, which needs one product
            only.
        key: random key of the probes.
        num_probes: probes; the standard error falls as 1 / sqrt(num_probes).
        num_steps: Lanczos steps for f, each one product with all probes. Exact for polynomials of
            degree 2 num_steps - 1; the standard error does not hold what functions with
            singularities (log) add to that.

    Returns:
        Estimate(value, standard_error).

    Raises:
        ValueError: not square; fewer than 2 probes; f is not finite at some node.

    Reference: Hutchinson 1990; Ubaru, Chen, Saad 2017 (for functions).

    Example:
        >>> k = jnp.diag(jnp.array([1.0, 4.0, 9.0]))
        >>> estimate = ntk_jax.stochastic_trace(k, jnp.sqrt, key=jax.random.key(0))
        >>> round(float(estimate.value), 3), round(float(estimate.standard_error), 3)
        (6.0, 0.0)
    """
    steps = 1 if function is None else num_steps
    return _trace(*_quadrature(k, key, num_probes, steps), function)


def _trace(n: int, rule: Quadrature, function: Callable[[Array], Array] | None) -> Estimate:
    """The mean over the probes of what the rule says of f."""
    values = rule.nodes if function is None else function(rule.nodes)
    return _checked(rule, *_mean(n, rule, values))


def _checked(rule: Quadrature, estimate: Estimate, finite: Array) -> Estimate:
    if not finite:
        low, high = float(np.min(rule.nodes)), float(np.max(rule.nodes))
        raise ValueError(
            "function: expected finite values on the eigenvalues; got NaN or infinity between "
            f"{low:.6g} and {high:.6g}. A kernel may be singular: add a ridge."
        )
    return estimate


@partial(jit_by_size, static_argnums=0)
def _mean(n: int, rule: Quadrature, values: Array) -> tuple[Estimate, Bool[Array, ""]]:
    samples = n * jnp.sum(rule.weights * values, axis=1)
    estimate = Estimate(jnp.mean(samples), standard_error(samples))
    return estimate, jnp.all(jnp.isfinite(values))


def log_determinant(
    k: SymmetricOperator | ArrayLike,
    *,
    diag_reg: float,
    key: Array,
    num_probes: int = 16,
    num_steps: int = 50,
) -> Estimate:
    """log det(K + diag_reg I), as in a marginal likelihood, from products K v.

    Args:
        k: symmetric positive semi-definite kernel or operator, see `stochastic_trace`.
        diag_reg: ridge, above 0: the more digits below the largest eigenvalue it is, the more steps
            are needed.
        key: random key of the probes.
        num_probes: probes.
        num_steps: Lanczos steps.

    Returns:
        Estimate(value, standard_error).

    Raises:
        ValueError: as `stochastic_trace`; no ridge; a kernel that the steps show not to be positive
            semi-definite.

    Reference: Ubaru, Chen, Saad 2017.

    Example:
        >>> k = jnp.diag(jnp.array([1.0, 2.0]))
        >>> estimate = ntk_jax.log_determinant(k, diag_reg=1.0, key=jax.random.key(0))
        >>> round(float(estimate.value), 3)  # log(2 · 3)
        1.792
    """
    check_number("diag_reg", diag_reg, strict=True, max_ndim=0)
    n, rule = _quadrature(k, key, num_probes, num_steps)
    known = np.asarray(rule.nodes)
    smallest, largest = float(known.min()), float(np.abs(known).max())
    # Nodes lie between the eigenvalues: a negative one proves a negative eigenvalue.
    if smallest < -10 * default_rcond(n, rule.nodes.dtype) * largest:
        raise ValueError(
            f"k: expected a positive semi-definite kernel; got eigenvalues of {smallest:.6g} and "
            f"less, the largest being {largest:.6g}. Compute it in float64, or check that it is a "
            "kernel at all."
        )
    ridge = as_number("diag_reg", diag_reg, rule.nodes.dtype)
    return _checked(rule, *_mean_logarithm(n, rule, ridge))


@partial(jit_by_size, static_argnums=0)
def _mean_logarithm(n: int, rule: Quadrature, ridge: Array) -> tuple[Estimate, Bool[Array, ""]]:
    # Rounding may leave a node at -eps.
    return _mean(n, rule, jnp.log(jnp.maximum(rule.nodes, 0) + ridge))


def spectral_density(
    k: SymmetricOperator | ArrayLike, *, key: Array, num_probes: int = 16, num_steps: int = 50
) -> SpectralDensity:
    """The distribution of the eigenvalues from products K v, (1/n) Σ_i δ(s - s_i) in the mean.

    Args:
        k: a symmetric kernel or operator, see `stochastic_trace`.
        key: random key of the probes.
        num_probes: probes, over which the distributions are averaged.
        num_steps: Lanczos steps: the resolution. The first moments up to degree 2 num_steps - 1 are
            those of K in the mean.

    Returns:
        SpectralDensity(nodes ascending (num_probes x num_steps,), weights), which
        `plots.plot_spectral_density` smooths.

    Raises:
        ValueError: as `stochastic_trace`.

    Reference: Lin, Saad, Yang 2016; Ghorbani, Krishnan, Xiao 2019.

    Example:
        >>> k = jnp.diag(jnp.array([1.0, 4.0]))
        >>> nodes, weights = ntk_jax.spectral_density(k, key=jax.random.key(0), num_probes=2)
        >>> print(np.round(nodes, 3), round(float(weights.sum()), 3))
        [1. 1. 4. 4.] 1.0
    """
    _, rule = _quadrature(k, key, num_probes, num_steps)
    return _density(rule)


@jit_by_size
def _density(rule: Quadrature) -> SpectralDensity:
    order = jnp.argsort(rule.nodes.reshape(-1))
    weights = rule.weights.reshape(-1)[order] / len(rule.weights)
    return SpectralDensity(rule.nodes.reshape(-1)[order], weights)


def _quadrature(
    k: SymmetricOperator | ArrayLike, key: Array, num_probes: int, num_steps: int
) -> tuple[int, Quadrature]:
    operator = as_operator("k", k)
    check_integer("num_probes", num_probes, minimum=2)
    check_integer("num_steps", num_steps, minimum=1)
    n = operator.shape[0]
    return n, gauss_quadrature(operator, key, num_probes, min(num_steps, n))
