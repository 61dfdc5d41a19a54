"""Random numbers of the model's own: refused, or masks of dropout in expectation.

A mask of independent 0s and 1s, one for each unit of each example, multiplies a wide value: by the
law of large numbers only its first two moments count, and the second only where an example meets
itself at an entry with the same mask.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import CALLS, outside_traces
from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.values import (
    RANDOMNESS,
    Det,
    Joined,
    Masked,
    Noise,
    Param,
    Part,
    Shape,
    Term,
    Value,
    Wide,
    number,
)
from ntk_jax.jaxprs import Eqn, dtype_of, shape_of

GRID = 2**16  # even random bits of 8 can be told apart on it, and a rate to 5 digits
SHAPED = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")
OTHER = (
    "random numbers of the model's own are used other than as a mask of zeros on a wide value "
    "(dropout),"
)


@rule("noise")
def noise(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> Sequence[Value]:
    """An operation on random numbers: they stay random numbers, or are a mask that meets a value of
    the network.
    """
    name, met = eqn.primitive.name, [v for v in values if isinstance(v, Wide | Param | Joined)]
    if not met:
        return [_followed(eqn, values)] if len(eqn.outvars) == 1 else [Noise() for _ in eqn.outvars]
    if program.dropout != "expectation":
        raise NoLimitError(
            "the model draws random numbers of its own (dropout in training mode),",
            "Turn dropout off: deterministic=True, train=False or module.eval(), through the "
            "argument `call`; or take its mean over masks: infinite_width(..., "
            'dropout="expectation").',
        )
    masks = [v for v in values if isinstance(v, Noise)]
    if name not in ("select_n", "mul") or len(masks) != 1 or len(met) != 1:
        raise NoLimitError(OTHER)
    low, high, keep = _law(masks[0])
    if name == "select_n":
        zeros = [isinstance(c, Det) and c.is_zero for c in values[1:]]
        if values[0] is not masks[0] or len(zeros) != 2 or not any(zeros):
            raise NoLimitError(OTHER)
        keep, high = (keep, 1.0) if zeros[0] else (1 - keep, 1.0)
    elif low != 0:
        raise NoLimitError(OTHER)
    return [_masked(masks[0], met[0], keep, high)]


def _followed(eqn: Eqn, values: Sequence[Value]) -> Noise:
    """What an operation makes of random bits, as long as it does so entry by entry."""
    name, shape = eqn.primitive.name, shape_of(eqn.outvars[0])
    if name == "random_bits":
        return Noise(lambda bits: bits, shape, dtype_of(eqn.outvars[0]))
    sources = [v for v in values if isinstance(v, Noise)]
    others = [v.literal for v in values if isinstance(v, Det)]
    source = sources[0] if len(sources) == 1 else Noise()
    before = source.of_bits
    if before is None or source.shape is None or name in RANDOMNESS or None in others:
        return Noise()
    if name in SHAPED:
        reshaped = _reshaped(eqn, source.shape)
        return Noise() if reshaped is None else replace(source, shape=reshaped)
    operands = [shape_of(v) for v in eqn.invars]
    if name in CALLS or any(s not in ((), shape) and math.prod(s) != 1 for s in operands):
        return Noise()
    dtypes = [dtype_of(a) for a in eqn.invars]

    def after(bits: jax.Array) -> jax.Array:
        args = [v.literal if isinstance(v, Det) else before(bits) for v in values]
        arrays = [jnp.asarray(a, d) for a, d in zip(args, dtypes, strict=True)]
        return eqn.primitive.bind(*(jnp.broadcast_to(a, bits.shape) for a in arrays), **eqn.params)

    if name in ("lt", "le", "gt", "ge"):
        source = replace(source, nominal=float(others[0] or 0))
    return replace(source, of_bits=after)


def _reshaped(eqn: Eqn, shape: Shape) -> Shape | None:
    """The shape after axes of size 1 are added or dropped; repeated entries keep size 1."""
    new = shape_of(eqn.outvars[0])
    if eqn.primitive.name == "broadcast_in_dim":
        out = [1] * len(new)
        for a, d in zip(shape, eqn.params["broadcast_dimensions"], strict=True):
            out[d] = a
        return tuple(out)
    return new if shape == shape_of(eqn.invars[0]) else None


def _law(mask: Noise) -> tuple[float, float, float]:
    """(smaller value, larger value, probability of the larger) of random numbers that take two
    values.
    """
    if mask.of_bits is None or mask.nominal is None:
        raise NoLimitError(OTHER)
    values = np.asarray(outside_traces(_on_grid, mask.of_bits, mask.bits), float)
    low, high = float(values.min()), float(values.max())
    share = float(np.mean(values == high))
    # The share of the grid is off by the rounding of the bits: the rate itself is what they were
    # compared with.
    keep = next((p for p in (mask.nominal, 1 - mask.nominal) if abs(p - share) < 2 / GRID), None)
    if keep is None or not 0 < keep < 1 or set(np.unique(values)) != {low, high}:
        raise NoLimitError(OTHER)
    return low, high, keep


def _on_grid(of_bits: Callable[[jax.Array], jax.Array], dtype: np.dtype) -> jax.Array:
    """The values at evenly spaced bits."""
    width = np.iinfo(dtype).bits
    grid = (
        (np.arange(GRID, dtype=np.uint64) << np.uint64(width - 16))
        if width >= 16
        else np.arange(GRID) >> 8
    )
    with jax.numpy_dtype_promotion("standard"):
        return of_bits(jnp.asarray(grid.astype(dtype)))


def _masked(noise: Noise, value: Value, keep: float, high: float) -> Wide | Joined:
    """A value times `high` with probability `keep`, else 0: its mean, times a mask of mean 1."""
    if isinstance(value, Joined):
        if value.repeats > 1:
            raise NoLimitError(
                "dropout of flattened values that are joined along an infinite axis has no rule,"
            )
        parts: list[Part] = []
        for i, (size, part) in enumerate(zip(value.sizes, value.parts, strict=True)):
            shape = tuple(size if a == value.axis else s for a, s in enumerate(noise.shape or ()))
            mask = replace(noise, shape=shape, part=(*noise.part, i))
            parts.append(_masked(mask, part, keep, high))
        return replace(value, parts=parts)
    if not isinstance(value, Wide) or not any(w > 1 for w in value.wide):
        raise NoLimitError(
            "dropout acts on finitely many random entries, or on parameters: it does not average "
            "out,"
        )
    value = algebra.scaled(value, number(keep * high, len(value.wide)), value.wide)
    masked = Masked(value, (noise.origin, noise.part), _mask_shape(noise, value), keep)
    return Wide(value.shape, value.wide, [Term((masked,))])


def _mask_shape(noise: Noise, value: Wide) -> Shape:
    """The stored shape of a mask: 1 along infinite axes, where it is independent, and along those
    that share it.
    """
    if noise.shape is None or len(noise.shape) != len(value.wide):
        raise NoLimitError(OTHER)
    sizes = list(zip(noise.shape, value.wide, value.shape, strict=True))
    if any(w > 1 and s != w * stored for s, w, stored in sizes):
        raise NoLimitError(
            "all units of an infinite axis share one dropout mask: it does not average out,"
        )
    return tuple(1 if s == 1 else stored for s, _, stored in sizes)
