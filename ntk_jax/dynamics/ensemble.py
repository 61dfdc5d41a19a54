"""All initializations at once: the Gaussian process of infinitely wide networks in training."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import (
    Look,
    as_kernel,
    as_number,
    as_square_kernel,
    check_looks,
    check_number,
    looks,
)
from ntk_jax.compat import is_concrete
from ntk_jax.dynamics.flow import Rest, as_times, relaxation, rest_of, warn_of_lost_modes
from ntk_jax.dynamics.least_squares import Problem, apply_batch, in_modes
from ntk_jax.linalg import check_psd, matmul, null_rcond
from ntk_jax.matrix_functions.basis import fixed
from ntk_jax.memory import how_many, memory_budget, tree_bytes
from ntk_jax.modes.kind import (
    as_columns,
    as_matrices,
    as_test_kernel,
    as_test_test,
    check_variance,
    from_columns,
    from_matrices,
    kind_of,
    targets_of_kernel,
)
from ntk_jax.modes.modes import Modes, modes_of
from ntk_jax.modes.targets import rows_in_modes
from ntk_jax.platforms import by_platform
from ntk_jax.small_programs import jit_by_size
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
    k, theta = _pair("kernels_train_train", kernels_train_train)
    as_square_kernel("kernels_train_train.ntk", theta)
    k_test, theta_test = (
        as_test_kernel(part, k) for part in _pair("kernels_test_train", kernels_test_train)
    )
    test_test = kernels_test_test[0] if isinstance(kernels_test_test, tuple) else kernels_test_test
    prior, whole = as_test_test(test_test, k_test)
    y, ridge = targets_of_kernel(y_train, k), as_number("diag_reg", diag_reg, k.dtype)
    check_number("t", t, finite=False)
    times = as_times(t, k.dtype)
    inputs = _Inputs(k, theta, k_test, theta_test, prior, y)
    found = _ensemble(inputs, times, ridge, not is_concrete(theta), whole)
    check_looks(found.looks, inputs.by_name())
    check_psd("k_train_train", found.eigenvalues)
    if is_concrete(times):
        warn_of_lost_modes(found.modes, found.rest, float(np.max(times)), y.size)
    check_variance(*found.variances)
    return found.ensemble


class _Inputs(NamedTuple):
    """Kernels of train and test examples, and targets."""

    k: Float[Array, "n n *outputs"]
    theta: Float[Array, "n n *outputs"]
    k_test: Float[Array, "n_test n *outputs"]
    theta_test: Float[Array, "n_test n *outputs"]
    test_test: Float[Array, "n_test ..."]
    y_train: Float[Array, "n *O"]

    def by_name(self) -> dict[str, Array]:
        """Inputs by the names of the arguments that hold them."""
        return dict(zip(_NAMES, self, strict=True))


_NAMES = (
    *(f"kernels_{rows}_train.{part}" for rows in ("train", "test") for part in ("nngp", "ntk")),
    "k_test_test",
    "y_train",
)


class _Found(NamedTuple):
    """An ensemble, and what is checked of it."""

    ensemble: Ensemble
    looks: dict[str, Look | None]
    eigenvalues: Float[Array, "B N"]
    modes: Modes
    rest: Rest
    variances: tuple[Array, Array]


@partial(jit_by_size, static_argnums=(3, 4))
def _ensemble(
    inputs: _Inputs, times: Float[Array, "*T"], ridge: Array, traced: bool, whole: bool
) -> _Found:
    k, theta, k_test, theta_test, prior, y = inputs
    modes, s = modes_of(theta, null_rcond(theta.dtype), traced)
    problem = Problem(
        modes, y, jnp.zeros((), y.dtype), None, theta_test, jnp.zeros((), y.dtype), None
    )
    solved = in_modes(problem, traced, predict_train=False)
    parameters = times.reshape(-1) / y.size, jnp.broadcast_to(ridge, times.size)
    weights = apply_batch(relaxation, solved.basis, solved.residual, parameters, over=0)
    mean = jnp.asarray(solved.predict(weights, None, times.shape).test)
    basis, kind, U = solved.basis, kind_of(k), fixed(solved.basis.eigenvectors)
    prior = as_matrices(prior) if whole else as_columns(prior, kind)[..., 0]
    rotated = matmul(jnp.swapaxes(U, 1, 2), matmul(as_matrices(k), U))  # Uᵀ K U
    response = rows_in_modes(as_matrices(theta_test), basis)
    overlap = matmul(as_matrices(k_test), U)

    def spread(time: Array) -> Array:
        parameters = time[None] / y.size, ridge[None]
        moved = apply_batch(relaxation, basis, jnp.swapaxes(response, 1, 2), parameters, over=0)
        a = jnp.swapaxes(moved[:, :, 0], 1, 2)  # A U
        # Half of A K Aᵀ - 2 A K_*ᵀ: a product and its transpose make up all three terms.
        half = matmul(a, rotated) / 2 - overlap
        if not whole:
            return prior + 2 * jnp.sum(a * half, axis=2)
        product = matmul(a, jnp.swapaxes(half, 1, 2))
        return prior + product + jnp.swapaxes(product, 1, 2)

    # On a CPU one time after the other, in the memory of one.
    size = tree_bytes((response, response, rotated))
    many = how_many(times.size, size, memory_budget(on_cpu=False))
    each = lambda few: lambda times: jax.lax.map(spread, times, batch_size=few)
    covariance = by_platform(each(None), each(many), times.reshape(-1))
    smallest = jnp.zeros((), k.dtype) if whole else jnp.min(covariance)
    if whole:
        out = from_matrices(covariance, kind)
    else:
        out = from_columns(jnp.maximum(covariance, 0)[..., None], kind, inputs.test_test.shape)
    found = Ensemble(mean, out.reshape(*times.shape, *out.shape[1:]))
    seen = looks(inputs.by_name(), symmetric=_NAMES[1:2])
    return _Found(found, seen, s, modes, rest_of(modes), (smallest, jnp.max(jnp.abs(prior))))


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
