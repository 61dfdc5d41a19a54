"""What infinitely long training converges to: regression with a kernel."""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import (
    Look,
    Number,
    as_number,
    as_outputs,
    as_square_kernel,
    check_looks,
    is_zero,
    looks,
)
from ntk_jax.compat import is_concrete, on_device
from ntk_jax.inference.on_operators import check_no_options, regression_on_operator
from ntk_jax.linalg import check_psd, matmul, null_rcond
from ntk_jax.modes.kind import (
    Kind,
    apply_kernel,
    as_columns,
    as_matrices,
    as_test_kernel,
    from_columns,
    initial_test_outputs,
    kind_of,
    of_each,
    repeated,
    ridge_of_rows,
    targets_of_kernel,
)
from ntk_jax.modes.multiplied import data_of
from ntk_jax.modes.solves import (
    SolveReport,
    check_definite,
    pseudo_solve,
    ridge_solve,
    ridge_solve_in_place,
)
from ntk_jax.norms import norm
from ntk_jax.operators.cholesky import factors_on_host
from ntk_jax.operators.symmetric import SymmetricOperator, is_operator
from ntk_jax.small_programs import jit_by_size

IN_PLACE = 2048
"""Rows from which a matrix on a CPU is factored in one copy: smaller ones are one program."""


class Regression(NamedTuple):
    """Fitted training outputs, test outputs, dual coefficients alpha, and what the solve met."""

    train: Float[Array, "..."]
    test: Float[Array, "..."]
    coefficients: Float[Array, "..."]
    report: SolveReport


