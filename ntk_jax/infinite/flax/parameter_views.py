"""Views of parameters: what can be done to one before it meets data, and its entries as wide
values.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.layouts import axis_groups
from ntk_jax.infinite.flax.parameter_uses import Uses
from ntk_jax.infinite.flax.values import (
    Cut,
    Det,
    Entries,
    Param,
    Shape,
    Squares,
    Value,
    Wide,
    gaussian,
    number,
)
from ntk_jax.jaxprs import Eqn, shape_of


def param_arithmetic(name: str, values: Sequence[Value]) -> Param | None:
    """A parameter scaled, shifted or multiplied by a deterministic value; None if the operation is
    another.
    """
    (param, *more) = [v for v in values if isinstance(v, Param)]
    others = [v for v in values if isinstance(v, Det)]
    if len(more) == 1 and name == "mul":
        return _with_gain(param, more[0]) or _with_gain(more[0], param)
    if more or len(others) + 1 < len(values):
        return None
    first = values[0] is param
    if any(d.literal is None for d in others) or param.factor is not None:
        return _multiplied(name, param, first, others)
    by = float(others[0].literal or 0) if others else 0.0
    if name == "neg":
        return _scaled(param, -1.0, 0.0)
    if name == "mul" or (name == "div" and first):
        return _scaled(param, by if name == "mul" else 1 / by, 0.0)
    if name in ("add", "add_any"):
        return _scaled(param, 1.0, by)
    if name == "sub":
        return _scaled(param, 1.0, -by) if first else _scaled(param, -1.0, by)
    return None


def _scaled(param: Param, scale: float, shift: float) -> Param:
    """scale · param + shift."""
    # A scaled view is another use of the leaf than the leaf itself: its gradients have the scale.
    mark = [Cut(("scale", scale, shift), None, 0, 1)] if scale != 1 else []
    return replace(
        param,
        mean=scale * param.mean + shift,
        variance=scale**2 * param.variance,
        eta=scale**2 * param.eta,
        box=(*param.box, *mark),
    )


def _multiplied(name: str, param: Param, first: bool, others: Sequence[Det]) -> Param | None:
    """A parameter times a deterministic value, which waits for the wide value that both meet."""
    if name == "neg":
        others, name = [number(-1.0)], "mul"
    if name not in ("mul", "div") or (name == "div" and not first):
        return None
    by = others[0] if name == "mul" else inverse(others[0])
    return replace(param, factor=by if param.factor is None else param.factor.times(by))


def _with_gain(param: Param, gain: Param) -> Param | None:
    """A weight times a parameter that is the same along some of its axes; None for others."""
    if param.gain is not None or gain.gain is not None or gain.factor is not None:
        return None
    sizes = list(zip(param.shape, gain.shape, strict=True))
    fewer = math.prod(gain.shape) < math.prod(param.shape)
    return replace(param, gain=gain) if fewer and all(n in (1, s) for s, n in sizes) else None


def squares_of(eqn: Eqn, values: Sequence[Value]) -> Squares | None:
    """The squares of a parameter's entries; None if the operation is another."""
    name, param = eqn.primitive.name, values[0]
    itself = name == "mul" and param is values[1]
    if not (itself or name == "square" or (name == "integer_pow" and eqn.params["y"] == 2)):
        return None
    if not isinstance(param, Param) or param.factor is not None:
        return None
    return Squares(param, number(param.variance + param.mean**2))


def divided_by_norm(
    name: str, param: Param, norm: Squares, shape: Shape, first: bool
) -> Param | None:
    """A parameter divided by its own norm, of this `shape`; None for anything else."""
    own, summed = norm.param, norm.summed or ()
    same = (own.leaf, own.box, own.layout, own.axes) == (
        param.leaf,
        param.box,
        param.layout,
        param.axes,
    )
    kept = tuple(1 if a in summed else s for a, s in enumerate(param.shape))
    shape = (1,) * (len(kept) - len(shape)) + shape
    if not same or shape != kept or not (name == "mul" or (name == "div" and first)):
        return None
    by = float(norm.number.literal or 0)
    scaled = _scaled(param, by if name == "mul" else 1 / by, 0.0)
    axes = tuple(param.axes[a] for a in summed)
    return replace(scaled, normed=(param.layout, axes))


