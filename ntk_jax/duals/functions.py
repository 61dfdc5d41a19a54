"""Dual activations: k = E[phi(u) phi(v)] and k_dot = E[phi'(u) phi'(v)] for (u, v) ~ N(0, [[q11,
q12], [q12, q22]]).

Each dual is a function `(q11, q12, q22) -> Dual(k, k_dot)` of broadcastable arrays: variances at
least 0, covariance within +-sqrt(q11 q22) up to rounding; others are refused, and inside jit they
count as the nearest possible ones. Values are exact to a few ulps of the answer for moments
perturbed by rounding; derivatives are finite at identical, antipodal and zero inputs. Below s1, s2
are the standard deviations, rho the correlation, theta its angle, f the options' letters. `series`
is for every other scalar function, `rule` for what `mlp_kernels` takes.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.duals.dual_rule import Dual, DualRule
from ntk_jax.duals.hermite_series.series import Series, series_rule
from ntk_jax.duals.recognition import check_elementwise

Moment = Float[ArrayLike, "..."]


def rule(activation: Any, **options: Any) -> DualRule:
    """The dual of a name with options, or of any elementwise function: what
    `mlp_kernels(activation=...)` also takes.

    `rule("leaky_relu", slope=0.2)`, `rule(jnp.tanh)`, `rule(lambda u: u * jnp.sin(u))`. A function
    is compared with the closed forms; one without is summed as a series.

    Raises:
        ValueError: an unknown name, or a function that is not elementwise and real.
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

    Raises:
        ValueError: phi is not elementwise or not a number on the whole real line; when the series
            is called on values, E[phi²] or E[phi'²] is infinite at their variances, or phi varies
            faster than quadrature resolves.

    Warns:
        UserWarning: (when called on values) the tolerance is not met; it states the bound.

    Reference: Daniely, Frostig, Singer 2016, section 4 (Mehler's formula); Owen 1956 (kinks).
    """
    check_elementwise(phi)
    return series_rule(phi, tuple(map(float, kinks)), tolerance)


def relu(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = max(u, 0): k = s1 s2 (sin theta + (pi - theta) rho) / (2 pi), k_dot = (pi - theta) /
    (2 pi).

    Where u or v is constant zero, k_dot is 1/4 and k is 0. Reference: Cho, Saul 2009, eq. 3 and 6.
    """
    return dual_rule("relu")(q11, q12, q22)


def leaky_relu(q11: Moment, q12: Moment, q22: Moment, *, slope: float = 0.01) -> Dual:
    """phi(u) = u for u > 0, slope u below: `rectifier(..., positive=1, negative=-slope)`. (Cho,
    Saul 2009.)
    """
    return dual_rule("leaky_relu", slope=slope)(q11, q12, q22)


def abs(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = |u|: k = 2 s1 s2 (sin theta + rho arcsin rho) / pi, k_dot = 2 arcsin(rho) / pi.
    (Cho, Saul 2009.)
    """
    return dual_rule("abs")(q11, q12, q22)


def rectifier(q11: Moment, q12: Moment, q22: Moment, *, positive: float, negative: float) -> Dual:
    """phi(u) = a relu(u) + b relu(-u): k = (a² + b²) r(rho) + 2 a b r(-rho), r the dual of ReLU;
    k_dot likewise with -2 a b.

    Reference: Cho, Saul 2009, eq. 3 and 6; Tsuchida, Roosta, Gallagher 2018 (leaky ReLU).
    """
    return dual_rule("rectifier", positive=positive, negative=negative)(q11, q12, q22)


def identity(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = u: k = q12, k_dot = 1 (by definition of the covariance)."""
    return dual_rule("identity")(q11, q12, q22)


def rectified_monomial(q11: Moment, q12: Moment, q22: Moment, *, order: int) -> Dual:
    """phi(u) = relu(u)^order for order 0 (step), 1, 2: (s1 s2)^order J_order(theta) / (2 pi). (Cho,
    Saul 2009, eq. 1-6.)
    """
    return dual_rule("rectified_monomial", order=order)(q11, q12, q22)


def step(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = 1 for u > 0, 0 below: k = (pi - theta) / (2 pi) (Cho, Saul 2009, eq. 4), k_dot = 0
    almost everywhere.
    """
    return dual_rule("step")(q11, q12, q22)


def sign(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = sign(u): k = 2 arcsin(rho) / pi, k_dot = 0 as for `step`. (Sheppard 1899; Williams
    1997, eq. 11 in the limit.)
    """
    return dual_rule("sign")(q11, q12, q22)


def erf(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = erf: k = 2/pi arcsin(2 q12 / sqrt((1 + 2 q11)(1 + 2 q22))), k_dot = 4/pi / sqrt((1 + 2
    q11)(1 + 2 q22) - 4 q12²).

    Reference: Williams 1997, eq. 11.
    """
    return dual_rule("erf")(q11, q12, q22)


def gelu(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = u Phi(u), the exact GELU: k = q12 A + P (det Sigma + q12² (1/(1 + q11) + 1/(1 +
    q22))).

    A = 1/4 + arcsin(q12 / sqrt((1 + q11)(1 + q22))) / (2 pi), D = det(I + Sigma), P = 1 / (2 pi
    sqrt D); k_dot = A + P q12 (1/(1 + q11) + 1/(1 + q22) + 1/D). Reference: Tsuchida, Pearce, van
    der Heide, Roosta, Gallagher 2021.
    """
    return dual_rule("gelu")(q11, q12, q22)


def tanh(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = tanh = sum_i w_i erf(sqrt(2) u / s_i): k = sum_ij w_i w_j erf's k at (2 q11/s_i², 2
    q12/(s_i s_j), 2 q22/s_j²).

    s_i and w_i discretize the law of scales that makes the logistic distribution of normal ones, to
    ten digits (float32: rounding). Reference: Andrews, Mallows 1974; Williams 1997, eq. 11.
    """
    return dual_rule("tanh")(q11, q12, q22)


def sigmoid(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = 1 / (1 + exp(-u)) = (1 + tanh(u/2)) / 2: k = (1 + k_tanh(Sigma / 4)) / 4. (Andrews,
    Mallows 1974.)
    """
    return dual_rule("sigmoid")(q11, q12, q22)


def silu(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = u / (1 + exp(-u)) = sum_i w_i s_i gelu(u / s_i), s_i and w_i of `tanh`: a double sum
    of the dual of GELU.

    Reference: Andrews, Mallows 1974; Tsuchida, Pearce, van der Heide, Roosta, Gallagher 2021.
    """
    return dual_rule("silu")(q11, q12, q22)


swish = silu


def softplus(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = log(1 + exp(u)) = sum_i w_i E[relu(u + s_i z)]: ReLU's k at (q11 + s_i², q12, q22 +
    s_j²), summed with w_i w_j.

    s_i and w_i are those of `tanh`. Reference: Andrews, Mallows 1974; Cho, Saul 2009.
    """
    return dual_rule("softplus")(q11, q12, q22)


def sin(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = sin: k = exp(-(q11 + q22) / 2) sinh(q12), k_dot = exp(-(q11 + q22) / 2) cosh(q12).
    (`sinusoid` at phase 0.)
    """
    return dual_rule("sin")(q11, q12, q22)


def cos(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = cos: k = exp(-(q11 + q22) / 2) cosh(q12), k_dot = exp(-(q11 + q22) / 2) sinh(q12).
    (`sinusoid` at phase pi/2.)
    """
    return dual_rule("cos")(q11, q12, q22)


def sinusoid(
    q11: Moment, q12: Moment, q22: Moment, *, frequency: float = 1.0, phase: float = 0.0
) -> Dual:
    """phi(u) = sin(f u + c): k = E sinh(f² q12) + sin²(c) E exp(-f² q12), E = exp(-f² (q11 + q22) /
    2); k_dot: f², cos²(c).

    Reference: the characteristic function of f (u ± v); Rahimi, Recht 2007, section 3.
    """
    return dual_rule("sinusoid", frequency=frequency, phase=phase)(q11, q12, q22)


def exp(q11: Moment, q12: Moment, q22: Moment, *, rate: float = 1.0) -> Dual:
    """phi(u) = exp(a u): k = exp(a² (q11 + 2 q12 + q22) / 2), k_dot = a² k. (Mean of a
    log-normal.)
    """
    return dual_rule("exp", rate=rate)(q11, q12, q22)


def normalized_exp(q11: Moment, q12: Moment, q22: Moment, *, rate: float = 1.0) -> Dual:
    """phi(u) = exp(sqrt(a) u - a): k = exp(a (rho - 1)) at unit variance, k_dot = a k. (Daniely et
    al. 2016, table 1.)
    """
    return dual_rule("normalized_exp", rate=rate)(q11, q12, q22)


def gaussian(q11: Moment, q12: Moment, q22: Moment, *, rate: float = 1.0) -> Dual:
    """phi(u) = exp(-a u²): k = D^(-1/2), k_dot = 4 a² q12 D^(-3/2), D = det(I + 2 a Sigma).
    (Williams 1997, section 3.2.)
    """
    return dual_rule("gaussian", rate=rate)(q11, q12, q22)


def rbf(q11: Moment, q12: Moment, q22: Moment, *, gamma: float = 1.0) -> Dual:
    """phi(u) = sqrt(2) sin(sqrt(2 g) u + pi/4): k = exp(-g (q11 - 2 q12 + q22)), k_dot = 2 g k.
    (Rahimi, Recht 2007.)
    """
    return dual_rule("rbf", gamma=gamma)(q11, q12, q22)


def polynomial(q11: Moment, q12: Moment, q22: Moment, *, coefficients: Sequence[float]) -> Dual:
    """phi(u) = sum_i c_i u^i, lowest power first: k = sum_j q12^j / j! m_j(q11) m_j(q22), m_j(q) =
    E[phi^(j)(sqrt(q) z)].

    Reference: Daniely, Frostig, Singer 2016, section 4 (Mehler's formula, which ends at the
    degree).
    """
    return dual_rule("polynomial", coefficients=coefficients)(q11, q12, q22)


def monomial(q11: Moment, q12: Moment, q22: Moment, *, degree: int) -> Dual:
    """phi(u) = u^degree, by `polynomial`. (Daniely, Frostig, Singer 2016, section 4.)"""
    return dual_rule("monomial", degree=degree)(q11, q12, q22)


def hermite(q11: Moment, q12: Moment, q22: Moment, *, degree: int) -> Dual:
    """phi = He_n / sqrt(n!): k = rho^n and k_dot = n rho^(n-1) at unit variance. (Daniely, Frostig,
    Singer 2016, section 4.)
    """
    return dual_rule("hermite", degree=degree)(q11, q12, q22)