def kernel_regression(
    k_train_train: SymmetricOperator | Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    k_test_train: SymmetricOperator | Float[ArrayLike, "n_test n *outputs"],
    *,
    diag_reg: Float[ArrayLike, "*n"] = 0.0,
    rcond: float | None = None,
    fx_train_0: ArrayLike = 0.0,
    fx_test_0: ArrayLike | None = None,
    solve_options: Mapping[str, Any] | None = None,
) -> Regression:
    """Kernel (ridge) regression, f = f_0 + K_test α with α = (K + diag_reg I)⁻¹ (y - f_0).

    With diag_reg = 0 the inverse is the pseudo-inverse: eigenvalues up to `rcond` times the largest
    count as zero, and α is the least-squares solution of smallest norm. This is the limit of
    training a network under its kernel.

    Args:
        k_train_train: symmetric PSD, (n, n), (n, n, O) with one kernel per output, or full (n, n,
            O, O); or an operator or store that is only multiplied, (n, n) or (nO, nO): then by
            conjugate gradients, see `solve`.
        y_train: targets (n,) or (n, O).
        k_test_train: test rows, training columns: (n_test, n), with the output axes of
            k_train_train; or an operator (n_test, n), such as `kernel_operator(kernel_fn, x_test,
            x_train)`.
        diag_reg: ridge, in units of the kernel, at least 0: a number, or one for each example (n,).
        rcond: for diag_reg = 0 only; default 5 eps of the dtype, as in `diagonalize`.
        fx_train_0: outputs at initialization, 0 or shaped like y_train: gradient descent starts
            there.
        fx_test_0: likewise on the test examples; needed if fx_train_0 is given.
        solve_options: of an operator, keywords of `solve`: `{"tol": 1e-6, "checkpoint": folder}`.

    Returns:
        Regression(train, test, coefficients, report), the first three shaped like the targets; the
        report holds the numerical rank, the extreme eigenvalues and the condition number: of an
        operator, what the directions of conjugate gradients met, which lies between the extremes.

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
    if is_operator(k_train_train) or is_operator(k_test_train):
        data = data_of(k_train_train, y_train, k_test_train)
        if rcond is not None:
            raise ValueError(
                "rcond: expected None with an operator, whose modes are not known; drop it."
            )
        return Regression(
            *regression_on_operator(data, diag_reg, fx_train_0, fx_test_0, solve_options)
        )
    check_no_options(solve_options)
    k = as_square_kernel("k_train_train", k_train_train)
    y = targets_of_kernel(y_train, k)
    k_test = as_test_kernel(k_test_train, k)
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, k.dtype)
    f_test_0 = initial_test_outputs(fx_train_0, fx_test_0, (k_test.shape[0], *y.shape[1:]), k.dtype)
    inputs = _Inputs(k, y, k_test, f_0, f_test_0)
    if ridgeless := is_zero(diag_reg):
        value = as_number("rcond", null_rcond(k.dtype) if rcond is None else rcond, k.dtype)
    elif rcond is None:
        value = ridge_of_rows("diag_reg", diag_reg, k)
    else:
        raise ValueError(
            "rcond: expected None with diag_reg above 0, which has no cut-off; drop one of the two."
        )
    rows = k.shape[0] * kind_of(k).coupled
    if not ridgeless and rows >= IN_PLACE and _is_on_host((*inputs, value)):
        found = _in_place(inputs, np.asarray(value))
    else:
        found = _regression(inputs, value, ridgeless, not is_concrete(k))
    check_looks(found.looks, inputs._asdict())
    if found.eigenvalues is None:
        check_definite(found.fit.report, rows, diag_reg)
    else:
        check_psd("k_train_train", found.eigenvalues)
    _warn_of_lost_targets(found, rows)
    return found.fit


class _Inputs(NamedTuple):
    """Arguments by name."""

    k_train_train: Float[Array, "n n *outputs"]
    y_train: Float[Array, "n *O"]
    k_test_train: Float[Array, "n_test n *outputs"]
    fx_train_0: Float[Array, "..."]
    fx_test_0: Float[Array, "..."]


class _Found(NamedTuple):
    """A regression, and what is checked of it: norms are those of the targets before and after."""

    fit: Regression
    looks: dict[str, Look | None]
    eigenvalues: Float[Array, "B N"] | None
    before: Float[Array, ""]
    after: Float[Array, ""]


def _is_on_host(arrays: tuple[Number, ...]) -> bool:
    return all(map(is_concrete, arrays)) and all(map(factors_on_host, arrays))


def _in_place(inputs: _Inputs, ridge: np.ndarray) -> _Found:
    """By Cholesky with one copy of a matrix at a time."""
    k, y, _, f_0, _ = inputs
    kind, seen = kind_of(k), _looks(inputs)
    check_looks(seen, inputs._asdict())
    columns = np.asarray(as_columns(y - jnp.broadcast_to(f_0, y.shape), kind))
    ridges = np.repeat(ridge, kind.coupled) if ridge.ndim else ridge
    alphas, reports = [], []
    for output, b in enumerate(columns):
        solved = ridge_solve_in_place(_copied(k, kind, output), b, ridges)
        alphas.append(solved[0])
        reports.append(solved[1])
    report = jax.tree.map(lambda *each: jnp.stack(each), *reports)
    if kind.name != "diagonal":
        report = reports[0]
    alpha = from_columns(on_device(np.stack(alphas)), kind, y.shape)
    return _finish(inputs, alpha, report, seen)


def _copied(k: Array, kind: Kind, output: int) -> Float[np.ndarray, "N N"]:
    """One of the matrices of a kernel, in memory of its own."""
    whole = np.asarray(k)
    if kind.name == "full":
        n, _, O, _ = whole.shape
        return np.array(whole.transpose(0, 2, 1, 3)).reshape(n * O, n * O)
    return np.array(whole if kind.name == "shared" else whole[..., output], order="C")


@jit_by_size
def _looks(inputs: _Inputs) -> dict[str, Look | None]:
    return looks(inputs._asdict(), symmetric=("k_train_train",))


@jit_by_size
def _finish(
    inputs: _Inputs, alpha: Array, report: SolveReport, seen: dict[str, Look | None]
) -> _Found:
    k, y, k_test, f_0, f_test_0 = inputs
    train, test = apply_kernel(k, alpha), apply_kernel(k_test, alpha)
    train = train + jnp.broadcast_to(f_0, train.shape)
    test = test + jnp.broadcast_to(f_test_0, test.shape)
    fit = Regression(train, test, alpha, report)
    return _Found(fit, seen, None, norm(y - f_0), norm(y - train))


@partial(jit_by_size, static_argnums=(2, 3))
def _regression(inputs: _Inputs, value: Array, ridgeless: bool, traced: bool) -> _Found:
    """Cholesky with a ridge, which `value` is then; the pseudo-inverse without, to that rcond."""
    k, y, k_test, f_0, f_test_0 = inputs
    kind, matrices = kind_of(k), as_matrices(k)
    f_0 = jnp.broadcast_to(f_0, y.shape)
    f_test_0 = jnp.broadcast_to(f_test_0, (k_test.shape[0], *y.shape[1:]))
    columns = as_columns(y - f_0, kind)
    s = None
    if ridgeless:
        solve = lambda matrix, b: pseudo_solve(matrix, b, value, traced)
        alpha, report, s = of_each(solve, matrices, columns)
    else:
        ridge = repeated(value, kind)
        alpha, report = of_each(lambda k, b: ridge_solve(k, b, ridge), matrices, columns)
    if kind.name != "diagonal":
        report = jax.tree.map(lambda each: each[0], report)
    train = f_0 + from_columns(matmul(matrices, alpha), kind, y.shape)
    test = f_test_0 + from_columns(matmul(as_matrices(k_test), alpha), kind, f_test_0.shape)
    fit = Regression(train, test, from_columns(alpha, kind, y.shape), report)
    seen = looks(inputs._asdict(), symmetric=("k_train_train",))
    return _Found(fit, seen, s, norm(y - f_0), norm(y - train))


def _warn_of_lost_targets(found: _Found, size: int) -> None:
    """Warn if modes that count as 0 in single precision hold a share of the targets that shows."""
    # Double precision is the way out that the warning names: there is none beyond it.
    rank = found.fit.report.rank
    if found.after.dtype == jnp.float64 or not all(
        map(is_concrete, (rank, found.before, found.after))
    ):
        return
    lost = int(np.max(size - np.asarray(rank)))
    share = float(found.after) / max(float(found.before), float(np.finfo(np.float32).tiny))
    if lost and share > 1e-3:
        warnings.warn(
            f"{lost} of {size} modes of this float32 kernel cannot be told from 0 and count as 0; "
            f"they hold {share:.2g} of the norm of the targets, which is not fitted. Compute the "
            "kernel in float64, or use diag_reg, unless it is singular.",
            stacklevel=3,
        )
