"""Leave-one-out error of kernel ridge regression in closed form, and the ridge of the smallest."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Num

from ntk_jax.checks import Look, as_number, as_outputs, check_looks, looks
from ntk_jax.compat import is_concrete, on_device
from ntk_jax.inference.left_out_on_operators import left_out_on_operator
from ntk_jax.inference.on_operators import check_no_options
from ntk_jax.linalg import matmul
from ntk_jax.matrix_functions.basis import Basis, einsum, fixed
from ntk_jax.matrix_functions.functions import apply, diagonal_blocks
from ntk_jax.modes.kind import as_columns, as_matrices, from_columns
from ntk_jax.modes.modes import Modes
from ntk_jax.modes.multiplied import data_of
from ntk_jax.modes.solves import inverse
from ntk_jax.modes.targets import as_test_kernel_of, targets_of
from ntk_jax.operators.inverse_diagonal import PROBES
from ntk_jax.operators.symmetric import SymmetricOperator, is_operator
from ntk_jax.small_programs import jit_by_size


class LeaveOneOut(NamedTuple):
    """What regression on all other examples predicts for each, and half its mean squared error; how
    test outputs change without it, if they were asked for; standard errors of the first two where
    they are estimates.
    """

    predictions: Float[Array, "..."]
    loss: Float[Array, "*R"]
    test_change: Float[Array, "..."] | None = None
    standard_error: Float[Array, "..."] | None = None
    loss_standard_error: Float[Array, "*R"] | None = None


class Ridge(NamedTuple):
    """The best of the candidates, and the leave-one-out loss of each."""

    diag_reg: float
    candidates: Float[Array, " R"]
    losses: Float[Array, " R"]


def leave_one_out(
    modes: Modes | SymmetricOperator,
    y_train: Num[ArrayLike, "n *O"],
    *,
    diag_reg: Num[ArrayLike, "*R"] | Sequence[float],
    fx_train_0: ArrayLike = 0.0,
    k_test_train: SymmetricOperator | Num[ArrayLike, "n_test n *outputs"] | None = None,
    num_probes: int = PROBES,
    solve_options: Mapping[str, Any] | None = None,
) -> LeaveOneOut:
    """The leave-one-out predictions of kernel ridge regression, without refits.

        y_i - f_(-i)(x_i) = α_i / G_ii,    G = (K + diag_reg I)⁻¹,    α = G (y - f_0)
        f_(-i)(x) - f(x) = -(K(x, x_train) G)_i α_i / G_ii

    For a full kernel an example is left out with all its outputs: G_ii is then a block (O, O). Of
    an operator G_ii is estimated from random probes, which share the products of the one solve.

    Args:
        modes: `diagonalize(k_train_train)`, of a kernel of any shape; or an operator or store with
            a row for each example, that is only multiplied.
        y_train: targets, (n,) or (n, O).
        diag_reg: ridge, a scalar or several (R,); above 0 for a singular kernel.
        fx_train_0: outputs at initialization, 0 or shaped like y_train.
        k_test_train: test rows, training columns, of the kind of the modes' kernel: which training
            example moves which prediction, and by how much. Of an operator, a solve for every row.
        num_probes: of an operator, random probes; standard errors fall as 1 / sqrt(num_probes).
        solve_options: of an operator, keywords of `solve`.

    Returns:
        LeaveOneOut(predictions, loss, test_change, standard_error, loss_standard_error), with a
        first axis R if diag_reg has one. `test_change` (n, n_test) or (n, n_test, O) is what
        leaving out each training example adds to every test output; None without k_test_train.
        Standard errors of predictions and loss are those of an operator; else None.

    Raises:
        ValueError: shapes that do not fit; diag_reg = 0 with a singular kernel; fewer than 2
            probes; an operator whose outputs are coupled.

    Reference: Rasmussen, Williams 2006, eq. 5.12; Cook 1977; Bekas, Kokiopoulou, Saad 2007.

    Example:
        >>> modes = ntk_jax.diagonalize(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> left_out = ntk_jax.leave_one_out(modes, jnp.array([1.0, -1.0]), diag_reg=1.0)
        >>> print(np.round(left_out.predictions, 3))  # each from the other: k y / (2 + 1)
        [-0.333  0.333]
    """
    if is_operator(modes):
        data = data_of(modes, y_train, k_test_train, name="modes")
        change = k_test_train is not None
        found = left_out_on_operator(
            data, np.asarray(diag_reg), fx_train_0, num_probes, solve_options, change=change
        )
        return LeaveOneOut(*found)
    assert isinstance(modes, Modes)
    check_no_options(solve_options)
    y, dtype = targets_of(modes, y_train), modes.eigenvalues.dtype
    ridge = as_number("diag_reg", diag_reg, dtype, max_ndim=1)
    inputs = {"y_train": y, "fx_train_0": as_outputs("fx_train_0", fx_train_0, y.shape, dtype)}
    if k_test_train is not None:
        inputs["k_test_train"] = as_test_kernel_of(modes, k_test_train)
    found, seen, null = _leave_one_out(modes, inputs, ridge, modes.traced)
    check_looks(seen, inputs)
    known = all(map(is_concrete, (ridge, modes.eigenvalues, null)))
    if known and not np.all(ridge) and null:
        raise ValueError(
            f"diag_reg: expected above 0 for a singular kernel (rank {modes.rank} of "
            f"{modes.eigenvalues.shape[-1]}); got {diag_reg!r}."
        )
    return found


@partial(jit_by_size, static_argnums=3)
def _leave_one_out(
    modes: Modes, inputs: dict[str, Array], ridge: Array, traced: bool
) -> tuple[LeaveOneOut, dict[str, Look | None], Bool[Array, ""]]:
    """Also what checks see of the inputs, and whether there are null modes."""
    y, kind = inputs["y_train"], modes.kind
    residual = as_columns(y - jnp.broadcast_to(inputs["fx_train_0"], y.shape), kind)
    bases, ridges = modes.bases(traced), ridge.reshape(-1)
    error = _left_out(bases, residual, ridges, kind.coupled)
    change = None
    if "k_test_train" in inputs:
        k_test = as_matrices(inputs["k_test_train"])
        change = _test_change(bases, k_test, error, ridges, kind.coupled)
        shape = k_test.shape[1] // kind.coupled, *y.shape[1:]
        change = from_columns(change, kind, shape).reshape(*ridge.shape, len(y), *shape)
    error = from_columns(error, kind, y.shape).reshape(-1, len(y), y.size // len(y))
    loss = jnp.mean(jnp.square(error), axis=(1, 2)) / 2
    predictions = y[None] - error.reshape(-1, *y.shape)
    found = LeaveOneOut(
        predictions.reshape(*ridge.shape, *y.shape), loss.reshape(ridge.shape), change
    )
    return found, looks(inputs), jnp.any(modes.eigenvalues == 0)


def select_diag_reg(
    modes: Modes,
    y_train: Num[ArrayLike, "n *O"],
    *,
    candidates: Float[ArrayLike, " R"] | None = None,
    fx_train_0: ArrayLike = 0.0,
) -> Ridge:
    """The ridge of smallest leave-one-out loss, Σ_i (α_i / G_ii)² / 2n, G = (K + r)⁻¹, α = G y.

    Args:
        modes: `diagonalize(k_train_train)`.
        y_train: targets, (n,) or (n, O).
        candidates: ridges to try, above 0; default 61 from 1e-10 to 10 times the largest
            eigenvalue.
        fx_train_0: outputs at initialization.

    Returns:
        Ridge(diag_reg, candidates, losses).

    Raises:
        ValueError: as `leave_one_out`.

    Example:
        >>> x = jnp.linspace(0.0, 1.0, 8)
        >>> modes = ntk_jax.diagonalize(jnp.exp(-8 * (x[:, None] - x[None, :]) ** 2))
        >>> best = ntk_jax.select_diag_reg(modes, x, candidates=np.array([0.01, 1.0, 100.0]))
        >>> round(best.diag_reg, 3)
        0.01
    """
    if candidates is None:
        candidates = np.asarray(modes.eigenvalues).max() * np.logspace(
            -10, 1, 61, dtype=modes.eigenvalues.dtype
        )
    if np.ndim(candidates) != 1 or not np.size(candidates):
        raise ValueError(
            f"candidates: expected a non-empty vector of ridges; got shape {np.shape(candidates)}."
        )
    candidates = np.asarray(candidates)
    losses = leave_one_out(modes, y_train, diag_reg=candidates, fx_train_0=fx_train_0).loss
    return Ridge(float(candidates[np.asarray(losses).argmin()]), on_device(candidates), losses)


def _left_out(
    basis: Basis, residual: Float[Array, "B N m"], ridges: Float[Array, " R"], coupled: int
) -> Float[Array, "R B N m"]:
    """What every example misses when it is left out, with the `coupled` outputs it has."""
    U = fixed(basis.eigenvectors)
    N, m = residual.shape[1:]

    def one(basis: Basis, U: Array, residual: Array, ridge: Array) -> Array:
        alpha = matmul(U, apply(inverse, basis, matmul(U.T, residual), ridge))
        alpha = alpha.reshape(-1, coupled, m)
        blocks = diagonal_blocks(inverse, basis, U.reshape(-1, coupled, N), ridge)  # G_ii
        return (alpha / blocks if coupled == 1 else jnp.linalg.solve(blocks, alpha)).reshape(N, m)

    of_batch = jax.vmap(one, in_axes=(0, 0, 0, None))
    return jax.vmap(of_batch, in_axes=(None, None, None, 0))(basis, U, residual, ridges)


def _test_change(
    basis: Basis,
    k_test: Float[Array, "B M N"],
    error: Float[Array, "R B N m"],
    ridges: Float[Array, " R"],
    coupled: int,
) -> Float[Array, "R n B M m"]:
    """What leaving out each example, with its outputs that are `coupled`, adds to test outputs."""
    U = fixed(basis.eigenvectors)

    def one(basis: Basis, U: Array, k: Array, error: Array, ridge: Array) -> Array:
        moved = matmul(U, apply(inverse, basis, matmul(U.T, k.T), ridge))  # G K_test^T
        shares = moved.reshape(-1, coupled, len(k))
        return -einsum("ncM,ncm->nMm", shares, error.reshape(-1, coupled, error.shape[1]))

    of_batch = jax.vmap(one, in_axes=(0, 0, 0, 0, None), out_axes=1)
    return jax.vmap(of_batch, in_axes=(None, None, None, 0, 0))(basis, U, k_test, error, ridges)
