"""What one gradient step on one example does to the output on another."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import check_params
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import compiled
from ntk_jax.examples import Examples
from ntk_jax.finite.empirical import empirical_ntk
from ntk_jax.losses import LossFn, loss_function
from ntk_jax.networks.apply_fn import check_apply_fn, check_outputs, examples_and_targets
from ntk_jax.small_programs import jit_by_size
from ntk_jax.types import ApplyFn, Params


def single_step_influence(
    apply_fn: ApplyFn,
    params: Params,
    x_test: Examples,
    x: Examples,
    y: Num[ArrayLike, "n *O"],
    *,
    loss: str | LossFn = "mse",
) -> Float[jax.Array, "n_test n *O"]:
    """How fast a gradient step on each training example moves each test output.

        influence[i, j] = -K(x_test_i, x_j) ∂L/∂f(x_j)
                        = lim (f(x_test_i; params - h ∂L_j/∂params) - f(x_test_i; params)) / h

    per unit h of the learning rate, where L_j is the share of example j in the loss, so that the
    sum over j is df_test/dt of gradient flow. The kernel is the influence; the residual ∂L/∂f
    drives it.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params: parameters now.
        x_test: examples whose outputs are watched.
        x: training examples.
        y: targets, of exactly the shape that the network returns.
        loss: as in `train`.

    Returns:
        (n_test, n) or (n_test, n, O), like the outputs.

    Raises:
        ValueError: targets whose shape is not that of the outputs, and as `empirical_ntk`.

    Reference: Koh, Liang 2017, without the inverse Hessian; Pruthi et al. 2020 (one step).

    Example:
        >>> network = lambda w, x: x @ w
        >>> x, y = jnp.eye(2), jnp.array([1.0, 3.0])
        >>> influence = ntk_jax.single_step_influence(network, jnp.zeros(2), jnp.ones((1, 2)), x, y)
        >>> print(np.round(influence, 3))
        [[0.5 1.5]]
    """
    check_apply_fn(apply_fn, params)
    check_params(params)
    a, targets = examples_and_targets(apply_fn, params, x, y, loss=loss)
    f, slope = _slope((apply_fn, loss_function(loss, targets)), params, a, targets)
    check_outputs(f)
    return _influence(empirical_ntk(apply_fn, params, x_test, a, outputs="full"), slope)


@compiled
def _slope(functions: Reading, params: Params, x: Examples, y: Array) -> tuple[Array, Array]:
    """The outputs, and the derivative of the loss by them."""
    apply_fn, loss = functions.function
    f = apply_fn(params, x)
    return f, jax.grad(loss)(f, y)


@jit_by_size
def _influence(
    k: Float[Array, "n_test n O O"], slope: Float[Array, "n ..."]
) -> Float[Array, "n_test n ..."]:
    columns = slope.reshape(slope.shape[0], -1).astype(k.dtype)
    influence = -jnp.einsum("ijop,jp->ijo", k, columns, precision="highest")
    return influence.reshape(*influence.shape[:2], *slope.shape[1:])
