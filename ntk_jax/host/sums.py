"""Sums, products and the like over axes, by NumPy."""

import math
from collections.abc import Callable
from functools import reduce

import numpy as np

from ntk_jax.host.arrangements import Shape, UnknownOperationError, Value, whole


def _reduced(f: Callable[..., Value]) -> Callable[..., Callable[..., Value]]:
    def of(params: Value, aval: Value, shape: Shape) -> Callable[..., Value]:
        axes, dtype = tuple(params["axes"]), aval.dtype
        return lambda x: np.asarray(
            f(whole(x, shape), axis=axes), dtype
        )  # of int32 NumPy's is int64

    return of


def _of_bools(f: Callable[..., Value]) -> Callable[..., Callable[..., Value]]:
    def of(params: Value, aval: Value, shape: Shape) -> Callable[..., Value]:
        if aval.dtype != bool:
            raise UnknownOperationError("reduction of bits")
        return _reduced(f)(params, aval, shape)

    return of


def _place(f: Callable[..., Value]) -> Callable[..., Callable[..., Value]]:
    def of(params: Value, aval: Value, shape: Shape) -> Callable[..., Value]:
        (axis,) = params["axes"]
        return lambda x: f(whole(x, shape), axis=axis).astype(aval.dtype)

    return of


def _cumulative(f: Callable[..., Value]) -> Callable[..., Callable[..., Value]]:
    def of(params: Value, aval: Value, shape: Shape) -> Callable[..., Value]:
        axis, dtype = params["axis"], aval.dtype
        if params["reverse"]:
            return lambda x: np.flip(f(np.flip(whole(x, shape), axis), axis), axis).astype(dtype)
        return lambda x: f(whole(x, shape), axis).astype(dtype)

    return of


def _product(params: Value, aval: Value, one: Shape, other: Shape) -> Callable[..., Value]:
    """As products of matrices."""
    (of_one, of_other), (batch_one, batch_other) = params["dimension_numbers"]
    if aval.dtype.itemsize < 4:
        raise UnknownOperationError("dot_general in half precision")
    rest = lambda shape, *away: [d for d in range(len(shape)) if d not in {*away[0], *away[1]}]
    rows, columns = rest(one, of_one, batch_one), rest(other, of_other, batch_other)
    size = lambda shape, axes: math.prod(shape[d] for d in axes)
    batch, inner = [one[d] for d in batch_one], size(one, of_one)
    left, right = (*batch_one, *rows, *of_one), (*batch_other, *of_other, *columns)
    shapes = (*batch, size(one, rows), inner), (*batch, inner, size(other, columns))

    def multiply(a: Value, b: Value) -> Value:
        a, b = (np.asarray(whole(x, shape), aval.dtype) for x, shape in ((a, one), (b, other)))
        pair = a.transpose(left).reshape(shapes[0]), b.transpose(right).reshape(shapes[1])
        return np.matmul(*pair).reshape(aval.shape)

    return multiply


def _windows(params: Value, aval: Value, shape: Shape) -> Callable[..., Value]:
    """One axis after the other."""
    if any(step != 1 for step in params["base_dilation"]) or min(map(min, params["padding"])) < 0:
        raise UnknownOperationError("reduce_window_sum of a dilated or cropped array")
    keys = "window_dimensions", "window_strides", "window_dilation", "padding"
    axes = [
        (axis, *of_axis)
        for axis, of_axis in enumerate(zip(*(params[key] for key in keys), strict=True))
        if of_axis != (1, 1, of_axis[2], (0, 0))
    ]

    def along(x: Value, of_axis: Value) -> Value:
        axis, window, stride, dilation, padding = of_axis
        x = np.pad(x, [padding if d == axis else (0, 0) for d in range(x.ndim)])
        count = (x.shape[axis] - (window - 1) * dilation - 1) // stride + 1
        before = (slice(None),) * axis
        starts = (m * dilation for m in range(window))
        parts = (x[(*before, slice(s, s + (count - 1) * stride + 1, stride))] for s in starts)
        return reduce(np.add, parts)

    return lambda x: reduce(along, axes, whole(x, shape))


SUMS: dict[str, Callable[..., Callable[..., Value]]] = {
    "argmax": _place(np.argmax),
    "argmin": _place(np.argmin),
    "cummax": _cumulative(np.maximum.accumulate),
    "cumprod": _cumulative(np.cumprod),
    "cumsum": _cumulative(np.cumsum),
    "dot_general": _product,
    "reduce_and": _of_bools(np.all),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_or": _of_bools(np.any),
    "reduce_prod": _reduced(np.prod),
    "reduce_sum": _reduced(np.sum),
    "reduce_window_sum": _windows,
}
