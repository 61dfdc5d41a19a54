"""All initializations at once: the Gaussian process of infinitely wide networks in training."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_kernel, check_number
from ntk_jax.dynamics.flow import as_axis, gradient_flow_mse, relaxation
from ntk_jax.dynamics.least_squares import apply_batch
from ntk_jax.linalg import matmul
from ntk_jax.matrix_functions.basis import fixed
from ntk_jax.modes.kind import (
    as_matrices,
    as_test_kernel,
    as_variance,
    check_test_test,
    from_columns,
    from_matrices,
    kind_of,
    targets_of_kernel,
)
from ntk_jax.modes.modes import diagonalize
from ntk_jax.modes.targets import rows_in_modes
from ntk_jax.types import Kernels


class Ensemble(NamedTuple):
    """Mean over initializations of the test outputs at time t, and covariance (or variance)."""

    mean: Float[Array, "..."]
    covariance: Float[Array, "..."]


def ensemble_mse(
    kernels_train_train: Kernels,
    kernels_test_train: Kernels,
    kernels_test_test: Kernels | Float[ArrayLike, "..."],
    y_train: Num[ArrayLike, "n *O"],
    t: Num[ArrayLike, "*T"] | Sequence[float],
    *,
    diag_reg: Float[ArrayLike, ""] = 0.0,
) -> Ensemble:
    """Mean and covariance over initializations of wide networks, trained for the time t.

    Each network starts at its own random f_0 ~ N(0, K) (K the NNGP kernel) and follows the flow of
    the tangent kernel Θ:

        f_t = f_0(test) + A (y - f_0(train)),    A = Θ_* (Θ + r)⁻¹ (1 - exp(-(Θ + r) t / (nO)))
        mean = A y,    covariance = K_** + A K Aᵀ - A K_*ᵀ - K_* Aᵀ

    It is not the posterior of a Gaussian process, of neither kernel. t = 0 is the prior, t = inf
    kernel regression.

    Args:
        kernels_train_train: Kernels(nngp, ntk) of the training examples, for example
            `mlp_kernels(x, ...)`.
        kernels_test_train: Kernels(nngp, ntk) of test rows and training columns.
        kernels_test_test: NNGP of the test examples (or Kernels, whose NTK is not used): (n_test,
            n_test) for the whole covariance, or its diagonal (n_test,), as `kernel_diagonal(x_test,
            ...)` has it, for variances alone.
        y_train: targets (n,) or (n, O); the outputs of a kernel (n, n) are independent, with one
            covariance.
        t: time = learning rate x steps: a scalar, an array of times (T,), or inf.
        diag_reg: r, as in `gradient_flow_mse`.

    Returns:
        Ensemble(mean, covariance): (n_test,) or (n_test, O), and shaped like the test-test kernel;
        with the times T as leading axis if t is an array. For train outputs, pass the training
        examples as test examples.

    Raises:
        ValueError: shapes that do not fit, negative t, kernels that are not PSD.

    Reference: Lee et al. 2019, eq. 13-16.

    Example:
        >>> x, x_test, y = jnp.array([[1.0], [2.0]]), jnp.array([[3.0]]), jnp.array([1.0, 2.0])
        >>> kernel_fn = lambda *x: ntk_jax.mlp_kernels(*x, depth=1, W_std=2**0.5)
        >>> kernels = kernel_fn(x), kernel_fn(x_test, x), kernel_fn(x_test)
        >>> prior, late = (ntk_jax.ensemble_mse(*kernels, y, t) for t in (0.0, 1e3))
        >>> round(float(prior.covariance[0, 0]), 3), round(float(late.mean[0]), 3)
        (18.0, 3.0)
    """
    check_number("diag_reg", diag_reg, max_ndim=0)
    k, theta = _pair("kernels_train_train", kernels_train_train)
    k_test, theta_test = (
        as_test_kernel(part, k) for part in _pair("kernels_test_train", kernels_test_train)
    )
    test_test = kernels_test_test[0] if isinstance(kernels_test_test, tuple) else kernels_test_test
    prior, diagonal = check_test_test(test_test, k_test)
    targets_of_kernel(y_train, k)
    modes = diagonalize(theta)
    flow = gradient_flow_mse(
        modes, y_train, t, k_test_train=theta_test, diag_reg=diag_reg, predict_train=False
    )
    basis = modes.bases()
    U = fixed(basis.eigenvectors)
    rotated = matmul(jnp.swapaxes(U, 1, 2), matmul(as_matrices(k), U))  # Uᵀ K U
    response, overlap = (
        rows_in_modes(as_matrices(theta_test), basis),
        matmul(as_matrices(k_test), U),
    )
    times, shape = as_axis("t", t)
    num_entries = jnp.size(y_train)
    ridge = jnp.asarray(diag_reg, k.dtype)

    def spread(time: Array) -> Array:
        parameters = time[None] / num_entries, ridge[None]
        moved = apply_batch(relaxation, basis, jnp.swapaxes(response, 1, 2), parameters, over=0)
        a = jnp.swapaxes(moved[:, :, 0], 1, 2)  # A U
        # Half of A K Aᵀ - 2 A K_*ᵀ: a product and its transpose make up all three terms.
        half = matmul(a, rotated) / 2 - overlap
        if diagonal is not None:
            return prior + 2 * jnp.sum(a * half, axis=2)
        product = matmul(a, jnp.swapaxes(half, 1, 2))
        return prior + product + jnp.swapaxes(product, 1, 2)

    # One time after the other, in the memory of one.
    covariance = jax.lax.map(spread, times.astype(k.dtype))
    kind = kind_of(k)
    if diagonal is None:
        out = from_matrices(covariance, kind)
    else:
        out = from_columns(as_variance(covariance, prior)[..., None], kind, diagonal)
    return Ensemble(jnp.asarray(flow.test), out.reshape(*shape, *out.shape[1:]))


def _pair(name: str, kernels: object) -> tuple[Array, Array]:
    if not isinstance(kernels, tuple) or len(kernels) != 2:
        raise ValueError(f"{name}: expected Kernels(nngp, ntk); got {type(kernels).__name__}.")
    nngp, ntk = (
        as_kernel(f"{name}.{part}", k) for part, k in zip(("nngp", "ntk"), kernels, strict=True)
    )
    if nngp.shape != ntk.shape or nngp.dtype != ntk.dtype:
        raise ValueError(
            f"{name}: expected two kernels of one shape and dtype; got {nngp.shape}, {nngp.dtype} "
            f"and {ntk.shape}, {ntk.dtype}."
        )
    return nngp, ntk
