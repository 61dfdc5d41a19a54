"""Targets and test kernels that fit the modes of a training kernel."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import as_dtype, as_kernel, as_targets
from ntk_jax.linalg import matmul
from ntk_jax.matrix_functions.basis import Basis, fixed
from ntk_jax.modes.kind import kind_of
from ntk_jax.modes.modes import Modes

_WHOSE = {
    "shared": "modes of a kernel that all outputs share",
    "diagonal": "modes of one kernel per output",
    "full": "modes of a kernel of coupled outputs",
}


def targets_of(modes: Modes, y_train: ArrayLike) -> Float[Array, "n *O"]:
    """Targets with a row for each example of the modes, and with the outputs that these tell."""
    if not isinstance(modes, Modes):
        raise ValueError(f"modes: expected diagonalize(k_train_train); got {type(modes).__name__}.")
    (s, vectors), kind = modes, modes.kind
    if s.ndim != 1 + (kind.name == "diagonal") or vectors.shape != (*s.shape, s.shape[-1]):
        raise ValueError(
            f"modes: expected diagonalize(k_train_train); got shapes {s.shape} and {vectors.shape}."
        )
    rows = s.shape[-1] // kind.coupled
    # As many targets as modes, but in other rows: of a flattened kernel, or on their side.
    if kind.name == "shared" and jnp.size(y_train) == rows != (jnp.shape(y_train) or (rows,))[0]:
        raise ValueError(
            f"y_train: expected {rows} rows, one for each mode of a kernel that all outputs share; "
            f"got {jnp.shape(y_train)}. For a flattened kernel of all outputs use "
            "y_train.reshape(-1), or diagonalize the kernel (n, n, O, O)."
        )
    return as_targets("y_train", y_train, rows, s.dtype, kind.num_outputs, _WHOSE[kind.name])


def as_test_kernel_of(modes: Modes, k_test_train: object) -> Float[Array, "..."]:
    """A test kernel of the kind of the training kernel, or a flattened full one."""
    k, kind, n = as_kernel("k_test_train", k_test_train), modes.kind, modes.eigenvalues.shape[-1]
    flattened = kind.name == "full" and k.ndim == 2 and k.shape[0] % kind.coupled == 0
    if not flattened and kind_of(k) != kind:
        axes = {"shared": "2 axes", "diagonal": "3 axes", "full": "4 axes (or 2, flattened)"}
        raise ValueError(
            "k_test_train: expected a kernel of the kind of the training one, with "
            f"{axes[kind.name]}; got shape {k.shape}."
        )
    rows, columns = (size * (1 if flattened else kind.coupled) for size in k.shape[:2])
    if columns != n:
        raise ValueError(
            f"k_test_train: expected test examples in rows and the {n} training modes in columns; "
            f"got {k.shape}." + (" It is transposed." if rows == n else "")
        )
    return as_dtype("k_test_train", k, modes.eigenvalues.dtype)


def rows_in_modes(k: Float[Array, "B N n"], basis: Basis) -> Float[Array, "B N n"]:
    """K_test U, exactly 0 in null modes: features that no training example has.

    Its derivative is not 0 there: examples that coincide may part.
    """
    rows = matmul(k, fixed(basis.eigenvectors))
    return jnp.where(basis.eigenvalues[:, None, :] > 0, rows, rows - fixed(rows))
