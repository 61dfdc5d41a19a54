"""No kernel with NaN or infinity is returned: the error names the outputs, derivatives or products
that made it so.
"""

from typing import Any

import numpy as np
from jax import Array

from ntk_jax.checks import check_finite
from ntk_jax.finite.features.features import TangentFeatures, gradients_by_leaf
from ntk_jax.finite.strategy.engine import features_jit
from ntk_jax.types import ApplyFn, Params


def check_kernel(
    result: Any, apply_fn: ApplyFn, params: Params, x1: Array, x2: Array | None
) -> Any:
    """`result`, a kernel or features of examples, if it is finite.

    Raises:
        ValueError: it is not; says whether the outputs, derivatives, or only their products are to
            blame, and where.
    """
    if is_finite(result):
        return result
    examples = {"x1": x1} | ({} if x2 is None else {"x2": x2})
    for name, x in examples.items():
        rows = _bad_rows(np.asarray(apply_fn(params, x)).reshape(x.shape[0], -1))
        if rows.size:
            raise ValueError(
                f"apply_fn: expected finite outputs; got NaN or infinity for {rows.size} of the "
                f"{x.shape[0]} examples in "
                f"{name}, the first in row {rows[0]}. Check the network there: jax.debug_nans "
                "finds the operation."
            )
    for name, x in examples.items():
        _raise_for_gradients(name, features_jit(apply_fn, params, x))
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


def is_finite(result: Any) -> bool:
    """Whether there is no NaN or infinity; inside jit that is not known, and taken for true."""
    try:
        for array in result.values() if isinstance(result, dict) else (result,):
            check_finite("result", array)
    except ValueError:
        return False
    return True


def _raise_for_gradients(name: str, features: TangentFeatures) -> None:
    for leaf, gradient in gradients_by_leaf(features.blocks, "highest").items():
        rows = _bad_rows(np.asarray(gradient).reshape(features.num_rows, -1))
        if rows.size:
            raise ValueError(
                f"apply_fn: expected finite derivatives with respect to params{leaf}; got NaN or "
                "infinity for "
                f"{rows.size} of the {features.num_rows} examples in {name}, the first in row "
                f"{rows[0]}. A square root or "
                "a norm at 0, a logarithm at 0 behind jnp.where, and numbers beyond the range of "
                "the dtype do this."
            )


def _bad_rows(values: Any) -> Any:
    return np.flatnonzero(~np.isfinite(values.astype(np.float64)).all(axis=1))


def _overflow(result: Any) -> ValueError:
    dtype = (next(iter(result.values())) if isinstance(result, dict) else result).dtype
    return ValueError(
        f"result: expected products of derivatives within the range of {dtype}; they overflow. "
        "Use float64, or scale the outputs or parameters down."
    )
