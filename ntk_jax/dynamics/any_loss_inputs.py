"""What flow and descent on any loss do with their arguments first."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ntk_jax.checks import as_outputs
from ntk_jax.losses import LossFn, as_probabilities
from ntk_jax.modes.kind import as_test_kernel, initial_test_outputs, targets_of_kernel


def inputs_of(
    loss: str | LossFn,
    k: Array,
    y_train: ArrayLike,
    fx_train_0: ArrayLike,
    k_test_train: ArrayLike | None,
    fx_test_0: ArrayLike | None,
) -> dict[str, Array]:
    """Kernels, targets and initial outputs by name; class labels as probabilities."""
    known = k.shape[2:] or np.shape(fx_train_0)[1:] or (None,)
    y_train = as_probabilities("y_train", y_train, loss, known[0])
    y = targets_of_kernel(y_train, k)
    inputs = {
        "k_train_train": k,
        "y_train": y,
        "fx_train_0": as_outputs("fx_train_0", fx_train_0, y.shape, k.dtype),
    }
    if k_test_train is None:
        if fx_test_0 is not None and np.ndim(fx_test_0):
            raise ValueError(
                "k_test_train: expected the test kernel together with fx_test_0; got None."
            )
        return inputs
    k_test = as_test_kernel(k_test_train, k)
    shape = (k_test.shape[0], *y.shape[1:])
    f_test_0 = initial_test_outputs(fx_train_0, fx_test_0, shape, k.dtype)
    return inputs | {"k_test_train": k_test, "fx_test_0": f_test_0}


def check_scalar(loss_fn: LossFn, f: Array, y: Array) -> None:
    """Raise unless a loss is one number."""
    shape = jnp.shape(jax.eval_shape(loss_fn, f, y))
    if shape:
        raise ValueError(
            f"loss: expected a function of (f, y) that returns a scalar; got shape {shape}. Take "
            "its mean."
        )
