"""Dual activations: k = E[phi(u) phi(v)] and k_dot = E[phi'(u) phi'(v)] for (u, v) ~ N(0, [[q11,
q12], [q12, q22]]).

Each dual is a function `(q11, q12, q22) -> Dual(k, k_dot)` of broadcastable arrays: variances at
least 0, covariance within +-sqrt(q11 q22) up to rounding; others are refused, and inside jit they
count as the nearest possible ones. Values are exact to a few ulps of the answer for moments
perturbed by rounding; derivatives are finite at identical, antipodal and zero inputs. Below s1, s2
are the standard deviations, rho the correlation, theta its angle, f the options' letters.
More are in `classical_kernels.py`; every other scalar function has a dual by `any_function.py`.
"""

from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.duals.dual_rule import Dual

Moment = Float[ArrayLike, "..."]


def relu(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = max(u, 0): k = s1 s2 (sin theta + (pi - theta) rho) / (2 pi), k_dot = (pi - theta) /
    (2 pi).

    Where u or v is constant zero, k_dot is 1/4 and k is 0. Reference: Cho, Saul 2009, eq. 3 and 6.

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.relu(1.0, 0.5, 1.0)]
        [0.304, 0.333]
    """
    return dual_rule("relu")(q11, q12, q22)


def leaky_relu(q11: Moment, q12: Moment, q22: Moment, *, slope: float = 0.01) -> Dual:
    """phi(u) = u for u > 0, slope u below: `rectifier(..., positive=1, negative=-slope)`. (Cho,
    Saul 2009.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.leaky_relu(1.0, 0.5, 1.0, slope=0.2)]
        [0.295, 0.413]
    """
    return dual_rule("leaky_relu", slope=slope)(q11, q12, q22)


def abs(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = |u|: k = 2 s1 s2 (sin theta + rho arcsin rho) / pi, k_dot = 2 arcsin(rho) / pi.
    (Cho, Saul 2009.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.abs(1.0, 0.5, 1.0)]
        [0.718, 0.333]
    """
    return dual_rule("abs")(q11, q12, q22)


def rectifier(q11: Moment, q12: Moment, q22: Moment, *, positive: float, negative: float) -> Dual:
    """phi(u) = a relu(u) + b relu(-u): k = (a² + b²) r(rho) + 2 a b r(-rho), r the dual of ReLU;
    k_dot likewise with -2 a b.

    Reference: Cho, Saul 2009, eq. 3 and 6; Tsuchida, Roosta, Gallagher 2018 (leaky ReLU).

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> dual = ntk_jax.duals.rectifier(1.0, 0.5, 1.0, positive=1.0, negative=0.5)
        >>> [round(float(k), 3) for k in dual]
        [0.435, 0.25]
    """
    return dual_rule("rectifier", positive=positive, negative=negative)(q11, q12, q22)


def identity(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = u: k = q12, k_dot = 1 (by definition of the covariance).

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.identity(1.0, 0.5, 1.0)]
        [0.5, 1.0]
    """
    return dual_rule("identity")(q11, q12, q22)


def rectified_monomial(q11: Moment, q12: Moment, q22: Moment, *, order: int) -> Dual:
    """phi(u) = relu(u)^order for order 0 (step), 1, 2: (s1 s2)^order J_order(theta) / (2 pi). (Cho,
    Saul 2009, eq. 1-6.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.rectified_monomial(1.0, 0.5, 1.0, order=2)]
        [0.707, 1.218]
    """
    return dual_rule("rectified_monomial", order=order)(q11, q12, q22)


def step(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = 1 for u > 0, 0 below: k = (pi - theta) / (2 pi) (Cho, Saul 2009, eq. 4), k_dot = 0
    almost everywhere.

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.step(1.0, 0.5, 1.0)]
        [0.333, 0.0]
    """
    return dual_rule("step")(q11, q12, q22)


def sign(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = sign(u): k = 2 arcsin(rho) / pi, k_dot = 0 as for `step`. (Sheppard 1899; Williams
    1997, eq. 11 in the limit.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.sign(1.0, 0.5, 1.0)]
        [0.333, 0.0]
    """
    return dual_rule("sign")(q11, q12, q22)


def erf(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = erf: k = 2/pi arcsin(2 q12 / sqrt((1 + 2 q11)(1 + 2 q22))), k_dot = 4/pi / sqrt((1 + 2
    q11)(1 + 2 q22) - 4 q12²).

    Reference: Williams 1997, eq. 11.

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

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

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

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

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.tanh(1.0, 0.5, 1.0)]
        [0.186, 0.385]
    """
    return dual_rule("tanh")(q11, q12, q22)


def sigmoid(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = 1 / (1 + exp(-u)) = (1 + tanh(u/2)) / 2: k = (1 + k_tanh(Sigma / 4)) / 4. (Andrews,
    Mallows 1974.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.sigmoid(1.0, 0.5, 1.0)]
        [0.271, 0.043]
    """
    return dual_rule("sigmoid")(q11, q12, q22)


def silu(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi(u) = u / (1 + exp(-u)) = sum_i w_i s_i gelu(u / s_i), s_i and w_i of `tanh`: a double sum
    of the dual of GELU.

    Reference: Andrews, Mallows 1974; Tsuchida, Pearce, van der Heide, Roosta, Gallagher 2021.

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

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

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.softplus(1.0, 0.5, 1.0)]
        [0.78, 0.271]
    """
    return dual_rule("softplus")(q11, q12, q22)
