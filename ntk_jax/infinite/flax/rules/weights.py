"""A wide value is born where a random weight is contracted with a value: matrix products,
convolutions, embeddings.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.moments.contractions import ConvContraction, DotContraction
from ntk_jax.infinite.flax.rules.averages import inner_product
from ntk_jax.infinite.flax.values.fields import Weight
from ntk_jax.infinite.flax.values.linear import Linear
from ntk_jax.infinite.flax.values.values import Det, Param, Wide, gaussian


@rule("dot_general")
def dot_general(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """A product of matrices: with a weight, with a constant, or of two wide values."""
    params = [isinstance(v, Param) for v in values]
    if all(params):
        raise NoLimitError(
            "two parameters are multiplied with each other: a product of weights is not Gaussian,"
        )
    if any(params):
        return [with_weight(program, eqn, values, params.index(True))]
    if all(isinstance(v, Wide) for v in values):
        return [inner_product(program, eqn, values)]
    return [with_constant(eqn, values)]


def with_weight(program: Interpreter, eqn: Any, values: list[Any], at: int) -> Any:
    """A contraction of a value with a weight, the operand number `at`."""
    contract, batch = eqn.params["dimension_numbers"]
    param, value = values[at], values[1 - at]
    pc, hc = contract[at], contract[1 - at]
    pb, hb = batch[at], batch[1 - at]
    full = eqn.invars[1 - at].aval.shape
    value, wide = _checked_input(program, param, value, full)
    stored = tuple(s // w for s, w in zip(full, wide, strict=True))
    free = tuple(a for a in range(len(full)) if a not in hc and a not in hb)
    if any(wide[a] > 1 for a in (*free, *hb)):
        raise NoLimitError(
            "a weight is contracted with a value of which another axis is infinite (weights that "
            "mix positions for every "
            "channel, or differ by channel): its units are not independent,"
        )
    units = math.prod(wide[a] for a in hc)
    _check_width(value, units)
    order = sorted(range(len(pc)), key=lambda i: _axis(param, pc[i]))
    hc = tuple(hc[i] for i in order)
    pc = tuple(pc[i] for i in order)
    border = sorted(range(len(pb)), key=lambda i: i)
    contraction = DotContraction(stored, hc, tuple(hb[i] for i in border), free, units)
    new = [s for a, s in enumerate(param.shape) if a not in pc and a not in pb]
    lead = tuple(stored[a] for a in hb)
    free_shape = tuple(stored[a] for a in free)
    ones = (1,) * len(new)
    parts = (ones, free_shape) if at == 0 else (free_shape, ones)
    shape = lead + parts[0] + parts[1]
    counts = (tuple(new), (1,) * len(free)) if at == 0 else ((1,) * len(free), tuple(new))
    axes = tuple(_axis(param, a) for a in pc)
    key = program.uses.add(param, "weight", (axes, tuple(_axis(param, a) for a in pb)))
    g = Weight(param.leaf, shape, param.variance, param.eta, key, value, units, contraction)
    return gaussian(g, (1,) * len(hb) + counts[0] + counts[1])


def _axis(param: Param, a: int) -> int:
    axis = param.axes[a]
    return -1 - a if axis is None else axis


def _checked_input(
    program: Interpreter, param: Param, value: Any, full: tuple[int, ...]
) -> tuple[Any, tuple[int, ...]]:
    """The value that meets a weight, and its multiplicities."""
    if param.factor is not None:
        raise NoLimitError(f"weight {param.leaf} is multiplied by an array before it is used,")
    if param.mean != 0:
        raise NoLimitError(
            f"the entries of weight {param.leaf} have mean {param.mean:.3g} at initialization: its "
            "products grow with the width,",
            "Initialize weights with mean 0, or give init_stats.",
        )
    if isinstance(value, Wide):
        if value.terms is None:
            value.random  # noqa: B018 - raises
        if not value.terms and value.offset is not None:
            value = value.offset
        else:
            return value, value.wide
    return Det(value.sides, (1,) * len(full), value.literal, value.static), (1,) * len(full)


def _check_width(value: Any, units: int) -> None:
    if isinstance(value, Wide) and units == 1 and not value.degenerate:
        raise NoLimitError(
            "a weight is contracted with finitely many random entries (a layer of one unit, or "
            "positions): the sum is "
            "not Gaussian,"
        )


def with_constant(eqn: Any, values: list[Any]) -> Wide:
    """A product with a constant matrix: a linear map over finite axes."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    left = isinstance(values[1], Wide)
    value, d = (values[1], values[0]) if left else (values[0], values[1])
    vc, vb, db = (rc, rb, lb) if left else (lc, lb, rb)
    if any(value.wide[a] > 1 for a in vc):
        raise NoLimitError(
            "an infinite axis is contracted with a fixed array: its units are not alike under it,",
            "Use a parameter in its place, or a mean over the axis.",
        )
    shape = eqn.invars[0 if left else 1].aval.shape
    cuts = []
    for a, size in enumerate(shape):
        shared = a in db and value.wide[vb[list(db).index(a)]] > 1
        if shared and d.shape and d.shape[a] > 1:
            raise NoLimitError("a fixed array differs along an infinite axis,")
        cuts.append(1 if shared else size)
    sides = [jnp.broadcast_to(jnp.asarray(s), tuple(cuts)) for s in d.sides]
    numbers = eqn.params["dimension_numbers"]

    def apply(side, z):
        m = sides[side].astype(z.dtype)
        return jax.lax.dot_general(*((m, z) if left else (z, m)), numbers, precision="highest")

    out = jax.eval_shape(
        lambda z: apply(0, z), jax.ShapeDtypeStruct(value.shape, jnp.zeros(()).dtype)
    ).shape
    full = eqn.outvars[0].aval.shape
    order = [*vb, *(a for a in range(len(value.wide)) if a not in vb and a not in vc)]
    kept = len(full) - len(order)
    wide_free = [value.wide[a] for a in order[len(vb) :]]
    lead = [value.wide[a] for a in vb]
    wide = (*lead, *([1] * kept), *wide_free) if left else (*lead, *wide_free, *([1] * kept))
    return algebra.mapped(value, Linear(apply, tuple(out), None), wide)


