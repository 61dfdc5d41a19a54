"""What infinitely long training converges to: regression with a kernel."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_kernel, as_outputs, as_targets, check_number, check_symmetric
from ntk_jax.compat import is_concrete
from ntk_jax.dynamics.modes import as_matrix
from ntk_jax.linalg import SolveReport, default_rcond, matmul, pseudo_solve, ridge_solve


class Regression(NamedTuple):
    """Fitted training outputs, test outputs, the dual coefficients alpha, and what the solve met."""

    train: Float[Array, "..."]
    test: Float[Array, "..."]
    coefficients: Float[Array, "..."]
    report: SolveReport


def kernel_regression(
    k_train_train: Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    k_test_train: Float[ArrayLike, "n_test n *outputs"],
    *,
    diag_reg: float = 0.0,
    rcond: float | None = None,
    fx_train_0: ArrayLike = 0.0,
    fx_test_0: ArrayLike = 0.0,
) -> Regression:
    """Kernel (ridge) regression, f = f_0 + K_test α with α = (K + diag_reg I)⁻¹ (y - f_0).

    With diag_reg = 0 the inverse is the pseudo-inverse: eigenvalues up to `rcond` times the largest count as zero, and α
    is the least-squares solution of smallest norm. This is the limit of training a network under its kernel.

    Args:
        k_train_train: symmetric PSD, (n, n) or full (n, n, O, O).
        y_train: targets (n,) or (n, O).
        k_test_train: test rows, training columns: (n_test, n) or (n_test, n, O, O).
        diag_reg: ridge, in units of the kernel, at least 0.
        rcond: for diag_reg = 0 only; default n eps of the dtype.
        fx_train_0: outputs at initialization, 0 or shaped like y_train: gradient descent starts there.
        fx_test_0: likewise on the test examples.

    Returns:
        Regression(train, test, coefficients, report), the first three shaped like the targets; the report holds the
        numerical rank, the extreme eigenvalues and the condition number.

    Raises:
        ValueError: bad shapes or values; a kernel that is not PSD beyond rounding; a ridge too small for Cholesky.

    Reference: Jacot, Gabriel, Hongler 2018, section 5; Lee et al. 2019, eq. 9 at t = inf.
    """
    check_number("diag_reg", diag_reg)
    k = as_kernel("k_train_train", k_train_train)
    num_train, num_test = k.shape[0], jnp.shape(k_test_train)[0] if jnp.ndim(k_test_train) else 0
    matrix = as_matrix(k)
    check_symmetric("k_train_train", matrix)
    y = as_targets("y_train", y_train, num_train, k.dtype)
    k_test = as_matrix(as_kernel("k_test_train", k_test_train)).astype(k.dtype)
    if k_test.shape[1] != matrix.shape[0] or (k.ndim == 4 and y.size != matrix.shape[0]):
        raise ValueError(
            f"k_test_train: expected test rows and training columns, (n_test, {', '.join(map(str, k.shape[1:]))}), with "
            f"y_train of as many outputs; got {jnp.shape(k_test_train)} and y_train {y.shape}."
        )
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, k.dtype)
    f_test_0 = as_outputs("fx_test_0", fx_test_0, (num_test, *y.shape[1:]), k.dtype)
    residual = (y - f_0).reshape(matrix.shape[0], -1)
    if is_concrete(diag_reg) and diag_reg == 0:
        rcond = default_rcond(matrix.shape[0], k.dtype) if rcond is None else rcond
        check_number("rcond", rcond)
        alpha, report = pseudo_solve(matrix, residual, rcond=rcond)
    else:
        if rcond is not None:
            raise ValueError(
                "rcond: expected None with diag_reg above 0, whose inverse needs no cut-off; drop one of the two."
            )
        alpha, report = ridge_solve(matrix, residual, diag_reg=diag_reg)
    train = f_0 + matmul(matrix, alpha).reshape(y.shape)
    test = f_test_0 + matmul(k_test, alpha).reshape(f_test_0.shape)
    return Regression(train, test, alpha.reshape(y.shape), report)
