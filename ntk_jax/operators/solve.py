"""(K + diag_reg) x = y for a kernel that is held, or only multiplied."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Num

from ntk_jax.checks import (
    Number,
    as_array,
    as_dtype,
    as_number,
    check_finite,
    check_integer,
    check_number,
    check_option,
)
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import default_rcond
from ntk_jax.memory import free_bytes, readable_size
from ntk_jax.norms import norm
from ntk_jax.operators.cholesky import cholesky_solve
from ntk_jax.operators.iteration import LOW_RANK, Found, Options, iterate
from ntk_jax.operators.symmetric import Operator, SymmetricOperator, as_operator, columns
from ntk_jax.small_programs import jit_by_size

FORMED = 512
"""Rows up to which an operator is formed: its columns cost less than an iteration may."""

LARGEST_FACTORED = 32_766
"""Rows up to which LAPACK's 32-bit counts are safe, and n³ / 3 is minutes."""

METHODS = ("auto", "cholesky", "conjugate_gradients")


class Solution(NamedTuple):
    """What `solve` found.

    Attributes:
        value: x, shaped like y.
        converged: whether the residual is at most the tolerance, for every column of y.
        residual: |y - (K + diag_reg) x| / |y| of every column, computed from x itself.
        steps: of conjugate gradients; 0 by Cholesky.
    """

    value: Float[Array, "n *O"]
    converged: Bool[np.ndarray, "*O"]
    residual: Float[np.ndarray, "*O"]
    steps: int


class Solved(NamedTuple):
    """A solution, what is left, y - (K + diag_reg) x, and bounds from inside on the extreme
    eigenvalues of K + diag_reg: none by Cholesky.
    """

    solution: Solution
    left: Float[Array, "n *O"]
    bounds: tuple[float, float] | None


