"""Convolutions: with a weight, whole or in groups of channels; with a fixed kernel, which makes
patches.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.layouts import shape_after
from ntk_jax.infinite.flax.moments.contractions import ConvContraction, DotContraction, Window
from ntk_jax.infinite.flax.parameter_views import check_norm
from ntk_jax.infinite.flax.rules.grouped import by_group, depthwise
from ntk_jax.infinite.flax.rules.weights import (
    Contraction,
    axis_of_leaf,
    check_width,
    checked_input,
    weighted,
)
from ntk_jax.infinite.flax.values import Det, Joined, Linear, Param, Shape, Value, Wide
from ntk_jax.jaxprs import Eqn, shape_of


@rule("conv_general_dilated")
def convolution(
    program: Interpreter, eqn: Eqn, values: Sequence[Value]
) -> list[Wide] | list[Joined]:
    """A convolution with a weight."""
    given, param = values
    if isinstance(given, Wide) and isinstance(param, Det):
        return [_patches(eqn, given, param)]
    if isinstance(given, Param) or not isinstance(param, Param):
        raise NoLimitError("a convolution whose kernel is not a parameter has no rule,")
    p, full = eqn.params, shape_of(eqn.invars[0])
    dims, groups = p["dimension_numbers"], p["feature_group_count"]
    if p["batch_group_count"] != 1:
        raise NoLimitError("a convolution grouped by batch has no rule,")
    value, wide = checked_input(param, given, full)
    channel, outputs = dims.lhs_spec[1], shape_of(eqn.outvars[0])[dims.out_spec[1]]
    if any(w > 1 for a, w in enumerate(wide) if a != channel):
        raise NoLimitError("a convolution over an infinite axis has no rule,")
    check_norm(param, [dims.rhs_spec[1]] if wide[channel] > groups else [])
    if groups > 1 and isinstance(value, Det):
        return [by_group(program, eqn, value, param)]
    if 1 < groups == wide[channel] == outputs:
        return [depthwise(program, eqn, cast(Wide, value), param, _windows(eqn))]
    _check_channels(value, wide[channel], groups)
    stored = tuple(s // w for s, w in zip(full, wide, strict=True))
    out, windows, units = shape_of(eqn.outvars[0]), _windows(eqn), wide[channel] // groups
    contraction = _contraction(stored, dims, windows, units)
    shape, counts = list(out), [1] * len(out)
    shape[dims.out_spec[1]], counts[dims.out_spec[1]] = 1, out[dims.out_spec[1]]
    use = (tuple(axis_of_leaf(param, a) for a in dims.rhs_spec), windows, groups)
    return [
        weighted(program, param, ("convolution", use), shape, value, units, contraction, counts)
    ]


def _contraction(stored: Shape, dims: Any, windows: tuple[Window, ...], units: int) -> Contraction:
    """That of a matrix where there is one position, which meets all of the input."""
    example, channel, *spatial = dims.lhs_spec
    whole = [
        Window(stored[a], w.stride, (0, 0), 1, 1, 1) for a, w in zip(spatial, windows, strict=True)
    ]
    if whole == list(windows):
        return DotContraction(stored, (channel, *spatial), (), (example,), units)
    return ConvContraction(stored, tuple(dims.lhs_spec), tuple(dims.out_spec), windows, units)


def _check_channels(value: Wide | Det, channels: int, groups: int) -> None:
    """Every output channel must be a sum over many alike input channels."""
    if groups > 1 and channels == 1:
        raise NoLimitError(
            "a grouped convolution of finitely many channels: its outputs see different inputs,"
        )
    if groups > 1 and channels // groups < 2:
        raise NoLimitError(
            "a depthwise convolution with several outputs for each channel: they share it, and are "
            "not independent,",
            "Take as many outputs as channels: feature_group_count=features.",
        )
    check_width(value, channels)


def _windows(eqn: Eqn) -> tuple[Window, ...]:
    """Along each spatial axis."""
    p, dims = eqn.params, eqn.params["dimension_numbers"]
    kernel, out = shape_of(eqn.invars[1]), shape_of(eqn.outvars[0])
    return tuple(
        # Old versions of JAX have paddings of NumPy integers, which differ from Python's as keys.
        Window(kernel[k], stride, (int(pads[0]), int(pads[1])), dilation, tap_spacing, out[o])
        for k, o, stride, pads, dilation, tap_spacing in zip(
            dims.rhs_spec[2:],
            dims.out_spec[2:],
            p["window_strides"],
            p["padding"],
            p["lhs_dilation"],
            p["rhs_dilation"],
            strict=True,
        )
    )


def _patches(eqn: Eqn, value: Wide, kernel: Det) -> Wide:
    """A fixed kernel, the same for every channel: patches, as local convolutions take them."""
    p, dims = eqn.params, eqn.params["dimension_numbers"]
    channel, out_channel = dims.lhs_spec[1], dims.out_spec[1]
    channels = shape_of(eqn.invars[0])[channel]
    if value.wide[channel] != channels or p["feature_group_count"] != channels or not kernel.static:
        raise NoLimitError(
            "a convolution with a fixed kernel that mixes channels: its units are not alike,"
        )
    k = np.moveaxis(np.broadcast_to(kernel.sides[0], shape_of(eqn.invars[1])), dims.rhs_spec[0], 0)
    k = k.reshape(channels, -1, *k.shape[1:])
    if np.any(np.ptp(k, axis=0)):
        raise NoLimitError(
            "a convolution with a fixed kernel that differs by channel: its units are not alike,"
        )
    one = np.moveaxis(k[0], 0, dims.rhs_spec[0])
    params = {**p, "feature_group_count": 1}
    apply = lambda _, z: eqn.primitive.bind(z, jnp.asarray(one, z.dtype), **params)
    shape = shape_after(lambda z: apply(0, z), value.shape)
    wide = tuple(channels if a == out_channel else 1 for a in range(len(shape)))
    out = algebra.mapped(value, Linear(apply, shape), wide)
    out.interleaved = shape[out_channel] > 1
    return out
