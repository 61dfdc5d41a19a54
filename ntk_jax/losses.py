"""Training losses by name: functions of outputs and targets, of a network or of its kernel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import check_option
from ntk_jax.compat import is_concrete

LossFn = Callable[[Array, Array], Array]


def mse(f: Float[Array, "n *O"], y: Float[Array, "n *O"]) -> Float[Array, ""]:
    """Half the mean over all entries of (f - y)²: the squared loss of all closed forms here."""
    return jnp.mean(jnp.square(f - y)) / 2


def cross_entropy(f: Float[Array, "n O"], y: Float[Array, "n O"]) -> Float[Array, ""]:
    """The mean over examples of -Σ_o y_o log softmax(f)_o; targets are probabilities."""
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(f), axis=-1))


def logistic(f: Float[Array, "n *O"], y: Float[Array, "n *O"]) -> Float[Array, ""]:
    """The mean over all entries of log(1 + exp(-y f)); targets are -1 and 1."""
    return jnp.mean(jax.nn.softplus(-y * f))


def huber(f: Float[Array, "n *O"], y: Float[Array, "n *O"]) -> Float[Array, ""]:
    """The mean over all entries of (f - y)² / 2 up to distance 1, of |f - y| - 1/2 beyond."""
    gap = jnp.abs(f - y)
    return jnp.mean(jnp.where(gap < 1, jnp.square(gap) / 2, gap - 0.5))


LOSSES: dict[str, LossFn] = {
    "mse": mse,
    "cross_entropy": cross_entropy,
    "logistic": logistic,
    "huber": huber,
}


def loss_function(loss: str | LossFn, y: Array) -> LossFn:
    """The function that a name stands for, after a look at the targets, or a function as it is."""
    if callable(loss):
        return loss
    check_option("loss", loss, LOSSES)
    if loss == "cross_entropy":
        _check_probabilities(y)
    if loss == "logistic" and is_concrete(y) and not np.all(np.abs(np.asarray(y)) == 1):
        raise ValueError(
            "y: expected targets -1 and 1 for the logistic loss; got others. Use 2 y - 1 for 0 and "
            "1."
        )
    return LOSSES[loss]


def _check_probabilities(y: Array) -> None:
    if y.ndim != 2 or y.shape[1] < 2:
        raise ValueError(
            "y: expected probabilities of shape (n, O) with O >= 2 for cross-entropy; got "
            f"{y.shape}. Use loss='logistic' for two classes and one output."
        )
    if not is_concrete(y):
        return
    known = np.asarray(y)
    # Rows of float16 targets add up to 1 to three digits.
    if not (np.all(known >= 0) and np.all(np.abs(known.sum(axis=1) - 1) < 1e-3)):
        raise ValueError(
            "y: expected rows of probabilities, at least 0 and with sum 1, for cross-entropy; got "
            "others. One-hot targets that were centered by -1/O become probabilities again by "
            "adding 1/O."
        )