def solve(
    operator: SymmetricOperator | Num[ArrayLike, "n n *outputs"],
    y: Num[ArrayLike, "n *O"],
    *,
    diag_reg: Num[ArrayLike, "*n"],
    preconditioner: str | Callable[[Array], ArrayLike] | None = "nystrom",
    rank: int | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    method: str = "auto",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Solution:
    """(K + diag_reg)⁻¹ y from products with K, by preconditioned conjugate gradients; by Cholesky
    where the matrix is small enough.

    Columns of y share products with K, and each has steps and a stop of its own. Every 25 steps the
    residual is computed anew from x: what the recursion of conjugate gradients believes is never
    returned. A column that rounding keeps from getting better stops at the best x it had.

    Args:
        operator: K, symmetric positive semi-definite: an array (n, n) or (n, n, O, O), or anything
            with `@` on columns (n, O), `shape` and `dtype`, such as `ntk_operator(...)`,
            `kernel_operator(...)` or a `KernelStore`.
        y: right-hand sides, (n,) or (n, O).
        diag_reg: ridge, at least 0: a number, or one for each row (n,).
        preconditioner: "nystrom", from columns of K drawn by randomly pivoted Cholesky, which finds
            small clusters, too; "uniform", from columns drawn uniformly, as where the operator has
            no diagonal or is spread over several devices; None; or a function v (n, O) -> (n, O),
            a symmetric positive definite approximation of the inverse.
        rank: columns of a preconditioner by name; default 5 sqrt(n).
        tol: relative residual to stop at; default 1e-3 in float32, where rounding lets little
            less be reached at n = 50,000, and 1e-8 in float64.
        max_steps: products with K at most, without one in 25 for the residual.
        method: "cholesky" takes a copy of K, in place on a CPU; "conjugate_gradients"; "auto":
            Cholesky for arrays on one device of which the memory holds a copy, n < 32,767, and for
            operators of up to 512 rows.
        seed: of the columns that are drawn.
        checkpoint: a folder: the state is written there every 25 steps, and a later call of the
            same y and ridge goes on from it. Needs `ntk-jax[scale]`.
        progress: show a bar on long solves, where tqdm is installed.

    Returns:
        Solution(value, converged, residual, steps).

    Raises:
        ValueError: shapes that do not fit, NaN, a negative ridge, a matrix that is not positive
            definite; Cholesky of an array on several devices; a checkpoint of another problem.

    Warns:
        UserWarning: columns that did not converge, with their residual, the reason and the way out.

    Reference: Hestenes, Stiefel 1952; Williams, Seeger 2001; Frangella, Tropp, Udell 2023.

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> solution = ntk_jax.solve(k, y, diag_reg=1.0)
        >>> print(np.round(solution.value, 3), solution.converged)
        [ 0.5 -0.5] True
    """
    options = Options(preconditioner, rank, tol, max_steps, method, seed, checkpoint, progress)
    return solve_system(operator, y, diag_reg, options, stacklevel=3).solution


def solve_system(
    operator: SymmetricOperator | ArrayLike,
    y: ArrayLike,
    diag_reg: ArrayLike,
    options: Options,
    *,
    stacklevel: int,
    name: str = "operator",
) -> Solved:
    """`solve`, with what the iteration knows besides."""
    if not all(map(is_concrete, jax.tree.leaves((operator, y, diag_reg)))):
        raise ValueError(
            "solve: expected values; got a trace of jax.jit, grad or vmap. Its loop runs in Python:"
            " call it outside, or kernel_regression with an array."
        )
    k = as_operator(name, operator)
    b, ridge = _right_hand_side(y, k), _ridge(diag_reg, k)
    tol = _checked(options, k)
    unit, scale = _unit_columns(b)
    if _is_factored(k, options.method):
        found = _by_cholesky(k, ridge, unit)
    else:
        found = iterate(k, ridge, unit, tol, options)
    sizes = found.sizes.reshape(b.shape[1:])
    value, left = _in_units(b, scale, found.value), _in_units(b, scale, found.left)
    solution = Solution(value, sizes <= tol, sizes, found.steps)
    _warn(solution, found.stalled, tol, k, stacklevel + 1)
    return Solved(solution, left, found.bounds)


def _right_hand_side(y: ArrayLike, k: Operator) -> Float[Array, "n *O"]:
    b = as_array("y", y)
    if b.ndim not in (1, 2) or b.shape[0] != k.shape[0] or b.size == 0:
        raise ValueError(
            f"y: expected a row for each of the {k.shape[0]} of the operator, shape "
            f"({k.shape[0]},) or ({k.shape[0]}, O); got {b.shape}. For an operator of coupled "
            "outputs use y.reshape(-1)."
        )
    b = as_dtype("y", b, k.dtype)
    check_finite("y", b)
    return b


def _ridge(diag_reg: ArrayLike, k: Operator) -> Number:
    ridge = as_number("diag_reg", diag_reg, k.dtype, max_ndim=1)
    if ridge.shape not in ((), k.shape[:1]):
        raise ValueError(
            f"diag_reg: expected a number, or one for each of the {k.shape[0]} rows; got shape "
            f"{ridge.shape}."
        )
    return ridge


def _checked(options: Options, k: Operator) -> float:
    """The tolerance; raise for options out of range."""
    check_option("method", options.method, METHODS)
    check_integer("max_steps", options.max_steps, minimum=1)
    if not (options.preconditioner is None or callable(options.preconditioner)):
        check_option("preconditioner", options.preconditioner, LOW_RANK)
    if options.rank is not None:
        check_integer("rank", options.rank, minimum=1)
    if options.tol is None:
        return 1e-8 if jnp.dtype(k.dtype) == jnp.float64 else 1e-3
    check_number("tol", options.tol, max_ndim=0)
    return float(options.tol)


@jit_by_size
def _unit_columns(b: Float[Array, "n *O"]) -> tuple[Float[Array, "n k"], Float[Array, " k"]]:
    flat = b.reshape(len(b), -1)
    scale = norm(flat, axis=0)
    scale = jnp.where(scale > 0, scale, 1)
    return flat / scale[None], scale


@jit_by_size
def _in_units(b: Array, scale: Float[Array, " k"], v: Float[Array, "n k"]) -> Float[Array, "n *O"]:
    return (v * scale[None]).reshape(b.shape)


def _is_factored(k: Operator, method: str) -> bool:
    """Whether by Cholesky; raise where that cannot be."""
    n = k.shape[0]
    spread = isinstance(k, Array) and len(k.devices()) > 1
    size, free = n * n * jnp.dtype(k.dtype).itemsize, free_bytes()
    fits = free is None or size < free / 2
    if method == "cholesky":
        if spread:
            raise ValueError(
                "method: expected 'conjugate_gradients' for an array on several devices, which "
                "Cholesky would gather on every one of them; got 'cholesky'."
            )
        if not fits or n > LARGEST_FACTORED:
            raise ValueError(
                f"method: expected 'conjugate_gradients' for n = {n}; got 'cholesky', which needs "
                f"a copy of K, {readable_size(size)}, in half of the free memory, and n of at most "
                f"{LARGEST_FACTORED}."
            )
        return True
    small = isinstance(k, Array) or n <= FORMED
    return method == "auto" and small and not spread and fits and n <= LARGEST_FACTORED


def _by_cholesky(k: Operator, ridge: Number, b: Float[Array, "n m"]) -> Found:
    matrix = k if isinstance(k, Array) else columns(k, np.arange(k.shape[0]))
    found = cholesky_solve(matrix, ridge, b)
    if found is None:
        least = 10 * default_rcond(k.shape[0], jnp.dtype(k.dtype))
        raise ValueError(
            "operator + diag_reg: expected a positive definite matrix; its Cholesky factorization "
            f"failed (n = {k.shape[0]}, {jnp.dtype(k.dtype)}, diag_reg = {np.min(ridge):.3g}). Use "
            f"diag_reg above {least:.3g} times the largest eigenvalue, or float64."
        )
    value, left = found
    sizes = np.linalg.norm(np.asarray(left, float), axis=0)
    return Found(value, left, sizes, np.ones(len(sizes), bool), 0, None)


def _warn(
    solution: Solution, stalled: np.ndarray, tol: float, k: Operator, stacklevel: int
) -> None:
    """Warn of columns that did not converge."""
    missed = ~solution.converged.reshape(-1)
    if not missed.any():
        return
    count = f"{missed.sum()} of {missed.size} columns" if missed.size > 1 else "the solution"
    worst, dtype = float(solution.residual.max()), jnp.dtype(k.dtype)
    if stalled[missed].all():
        way_out = "a larger diag_reg or tol" + (", or float64" if dtype == jnp.float32 else "")
        reason = f"rounding in {dtype} lets no smaller one be reached. Use {way_out}"
    else:
        reason = f"after {solution.steps} steps. Use a larger max_steps, rank or diag_reg"
    warnings.warn(
        f"solve: {count} did not converge to a relative residual of {tol:.3g}: the largest is "
        f"{worst:.3g}, {reason}.",
        stacklevel=stacklevel,
    )
