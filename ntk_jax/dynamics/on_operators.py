"""Gradient flow on the squared loss under a kernel that is only multiplied, by Krylov spaces."""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from ntk_jax.checks import as_number, as_outputs, check_finite, check_integer, check_number
from ntk_jax.linalg import default_rcond, null_rcond
from ntk_jax.modes.kind import initial_test_outputs
from ntk_jax.modes.modes import Prediction
from ntk_jax.modes.multiplied import Data
from ntk_jax.operators.krylov import Applied, apply_functions
from ntk_jax.operators.symmetric import multiply

OPTIONS = {"tol": None, "max_steps": 200, "progress": True}
"""Of the Krylov spaces, by default."""


def flow_on_operator(
    data: Data,
    times: Float[np.ndarray, "*T"],
    diag_reg: ArrayLike,
    fx_train_0: ArrayLike,
    fx_test_0: ArrayLike | None,
    options: Mapping[str, Any] | None,
    *,
    predict: tuple[bool, bool],
) -> Prediction:
    """Outputs at all times from one Krylov space for each output; `predict` says of which rows:
    training, test.
    """
    if not any(predict):
        raise ValueError(
            "k_test_train: expected the test kernel with predict_train=False; got None, so nothing "
            "to predict."
        )
    y, dtype = data.y, data.k.dtype
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, dtype)
    check_finite("fx_train_0", f_0)
    rate = float(as_number("diag_reg", diag_reg, float))
    columns = data.flat(y - jnp.broadcast_to(f_0, y.shape)).reshape(data.k.shape[0], -1)
    scaled = np.asarray(times, float).reshape(-1) / y.size
    functions = partial(_relaxed, times=scaled, rate=rate, null=null_rcond(jnp.dtype(dtype)))
    every = lambda s: np.concatenate([functions(s), functions(s) * s])
    tol, max_steps, progress = _checked(options, dtype)
    found = apply_functions(
        data.k,
        columns,
        every if predict[0] else functions,
        tol=tol,
        max_steps=max_steps,
        progress=progress,
    )
    _check(found, tol, jnp.dtype(dtype))
    train = test = None
    if predict[0]:
        moved = _leading(found.value[:, len(scaled) :], times.shape, y.shape)
        train = jnp.broadcast_to(f_0, y.shape)[(None,) * times.ndim] + moved
    if predict[1]:
        shape = data.test_shape
        f_test_0 = initial_test_outputs(fx_train_0, fx_test_0, shape, dtype)
        check_finite("fx_test_0", f_test_0)
        alpha = found.value[:, : len(scaled)]
        moved = multiply(data.k_test, alpha.reshape(len(alpha), -1))
        moved = _leading(moved.reshape(-1, *alpha.shape[1:]), times.shape, shape)
        test = jnp.broadcast_to(f_test_0, shape)[(None,) * times.ndim] + moved
    return Prediction(train, test)


def _leading(
    values: Float[Array, "n T p"], times: tuple[int, ...], shape: tuple[int, ...]
) -> Float[Array, "..."]:
    return jnp.moveaxis(values, 1, 0).reshape(*times, *shape)


def _relaxed(
    s: Float[np.ndarray, " m"], times: Float[np.ndarray, " T"], rate: float, null: float
) -> Float[np.ndarray, "T m"]:
    """(1 - exp(-(s + rate) t)) / (s + rate), 0 for modes at rest, as in `flow.relaxation`."""
    level = null * np.abs(s).max()
    s = np.where(s > level, s, 0)
    x, t = (s + rate)[None], times[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.where(x > 0, -np.expm1(-x * t) / np.where(x > 0, x, 1), t)
        moves = (s[None] > 0) | (rate + 1 / t > level)
    return np.where(moves, moved, 0)


def _checked(options: Mapping[str, Any] | None, dtype: DTypeLike) -> tuple[float, int, bool]:
    given = OPTIONS | dict(options or {})
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise ValueError(
            f"krylov_options: expected some of {', '.join(OPTIONS)}; got {', '.join(unknown)}."
        )
    double = jnp.dtype(dtype) == jnp.float64
    tol = (1e-8 if double else 1e-4) if given["tol"] is None else given["tol"]
    check_number("tol", tol, max_ndim=0)
    check_integer("max_steps", given["max_steps"], minimum=1)
    return float(tol), given["max_steps"], bool(given["progress"])


def _check(found: Applied, tol: float, dtype: jnp.dtype) -> None:
    """Raise for what is no kernel; warn of what did not converge."""
    low, high = found.nodes
    n = len(found.value)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("modes: expected an operator with finite products; got NaN or infinity.")
    if low < -10 * default_rcond(n, dtype) * max(high, -low):
        raise ValueError(
            "modes: expected a positive semi-definite operator; got eigenvalues down to at most "
            f"{low:.6g}, the largest being {high:.6g}. Check that it is a kernel at all."
        )
    worst = float(found.error.max())
    if worst > tol:
        warnings.warn(
            f"gradient_flow_mse: a Krylov space of {found.steps} steps gives outputs to about "
            f"{worst:.2g} of their change, not {tol:.2g}: late times see small eigenvalues, which "
            "are found last. Use a larger max_steps in krylov_options, a diag_reg, or "
            "kernel_regression for t = inf.",
            stacklevel=4,
        )
