"""No kernel with NaN or infinity is returned: the error names what made it so, and which rows."""

from typing import TypeVar

import jax
import numpy as np
from jax import Array

from ntk_jax.examples import Examples
from ntk_jax.finite.features.features import TangentFeatures, gradients_by_leaf
from ntk_jax.finite.features.tangents import features_jit
from ntk_jax.networks.apply_fn import is_finite
from ntk_jax.types import ApplyFn, Params

Result = TypeVar("Result", Array, dict[str, Array])


def check_kernel(
    result: Result,
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None,
    apply_fn2: ApplyFn | None = None,
) -> Result:
    """`result`, a kernel or several or features of examples, if it is finite.

    Raises:
        ValueError: it is not; says whether outputs, derivatives, or only their products are to
            blame, and where.
    """
    if is_finite(result):
        return result
    sides = [("apply_fn", apply_fn, "x1", x1)]
    if x2 is not None:
        is_other = apply_fn2 is not None
        sides.append(("apply_fn2" if is_other else "apply_fn", apply_fn2 or apply_fn, "x2", x2))
    for function, f, name, x in sides:
        if bad := _bad_rows(np.asarray(f(params, x)), name):
            raise ValueError(
                f"{function}: expected finite outputs; got NaN or infinity for {bad}. Check the "
                "network there: jax.debug_nans finds the operation."
            )
    for function, f, name, x in sides:
        _raise_for_gradients(name, features_jit(f, params, x), function)
    raise _overflow(result)


def check_products(kernel: Array, f1: TangentFeatures, f2: TangentFeatures | None) -> Array:
    """`kernel`, of two batches of features, if it is finite.

    Raises:
        ValueError: it is not.
    """
    if is_finite(kernel):
        return kernel
    _raise_for_gradients("features1", f1)
    if f2 is not None:
        _raise_for_gradients("features2", f2)
    raise _overflow(kernel)


def _raise_for_gradients(name: str, features: TangentFeatures, function: str = "apply_fn") -> None:
    for leaf, gradient in gradients_by_leaf(features.blocks, "highest").items():
        if bad := _bad_rows(np.asarray(gradient), name):
            raise ValueError(
                f"{function}: expected finite derivatives with respect to params{leaf}; got NaN or "
                f"infinity for {bad}. A square root or a norm at 0, a logarithm at 0 behind "
                "jnp.where, and numbers beyond the range of the dtype do this."
            )


def _bad_rows(values: np.ndarray, name: str) -> str:
    """How many examples have values that are not finite, in words; "" if none has."""
    n = values.shape[0]
    finite = np.isfinite(values.reshape(n, -1).astype(np.float64)).all(axis=1)
    rows = np.flatnonzero(~finite)
    return (
        ""
        if not rows.size
        else f"{rows.size} of the {n} examples in {name}, the first in row {rows[0]}"
    )


def _overflow(result: Array | dict[str, Array]) -> ValueError:
    dtype = jax.tree.leaves(result)[0].dtype
    return ValueError(
        f"result: expected products of derivatives within the range of {dtype}; they overflow. "
        "Use float64, or scale the outputs or parameters down."
    )
