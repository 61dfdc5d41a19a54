"""The test error of kernel regression, predicted from the eigenvalues of the kernel: eigenlearning.

Of n examples, mode i takes L_i = s_i / (s_i + κ), its learnability; what it does not learn is test
error. (Bordelon, Canatar, Pehlevan 2020; Canatar, Bordelon, Pehlevan 2021; Simon et al. 2021.)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, Int, Num

from ntk_jax.checks import (
    Look,
    Number,
    as_array,
    as_dtype,
    as_number,
    as_targets,
    check_looks,
    check_number,
    is_zero,
    look,
    working_dtype,
)
from ntk_jax.compat import is_concrete
from ntk_jax.matrix_functions.basis import fixed
from ntk_jax.platforms import by_platform
from ntk_jax.small_programs import jit_by_size

# Halvings of the bracket of log κ: no digit of float64 is left after these.
_BISECTIONS = 80


class LearningCurve(NamedTuple):
    """Predicted mean squares of errors at each number of examples, and what they are made of."""

    test: Float[Array, "*T"]
    train: Float[Array, "*T"]
    learnabilities: Float[Array, "*T modes"]
    kappa: Float[Array, "*T"]
    overfitting: Float[Array, "*T"]


def eigenlearning(
    eigenvalues: Float[ArrayLike, " modes"],
    coefficients: Num[ArrayLike, "modes *O"],
    num_train: Int[ArrayLike, "*T"] | Sequence[int],
    *,
    diag_reg: Float[ArrayLike, ""] = 0.0,
    noise: Float[ArrayLike, ""] = 0.0,
) -> LearningCurve:
    """The mean test error of kernel ridge regression on n examples of a known population.

        n = Σ_i L_i + δ / κ,   L_i = s_i / (s_i + κ),   E_0 = n / (n - Σ_i L_i²)
        test = E_0 (Σ_i (1 - L_i)² v_i² + σ²),   train = (δ / (n κ))² test

    Args:
        eigenvalues: s_i of the kernel under the distribution of examples, K(x, x') = Σ_i s_i φ_i(x)
            φ_i(x') with E[φ_i φ_j] = δ_ij. A pool of N examples estimates the largest, as the
            eigenvalues of K / N.
        coefficients: v_i = E[y φ_i], (modes,) or (modes, O); of a pool, Uᵀ y / sqrt(N).
        num_train: n, an integer or several.
        diag_reg: δ, the ridge, in units of the kernel.
        noise: σ², variance of the noise of each target, which counts in both errors.

    Returns:
        LearningCurve(test, train, learnabilities, kappa, overfitting E_0), with the shape of
        num_train in front; errors are means over outputs. Where a pool stands for the population
        and n is not small against it, use `learning_curve`.

    Raises:
        ValueError: n not below the number of positive eigenvalues without a ridge; shapes that do
            not fit.

    Reference: Simon et al. 2021 (The eigenlearning framework), section 4; Bordelon, Canatar,
    Pehlevan 2020, eq. 8.

    Example:
        >>> spectrum, power = jnp.array([1.0, 0.5, 0.25, 0.125]), jnp.ones(4)
        >>> curve = ntk_jax.eigenlearning(spectrum, power, [1, 2, 3])
        >>> print(np.round(jnp.sum(curve.learnabilities, axis=1), 3))  # as many as examples
        [1. 2. 3.]
    """
    s = as_array("eigenvalues", eigenvalues)
    if s.ndim != 1:
        raise ValueError(f"eigenvalues: expected a vector; got shape {s.shape}.")
    check_number("eigenvalues", s)
    s = as_dtype("eigenvalues", s, working_dtype(s.dtype))
    v = as_targets("coefficients", coefficients, s.shape[0], s.dtype)
    ridge, noises = as_number("diag_reg", diag_reg, s.dtype), as_number("noise", noise, s.dtype)
    n = as_counts(num_train, s.dtype)
    if is_zero(diag_reg):
        check_below_rank(n, s)
    curve, seen = _curves(s, v, n, ridge, noises)
    check_looks({"coefficients": seen}, {"coefficients": v})
    return curve


@jit_by_size
def _curves(
    s: Array, v: Array, numbers: Float[Array, "*T"], diag_reg: Array, noise: Array
) -> tuple[LearningCurve, Look | None]:
    """The predictions at each n, and what checks see of the coefficients."""
    power = jnp.mean(jnp.square(v.reshape(s.size, -1)), axis=1)

    def at(n: Array) -> LearningCurve:
        kappa = solve_kappa(s, n, lambda kappa: diag_reg / kappa, (jnp.sum(s) + diag_reg) / n)
        learnability = s / (s + kappa)
        # n - Σ L², with n from the equation of κ put in: large n would cancel against Σ L².
        overfitting = n / (jnp.sum(learnability * (1 - learnability)) + diag_reg / kappa)
        test = overfitting * (jnp.sum(jnp.square(1 - learnability) * power) + noise)
        return LearningCurve(
            test, jnp.square(diag_reg / (n * kappa)) * test, learnability, kappa, overfitting
        )

    found = by_platform(partial(jax.lax.map, at), jax.vmap(at), numbers.reshape(-1))
    curve = LearningCurve(*(part.reshape(*numbers.shape, *part.shape[1:]) for part in found))
    return curve, look(v)


def as_counts(num_train: ArrayLike | Sequence[int], dtype: DTypeLike) -> Number:
    """Numbers of examples, an integer or a vector of them, as floats."""
    known = all(map(is_concrete, jax.tree.leaves(num_train)))
    n = (np if known else jnp).asarray(num_train)
    if n.ndim > 1 or not n.size or not jnp.issubdtype(n.dtype, jnp.integer):
        raise ValueError(f"num_train: expected an integer or a vector of them; got {num_train!r}.")
    check_number("num_train", n, minimum=1)
    return n.astype(dtype)


def check_below_rank(n: Number, s: Number) -> None:
    """Raise unless every n is below the number of positive eigenvalues: κ > 0 exists then."""
    if not (is_concrete(n) and is_concrete(s)):
        return
    rank = np.sum(np.asarray(s) > 0)
    if np.max(n) >= rank:
        raise ValueError(
            f"num_train: expected less than {rank}, the number of positive eigenvalues; got "
            f"{int(np.max(n))}. All of them are learned then: use diag_reg, more examples, or "
            "float64."
        )


def solve_kappa(
    s: Float[Array, " modes"], n: Array, ridge_term: Callable[[Array], Array], upper: Array
) -> Float[Array, ""]:
    """The κ with Σ_i s_i / (s_i + κ) + ridge_term(κ) = n, below `upper`, where the left side is at
    most n.

    Its derivatives are those of the equation, to third order.
    """

    def excess(log_kappa: Array) -> Array:
        kappa = jnp.exp(log_kappa)
        return jnp.sum(s / (s + kappa)) + ridge_term(kappa) - n

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (bracket[0] + bracket[1]) / 2
        above = excess(middle) > 0
        return jnp.where(above, middle, bracket[0]), jnp.where(above, bracket[1], middle)

    # On a logarithmic scale, down to eps² of the largest: κ may be smaller than any eigenvalue.
    top = fixed(jnp.log(upper))
    low, high = jax.lax.fori_loop(
        0, _BISECTIONS, halve, (top + 2 * jnp.log(jnp.finfo(s.dtype).eps), top)
    )
    root = fixed((low + high) / 2)
    # From the root itself, k Newton steps have its derivatives up to order 2^k - 1.
    for _ in range(2):
        value, slope = jax.jvp(excess, (root,), (jnp.ones_like(root),))
        root = root - jnp.where(slope < 0, value / jnp.where(slope < 0, slope, 1), 0)
    return jnp.exp(root)
