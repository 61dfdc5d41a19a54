"""Random numbers of the model's own: refused, or masks of dropout in expectation.

A mask of independent 0s and 1s, one for each unit of each example, multiplies a wide value: by the
law of large numbers only its first two moments count, and the second only where an example meets
itself at an entry with the same mask.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import CALLS, outside_traces
from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import RANDOMNESS, Interpreter, rule
from ntk_jax.infinite.flax.values.values import (
    Det,
    Joined,
    Masked,
    Noise,
    Param,
    Term,
    Wide,
    number,
)

GRID = 2**16
SHAPED = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "copy", "convert_element_type")


@rule("noise")
def noise(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """An operation on random numbers: they stay random numbers, or are a mask that meets a value of
    the network.
    """
    met = [v for v in values if isinstance(v, Wide | Param | Joined)]
    if not met:
        return [_followed(eqn, values)] if len(eqn.outvars) == 1 else [Noise() for _ in eqn.outvars]
    if program.dropout != "expectation":
        raise NoLimitError(
            "the model draws random numbers of its own (dropout in training mode),",
            "Turn dropout off: deterministic=True, train=False or module.eval(), through the "
            "argument `call`; or take its "
            'mean over masks: infinite_width(..., dropout="expectation").',
        )
    (mask,) = (
        [v for v in values if isinstance(v, Noise)]
        if eqn.primitive.name in ("select_n", "mul")
        else [None]
    )
    if mask is None or len(met) != 1:
        raise NoLimitError(OTHER)
    low, high, keep = _law(mask)
    if eqn.primitive.name == "select_n":
        which, *cases = values
        zeros = [isinstance(c, Det) and c.is_zero for c in cases]
        if which is not mask or len(cases) != 2 or not any(zeros):
            raise NoLimitError(OTHER)
        keep, high = (keep, 1.0) if zeros[0] else (1 - keep, 1.0)
    elif low != 0:
        raise NoLimitError(OTHER)
    return [_masked(mask, met[0], keep, high)]


OTHER = (
    "random numbers of the model's own are used other than as a mask of zeros on a wide value "
    "(dropout),"
)


def _followed(eqn: Any, values: list[Any]) -> Noise:
    """What an operation makes of random bits, as long as it does so entry by entry."""
    name = eqn.primitive.name
    out = eqn.outvars[0].aval
    if name == "random_bits":
        return Noise(lambda bits: bits, tuple(out.shape), out.dtype)
    sources = [v for v in values if isinstance(v, Noise)]
    if len(sources) != 1 or sources[0].of_bits is None or name in RANDOMNESS:
        return Noise()
    (source,) = sources
    others = [v.literal if isinstance(v, Det) else v for v in values]
    if any(v is None for v in others):
        return Noise()
    shape = source.shape
    if name in SHAPED and name not in ("copy", "convert_element_type"):
        shape = _reshaped(eqn, shape)
        if shape is None:
            return Noise()
        return replace(source, shape=shape)
    if name in CALLS or any(
        getattr(v.aval, "shape", ()) not in ((), out.shape) and np.prod(v.aval.shape) != 1
        for v in eqn.invars
    ):
        return Noise()
    before = source.of_bits

    def after(bits):
        args = [before(bits) if isinstance(v, Noise) else v for v in others]
        dtypes = [a.aval.dtype for a in eqn.invars]
        arrays = [
            jnp.broadcast_to(jnp.asarray(a, d), bits.shape)
            for a, d in zip(args, dtypes, strict=True)
        ]
        return eqn.primitive.bind(*arrays, **eqn.params)

    nominal = source.nominal
    if name in ("lt", "le", "gt", "ge"):
        nominal = next(float(v) for v in others if not isinstance(v, Noise))
    return replace(source, of_bits=after, nominal=nominal)


def _reshaped(eqn: Any, shape: Any) -> Any:
    """The shape after axes of size 1 are added or dropped; repeated entries keep size 1."""
    new = tuple(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "broadcast_in_dim":
        out = [1] * len(new)
        for a, d in zip(shape, eqn.params["broadcast_dimensions"], strict=True):
            out[d] = a
        return tuple(out)
    return new if shape == tuple(eqn.invars[0].aval.shape) else None


def _law(mask: Noise) -> tuple[float, float, float]:
    """(smaller value, larger value, probability of the larger) of random numbers that take two
    values.
    """
    if mask.of_bits is None or mask.nominal is None:
        raise NoLimitError(OTHER)
    values = np.asarray(outside_traces(_on_grid, mask.of_bits, mask.bits), float)
    low, high = float(values.min()), float(values.max())
    share = float(np.mean(values == high))
    keep = next((p for p in (mask.nominal, 1 - mask.nominal) if abs(p - share) < 2 / GRID), None)
    if keep is None or not 0 < keep < 1 or set(np.unique(values)) != {low, high}:
        raise NoLimitError(OTHER)
    return low, high, keep


def _on_grid(of_bits: Callable[[Any], Any], dtype: Any) -> Any:
    """The values at evenly spaced bits."""
    width = np.iinfo(dtype).bits
    grid = (
        (np.arange(GRID, dtype=np.uint64) << np.uint64(width - 16))
        if width >= 16
        else np.arange(GRID) >> 8
    )
    with jax.numpy_dtype_promotion("standard"):
        return of_bits(jnp.asarray(grid.astype(dtype)))


def _masked(noise: Noise, value: Any, keep: float, high: float) -> Any:
    """A value times `high` with probability `keep`, else 0: its mean, times a mask of mean 1."""
    if isinstance(value, Joined):
        if value.repeats > 1:
            raise NoLimitError(
                "dropout of flattened values that are joined along an infinite axis has no rule,"
            )
        parts = []
        for i, size in enumerate(value.sizes):
            shape = tuple(size if a == value.axis else s for a, s in enumerate(noise.shape or ()))
            parts.append(
                _masked(
                    replace(noise, shape=shape, part=(*noise.part, i)), value.parts[i], keep, high
                )
            )
        return replace(value, parts=parts)
    if not isinstance(value, Wide) or not any(w > 1 for w in value.wide):
        raise NoLimitError(
            "dropout acts on finitely many random entries, or on parameters: it does not average "
            "out,"
        )
    value = algebra.scaled(value, number(keep * high, len(value.wide)), value.wide)
    masked = Masked(value, (noise.origin, noise.part), _mask_shape(noise, value), keep)
    return Wide(value.shape, value.wide, [Term((masked,))])


def _mask_shape(noise: Noise, value: Wide) -> tuple[int, ...]:
    """The stored shape of a mask: 1 along infinite axes, where it is independent, and along those
    that share it.
    """
    if noise.shape is None or len(noise.shape) != len(value.wide):
        raise NoLimitError(OTHER)
    shape = []
    for s, w, own in zip(noise.shape, value.wide, value.shape, strict=True):
        if w > 1 and s != w * own:
            raise NoLimitError(
                "all units of an infinite axis share one dropout mask: it does not average out,"
            )
        shape.append(1 if s == 1 else own)
    return tuple(shape)
