"""Dual activations: k = E[phi(u) phi(v)] and k_dot = E[phi'(u) phi'(v)] for (u, v) ~ N(0, [[q11,
q12], [q12, q22]]).

Each dual is a function `(q11, q12, q22) -> Dual(k, k_dot)` of broadcastable arrays: variances at
least 0, covariance within +-sqrt(q11 q22) up to rounding; others are refused, and inside jit they
count as the nearest possible ones. Values are exact to a few ulps of the answer for moments
perturbed by rounding; derivatives are finite at identical, antipodal and zero inputs. Below s1, s2
are the standard deviations, rho the correlation, theta its angle, f the options' letters.
Every other scalar function has a dual by `any_function.py`.
"""

from collections.abc import Sequence

from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.duals.dual_rule import Dual

Moment = Float[ArrayLike, "..."]


def relu(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = max(u, 0): k = s1 s2 (sin theta + (pi - theta) rho) / (2 pi), k_dot = (pi - theta) /
    (2 pi).

    Where u or v is constant zero, k_dot is 1/4 and k is 0. Reference: Cho, Saul 2009, eq. 3 and 6.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.relu(1.0, 0.5, 1.0)]
        [0.304, 0.333]
    """
    return dual_rule("relu")(q11, q12, q22)


def leaky_relu(q11: Moment, q12: Moment, q22: Moment, *, slope: float = 0.01) -> Dual:
    """phi(u) = u for u > 0, slope u below: `rectifier(..., positive=1, negative=-slope)`. (Cho,
    Saul 2009.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.leaky_relu(1.0, 0.5, 1.0, slope=0.2)]
        [0.295, 0.413]
    """
    return dual_rule("leaky_relu", slope=slope)(q11, q12, q22)


def abs(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = |u|: k = 2 s1 s2 (sin theta + rho arcsin rho) / pi, k_dot = 2 arcsin(rho) / pi.
    (Cho, Saul 2009.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.abs(1.0, 0.5, 1.0)]
        [0.718, 0.333]
    """
    return dual_rule("abs")(q11, q12, q22)


def rectifier(q11: Moment, q12: Moment, q22: Moment, *, positive: float, negative: float) -> Dual:
    """phi(u) = a relu(u) + b relu(-u): k = (a² + b²) r(rho) + 2 a b r(-rho), r the dual of ReLU;
    k_dot likewise with -2 a b.

    Reference: Cho, Saul 2009, eq. 3 and 6; Tsuchida, Roosta, Gallagher 2018 (leaky ReLU).

    Example:
        >>> dual = ntk_jax.duals.rectifier(1.0, 0.5, 1.0, positive=1.0, negative=0.5)
        >>> [round(float(k), 3) for k in dual]
        [0.435, 0.25]
    """
    return dual_rule("rectifier", positive=positive, negative=negative)(q11, q12, q22)


def identity(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = u: k = q12, k_dot = 1 (by definition of the covariance).

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.identity(1.0, 0.5, 1.0)]
        [0.5, 1.0]
    """
    return dual_rule("identity")(q11, q12, q22)


def rectified_monomial(q11: Moment, q12: Moment, q22: Moment, *, order: int) -> Dual:
    """phi(u) = relu(u)^order for order 0 (step), 1, 2: (s1 s2)^order J_order(theta) / (2 pi). (Cho,
    Saul 2009, eq. 1-6.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.rectified_monomial(1.0, 0.5, 1.0, order=2)]
        [0.707, 1.218]
    """
    return dual_rule("rectified_monomial", order=order)(q11, q12, q22)


def step(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = 1 for u > 0, 0 below: k = (pi - theta) / (2 pi) (Cho, Saul 2009, eq. 4), k_dot = 0
    almost everywhere.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.step(1.0, 0.5, 1.0)]
        [0.333, 0.0]
    """
    return dual_rule("step")(q11, q12, q22)


