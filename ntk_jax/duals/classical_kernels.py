"""Functions whose duals are classical kernels: trigonometric, exponential, Gaussian, polynomial.

Arguments and results are those of `functions.py`.
"""

from collections.abc import Sequence

from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.duals.dual_rule import Dual
from ntk_jax.duals.functions import Moment


def sin(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = sin: k = exp(-(q11 + q22) / 2) sinh(q12), k_dot = exp(-(q11 + q22) / 2) cosh(q12).
    (`sinusoid` at phase 0.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.sin(1.0, 0.5, 1.0)]
        [0.192, 0.415]
    """
    return dual_rule("sin")(q11, q12, q22)


def cos(q11: Moment, q12: Moment, q22: Moment) -> Dual:
    """phi = cos: k = exp(-(q11 + q22) / 2) cosh(q12), k_dot = exp(-(q11 + q22) / 2) sinh(q12).
    (`sinusoid` at phase pi/2.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

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

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> dual = ntk_jax.duals.sinusoid(1.0, 0.5, 1.0, frequency=2.0, phase=0.5)
        >>> [round(float(k), 3) for k in dual]
        [0.067, 0.273]
    """
    return dual_rule("sinusoid", frequency=frequency, phase=phase)(q11, q12, q22)


def exp(q11: Moment, q12: Moment, q22: Moment, *, rate: float = 1.0) -> Dual:
    """phi(u) = exp(a u): k = exp(a² (q11 + 2 q12 + q22) / 2), k_dot = a² k. (Mean of a
    log-normal.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.exp(1.0, 0.5, 1.0, rate=0.5)]
        [1.455, 0.364]
    """
    return dual_rule("exp", rate=rate)(q11, q12, q22)


def normalized_exp(q11: Moment, q12: Moment, q22: Moment, *, rate: float = 1.0) -> Dual:
    """phi(u) = exp(sqrt(a) u - a): k = exp(a (rho - 1)) at unit variance, k_dot = a k. (Daniely et
    al. 2016, table 1.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.normalized_exp(1.0, 0.5, 1.0, rate=0.5)]
        [0.779, 0.389]
    """
    return dual_rule("normalized_exp", rate=rate)(q11, q12, q22)


def gaussian(q11: Moment, q12: Moment, q22: Moment, *, rate: float = 1.0) -> Dual:
    """phi(u) = exp(-a u²): k = D^(-1/2), k_dot = 4 a² q12 D^(-3/2), D = det(I + 2 a Sigma).
    (Williams 1997, section 3.2.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.gaussian(1.0, 0.5, 1.0, rate=0.5)]
        [0.516, 0.069]
    """
    return dual_rule("gaussian", rate=rate)(q11, q12, q22)


def rbf(q11: Moment, q12: Moment, q22: Moment, *, gamma: float = 1.0) -> Dual:
    """phi(u) = sqrt(2) sin(sqrt(2 g) u + pi/4): k = exp(-g (q11 - 2 q12 + q22)), k_dot = 2 g k.
    (Rahimi, Recht 2007.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

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

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> dual = ntk_jax.duals.polynomial(1.0, 0.5, 1.0, coefficients=(0.0, 1.0, 0.5))
        >>> [round(float(k), 3) for k in dual]
        [0.875, 1.5]
    """
    return dual_rule("polynomial", coefficients=coefficients)(q11, q12, q22)


def monomial(q11: Moment, q12: Moment, q22: Moment, *, degree: int) -> Dual:
    """phi(u) = u^degree, by `polynomial`. (Daniely, Frostig, Singer 2016, section 4.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.monomial(1.0, 0.5, 1.0, degree=3)]
        [5.25, 13.5]
    """
    return dual_rule("monomial", degree=degree)(q11, q12, q22)


def hermite(q11: Moment, q12: Moment, q22: Moment, *, degree: int) -> Dual:
    """phi = He_n / sqrt(n!): k = rho^n and k_dot = n rho^(n-1) at unit variance. (Daniely, Frostig,
    Singer 2016, section 4.)

    (u, v) is Gaussian: q11 = E[u²] = s1², q22 = E[v²] = s2², q12 = E[u v] = s1 s2 rho, rho = cos
    theta: numbers, or arrays that broadcast. Returns Dual(k, k_dot): E[phi(u) phi(v)] and
    E[phi'(u) phi'(v)]. Raises ValueError if no variables have such moments.

    Example:
        >>> [round(float(k), 3) for k in ntk_jax.duals.hermite(1.0, 0.5, 1.0, degree=3)]
        [0.125, 0.75]
    """
    return dual_rule("hermite", degree=degree)(q11, q12, q22)
