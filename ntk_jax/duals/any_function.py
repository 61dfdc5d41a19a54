"""The dual of any function or name: what `mlp_kernels(activation=...)` takes."""

from collections.abc import Callable, Sequence
from typing import Any

from jax import Array

from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.duals.hermite_series.series import Series, series_rule
from ntk_jax.duals.recognition import check_elementwise


def rule(activation: Any, **options: Any) -> DualRule:
    """The dual of a name with options, or of any elementwise function: what
    `mlp_kernels(activation=...)` also takes.

    `rule("leaky_relu", slope=0.2)`, `rule(jnp.tanh)`, `rule(lambda u: u * jnp.sin(u))`. A function
    is compared with the closed forms; one without is summed as a series.

    Args:
        activation: a name of `duals.CLOSED_FORM_NAMES` or `duals.SERIES_NAMES`, or a function of
            jax.numpy that is applied element by element.
        **options: of that name, such as `slope=0.2`.

    Returns:
        `dual(q11, q12, q22)` -> Dual(k, k_dot): E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of Gaussian
        (u, v) with these variances and this covariance q12; `dual.description` says how.

    Raises:
        ValueError: an unknown name, or a function that is not elementwise and real.

    Example:
        >>> dual = ntk_jax.duals.rule(lambda u: 2 * jnp.tanh(u))
        >>> dual.description
        '2 × mixture of closed forms: erf at 10 scales'
    """
    return dual_rule(activation, **options)


def series(
    phi: Callable[[Array], Array], *, kinks: Sequence[float] = (), tolerance: float | None = None
) -> Series:
    """The dual of any scalar JAX function: k = sum_k a_k(q11) a_k(q22) rho^k with a_k(q) =
    E[phi(sqrt(q) z) h_k(z)].

    Kinks, at 0 (found) and at `kinks` (named), are split off and treated exactly: of a piecewise
    polynomial nothing is left out. The result is called like the duals of this file; its
    `bound(q11, q22)` is a bound on the error. The number of terms is chosen from the tolerance at
    the variances met, with a warning where it is not; inside jit, where they are not known, it is
    64.

    Args:
        phi: applied element by element.
        kinks: points other than 0 where phi is not smooth, such as (-1, 1) for hard tanh.
        tolerance: of the terms left out, relative to E[phi²]; None for 1e-10 in float64, 1e-7 in
            float32.

    Returns:
        `dual(q11, q12, q22)` -> Dual(k, k_dot), with `dual.bound(q11, q22)`.

    Raises:
        ValueError: phi is not elementwise or not a number on the whole real line; when the series
            is called on values, E[phi²] or E[phi'²] is infinite at their variances, or phi varies
            faster than quadrature resolves.

    Warns:
        UserWarning: (when called on values) the tolerance is not met; it states the bound.

    Reference: Daniely, Frostig, Singer 2016, section 4 (Mehler's formula); Owen 1956 (kinks).

    Example:
        >>> dual = ntk_jax.duals.series(lambda u: jnp.clip(u, -1, 1), kinks=(-1, 1))
        >>> round(float(dual(1.0, 0.5, 1.0).k), 3)
        0.238
    """
    check_elementwise(phi)
    return series_rule(phi, tuple(map(float, kinks)), tolerance)