def check_norm(param: Param, infinite: Sequence[int]) -> None:
    """Raise for a weight divided by its norm, unless that is a sum over one of the axes along which
    the weight meets `infinite` ones.
    """
    if param.normed is None:
        return
    layout, axes = param.normed
    if layout != param.layout or not {param.axes[a] for a in infinite} & {*axes}:
        raise NoLimitError(
            f"weight {param.leaf} is divided by its norm (weight normalization, Salimans and "
            "Kingma 2016, arXiv:1602.07868), which is no sum over infinitely many inputs: of "
            "entries whose squares add up to 1, sums over few inputs are not Gaussian,",
            "Normalize weights of layers after the first, over all their inputs; or estimate with "
            "ntk_jax.monte_carlo_kernels.",
        )


def inverse(d: Det) -> Det:
    """1 / d."""
    inverted = d.mapped(lambda a: 1 / (np.asarray(a) if d.static else jnp.asarray(a)))
    return replace(inverted, literal=None if d.literal is None else 1 / float(d.literal))


def promoted(uses: Uses, eqn: Eqn, values: Sequence[Value]) -> list[Value]:
    """Parameters as values: along an axis where another operand is wide, their entries are
    units.
    """
    wides = [v.wide for v in values if isinstance(v, Wide)]
    rank = len(shape_of(eqn.outvars[0]))
    target = tuple(int(w) for w in np.max(wides, axis=0)) if wides else (1,) * rank
    return [entries(uses, v, target) if isinstance(v, Param) else v for v in values]


def entries(uses: Uses, param: Param, target: Shape) -> Wide | Det:
    """The entries of a parameter as a value next to one of multiplicities `target`."""
    if param.normed is not None:
        raise NoLimitError(
            f"parameter {param.leaf} is divided by its norm, and is no weight that sums over many "
            "entries,"
        )
    if param.gain is not None:
        raise NoLimitError(
            f"parameter {param.leaf} times {param.gain.leaf} meets a value before a product of "
            "matrices: a product of two random entries is not Gaussian,",
            "Multiply the value by one after the other.",
        )
    if param.factor is not None:
        return _multiple_of_entries(uses, param, param.factor, target)
    rank = len(target)
    if param.frozen:
        return number(param.mean, rank)
    shape = (1,) * (rank - len(param.shape)) + param.shape
    if not shape or any(w > 1 and s != w for s, w in zip(shape, target, strict=True)):
        raise NoLimitError(
            f"the entries of parameter {param.leaf} are shared by all units of a wide axis: its "
            "gradient does not average out,",
            "Freeze it: learning_rates with 0 for this parameter, and a constant initializer.",
        )
    stored = tuple(1 if w > 1 else s for s, w in zip(shape, target, strict=True))
    key = uses.add(param, "entries", param.axes)
    value = gaussian(Entries(param.leaf, stored, param.variance, param.eta, key), target)
    return replace(value, offset=None if param.mean == 0 else number(param.mean, rank))


def _multiple_of_entries(uses: Uses, param: Param, factor: Det, target: Shape) -> Wide | Det:
    plain = entries(uses, replace(param, factor=None), target)
    if any(w > 1 and s > 1 for w, s in zip(target[::-1], factor.shape[::-1], strict=False)):
        raise NoLimitError(
            f"parameter {param.leaf} is multiplied by an array that differs along an infinite "
            "axis: its units are not alike,"
        )
    if isinstance(plain, Det):
        return plain.times(factor)
    return algebra.scaled(plain, factor, plain.wide)


def check_alone(param: Param, operation: str) -> None:
    """Raise for a parameter that something waits to multiply."""
    if param.factor is not None or param.gain is not None:
        raise NoLimitError(
            f"parameter {param.leaf} times an array goes through `{operation}` before it meets a "
            "wide value,"
        )


