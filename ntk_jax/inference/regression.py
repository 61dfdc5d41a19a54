"""What infinitely long training converges to: regression with a kernel."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_kernel, as_outputs, check_number, check_symmetric
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import matmul, null_rcond
from ntk_jax.modes.kind import (
    as_columns,
    as_matrices,
    as_test_kernel,
    from_columns,
    initial_test_outputs,
    kind_of,
    ridge_of_rows,
    targets_of_kernel,
)
from ntk_jax.modes.solves import SolveReport, pseudo_solve, ridge_solve


class Regression(NamedTuple):
    """Fitted training outputs, test outputs, dual coefficients alpha, and what the solve met."""

    train: Float[Array, "..."]
    test: Float[Array, "..."]
    coefficients: Float[Array, "..."]
    report: SolveReport


def kernel_regression(
    k_train_train: Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    k_test_train: Float[ArrayLike, "n_test n *outputs"],
    *,
    diag_reg: Float[ArrayLike, "*n"] = 0.0,
    rcond: float | None = None,
    fx_train_0: ArrayLike = 0.0,
    fx_test_0: ArrayLike | None = None,
) -> Regression:
    """Kernel (ridge) regression, f = f_0 + K_test α with α = (K + diag_reg I)⁻¹ (y - f_0).

    With diag_reg = 0 the inverse is the pseudo-inverse: eigenvalues up to `rcond` times the largest
    count as zero, and α is the least-squares solution of smallest norm. This is the limit of
    training a network under its kernel.

    Args:
        k_train_train: symmetric PSD, (n, n), (n, n, O) with one kernel per output, or full (n, n,
            O, O).
        y_train: targets (n,) or (n, O).
        k_test_train: test rows, training columns: (n_test, n), with the output axes of
            k_train_train.
        diag_reg: ridge, in units of the kernel, at least 0: a number, or one for each example (n,).
        rcond: for diag_reg = 0 only; default 5 eps of the dtype, as in `diagonalize`.
        fx_train_0: outputs at initialization, 0 or shaped like y_train: gradient descent starts
            there.
        fx_test_0: likewise on the test examples; needed if fx_train_0 is given.

    Returns:
        Regression(train, test, coefficients, report), the first three shaped like the targets; the
        report holds the numerical rank, the extreme eigenvalues and the condition number.

    Raises:
        ValueError: bad shapes or values; a kernel that is not PSD beyond rounding; a ridge too
            small for Cholesky.

    Warns:
        UserWarning: diag_reg = 0, and modes that float32 cannot tell from 0 hold more than a
            thousandth of the targets.

    Reference: Jacot, Gabriel, Hongler 2018, section 5; Lee et al. 2019, eq. 9 at t = inf.

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> fit = ntk_jax.kernel_regression(k, y, jnp.array([[2.0, 0.0]]), diag_reg=1.0)
        >>> print(np.round(fit.train, 3), np.round(fit.test, 3))
        [ 0.5 -0.5] [1.]
    """
    k = as_kernel("k_train_train", k_train_train)
    kind, matrices = kind_of(k), as_matrices(k)
    y = targets_of_kernel(y_train, k)
    k_test = as_test_kernel(k_test_train, k)
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, k.dtype)
    f_test_0 = initial_test_outputs(fx_train_0, fx_test_0, (k_test.shape[0], *y.shape[1:]), k.dtype)
    solve = _solver(diag_reg, rcond, k)
    parts = []
    for matrix, residual in zip(matrices, as_columns(y - f_0, kind), strict=True):
        check_symmetric("k_train_train", matrix)
        parts.append(solve(matrix, residual))
    alpha = jnp.stack([part[0] for part in parts])
    report = jax.tree.map(
        lambda *each: jnp.stack(each) if kind.name == "diagonal" else each[0],
        *(p[1] for p in parts),
    )
    train = f_0 + from_columns(matmul(matrices, alpha), kind, y.shape)
    test = f_test_0 + from_columns(matmul(as_matrices(k_test), alpha), kind, f_test_0.shape)
    _warn_of_lost_targets(report, matrices.shape[1], y - f_0, y - train)
    return Regression(train, test, from_columns(alpha, kind, y.shape), report)


def _solver(
    diag_reg: ArrayLike, rcond: float | None, k: Array
) -> Callable[[Array, Array], tuple[Array, SolveReport]]:
    """Cholesky with a ridge, the pseudo-inverse without."""
    if is_concrete(diag_reg) and np.ndim(diag_reg) == 0 and diag_reg == 0:
        rcond = null_rcond(k.dtype) if rcond is None else rcond
        check_number("rcond", rcond, max_ndim=0)
        return partial(pseudo_solve, rcond=rcond)
    if rcond is not None:
        raise ValueError(
            "rcond: expected None with diag_reg above 0, which has no cut-off; drop one of the two."
        )
    return partial(ridge_solve, diag_reg=ridge_of_rows("diag_reg", diag_reg, k))


def _warn_of_lost_targets(report: SolveReport, size: int, before: Array, after: Array) -> None:
    """Warn if modes that count as 0 in single precision hold a share of the targets that shows."""
    # Double precision is the way out that the warning names: there is none beyond it.
    if after.dtype == jnp.float64 or not all(map(is_concrete, (report.rank, before, after))):
        return
    lost = int(np.max(size - np.asarray(report.rank)))
    share = np.linalg.norm(after) / max(np.linalg.norm(before), np.finfo(np.float32).tiny)
    if lost and share > 1e-3:
        warnings.warn(
            f"{lost} of {size} modes of this float32 kernel cannot be told from 0 and count as 0; "
            f"they hold {share:.2g} of the norm of the targets, which is not fitted. Compute the "
            "kernel in float64, or use diag_reg, unless it is singular.",
            stacklevel=3,
        )
