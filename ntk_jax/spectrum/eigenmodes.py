"""What the eigenmodes of a kernel say about targets: when each is learned, and what it costs."""

from functools import partial
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import (
    Look,
    as_coupled_kernel,
    as_number,
    as_targets,
    check_in_one_piece,
    check_integer,
    check_looks,
    check_number,
    is_zero,
    look,
    looks,
)
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import as_matrix, check_psd, matmul, null_rcond
from ntk_jax.modes.solves import SolveReport, check_definite, pseudo_solve, ridge_solve
from ntk_jax.norms import magnitude
from ntk_jax.small_programs import jit_by_size


@runtime_checkable
class Eigenmodes(Protocol):
    """Eigenvalues, largest first, with eigenvectors in columns: all (`diagonalize`) or the first
    (`top_eigenvalues`).
    """

    @property
    def eigenvalues(self) -> Float[Array, " k"]: ...  # noqa: D102

    @property
    def eigenvectors(self) -> Float[Array, "n k"]: ...  # noqa: D102


def learning_times(modes: Eigenmodes, num_outputs: int = 1) -> Float[Array, " k"]:
    """The time constant of each mode under gradient flow, t_i = n O / s_i.

    Under half-mean squared loss the residual in mode i decays as exp(-t / t_i), where t = learning
    rate x steps.

    Args:
        modes: of the training kernel, `diagonalize(k)` or `top_eigenvalues(k, num, key=key)`.
        num_outputs: O for a kernel (n, n) shared by the outputs; 1 for the modes of a full kernel,
            which hold them.

    Returns:
        (k,), shortest first; infinite for null modes; (O, k) for the modes of a kernel (n, n, O).

    Raises:
        ValueError: num_outputs below 1; eigenvalues that are negative beyond rounding, whose modes
            would grow.

    Reference: Lee et al. 2019, eq. 8; Jacot, Gabriel, Hongler 2018, section 5.

    Example:
        >>> modes = ntk_jax.diagonalize(jnp.diag(jnp.array([4.0, 1.0, 0.5])))
        >>> print(np.round(ntk_jax.learning_times(modes), 3))
        [0.75 3.   6.  ]
    """
    check_integer("num_outputs", num_outputs, minimum=1)
    s = modes.eigenvalues
    if is_concrete(s):
        check_number(
            "eigenvalues of a positive semi-definite kernel",
            s,
            minimum=-(float(jnp.finfo(s.dtype).eps) ** 0.5) * float(np.max(s)),
        )
    # Kernels (n, n, O) bring a row of eigenvalues for each output: n O in all.
    entries = s.size if s.ndim == 2 else modes.eigenvectors.shape[0] * num_outputs
    return _times(s, entries)


@partial(jit_by_size, static_argnums=1)
def _times(s: Float[Array, "*O k"], entries: int) -> Float[Array, "*O k"]:
    return jnp.where(s > 0, entries / jnp.where(s > 0, s, 1), jnp.inf)


def cumulative_power(modes: Eigenmodes, y: Num[ArrayLike, "n *O"]) -> Float[Array, " k"]:
    """The share of the targets in the first i modes, C(i) = Σ_{j <= i} |u_jᵀ y|² / |y|².

    Args:
        modes: of the training kernel, largest eigenvalue first.
        y: targets, (n,) or (n, O).

    Returns:
        (k,), increasing; the last is 1 if the modes are complete. The faster it rises, the easier
        the task. Between equal eigenvalues the share is a matter of the basis, and has no
        derivative.

    Raises:
        ValueError: targets that do not fit, or are zero.

    Reference: Canatar, Bordelon, Pehlevan 2021, eq. 6.

    Example:
        >>> modes = ntk_jax.diagonalize(jnp.diag(jnp.array([4.0, 1.0, 0.5])))
        >>> print(np.round(ntk_jax.cumulative_power(modes, jnp.array([3.0, 4.0, 0.0])), 3))
        [0.36 1.   1.  ]
    """
    vectors = modes.eigenvectors
    if vectors.ndim != 2:
        raise ValueError(
            "modes: expected those of one kernel; got one set for each output. Take one: "
            "diagonalize(k[..., 0])."
        )
    outputs = getattr(modes, "outputs", None)  # an operator's modes do not tell rows from outputs
    full = _coupled(y, vectors.shape[0]) if outputs is None else len(outputs) == 2
    targets = _flat_targets(y, vectors.shape[0], vectors.dtype, full, outputs)
    shares, total, seen = _cumulative_power(vectors, targets)
    check_looks({"y": seen}, {"y": targets})
    check_number("|y|²", total, strict=True)
    return shares