def view(param: Param, eqn: Eqn) -> Param:
    """A parameter with its axes moved, added or cut.

    Raises:
        NoLimitError: another operation.
    """
    name, p = eqn.primitive.name, eqn.params
    check_alone(param, name)
    if name == "transpose":
        at = p["permutation"]
        return replace(
            param, shape=tuple(param.shape[i] for i in at), axes=tuple(param.axes[i] for i in at)
        )
    if name in ("reshape", "squeeze", "expand_dims"):
        return _reshaped(param, shape_of(eqn.outvars[0]))
    if name == "broadcast_in_dim":
        shape = [1] * len(p["shape"])
        axes: list[int | None] = [None] * len(p["shape"])
        for i, d in enumerate(p["broadcast_dimensions"]):
            shape[d], axes[d] = param.shape[i], param.axes[i]
        if any(f != s and s > 1 for f, s in zip(p["shape"], shape, strict=True)):
            raise NoLimitError(f"parameter {param.leaf} is repeated along an axis of its own,")
        return replace(param, shape=tuple(shape), axes=tuple(axes))
    if name == "rev" and not param.box:
        # Read backwards, the entries are as independent, but another layout.
        return replace(
            param,
            axes=tuple(range(len(param.shape))),
            layout=(*param.layout, param.axes, ("rev", p["dimensions"])),
        )
    if name == "slice" and set(p["strides"] or (1,)) == {1}:
        return cut(param, p["start_indices"], p["limit_indices"])
    raise NoLimitError(f"parameter {param.leaf} goes through `{name}` before it meets data,")


def _reshaped(param: Param, new: Shape) -> Param:
    """A reshape that only adds or drops axes of size 1 keeps the axes; any other reads the leaf as
    a new shape.
    """
    kept = [a for a, s in zip(param.axes, param.shape, strict=True) if s > 1]
    if [s for s in new if s > 1] == [s for s in param.shape if s > 1]:
        rest = iter(kept)
        return replace(param, shape=new, axes=tuple(next(rest) if s > 1 else None for s in new))
    axis_groups(param.shape, new)
    if param.box:
        raise NoLimitError(f"a part of parameter {param.leaf} is reshaped,")
    return replace(
        param, shape=new, axes=tuple(range(len(new))), layout=(*param.layout, param.axes, new)
    )


def cut(param: Param, starts: Sequence[int], stops: Sequence[int]) -> Param:
    """A block of a parameter."""
    check_alone(param, "slice")
    box = list(param.box)
    for a, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if stop - start < param.shape[a]:
            if any(b.axis == param.axes[a] for b in box):
                raise NoLimitError(f"a part of a part of parameter {param.leaf} is taken,")
            box.append(Cut(param.layout, param.axes[a], int(start), int(stop)))
    shape = tuple(int(b) - int(a) for a, b in zip(starts, stops, strict=True))
    return replace(param, shape=shape, box=tuple(box))


def cut_of_each(param: Param, axis: int, start: int, size: int, repeats: int) -> Param:
    """The entries start to start + size of an axis; for `repeats` above 1 its part in each of that
    many equal blocks.
    """
    if repeats > 1:
        shape = list(param.shape)
        blocks = [*shape[:axis], repeats, shape[axis] // repeats, *shape[axis + 1 :]]
        start, stop = start // repeats, (start + size) // repeats
        bounds = [(start, stop) if a == axis + 1 else (0, s) for a, s in enumerate(blocks)]
        part = cut(_reshaped(param, tuple(blocks)), *zip(*bounds, strict=True))
        shape[axis] = size
        return replace(
            part,
            shape=tuple(shape),
            axes=tuple(range(len(shape))),
            layout=(*part.layout, tuple(shape)),
        )
    bounds = [(start, start + size) if a == axis else (0, s) for a, s in enumerate(param.shape)]
    return cut(param, *zip(*bounds, strict=True))