@rule("conv_general_dilated")
def convolution(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """A convolution with a weight."""
    value, param = values
    p, (full, kernel) = eqn.params, (a.aval.shape for a in eqn.invars)
    dims, groups = p["dimension_numbers"], p["feature_group_count"]
    if isinstance(value, Wide) and isinstance(param, Det):
        return [_patches(eqn, value, param)]
    if isinstance(value, Param) or not isinstance(param, Param):
        raise NoLimitError("a convolution whose kernel is not a parameter has no rule,")
    if p["batch_group_count"] != 1:
        raise NoLimitError("a convolution grouped by batch has no rule,")
    value, wide = _checked_input(program, param, value, full)
    channel = dims.lhs_spec[1]
    if any(w > 1 for a, w in enumerate(wide) if a != channel):
        raise NoLimitError("a convolution over an infinite axis has no rule,")
    if groups > 1 and wide[channel] == 1:
        raise NoLimitError(
            "a grouped convolution of finitely many channels: its outputs see different inputs,"
        )
    if groups > 1 and wide[channel] // groups < 2:
        raise NoLimitError(
            "a depthwise convolution: each output sees one channel, and is not Gaussian,"
        )
    _check_width(value, wide[channel])
    if (
        param.mean == 0
        and len(value.wide)
        and wide[channel] == 1
        and isinstance(value, Wide)
        and not value.degenerate
    ):
        raise NoLimitError("a convolution over a single random channel is not Gaussian,")
    stored = tuple(s // w for s, w in zip(full, wide, strict=True))
    out = eqn.outvars[0].aval.shape
    windows = tuple(
        (
            kernel[k],
            stride,
            (int(pads[0]), int(pads[1])),
            dilation,
            taps,
            out[o],
        )  # NumPy integers in old versions
        for k, o, stride, pads, dilation, taps in zip(
            dims.rhs_spec[2:],
            dims.out_spec[2:],
            p["window_strides"],
            p["padding"],
            p["lhs_dilation"],
            p["rhs_dilation"],
            strict=True,
        )
    )
    units = wide[channel] // groups
    contraction = ConvContraction(
        stored, tuple(dims.lhs_spec), tuple(dims.out_spec), windows, units
    )
    shape, counts = list(out), [1] * len(out)
    shape[dims.out_spec[1]], counts[dims.out_spec[1]] = 1, out[dims.out_spec[1]]
    axes = tuple(_axis(param, a) for a in dims.rhs_spec)
    key = program.uses.add(param, "convolution", (axes, windows, groups))
    g = Weight(param.leaf, tuple(shape), param.variance, param.eta, key, value, units, contraction)
    return [gaussian(g, counts)]


def _patches(eqn: Any, value: Wide, kernel: Det) -> Wide:
    """A fixed kernel, the same for every channel: patches, as local convolutions take them."""
    p, dims, full = eqn.params, eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    channel, channels = dims.lhs_spec[1], full[dims.lhs_spec[1]]
    if value.wide[channel] != channels or p["feature_group_count"] != channels or not kernel.static:
        raise NoLimitError(
            "a convolution with a fixed kernel that mixes channels: its units are not alike,"
        )
    k = np.moveaxis(np.broadcast_to(kernel.sides[0], eqn.invars[1].aval.shape), dims.rhs_spec[0], 0)
    k = k.reshape(channels, -1, *k.shape[1:])
    if np.any(np.ptp(k, axis=0)):
        raise NoLimitError(
            "a convolution with a fixed kernel that differs by channel: its units are not alike,"
        )
    one = np.moveaxis(k[0], 0, dims.rhs_spec[0])
    params = {**p, "feature_group_count": 1}
    apply = lambda _, z: eqn.primitive.bind(z, jnp.asarray(one, z.dtype), **params)
    shape = tuple(
        jax.eval_shape(
            lambda z: apply(0, z), jax.ShapeDtypeStruct(value.shape, jnp.zeros(()).dtype)
        ).shape
    )
    wide = tuple(channels if a == dims.out_spec[1] else 1 for a in range(len(shape)))
    out = algebra.mapped(value, Linear(apply, shape, None), wide)
    out.interleaved = shape[dims.out_spec[1]] > 1
    return out


def embedding(program: Interpreter, eqn: Any, param: Param, indices: Det) -> Wide:
    """Rows of a table: the product of one-hot vectors with it."""
    p, table = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    sizes, out = eqn.params["slice_sizes"], eqn.outvars[0].aval.shape
    if (
        len(table) != 2
        or p.start_index_map != (0,)
        or p.collapsed_slice_dims != (0,)
        or sizes != (1, table[1])
    ):
        raise NoLimitError(
            f"parameter {param.leaf} is indexed in a way that has no rule (only rows of a table "
            "do),"
        )
    if p.offset_dims != (len(out) - 1,):
        raise NoLimitError(f"the rows of table {param.leaf} are not the last axis of the result,")
    full = eqn.invars[1].aval.shape
    clipped = [
        jnp.clip(jnp.broadcast_to(jnp.asarray(s), full)[..., 0], 0, table[0] - 1)
        for s in indices.sides
    ]
    hot = [jax.nn.one_hot(s, table[0], dtype=program.moments.dtype) for s in clipped]
    value = Det((hot[0], hot[1]), (1,) * hot[0].ndim)
    _checked_input(program, param, value, hot[0].shape)
    stored = tuple(hot[0].shape)
    contraction = DotContraction(stored, (len(stored) - 1,), (), tuple(range(len(stored) - 1)), 1)
    key = program.uses.add(param, "weight", ((_axis(param, 0),), ()))
    shape = (*stored[:-1], 1)
    g = Weight(param.leaf, shape, param.variance, param.eta, key, value, 1, contraction)
    return gaussian(g, (*(1 for _ in stored[:-1]), table[1]))
