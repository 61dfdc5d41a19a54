"""The test error of kernel ridge regression, estimated from the training set alone."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import (
    Look,
    as_number,
    as_single_kernel,
    as_targets,
    check_in_one_piece,
    check_looks,
    check_number,
    looks,
)
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import basis_of, check_psd, default_rcond
from ntk_jax.matrix_functions.basis import fixed, matmul
from ntk_jax.matrix_functions.functions import apply, trace
from ntk_jax.modes.solves import inverse
from ntk_jax.norms import magnitude
from ntk_jax.small_programs import jit_by_size


def generalized_cross_validation(
    k_train_train: Float[ArrayLike, "n n"],
    y_train: Num[ArrayLike, "n *O"],
    *,
    diag_reg: Float[ArrayLike, "*R"],
) -> Float[Array, "*R"]:
    """The test error that kernel ridge regression may expect, from its training kernel and targets.

        GCV(r) = (1/n) yᵀ (K + r)⁻² y / ((1/n) tr (K + r)⁻¹)²

    which is the training error over the squared share of the targets that is not fitted, and also
    Jacot et al.'s kernel alignment risk estimator (KARE). It costs one eigendecomposition for any
    number of ridges, needs no test set, and holds in the mean over outputs for examples that are
    drawn independently; noise of the targets counts in it.

    Args:
        k_train_train: symmetric positive semi-definite (n, n).
        y_train: targets, (n,) or (n, O).
        diag_reg: ridge r, or several (R,); 0 is the limit of a vanishing ridge.

    Returns:
        The estimated mean of squares of test errors, a scalar or (R,).

    Raises:
        ValueError: not a PSD kernel; targets that do not fit; ridge 0 for a kernel that is
            singular.

    Reference: Golub, Heath, Wahba 1979; Jacot, Simsek, Spadaro, Hongler, Gabriel 2020, section 5.

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> ridges = np.array([1.0, 9.0])
        >>> print(np.round(ntk_jax.generalized_cross_validation(k, y, diag_reg=ridges), 3))
        [1.778 1.19 ]
    """
    k = as_single_kernel("k_train_train", k_train_train)
    check_in_one_piece("k_train_train", k)
    y = as_targets("y_train", y_train, k.shape[0], k.dtype)
    inputs, ridges = (
        {"k_train_train": k, "y_train": y},
        as_number("diag_reg", diag_reg, k.dtype, max_ndim=1),
    )
    estimates, seen, s, condition = _estimates(inputs, ridges, not is_concrete(k))
    check_looks(seen, inputs)
    check_psd("k_train_train", s)
    check_number(
        "k_train_train + diag_reg I, its smallest eigenvalue over the largest",
        condition,
        minimum=default_rcond(s.size, s.dtype),
    )
    return estimates


@partial(jit_by_size, static_argnums=2)
def _estimates(
    inputs: dict[str, Array], ridges: Array, traced: bool
) -> tuple[Float[Array, "*R"], dict[str, Look | None], Float[Array, " n"], Float[Array, "*R"]]:
    """Also what checks see: of the inputs, eigenvalues, and smallest over largest with ridges."""
    k, y = inputs["k_train_train"], inputs["y_train"]
    # Their squares would over- or underflow long before they do.
    k_scale, y_scale = magnitude(k), magnitude(y)
    k, y, ridges = k / k_scale, y / y_scale, ridges / k_scale
    basis = basis_of(k, traced)
    s = basis.eigenvalues
    basis = basis._replace(eigenvalues=jnp.maximum(s, 0))
    targets = matmul(fixed(basis.eigenvectors).T, y.reshape(s.size, -1))

    def at(ridge: Array) -> Array:
        scale = fixed(jnp.maximum(s[-1], 0) + ridge)  # of the inverse, which may overflow
        unfitted = scale * apply(inverse, basis, targets, ridge)
        return jnp.mean(jnp.square(unfitted)) / jnp.square(
            scale * trace(inverse, basis, ridge) / s.size
        )

    estimates = jax.vmap(at)(ridges.reshape(-1)).reshape(ridges.shape) * y_scale * y_scale
    condition = (jnp.maximum(s[-1], 0) + ridges) / (s[0] + ridges)
    return estimates, looks(inputs, symmetric=("k_train_train",)), s, condition
