"""Dual activations: E[phi(u) phi(v)] and E[phi'(u) phi'(v)] for (u, v) ~ N(0, [[q11, q12], [q12, q22]]).

Each dual is a function `(q11, q12, q22) -> (k, k_dot)` of broadcastable arrays. Derivatives go by rule in the three
moments: Price's theorem dk/dq12 = k_dot, and homogeneity. Nothing is normalized to a correlation, so values and first
and second derivatives are finite at identical, antipodal and zero inputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


class Dual(NamedTuple):
    """k = E[phi(u) phi(v)] and k_dot = E[phi'(u) phi'(v)]."""

    k: Float[Array, "..."]
    k_dot: Float[Array, "..."]


def relu(q11: Float[Array, "..."], q12: Float[Array, "..."], q22: Float[Array, "..."]) -> Dual:
    """The dual of phi(u) = max(u, 0): the arc-cosine kernels of order 1 and 0, halved.

    k_dot = (pi - theta) / (2 pi) and k = s / (2 pi) + q12 k_dot, with s = sqrt(q11 q22 - q12²) and the angle theta of
    tangent s / q12.

    Args:
        q11: variance of u, at least 0.
        q12: covariance, within +-sqrt(q11 q22) up to rounding.
        q22: variance of v.

    Returns:
        (k, k_dot), each of the broadcast shape. Where u or v is constant zero, k_dot is 1/4 and k is 0.

    Reference: Cho, Saul 2009, eq. 3 and 6.
    """
    return Dual(_relu_k(q11, q12, q22), _relu_k_dot(q11, q12, q22))


def _ratio(a: Array, b: Array) -> Array:
    """a / b where b > 0, else 0, with finite derivatives."""
    positive = b > 0
    return jnp.where(positive, a / jnp.where(positive, b, 1), 0)


def _sine(q11: Array, q12: Array, q22: Array) -> Array:
    """sqrt(q11 q22 - q12²), 0 where rounding makes the determinant negative; its derivative is 0 there."""
    determinant = q11 * q22 - q12 * q12
    positive = determinant > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, determinant, 1)), 0)


@jax.custom_jvp
def _relu_k_dot(q11: Array, q12: Array, q22: Array) -> Array:
    s = _sine(q11, q12, q22)
    undefined = (s == 0) & (q12 == 0)  # a zero input: any angle is right for k, 1/4 is the value at a right angle
    theta = jnp.where(undefined, jnp.pi / 2, jnp.arctan2(jnp.where(undefined, 1, s), q12))
    return (jnp.pi - theta) / (2 * jnp.pi)


@_relu_k_dot.defjvp
def _relu_k_dot_jvp(primals, tangents):
    q11, q12, q22 = primals
    dq11, dq12, dq22 = tangents
    s = _sine(q11, q12, q22)  # d theta = -dq12 / s + q12 / (2 s) (dq11 / q11 + dq22 / q22); at the cusp s = 0 we set 0
    d_minus_theta = _ratio(dq12, s) - _ratio(q12, 2 * s) * (_ratio(dq11, q11) + _ratio(dq22, q22))
    return _relu_k_dot(q11, q12, q22), d_minus_theta / (2 * jnp.pi)


@jax.custom_jvp
def _relu_k(q11: Array, q12: Array, q22: Array) -> Array:
    return _sine(q11, q12, q22) / (2 * jnp.pi) + q12 * _relu_k_dot(q11, q12, q22)


@_relu_k.defjvp
def _relu_k_jvp(primals, tangents):
    q11, q12, q22 = primals
    dq11, dq12, dq22 = tangents
    s = _sine(q11, q12, q22)
    dk = _relu_k_dot(q11, q12, q22) * dq12 + s / (4 * jnp.pi) * (_ratio(dq11, q11) + _ratio(dq22, q22))
    return _relu_k(q11, q12, q22), dk
