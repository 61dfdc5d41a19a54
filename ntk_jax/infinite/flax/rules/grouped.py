"""Convolutions whose channels meet in groups: depthwise ones, and those of a few given channels."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter
from ntk_jax.infinite.flax.joining import with_size
from ntk_jax.infinite.flax.moments.contractions import Window
from ntk_jax.infinite.flax.parameter_views import cut, entries
from ntk_jax.infinite.flax.products import product
from ntk_jax.infinite.flax.values import Det, Joined, Linear, Param, Part, Shape, Wide
from ntk_jax.jaxprs import Eqn, dtype_of, new_variables, shape_of


def depthwise(
    program: Interpreter, eqn: Eqn, value: Wide, param: Param, windows: Sequence[Window]
) -> Wide:
    """z_c(p) = sum over taps t of w_ct h_c(p + t): of a channel c, with numbers w of its own.

    Not Gaussian, but independent and alike over channels: what a linear layer makes of it is
    Gaussian with its second moments (Novak et al. 2019, arXiv:1810.05148, for sums over channels).
    """
    dims, full = eqn.params["dimension_numbers"], shape_of(eqn.outvars[0])
    channel, out_channel, of_kernel = dims.out_spec[1], dims.rhs_spec[0], dims.rhs_spec[2:]
    wide = tuple(s if a == channel else 1 for a, s in enumerate(full))
    found = []
    for taps in itertools.product(*(range(w.taps) for w in windows)):
        starts = [0] * len(full)
        for a, t in zip(of_kernel, taps, strict=True):
            starts[a] = t
        size = lambda a, n: n if a == out_channel else 1
        stops = [s + size(a, n) for a, (s, n) in enumerate(zip(starts, param.shape, strict=True))]
        tap = cut(param, starts, stops)
        axes = tuple(tap.axes[out_channel] if a == channel else None for a in range(len(full)))
        weight = entries(program.uses, replace(tap, shape=wide, axes=axes), wide)
        moved = algebra.mapped(value, _under_tap(eqn, value.shape, windows, taps), wide)
        if isinstance(weight, Det):
            found.append(algebra.scaled(moved, weight, wide))
        else:
            found.append(product(moved, weight, wide, program.related))
    return reduce(lambda x, y: algebra.added(x, y, wide), found)


def _under_tap(eqn: Eqn, shape: Shape, windows: Sequence[Window], taps: Sequence[int]) -> Linear:
    """The entries of a value of stored `shape` that one tap meets at all places."""
    dims, padding = eqn.params["dimension_numbers"], [(0, 0, 0)] * len(shape)
    starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
    for a, window, t in zip(dims.lhs_spec[2:], windows, taps, strict=True):
        padding[a] = (*window.padding, window.spacing - 1)
        starts[a], steps[a] = t * window.tap_spacing, window.stride
        stops[a] = starts[a] + window.stride * (window.length - 1) + 1
    order = [dims.lhs_spec[dims.out_spec.index(a)] for a in range(len(shape))]

    def apply(side: int, z: jax.Array) -> jax.Array:
        padded = lax.pad(z, jnp.zeros((), z.dtype), padding)
        return lax.slice(padded, starts, stops, steps).transpose(order)

    kept = [len(range(a, b, n)) for a, b, n in zip(starts, stops, steps, strict=True)]
    key = (("tap", tuple(taps), tuple(windows), tuple(order), shape),)
    return Linear(apply, tuple(kept[a] for a in order), key, scale=1.0)


def by_group(program: Interpreter, eqn: Eqn, value: Det, param: Param) -> Joined:
    """Of finitely many given channels: one convolution for each group, with outputs of its own."""
    dims, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    full, kernel, out = shape_of(eqn.invars[0]), shape_of(eqn.invars[1]), shape_of(eqn.outvars[0])
    channel, of_kernel, out_channel = dims.lhs_spec[1], dims.rhs_spec[0], dims.out_spec[1]
    inputs, outputs = full[channel] // groups, out[out_channel] // groups
    if outputs == 1:
        raise NoLimitError(
            "a depthwise convolution of finitely many given channels has one output for each: no "
            "sum over many channels makes what follows Gaussian (Novak et al. 2019, "
            "arXiv:1810.05148),",
            "Give each channel many outputs, or put a convolution of all channels before.",
        )
    shapes = [with_size(full, channel, inputs), with_size(kernel, of_kernel, outputs)]
    shapes.append(with_size(out, out_channel, outputs))
    variables = new_variables(shapes, [dtype_of(v) for v in (*eqn.invars, *eqn.outvars)])
    params = {**eqn.params, "feature_group_count": 1}
    group = eqn.replace(invars=[*variables[:-1]], outvars=variables[-1:], params=params)
    parts: list[Part] = []
    for i in range(groups):
        at = np.arange(i * inputs, (i + 1) * inputs)
        take = lambda s, at=at: jnp.take(jnp.broadcast_to(jnp.asarray(s), full), at, axis=channel)
        starts = [i * outputs if a == of_kernel else 0 for a in range(len(kernel))]
        stops = [s + n for s, n in zip(starts, shapes[1], strict=True)]
        (part,) = program.step(group, [value.mapped(take), cut(param, starts, stops)])
        parts.append(cast(Wide, part))
    return Joined(out_channel, (outputs,) * groups, parts)
