"""Duals of polynomials: Mehler's sum k = sum_j q12^j / j! m_j(q11) m_j(q22) ends at the degree.

Here m_j(q) = E[phi^(j)(sqrt(q) z)], and k_dot is the same sum from m_(j + 1). (Daniely, Frostig,
Singer 2016, section 4.)
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array

from ntk_jax.duals.dual_rule import Dual
from ntk_jax.duals.form import Form


def polynomial(q11: Array, q12: Array, q22: Array, coefficients: Sequence[float]) -> Dual:
    """phi(u) = sum_i c_i u^i: k = sum_j q12^j / j! m_j(q11) m_j(q22), m_j(q) = E[phi^(j)(sqrt(q)
    z)]; k_dot from j + 1.
    """
    means = [_derivative_mean(coefficients, j) for j in range(len(coefficients))]
    return _from_means(q11, q12, q22, [partial(_horner, c) for c in means])


def _horner(coefficients: Sequence[float], x: Array) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def _derivative_mean(coefficients: Sequence[float], j: int) -> list[float]:
    """E[phi^(j)(sqrt(q) z)] as a polynomial in q, lowest power first."""
    degree = len(coefficients) - 1
    moments = [0.0] * ((degree - j) // 2 + 1)
    for i in range(j, degree + 1, 2):  # E z^(i - j) = (i - j - 1)!!
        moments[(i - j) // 2] = coefficients[i] * math.perm(i, j) * math.prod(range(1, i - j, 2))
    return moments


def polynomial_mean(q: Array, coefficients: Sequence[float]) -> Array:
    """m_0(q)."""
    return _horner(_derivative_mean(coefficients, 0), q)


POLYNOMIAL = Form(polynomial, polynomial_mean)


def hermite(q11: Array, q12: Array, q22: Array, degree: int) -> Dual:
    """phi = He_n / sqrt(n!), E[phi²] = 1 at unit variance: m_j(q) = n! / (n - j)! (n - j - 1)!! (q
    - 1)^((n - j) / 2).
    """
    means = [partial(_hermite_mean, degree, j) for j in range(degree + 1)]
    return _from_means(q11, q12, q22, means)


def _hermite_mean(degree: int, j: int, q: Array) -> Array:
    m, odd = divmod(degree - j, 2)
    size = math.perm(degree, j) / math.sqrt(math.factorial(degree))
    return (0.0 if odd else size * math.prod(range(1, 2 * m, 2))) * (q - 1) ** m


def hermite_mean(q: Array, degree: int) -> Array:
    """m_0(q)."""
    return _hermite_mean(degree, 0, q)


HERMITE = Form(hermite, hermite_mean)


def _from_means(
    q11: Array, q12: Array, q22: Array, means: Sequence[Callable[[Array], Array]]
) -> Dual:
    """Both duals from m_j, by Horner's rule in q12: the j-th term of k is the last factor 1/j of
    the (j-1)-th of k_dot.
    """
    products = [m(q11) * m(q22) for m in means]
    zero = jnp.zeros_like(q12 * products[0])
    k, k_dot = zero + products[-1], zero
    for j in range(len(products) - 1, 0, -1):
        k = products[j - 1] + q12 / j * k
        k_dot = products[j] + (q12 / j * k_dot if j < len(products) - 1 else zero)
    return Dual(k, k_dot)