def sign(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = sign(u): k = 2 arcsin(rho) / pi, k_dot = 0 as for `step`. (Sheppard 1899; Williams
    1997, eq. 11 in the limit.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.sign(1.0, 0.5, 1.0)]
        [0.333, 0.0]
    """
    return dual_rule("sign")(q11, q12, q22)


def erf(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = erf: k = 2/pi arcsin(2 q12 / sqrt((1 + 2 q11)(1 + 2 q22))), k_dot = 4/pi / sqrt((1 + 2
    q11)(1 + 2 q22) - 4 q12²).

    Reference: Williams 1997, eq. 11.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.erf(1.0, 0.5, 1.0)]
        [0.216, 0.45]
    """
    return dual_rule("erf")(q11, q12, q22)


def gelu(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = u Phi(u), the exact GELU: k = q12 A + P (det Sigma + q12² (1/(1 + q11) + 1/(1 +
    q22))).

    A = 1/4 + arcsin(q12 / sqrt((1 + q11)(1 + q22))) / (2 pi), D = det(I + Sigma), P = 1 / (2 pi
    sqrt D); k_dot = A + P q12 (1/(1 + q11) + 1/(1 + q22) + 1/D). Reference: Tsuchida, Pearce, van
    der Heide, Roosta, Gallagher 2021.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.gelu(1.0, 0.5, 1.0)]
        [0.227, 0.342]
    """
    return dual_rule("gelu")(q11, q12, q22)


def tanh(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = tanh = sum_i w_i erf(sqrt(2) u / s_i): k = sum_ij w_i w_j erf's k at (2 q11/s_i², 2
    q12/(s_i s_j), 2 q22/s_j²).

    s_i and w_i discretize the law of scales that makes the logistic distribution of normal ones, to
    ten digits (float32: rounding). Reference: Andrews, Mallows 1974; Williams 1997, eq. 11.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.tanh(1.0, 0.5, 1.0)]
        [0.186, 0.385]
    """
    return dual_rule("tanh")(q11, q12, q22)


def sigmoid(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = 1 / (1 + exp(-u)) = (1 + tanh(u/2)) / 2: k = (1 + k_tanh(Sigma / 4)) / 4. (Andrews,
    Mallows 1974.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.sigmoid(1.0, 0.5, 1.0)]
        [0.271, 0.043]
    """
    return dual_rule("sigmoid")(q11, q12, q22)


def silu(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = u / (1 + exp(-u)) = sum_i w_i s_i gelu(u / s_i), s_i and w_i of `tanh`: a double sum
    of the dual of GELU.

    Reference: Andrews, Mallows 1974; Tsuchida, Pearce, van der Heide, Roosta, Gallagher 2021.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.silu(1.0, 0.5, 1.0)]
        [0.183, 0.312]
    """
    return dual_rule("silu")(q11, q12, q22)


swish = silu


def softplus(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = log(1 + exp(u)) = sum_i w_i E[relu(u + s_i z)]: ReLU's k at (q11 + s_i², q12, q22 +
    s_j²), summed with w_i w_j.

    s_i and w_i are those of `tanh`. Reference: Andrews, Mallows 1974; Cho, Saul 2009.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.softplus(1.0, 0.5, 1.0)]
        [0.78, 0.271]
    """
    return dual_rule("softplus")(q11, q12, q22)


def sin(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = sin: k = exp(-(q11 + q22) / 2) sinh(q12), k_dot = exp(-(q11 + q22) / 2) cosh(q12).
    (`sinusoid` at phase 0.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.sin(1.0, 0.5, 1.0)]
        [0.192, 0.415]
    """
    return dual_rule("sin")(q11, q12, q22)


def cos(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = cos: k = exp(-(q11 + q22) / 2) cosh(q12), k_dot = exp(-(q11 + q22) / 2) sinh(q12).
    (`sinusoid` at phase pi/2.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.cos(1.0, 0.5, 1.0)]
        [0.415, 0.192]
    """
    return dual_rule("cos")(q11, q12, q22)


def sinusoid(
    q11: Moment, q12: Moment, q22: Moment, *, frequency: float = 1.0, phase: float = 0.0
) -> Dual:
    """phi(u) = sin(f u + c): k = E sinh(f² q12) + sin²(c) E exp(-f² q12), E = exp(-f² (q11 + q22) /
    2); k_dot: f², cos²(c).

    Reference: the characteristic function of f (u ± v); Rahimi, Recht 2007, section 3.

    Example:
        >>> dual = ntk_jax.duals.sinusoid(1.0, 0.5, 1.0, frequency=2.0, phase=0.5)
        >>> [round(float(k), 3) for k in dual]
        [0.067, 0.273]
    """
    return dual_rule("sinusoid", frequency=frequency, phase=phase)(q11, q12, q22)


def exp(q11: Moment, q12: Moment, q22: Moment, *, rate: float = 1.0) -> Dual:
    """phi(u) = exp(a u): k = exp(a² (q11 + 2 q12 + q22) / 2), k_dot = a² k. (Mean of a
    log-normal.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.exp(1.0, 0.5, 1.0, rate=0.5)]
        [1.455, 0.364]
    """
    return dual_rule("exp", rate=rate)(q11, q12, q22)


def normalized_exp(q11: Moment, q12: Moment, q22: Moment, *, rate: float = 1.0) -> Dual:
    """phi(u) = exp(sqrt(a) u - a): k = exp(a (rho - 1)) at unit variance, k_dot = a k. (Daniely et
    al. 2016, table 1.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.normalized_exp(1.0, 0.5, 1.0, rate=0.5)]
        [0.779, 0.389]
    """
    return dual_rule("normalized_exp", rate=rate)(q11, q12, q22)


def gaussian(q11: Moment, q12: Moment, q22: Moment, *, rate: float = 1.0) -> Dual:
    """phi(u) = exp(-a u²): k = D^(-1/2), k_dot = 4 a² q12 D^(-3/2), D = det(I + 2 a Sigma).
    (Williams 1997, section 3.2.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.gaussian(1.0, 0.5, 1.0, rate=0.5)]
        [0.516, 0.069]
    """
    return dual_rule("gaussian", rate=rate)(q11, q12, q22)


def rbf(q11: Moment, q12: Moment, q22: Moment, *, gamma: float = 1.0) -> Dual:
    """phi(u) = sqrt(2) sin(sqrt(2 g) u + pi/4): k = exp(-g (q11 - 2 q12 + q22)), k_dot = 2 g k.
    (Rahimi, Recht 2007.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.rbf(1.0, 0.5, 1.0, gamma=0.5)]
        [0.607, 0.607]
    """
    return dual_rule("rbf", gamma=gamma)(q11, q12, q22)


def polynomial(q11: Moment, q12: Moment, q22: Moment, *, coefficients: Sequence[float]) -> Dual:
    """phi(u) = sum_i c_i u^i, lowest power first: k = sum_j q12^j / j! m_j(q11) m_j(q22), m_j(q) =
    E[phi^(j)(sqrt(q) z)].

    Reference: Daniely, Frostig, Singer 2016, section 4 (Mehler's formula, which ends at the
    degree).

    Example:
        >>> dual = ntk_jax.duals.polynomial(1.0, 0.5, 1.0, coefficients=(0.0, 1.0, 0.5))
        >>> [round(float(k), 3) for k in dual]
        [0.875, 1.5]
    """
    return dual_rule("polynomial", coefficients=coefficients)(q11, q12, q22)


def monomial(q11: Moment, q12: Moment, q22: Moment, *, degree: int) -> Dual:
    """phi(u) = u^degree, by `polynomial`. (Daniely, Frostig, Singer 2016, section 4.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.monomial(1.0, 0.5, 1.0, degree=3)]
        [5.25, 13.5]
    """
    return dual_rule("monomial", degree=degree)(q11, q12, q22)


def hermite(q11: Moment, q12: Moment, q22: Moment, *, degree: int) -> Dual:
    """phi = He_n / sqrt(n!): k = rho^n and k_dot = n rho^(n-1) at unit variance. (Daniely, Frostig,
    Singer 2016, section 4.)

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.hermite(1.0, 0.5, 1.0, degree=3)]
        [0.125, 0.75]
    """
    return dual_rule("hermite", degree=degree)(q11, q12, q22)
