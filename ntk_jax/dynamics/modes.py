"""The modes of a training kernel: paid for once, then all of training under squared loss is arithmetic on them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import as_kernel, check_integer, check_number, check_symmetric
from ntk_jax.compat import is_concrete
from ntk_jax.dynamics.blocks import as_matrices
from ntk_jax.linalg import check_psd, default_rcond, symmetric_eigh


class Modes(NamedTuple):
    """The eigendecomposition of a training kernel, paid once: eigenvalues, largest first, and eigenvectors in columns.

    Null modes, whose eigenvalue is rounding, hold exactly 0: training never moves them. A kernel (n, n, O) has O sets of
    modes, along a first axis; a full one (n, n, O, O) has n·O modes.
    """

    eigenvalues: Float[Array, "*O n"]
    eigenvectors: Float[Array, "*O n n"]

    @property
    def rank(self) -> Array:
        """The number of modes that training moves (one number per output for a kernel with an output axis)."""
        return jnp.sum(self.eigenvalues > 0, axis=-1)

    @property
    def condition_number(self) -> Array:
        """The largest eigenvalue over the smallest above 0."""
        smallest = jnp.min(jnp.where(self.eigenvalues > 0, self.eigenvalues, jnp.inf), axis=-1)
        return self.eigenvalues[..., 0] / smallest


class Prediction(NamedTuple):
    """Outputs on training and test examples; `test` is None without a test kernel, `train` with `predict_train=False`."""

    train: Float[Array, "..."] | None
    test: Float[Array, "..."] | None


def diagonalize(k_train_train: Float[ArrayLike, "n n *outputs"], *, rcond: float | None = None) -> Modes:
    """The modes K = U diag(s) Uᵀ of a training kernel.

    Args:
        k_train_train: symmetric positive semi-definite, (n, n) shared by all outputs, (n, n, O) one per output, or full
            (n, n, O, O).
        rcond: eigenvalues up to this fraction of the largest count as 0; default n eps of the dtype.

    Returns:
        Modes(eigenvalues (n,), eigenvectors (n, n)); with a first axis O for a kernel (n, n, O), and with n·O in place
        of n for a full one. `modes.rank` and `modes.condition_number` report on them.

    Raises:
        ValueError: not square, symmetric, finite, or positive semi-definite beyond rounding (with the eigenvalues).

    Reference: Lee et al. 2019, section 2.2.
    """
    k = as_kernel("k_train_train", k_train_train)
    if rcond is not None:
        check_number("rcond", rcond)
    modes = [_diagonalize_matrix(matrix, rcond) for matrix in as_matrices(k)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *modes) if k.ndim == 3 else modes[0]


def _diagonalize_matrix(k: Float[Array, "n n"], rcond: float | None) -> Modes:
    check_symmetric("k_train_train", k)
    values, vectors = symmetric_eigh(k)
    check_psd("k_train_train", values)
    cut = default_rcond(k.shape[0], k.dtype) if rcond is None else rcond
    return Modes(jnp.where(values > cut * values[0], values, 0), vectors)


def max_learning_rate(
    modes: Modes, num_outputs: int = 1, momentum: float = 0.0, *, nesterov: bool = False
) -> Float[Array, ""]:
    """The largest stable step of gradient descent under half-mean squared loss.

        2 n O / s_max,  with heavy-ball momentum times 1 + μ,  with Nesterov's times (1 + μ) / (1 + 2 μ)

    Args:
        modes: of the training kernel.
        num_outputs: O for a kernel (n, n) shared by the outputs; 1 for the modes of a kernel (n, n, O) or (n, n, O, O),
            which hold them.
        momentum: μ in [0, 1).
        nesterov: the variant of momentum that `optax.sgd(..., nesterov=True)` takes.

    Returns:
        A scalar; infinite for a kernel that is zero.

    Raises:
        ValueError: momentum outside [0, 1), num_outputs below 1.

    Reference: Lee et al. 2019, section 2.2; with momentum: Polyak 1964, Nesterov 1983.
    """
    check_integer("num_outputs", num_outputs, minimum=1)
    check_momentum(momentum)
    factor = (1 + momentum) / (1 + 2 * momentum) if nesterov else 1 + momentum
    return 2 * factor * modes.eigenvalues.size * num_outputs / jnp.max(modes.eigenvalues)


def check_momentum(momentum: float) -> None:
    """Raise unless momentum is in [0, 1)."""
    check_number("momentum", momentum)
    if is_concrete(momentum) and not momentum < 1:
        raise ValueError(f"momentum: expected a number in [0, 1); got {momentum!r}.")
