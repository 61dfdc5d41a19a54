"""Duals in closed form: erf, GELU, trigonometric, exponential, Gaussian.

Each function of this file is `(q11, q12, q22, options) -> Dual`. Determinants are sums of
non-negative terms, per-example factors are formed before they meet, and every expression is smooth
in the three moments.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.duals.angle import angle, arcsine, orthant
from ntk_jax.duals.dual_rule import Dual
from ntk_jax.duals.form import Form
from ntk_jax.duals.numerics import SQUARED_SINE, clip_rounding, correlation, ulps


def _determinant(q11: Array, q12: Array, q22: Array) -> tuple[Array, Array, Array, Array]:
    """For I + Sigma: 1/(1 + q11), 1/(1 + q22), det(I + Sigma) / ((1 + q11) (1 + q22)) = 1 - sine²,
    1 - rho², all in [0, 1].
    """
    return 1 / (1 + q11), 1 / (1 + q22), _cosine2(q11, q12, q22), _unshared(q11, q12, q22)


def _unshared(q11: Array, q12: Array, q22: Array) -> Array:
    """1 - rho², the share of either variance that the other variable does not explain."""
    rho = correlation(q11, q12, q22)
    unshared = (1 - rho) * (1 + rho)
    # rounding past or next to the pole is taken off the value alone: the derivative at parallel
    # inputs stays
    return unshared - lax.stop_gradient(
        jnp.where(unshared > ulps(SQUARED_SINE, rho.dtype), 0, unshared)
    )


@jax.custom_jvp
def _cosine2(q11: Array, q12: Array, q22: Array) -> Array:
    """1 - q12² / ((1 + q11) (1 + q22)), without cancellation."""
    p1, p2 = 1 / (1 + q11), 1 / (1 + q22)
    return (p1 + p2) - p1 * p2 + (q11 * p1) * (q22 * p2) * _unshared(q11, q12, q22)


@_cosine2.defjvp
def _cosine2_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """From the short expression, whose nested derivatives stay short."""
    (q11, q12, q22), (d11, d12, d22) = primals, tangents
    p1, p2 = 1 / (1 + q11), 1 / (1 + q22)
    h = jnp.sqrt(p1) * jnp.sqrt(p2)
    sine = q12 * h
    return _cosine2(*primals), sine * (sine * (p1 * d11 + p2 * d22) - 2 * (h * d12))


def erf(q11: Array, q12: Array, q22: Array) -> Dual:
    """k = 2/pi arcsin(2 q12 / sqrt((1 + 2 q11)(1 + 2 q22))), k_dot = 4/pi / sqrt((1 + 2 q11)(1 + 2
    q22) - 4 q12²).
    """
    p1, p2, cosine2, _ = _determinant(2 * q11, 2 * q12, 2 * q22)
    sine, cosine = 2 * q12 * (jnp.sqrt(p1) * jnp.sqrt(p2)), jnp.sqrt(cosine2)
    return Dual(
        2 / np.pi * arcsine(sine, cosine), 4 / np.pi * (jnp.sqrt(p1) * jnp.sqrt(p2)) / cosine
    )


def erf_partials(k_dot: Array, q11: Array, q12: Array, q22: Array) -> list[list[Array]]:
    """Partial derivatives of `erf` by its own k_dot, with p = 1 / (1 + 2 q) and cosine = 4 sqrt(p1
    p2) / (pi k_dot).

    dk = k_dot (dq12 - q12 (p1 dq11 + p2 dq22)), dk_dot = k_dot / cosine² (4 p1 p2 q12 dq12 - p1
    dq11 - p2 dq22).
    """
    s1, s2 = jnp.sqrt(1 + 2 * q11), jnp.sqrt(1 + 2 * q22)
    p1, p2, h = 1 / (1 + 2 * q11), 1 / (1 + 2 * q22), (1 / s1) * (1 / s2)
    steep = (
        k_dot * (np.pi / 4 * k_dot * s1 * s2) ** 2
    )  # no division: XLA would gather it with that in k_dot, and overflow
    turned = k_dot * q12
    return [
        [-turned * p1, k_dot, -turned * p2],
        [-steep * p1, 4 * h * (h * q12) * steep, -steep * p2],
    ]


def erf_mean(q: Array) -> Array:
    """0: the function is odd."""
    return jnp.zeros_like(q)


ERF = Form(erf, erf_mean, partials=erf_partials)


def gelu(q11: Array, q12: Array, q22: Array) -> Dual:
    """With D = det(I + Sigma), P = 1/(2 pi sqrt D), A = pi/2 + arcsin(q12 / sqrt((1 + q11)(1 +
    q22))).

    k = q12 A / (2 pi) + P (det Sigma + q12² (1/(1 + q11) + 1/(1 + q22))),
    k_dot = A / (2 pi) + P q12 (1/(1 + q11) + 1/(1 + q22) + 1/D).
    """
    p1, p2, cosine2, unshared = _determinant(q11, q12, q22)
    h1, h2, cosine = jnp.sqrt(p1), jnp.sqrt(p2), jnp.sqrt(cosine2)
    sine = q12 * (h1 * h2)
    A = orthant(sine, cosine) / (2 * np.pi)
    spread = (q11 * h1) * (q22 * h2) * unshared  # det Sigma sqrt(p1 p2)
    k = q12 * A + (spread + sine * q12 * (p1 + p2)) / (2 * np.pi * cosine)
    return Dual(k, A + sine / (2 * np.pi * cosine) * (p1 + p2 + (p1 / cosine) * (p2 / cosine)))


def gelu_slope(q11: Array, q12: Array, q22: Array) -> Array:
    """E[phi''(u) phi(v)] / 2 with phi''(u) = (2 - u²) density(u), which tilts the covariance: its
    variances are q p1 and c q22.

    Here c q22 = q22 - q12² p1 is the variance of v, and t = 1/(1 + c q22).
    """
    p1, p2, cosine2, unshared = _determinant(q11, q12, q22)
    rho2 = 1 - unshared
    c, t = unshared + rho2 * p1, p2 / cosine2
    bracket = (1 + p1) * c - rho2 * p1 * (q11 * p1) * (1 + t)
    return jnp.sqrt(p1) * (q22 * jnp.sqrt(p2)) / jnp.sqrt(cosine2) * bracket / (4 * np.pi)


def gelu_mean(q: Array) -> Array:
    """E[u Phi(u)] = q E[density(u)] = q / sqrt(2 pi (1 + q))."""
    return q / jnp.sqrt(2 * np.pi * (1 + q))


GELU = Form(gelu, gelu_mean, gelu_slope)


def smooth_relu(q11: Array, q12: Array, q22: Array) -> Dual:
    """phi(u) = u Phi(u) + density(u) = E[relu(u + z)]: the dual of ReLU at variances 1 + q11 and 1
    + q22.
    """
    p1, p2, cosine2, _ = _determinant(q11, q12, q22)
    h1, h2, cosine = jnp.sqrt(p1), jnp.sqrt(p2), jnp.sqrt(cosine2)
    sine = q12 * (h1 * h2)
    gap = angle(cosine2 / (1 + jnp.abs(sine))).first_gap / (2 * np.pi)
    return Dual(jnp.maximum(q12, 0) / 2 + gap / (h1 * h2), orthant(sine, cosine) / (2 * np.pi))


def smooth_relu_slope(q11: Array, q12: Array, q22: Array) -> Array:
    """dk/dq11 = sqrt(det(I + Sigma)) / (4 pi (1 + q11)), by homogeneity."""
    p1, p2, cosine2, _ = _determinant(q11, q12, q22)
    return jnp.sqrt(cosine2) * (jnp.sqrt(p1) / jnp.sqrt(p2)) / (4 * np.pi)


def smooth_relu_mean(q: Array) -> Array:
    """E[relu(u + z)] = sqrt((1 + q) / (2 pi))."""
    return jnp.sqrt((1 + q) / (2 * np.pi))


SMOOTH_RELU = Form(smooth_relu, smooth_relu_mean, smooth_relu_slope)


def sinusoid(q11: Array, q12: Array, q22: Array, frequency: float, phase: float) -> Dual:
    """phi(u) = sin(f u + c): k = E sinh(f² q12) + sin²(c) E exp(-f² q12), k_dot: f², cos²(c); E =
    exp(-f² (q11 + q22) / 2).
    """
    f2 = frequency**2
    together = jnp.exp(-f2 * clip_rounding((q11 + q22) / 2 + q12, 0))
    far = jnp.exp(-f2 * clip_rounding((q11 + q22) / 2 - q12, 0))
    small = jnp.abs(f2 * q12) < 1  # the difference of exponentials cancels there
    series = jnp.exp(-f2 * (q11 + q22) / 2) * jnp.sinh(jnp.where(small, f2 * q12, 0))
    odd = jnp.where(small, series, (far - together) / 2)
    return Dual(odd + math.sin(phase) ** 2 * together, f2 * (odd + math.cos(phase) ** 2 * together))


def sinusoid_mean(q: Array, frequency: float, phase: float) -> Array:
    """sin(phase) exp(-frequency² q / 2)."""
    return math.sin(phase) * jnp.exp(-(frequency**2) * q / 2)


SINUSOID = Form(sinusoid, sinusoid_mean)


def rbf(q11: Array, q12: Array, q22: Array, gamma: float) -> Dual:
    """phi(u) = sqrt(2) sin(sqrt(2 gamma) u + pi/4): k = exp(-gamma (q11 - 2 q12 + q22)), k_dot = 2
    gamma k.
    """
    k = jnp.exp(-gamma * clip_rounding(q11 + q22 - 2 * q12, 0))
    return Dual(k, 2 * gamma * k)


def rbf_mean(q: Array, gamma: float) -> Array:
    """exp(-gamma q)."""
    return jnp.exp(-gamma * q)


RBF = Form(rbf, rbf_mean)


def exponential(q11: Array, q12: Array, q22: Array, rate: float, shift: float) -> Dual:
    """phi(u) = exp(rate u + shift): k = exp(rate² (q11 + 2 q12 + q22) / 2 + 2 shift), k_dot = rate²
    k.
    """
    k = jnp.exp(rate**2 * clip_rounding((q11 + q22) / 2 + q12, 0) + 2 * shift)
    return Dual(k, rate**2 * k)


def exponential_mean(q: Array, rate: float, shift: float) -> Array:
    """exp(rate² q / 2 + shift)."""
    return jnp.exp(rate**2 * q / 2 + shift)


EXPONENTIAL = Form(exponential, exponential_mean)


def gaussian(q11: Array, q12: Array, q22: Array, rate: float) -> Dual:
    """phi(u) = exp(-rate u²): k = D^(-1/2) with D = det(I + 2 rate Sigma), k_dot = 4 rate² q12
    D^(-3/2).
    """
    p1, p2, cosine2, _ = _determinant(2 * rate * q11, 2 * rate * q12, 2 * rate * q22)
    k = jnp.sqrt(p1) * jnp.sqrt(p2) / jnp.sqrt(cosine2)
    return Dual(k, 4 * rate**2 * (q12 * (p1 * p2)) * k / cosine2)


def gaussian_mean(q: Array, rate: float) -> Array:
    """(1 + 2 rate q)^(-1/2)."""
    return 1 / jnp.sqrt(1 + 2 * rate * q)


GAUSSIAN = Form(gaussian, gaussian_mean)


def growing_gaussian(q11: Array, q12: Array, q22: Array, rate: float) -> Dual:
    """phi(u) = exp(rate u²): `gaussian` at -rate, D = (1 - 2 rate q11)(1 - 2 rate q22) - (2 rate
    q12)²; infinite unless D > 0.
    """
    d1, d2, c = 1 - 2 * rate * q11, 1 - 2 * rate * q22, 2 * rate * q12
    D = d1 * d2 - c * c
    finite = (d1 > 0) & (d2 > 0) & (D > 0)
    D = jnp.where(finite, D, 1)
    return Dual(*(jnp.where(finite, k, jnp.inf) for k in (D**-0.5, 2 * rate * c * D**-1.5)))


def growing_gaussian_mean(q: Array, rate: float) -> Array:
    """(1 - 2 rate q)^(-1/2), infinite from q = 1 / (2 rate) on."""
    d = 1 - 2 * rate * q
    return jnp.where(d > 0, 1 / jnp.sqrt(jnp.where(d > 0, d, 1)), jnp.inf)


GROWING_GAUSSIAN = Form(growing_gaussian, growing_gaussian_mean)
