"""Where entries go, by NumPy: operations of traces that compute nothing."""

from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, TypeAlias

import jax
import numpy as np

Value: TypeAlias = Any
"""An array or a number of NumPy's; of parameters, whatever JAX holds there."""
Shape: TypeAlias = tuple[int, ...]


class UnknownOperationError(Exception):
    """An operation that NumPy has no name for."""


def whole(x: Value, shape: Shape) -> Value:
    """`x` with all its entries."""
    return x if x.shape == shape else np.broadcast_to(x, shape)


def _on_axes(rank: int, places: Sequence[SupportsIndex], sizes: Sequence[int]) -> list[int]:
    """A shape with these sizes at these places, and 1 elsewhere."""
    shape = [1] * rank
    for place, size in zip(places, sizes, strict=True):
        shape[place] = size
    return shape


def _reshape(params: Value, aval: Value, shape: Shape) -> Callable[..., Value]:
    to = aval.shape
    return lambda x: whole(x, shape).reshape(to)


def _broadcast(params: Value, aval: Value, shape: Shape) -> Callable[..., Value] | None:
    places, rank = params["broadcast_dimensions"], len(aval.shape)
    if tuple(places) == tuple(range(rank - len(shape), rank)):
        return None
    with_axes = _on_axes(rank, places, shape)
    return lambda x: whole(x, shape).reshape(with_axes)


def _transpose(params: Value, aval: Value, shape: Shape) -> Callable[..., Value]:
    order = params["permutation"]
    return lambda x: whole(x, shape).transpose(order)


def _reverse(params: Value, aval: Value, shape: Shape) -> Callable[..., Value]:
    return lambda x: np.flip(whole(x, shape), params["dimensions"])


def _slice(params: Value, aval: Value, shape: Shape) -> Callable[..., Value]:
    limits = params["start_indices"], params["limit_indices"], params["strides"] or [1] * len(shape)
    taken = tuple(map(slice, *limits))
    return lambda x: whole(x, shape)[taken]


def _dynamic_slice(params: Value, aval: Value, shape: Shape, *_: Shape) -> Callable[..., Value]:
    sizes = params["slice_sizes"]
    return lambda x, *start: whole(x, shape)[_within(start, sizes, shape)]


def _dynamic_update_slice(
    params: Value, aval: Value, shape: Shape, sizes: Shape, *_: Shape
) -> Callable[..., Value]:
    def write(x: Value, update: Value, *start: Value) -> Value:
        out = np.array(whole(x, shape))
        out[_within(start, sizes, shape)] = update
        return out

    return write


def _within(start: Sequence[Value], sizes: Shape, shape: Shape) -> tuple[slice, ...]:
    """Moved into the array, as JAX does."""
    first = [min(max(int(i), 0), n - k) for i, k, n in zip(start, sizes, shape, strict=True)]
    return tuple(slice(i, i + k) for i, k in zip(first, sizes, strict=True))


def _pad(params: Value, aval: Value, shape: Shape, _: Shape) -> Callable[..., Value]:
    config = params["padding_config"]
    if any(low < 0 or high < 0 for low, high, _ in config):
        raise UnknownOperationError("pad by less than nothing")
    ends = [low + (n - 1) * (gap + 1) + 1 for n, (low, _, gap) in zip(shape, config, strict=True)]
    inside = tuple(
        slice(low, end, gap + 1) for (low, _, gap), end in zip(config, ends, strict=True)
    )

    def pad(x: Value, filling: Value) -> Value:
        out = np.full(aval.shape, filling, aval.dtype)
        if 0 not in shape:
            out[inside] = x
        return out

    return pad


def _gather(params: Value, aval: Value, shape: Shape, of_indices: Shape) -> Callable[..., Value]:
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if params["mode"] not in (_MODES.CLIP, _MODES.PROMISE_IN_BOUNDS, _MODES.FILL_OR_DROP):
        raise UnknownOperationError("gather")
    rank, batching = len(aval.shape), getattr(numbers, "operand_batching_dims", ())
    batch = [d for d in range(rank) if d not in numbers.offset_dims]
    away = {*numbers.collapsed_slice_dims, *batching}
    kept = [d for d in range(len(shape)) if d not in away]
    offset = dict(zip(kept, numbers.offset_dims, strict=True))
    place = {d: i for i, d in enumerate(numbers.start_index_map)}

    def indices_of(d: int, start: Value) -> Value:
        index = np.zeros([1] * rank, int)
        if d in place:
            first = np.clip(start[..., place[d]], 0, shape[d] - sizes[d])
            index = index + first.reshape(_on_axes(rank, batch, of_indices[:-1]))
        if d in batching:
            axis = batch[numbers.start_indices_batching_dims[batching.index(d)]]
            index = index + np.arange(shape[d]).reshape(_on_axes(rank, [axis], [shape[d]]))
        if d in offset:
            index = index + np.arange(sizes[d]).reshape(_on_axes(rank, [offset[d]], [sizes[d]]))
        return index

    def take(x: Value, start: Value) -> Value:
        x, start = whole(x, shape), np.asarray(whole(start, of_indices), int)
        if batch:
            found = x[tuple(indices_of(d, start) for d in range(len(shape)))]
        else:
            first = [start[place[d]] if d in place else 0 for d in range(len(shape))]
            found = x[_within(first, sizes, shape)].reshape(aval.shape)
        most = np.array([shape[d] - sizes[d] for d in numbers.start_index_map], int)
        outside = ((start < 0) | (start > most)).any(-1)
        if params["mode"] == _MODES.FILL_OR_DROP and outside.any():
            outside = outside.reshape(_on_axes(rank, batch, of_indices[:-1]))
            return np.where(outside, _filling(params["fill_value"], aval.dtype), found)
        return found

    return take


def _filling(given: Value, dtype: np.dtype) -> Value:
    if given is not None:
        return given
    return np.nan if dtype.kind in "fc" else np.iinfo(dtype).min


_MODES = jax.lax.GatherScatterMode


def _iota(params: Value, aval: Value) -> Callable[..., Value]:
    shape = [1] * len(aval.shape)
    shape[params["dimension"]] = -1
    values = np.arange(params["shape"][params["dimension"]]).reshape(shape).astype(aval.dtype)
    return lambda: values


def _stack(params: Value, aval: Value, *shapes: Shape) -> Callable[..., Value]:
    return lambda *x: np.stack([*map(whole, x, shapes)], params["axis"])


def _concatenate(params: Value, aval: Value, *shapes: Shape) -> Callable[..., Value]:
    return lambda *x: np.concatenate([*map(whole, x, shapes)], params["dimension"])


ARRANGEMENTS: dict[str, Callable[..., Callable[..., Value] | None]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
}