@jit_by_size
def _cumulative_power(
    vectors: Float[Array, "n k"], targets: Float[Array, "..."]
) -> tuple[Float[Array, " k"], Float[Array, ""], Look | None]:
    columns = targets.reshape(len(vectors), -1)
    # The share does not change, and squares cannot overflow.
    columns = columns / magnitude(columns)
    total = jnp.sum(jnp.square(columns))
    powers = jnp.sum(jnp.square(matmul(vectors.T, columns)), axis=1)
    return jnp.cumsum(powers) / total, total, look(targets)


def rkhs_norm(
    k_train_train: Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    *,
    diag_reg: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "..."]:
    """The norm of the function that kernel regression fits, |f|_H = sqrt(αᵀ K α).

    There α = (K + diag_reg I)⁻¹ y. Without a ridge that is sqrt(yᵀ K⁺ y), of the smoothest function
    through the targets; it bounds generalization.

    Args:
        k_train_train: symmetric positive semi-definite, (n, n) or full (n, n, O, O).
        y_train: targets, (n,) or (n, O).
        diag_reg: ridge, at least 0; at 0 eigenvalues up to 5 eps of the largest count as zero.

    Returns:
        A scalar for targets (n,) and for a full kernel, whose outputs make up one function; else
        (O,).

    Raises:
        ValueError: as `kernel_regression`.

    Reference: Bartlett, Mendelson 2002, lemma 22; Arora et al. 2019, theorem 5.1.

    Example:
        >>> k = jnp.diag(jnp.array([4.0, 1.0]))
        >>> round(float(ntk_jax.rkhs_norm(k, jnp.array([2.0, 1.0]))), 3)
        1.414
    """
    kernel = as_coupled_kernel("k_train_train", k_train_train)
    check_in_one_piece("k_train_train", kernel)
    size = kernel.shape[0] * (kernel.shape[2] if kernel.ndim == 4 else 1)
    y = as_targets("y_train", y_train, kernel.shape[0], kernel.dtype)
    y = _flat_targets(y, size, kernel.dtype, kernel.ndim == 4, kernel.shape[2:])
    ridgeless = is_zero(diag_reg)
    value = null_rcond(kernel.dtype) if ridgeless else diag_reg
    inputs = {"k_train_train": kernel, "y_train": y}
    value = as_number("diag_reg", value, kernel.dtype)
    norms, report, seen, s = _rkhs_norm(inputs, value, ridgeless, not is_concrete(kernel))
    check_looks(seen, inputs)
    if s is None:
        check_definite(report, size, diag_reg)
    else:
        check_psd("k_train_train", s)
    return norms


@partial(jit_by_size, static_argnums=(2, 3))
def _rkhs_norm(
    inputs: dict[str, Array], value: Array, ridgeless: bool, traced: bool
) -> tuple[Array, SolveReport, dict[str, Look | None], Array | None]:
    kernel, y = inputs["k_train_train"], inputs["y_train"]
    matrix, s = as_matrix(kernel), None
    columns = y.reshape(len(matrix), -1)
    scale = magnitude(columns)
    columns = columns / scale
    if ridgeless:
        # Not 1 / s of null modes: what the targets hold there is not fitted at all.
        alpha, report, s = pseudo_solve(matrix, columns, value, traced)
    else:
        alpha, report = ridge_solve(matrix, columns, value)
    norms = jnp.sqrt(jnp.maximum(jnp.sum(alpha * matmul(matrix, alpha), axis=0), 0))
    found = scale * norms.reshape(() if kernel.ndim == 4 else y.shape[1:])
    return found, report, looks(inputs, symmetric=("k_train_train",)), s


def _coupled(y: ArrayLike, size: int) -> bool:
    """Whether targets (n, O) of n·O modes are meant."""
    return jnp.size(y) == size != (jnp.shape(y) or (0,))[0]


def _flat_targets(
    y: ArrayLike, size: int, dtype: jnp.dtype, full: bool, outputs: tuple[int, ...] | None
) -> Float[Array, "..."]:
    """Targets whose columns are one per output, or all in one for the modes of a full kernel."""
    num_rows = size // outputs[0] if full and outputs else jnp.shape(y)[0] if full else size
    targets = as_targets("y", y, num_rows, dtype)
    if full and targets.size != size:
        raise ValueError(
            f"y: expected {size} targets, of all outputs, for the modes of a full kernel; got "
            f"{targets.shape}."
        )
    return targets
