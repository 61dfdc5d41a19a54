"""Leave-one-out error of kernel ridge regression in closed form, and the ridge that makes it smallest."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_outputs, as_targets, check_number
from ntk_jax.compat import is_concrete
from ntk_jax.dynamics.modes import Modes
from ntk_jax.linalg import matmul


class LeaveOneOut(NamedTuple):
    """What regression on all other examples predicts for each example, and half the mean of its squared error."""

    predictions: Float[Array, "..."]
    loss: Float[Array, "*R"]


class Ridge(NamedTuple):
    """The best of the candidates, and the leave-one-out loss of each."""

    diag_reg: float
    candidates: Float[Array, " R"]
    losses: Float[Array, " R"]


def leave_one_out(
    modes: Modes,
    y_train: Num[ArrayLike, "n *O"],
    *,
    diag_reg: Num[ArrayLike, "*R"] | Sequence[float],
    fx_train_0: ArrayLike = 0.0,
) -> LeaveOneOut:
    """The leave-one-out predictions of kernel ridge regression, from one eigendecomposition and no refits.

        y_i - f_(-i)(x_i) = α_i / G_ii,    G = (K + diag_reg I)⁻¹,    α = G (y - f_0)

    For a full kernel an example is left out with all its outputs: G_ii is then a block (O, O).

    Args:
        modes: `diagonalize(k_train_train)`, of a kernel of any shape.
        y_train: targets, (n,) or (n, O).
        diag_reg: ridge, a scalar or several (R,); above 0 for a singular kernel.
        fx_train_0: outputs at initialization, 0 or shaped like y_train.

    Returns:
        LeaveOneOut(predictions, loss), with a first axis R if diag_reg has one.

    Raises:
        ValueError: shapes that do not fit; diag_reg = 0 with a singular kernel.

    Reference: Rasmussen, Williams 2006, eq. 5.12; Cook 1977.
    """
    check_number("diag_reg", diag_reg)
    s, vectors = modes
    full = s.ndim == 1 and jnp.shape(y_train)[:1] != s.shape and jnp.size(y_train) == s.size
    y = as_targets("y_train", y_train, jnp.shape(y_train)[0] if full else s.shape[-1], s.dtype)
    if s.ndim == 2 and y.size != s.size:
        raise ValueError(f"y_train: expected shape {s.shape[::-1]}, for modes of one kernel per output; got {y.shape}.")
    ridge = jnp.asarray(diag_reg, s.dtype)
    if is_concrete(ridge) and is_concrete(s) and bool(jnp.any(ridge == 0)) and bool(jnp.any(s == 0)):
        raise ValueError(
            f"diag_reg: expected above 0 for a singular kernel (rank {modes.rank} of {s.shape[-1]}); got {diag_reg!r}."
        )
    residual = (y - as_outputs("fx_train_0", fx_train_0, y.shape, s.dtype)).reshape(y.shape[0], -1)
    inverse = 1 / (s[None] + ridge.reshape(-1, *(1,) * s.ndim))  # (R, n), (R, O, n) or (R, nO)
    error = (_by_blocks if full else _by_diagonals)(vectors, inverse, residual)
    loss = jnp.mean(jnp.square(error), axis=(1, 2)) / 2
    predictions = y[None] - error.reshape(-1, *y.shape)
    return LeaveOneOut(predictions.reshape(*ridge.shape, *y.shape), loss.reshape(ridge.shape))


def select_diag_reg(
    modes: Modes,
    y_train: Num[ArrayLike, "n *O"],
    *,
    candidates: Float[ArrayLike, " R"] | None = None,
    fx_train_0: ArrayLike = 0.0,
) -> Ridge:
    """The ridge of smallest leave-one-out loss among the candidates.

    Args:
        modes: `diagonalize(k_train_train)`.
        y_train: targets, (n,) or (n, O).
        candidates: ridges to try, above 0; default 61 from 1e-10 to 10 times the largest eigenvalue.
        fx_train_0: outputs at initialization.

    Returns:
        Ridge(diag_reg, candidates, losses).

    Raises:
        ValueError: as `leave_one_out`.
    """
    if candidates is None:
        candidates = jnp.max(modes.eigenvalues) * jnp.logspace(-10, 1, 61, dtype=modes.eigenvalues.dtype)
    candidates = jnp.asarray(candidates)
    if candidates.ndim != 1 or not candidates.size:
        raise ValueError(f"candidates: expected a non-empty vector of ridges; got shape {candidates.shape}.")
    losses = leave_one_out(modes, y_train, diag_reg=candidates, fx_train_0=fx_train_0).loss
    return Ridge(float(candidates[jnp.argmin(losses)]), candidates, losses)


def _by_diagonals(vectors: Array, inverse: Array, residual: Array) -> Float[Array, "R n O"]:
    """Every output by itself; the outputs of a shared kernel have one G."""
    num_outputs = residual.shape[1]
    if vectors.ndim == 2:
        vectors, inverse = vectors[None], inverse[:, None]
    residual = residual.T[:, :, None] if vectors.shape[0] == num_outputs else residual[None]  # (B, n, m)
    projected = matmul(jnp.swapaxes(vectors, 1, 2), residual)
    alpha = jnp.einsum("bni,rbi,bim->rnbm", vectors, inverse, projected, precision="highest")
    diagonal = jnp.einsum("bni,rbi->rnb", jnp.square(vectors), inverse, precision="highest")
    return (alpha / diagonal[..., None]).reshape(*alpha.shape[:2], num_outputs)


def _by_blocks(vectors: Array, inverse: Array, residual: Array) -> Float[Array, "R n O"]:
    """All outputs of an example together."""
    n, O = residual.shape
    rows = vectors.reshape(n, O, -1)
    alpha = jnp.einsum("noi,ri,i->rno", rows, inverse, matmul(vectors.T, residual.reshape(-1)), precision="highest")
    blocks = jnp.einsum("noi,npi,ri->rnop", rows, rows, inverse, precision="highest")
    return jnp.linalg.solve(blocks, alpha[..., None])[..., 0]
