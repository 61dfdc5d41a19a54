"""Convolutions in forms that a CPU is fast at: XLA's own are up to fifty times slower in two cases.

The transpose of a strided convolution convolves an input with zeros between its entries, and all
those zeros are multiplied: here blocks of stride² pixels become channels first (space to depth),
and the stride is 1. A kernel larger than the image is swapped with it by the compiler, and then
nobody's loop is fast: here it is a matrix product per kernel entry. Same sums, plain JAX.
"""

import itertools
import math
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from ntk_jax.compat import bind
from ntk_jax.jaxprs import Eqn, dtype_of, shape_of
from ntk_jax.platforms import by_platform

MAX_OFFSETS = 27  # products per convolution: more would take long to compile

Cut: TypeAlias = tuple[int, int, int]
"""First and last output position that a kernel entry reaches, and where in the input it reads."""


def convolve(eqn: Eqn, h: Array, w: Array) -> Array:
    """The result of a convolution equation at input h and kernel w."""
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    grouped = (
        p["feature_group_count"] != 1
        or p["batch_group_count"] != 1
        or max(p["lhs_dilation"], default=1) > 1
    )
    native = lambda h, w: bind(eqn, [h, w])[0]
    if grouped:
        return native(h, w)
    kernel, space = (
        math.prod(a.shape[i] for i in spec[2:])
        for a, spec in ((w, numbers.rhs_spec), (h, numbers.lhs_spec))
    )
    out_space = math.prod(shape_of(eqn.outvars[0])[i] for i in numbers.out_spec[2:])
    if min(space, out_space) < kernel <= MAX_OFFSETS:
        return by_platform(partial(by_offsets, eqn), native, h, w)
    if max(p["window_strides"]) > 1 and max(p["rhs_dilation"]) == 1:
        return by_platform(partial(_with_fast_transpose, eqn), native, h, w)
    return native(h, w)


def by_offsets(eqn: Eqn, h: Array, w: Array) -> Array:
    """Sum over kernel entries o of h[stride·q + o - padding] W_o, each a matrix product, for a
    convolution without groups.
    """
    p = eqn.params
    h, w, out_shape = _channels_last(eqn, h, w)
    total = jnp.zeros(out_shape, dtype_of(eqn.outvars[0]))
    sizes = zip(h.shape[1:-1], out_shape[1:-1], strict=True)
    axes = list(zip(p["window_strides"], p["rhs_dilation"], _lows(eqn), sizes, strict=True))
    for entry in itertools.product(*map(range, w.shape[:-2])):
        cuts = [
            _overlap(o * dilation - low, stride, *lengths)
            for o, (stride, dilation, low, lengths) in zip(entry, axes, strict=True)
        ]
        if all(first < last for first, last, _ in cuts):
            total = total + _one_entry(eqn, h, w[entry], cuts, out_shape)
    return _as_asked(eqn, total)


def _one_entry(eqn: Eqn, h: Array, w: Array, cuts: list[Cut], out_shape: tuple[int, ...]) -> Array:
    """The part of one kernel entry, which reaches the positions first .. last - 1 of each axis."""
    p, steps = eqn.params, eqn.params["window_strides"]
    read = tuple(
        slice(at, at + (last - first - 1) * step + 1, step)
        for (first, last, at), step in zip(cuts, steps, strict=True)
    )
    precision, dtype = p["precision"], p["preferred_element_type"]
    part = jnp.matmul(h[(slice(None), *read)], w, precision=precision, preferred_element_type=dtype)
    reached = zip(cuts, out_shape[1:-1], strict=True)
    around = [(first, size - last, 0) for (first, last, _), size in reached]
    return lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *around, (0, 0, 0)])


