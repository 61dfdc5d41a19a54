"""Signal propagation in deep networks: fixed points, order and chaos, critical initialization
(Schoenholz et al. 2017).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_jax.checks import check_number
from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.networks.mlp import Activation
from ntk_jax.small_programs import jit_by_size


class Phase(NamedTuple):
    """Where the variance q ← b_std² + W_std² k(q, q) settles, and what happens to nearby inputs
    there.

    Attributes:
        q_star: the fixed point of the variance from q = 1; 0 or infinity if it vanishes or
            diverges.
        chi_1: W_std² k_dot(q*, q*, q*): the factor by which the squared distance of nearby inputs
            grows per layer.
        correlation_length: layers for correlations to relax by 1/e, 1 / |log chi_c|; infinite at
            criticality.
        correlation: the stable correlation c*, 1 in the ordered phase.
        name: "ordered" (chi_1 < 1), "critical" (|chi_1 - 1| within `tolerance`) or "chaotic" (chi_1
            > 1).
    """

    q_star: float
    chi_1: float
    correlation_length: float
    correlation: float
    name: str


def phase(
    activation: Activation | DualRule, W_std: float, b_std: float, *, tolerance: float = 1e-3
) -> Phase:
    """The phase of an infinitely wide, deep network: ordered, critical or chaotic.

    q* = b_std² + W_std² k(q*), chi_1 = W_std² E[phi'(sqrt(q*) z)²]; correlations c ← (b_std² +
    W_std² k(q*, c q*, q*)) / q* relax to their fixed point c* like chi_c^layers, chi_c = W_std²
    k_dot(q*, c* q*, q*).

    Args:
        activation: as in `mlp_kernels`.
        W_std: weight scale.
        b_std: bias scale.
        tolerance: how close chi_1 must be to 1 to be called critical.

    Returns:
        Phase(q_star, chi_1, correlation_length, correlation, name), name one of "ordered",
        "critical" and "chaotic".

    Raises:
        ValueError: an unknown activation, or scales that are negative or not finite.

    Reference: Poole et al. 2016, eq. 3-5; Schoenholz et al. 2017, eq. 5, 7 and 9.

    Example:
        >>> found = ntk_jax.phase("erf", W_std=1.5, b_std=0.1)
        >>> found.name, round(found.q_star, 3), round(found.correlation, 3)
        ('chaotic', 1.093, 0.091)
    """
    check_number("W_std", W_std, max_ndim=0)
    check_number("b_std", b_std, max_ndim=0)
    check_number("tolerance", tolerance, max_ndim=0)
    rule, W2, b2 = dual_rule(activation), float(W_std) ** 2, float(b_std) ** 2
    q, chi_1 = (
        float(found[0]) for found in fixed_point_and_chi_1(rule, np.array([W2]), np.array([b2]))
    )
    name = "critical" if abs(chi_1 - 1) <= tolerance else "ordered" if chi_1 < 1 else "chaotic"
    if not 0 < q < 1e12:
        length = 1 / abs(np.log(chi_1)) if chi_1 > 0 and chi_1 != 1 else np.inf
        return Phase(q, chi_1, float(length), 1.0, name)
    c, chi_c = _correlation(rule, W2, b2, q)
    length = np.inf if name == "critical" or chi_c in (0.0, 1.0) else 1 / abs(np.log(chi_c))
    return Phase(q, chi_1, float(length), c, name)


def critical_W_std(
    activation: Activation | DualRule, b_std: float, *, bounds: tuple[float, float] = (0.05, 20.0)
) -> float:
    """The W_std at which chi_1 = 1 for this b_std, by bisection to 1e-7 (float32: the rounding of
    the duals).

    sqrt(2) for ReLU with any bias, 1 for tanh without.

    Args:
        activation: as in `mlp_kernels`.
        b_std: bias scale.
        bounds: least and largest W_std to look at.

    Returns:
        W_std, with W_std² E[phi'(sqrt(q*) z)²] = 1.

    Raises:
        ValueError: chi_1 - 1 does not change sign between `bounds`.

    Reference: Schoenholz et al. 2017, section 3.

    Example:
        >>> round(ntk_jax.critical_W_std("relu", b_std=0.1), 3)
        1.414
    """
    check_number("b_std", b_std, max_ndim=0)
    return float(critical_line(activation, np.array([b_std], float), bounds)[0])


def critical_line(
    activation: Activation | DualRule,
    b_std: Float[np.ndarray, " b"],
    bounds: tuple[float, float] = (0.05, 20.0),
) -> Float[np.ndarray, " b"]:
    """`critical_W_std` at each of these b_std."""
    rule, b2 = dual_rule(activation), b_std**2
    excess = lambda W: fixed_point_and_chi_1(rule, W * W, b2)[1] - 1
    low, high = (np.full(b2.shape, float(bound)) for bound in bounds)
    at_low, at_high = excess(low), excess(high)
    wrong = ~((at_low < 0) & (at_high > 0))
    if wrong.any():
        b, below, above = (a[wrong][0] for a in (b_std, at_low, at_high))
        raise ValueError(
            f"critical_W_std: expected chi_1 - 1 to change sign between W_std = {bounds[0]:g} and "
            f"{bounds[1]:g}; got {below:.3g} and {above:.3g} for {activation!r}, b_std = {b:g}. "
            "Widen `bounds`; some activations have no critical point."
        )
    while np.any(high - low > 1e-7 * high):
        middle = (low + high) / 2
        below = excess(middle) < 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def fixed_point_and_chi_1(
    rule: DualRule, W2: np.ndarray, b2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """q* and chi_1 at every pair of squared scales."""
    W2, b2 = np.broadcast_arrays(W2, b2)
    q = _fixed_points(rule, W2, b2)
    return q, W2 * _diagonal(rule, q)[1]


_compiled_diagonal = jit_by_size(lambda rule, q: rule.diagonal(q), static_argnums=0)
_compiled_pair = jit_by_size(lambda rule, q, c: rule(q, c * q, q), static_argnums=0)


def _diagonal(rule: DualRule, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(q, 1e30).astype(jnp.result_type(float))
    k, k_dot = (np.asarray(a, float) for a in _compiled_diagonal(rule, at))
    return k, k_dot


def _fixed_points(
    rule: DualRule, W2: np.ndarray, b2: np.ndarray, num_steps: int = 200
) -> np.ndarray:
    """Newton-accelerated iteration (Aitken) from q = 1; 0 and infinity are answers."""
    step = lambda q: b2 + W2 * _diagonal(rule, q)[0]
    rounding = 4 * float(jnp.finfo(jnp.result_type(float)).eps)
    q, found = np.ones_like(b2), np.full(b2.shape, np.nan)
    for _ in range(num_steps):
        with np.errstate(all="ignore"):  # of those that were found, or are nowhere
            q1 = step(q)
            q2 = step(q1)
            settled = abs(q2 - q1) <= rounding * q2
            diverged, vanished = ~(q2 <= 1e25), q2 < 1e-20
            answer = np.select([diverged, vanished, settled], [np.inf, 0.0, q2], np.nan)
            found = np.where(np.isnan(found), answer, found)
            bend = (q2 - q1) - (q1 - q)
            jump = np.where(bend == 0, q2, q - (q1 - q) ** 2 / bend)
            # leaps only in the direction of the iteration, and not out of sight
            ahead = ((jump - q2) * (q2 - q) > 0) & (jump >= 0) & (jump < 1e3 * np.maximum(q2, 1))
            q = np.where(ahead, jump, q2)
        found = np.where(np.isnan(found) & (q < 1e-14) & (b2 == 0), 0, found)
        if not np.isnan(found).any():
            break
    return np.where(np.isnan(found), q, found)


def _correlation(
    rule: DualRule, W2: float, b2: float, q: float, num_steps: int = 500
) -> tuple[float, float]:
    """The stable correlation c*, from c = 0.5, and the slope of the map there."""
    c, at = 0.5, jnp.asarray(q, float)
    for _ in range(num_steps):
        k = _compiled_pair(rule, at, c).k
        new = min((b2 + W2 * float(k)) / q, 1.0)
        if abs(new - c) < 1e-8:
            break
        c = new
    return c, W2 * float(_compiled_pair(rule, at, c).k_dot)