def _overlap(shift: int, stride: int, size: int, positions: int) -> Cut:
    """0 <= stride·q + shift < size for q in first .. last - 1; and the entry that first reads."""
    first = max(0, -(shift // stride))
    last = min(positions, (size - 1 - shift) // stride + 1)
    return first, last, first * stride + shift


def _with_fast_transpose(eqn: Eqn, h: Array, w: Array) -> Array:
    """The value is that of the equation; only the derivative with respect to h is written with
    stride 1.
    """

    @jax.custom_jvp
    def conv(h: Array, w: Array) -> Array:
        return bind(eqn, [h, w])[0]

    def jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
        (h, w), (dh, dw) = primals, tangents
        parts = [] if isinstance(dh, SymbolicZero) else [unstrided(eqn, dh, w)]
        parts += [] if isinstance(dw, SymbolicZero) else [bind(eqn, [h, dw])[0]]
        out = conv(h, w)
        return out, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(out)

    conv.defjvp(jvp, symbolic_zeros=True)
    return conv(h, w)


def unstrided(eqn: Eqn, h: Array, w: Array) -> Array:
    """The convolution of an equation without dilations and groups, by one of stride 1."""
    p = eqn.params
    h, w, (_, *positions, _) = _channels_last(eqn, h, w)
    d = len(positions)
    for i, (s, low) in enumerate(zip(p["window_strides"], _lows(eqn), strict=True)):
        size = s * math.ceil(w.shape[i] / s) if w.shape[i] > 1 else 1
        length = (positions[i] - 1) * s + size
        h = _padded(h, 1 + i, low, length - h.shape[1 + i] - low)
        if size == 1:
            h = lax.slice_in_dim(h, 0, length, s, axis=1 + i)
        else:
            w = _padded(w, i, 0, size - w.shape[i])
            h, w = _to_channels(h, 1 + i, s, d + 1), _to_channels(w, i, s, d)
    spec = lax.ConvDimensionNumbers(
        (0, d + 1, *range(1, d + 1)), (d + 1, d, *range(d)), (0, d + 1, *range(1, d + 1))
    )
    result = lax.conv_general_dilated(
        h, w, (1,) * d, "VALID", dimension_numbers=spec, precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
    )  # fmt: skip
    return _as_asked(eqn, result)


def _lows(eqn: Eqn) -> list[int]:
    """The padding before each axis; older versions of JAX keep NumPy integers."""
    return [int(low) for low, _ in eqn.params["padding"]]


def _channels_last(eqn: Eqn, h: Array, w: Array) -> tuple[Array, Array, tuple[int, ...]]:
    """Input (n, *space, in), kernel (*kernel, in, out), and the shape of the result (n, *space,
    out).
    """
    numbers = eqn.params["dimension_numbers"]
    (batch, channels, *space), (out, into, *kernel) = numbers.lhs_spec, numbers.rhs_spec
    n, features, *positions = (shape_of(eqn.outvars[0])[i] for i in numbers.out_spec)
    return (
        jnp.transpose(h, (batch, *space, channels)),
        jnp.transpose(w, (*kernel, into, out)),
        (n, *positions, features),
    )


def _as_asked(eqn: Eqn, result: Array) -> Array:
    """A result (n, *space, out) with the axes of the equation's."""
    batch, channels, *space = eqn.params["dimension_numbers"].out_spec
    order = [batch, *space, channels]
    return jnp.transpose(result, [order.index(axis) for axis in range(result.ndim)])


def _padded(a: Array, axis: int, low: int, high: int) -> Array:
    """Zeros before and behind an axis, or entries cut off where the counts are negative."""
    return lax.pad(
        a,
        jnp.zeros((), a.dtype),
        [(low, high, 0) if i == axis else (0, 0, 0) for i in range(a.ndim)],
    )


def _to_channels(a: Array, axis: int, s: int, channels: int) -> Array:
    """An axis of length s·q as q, and s times as many channels."""
    a = a.reshape(*a.shape[:axis], a.shape[axis] // s, s, *a.shape[axis + 1 :])
    a = jnp.moveaxis(a, axis + 1, channels)  # in front of the channels
    return a.reshape(*a.shape[:channels], s * a.shape[channels + 1], *a.shape[channels + 2 :])
