"""Views of parameters: what can be done to one before it meets data, and its entries as wide
values.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.layouts import axis_groups
from ntk_jax.infinite.flax.rules.sampled import sampled
from ntk_jax.infinite.flax.values.fields import Entries
from ntk_jax.infinite.flax.values.values import Det, Factor, Param, Term, Wide, number, with_view


def param_arithmetic(name: str, values: list[Any]) -> Param | None:
    """A parameter scaled or shifted by a number; None if the operation is another."""
    (param, *more) = [v for v in values if isinstance(v, Param)]
    others = [v for v in values if not isinstance(v, Param)]
    if more or not all(isinstance(v, Det) for v in others):
        return None
    if any(v.literal is None for v in others) or param.factor is not None:
        return _multiplied(name, param, values, others)
    scale, shift = 1.0, 0.0
    if name == "neg":
        scale = -1.0
    elif name == "mul":
        scale = float(others[0].literal)
    elif name == "div" and values[0] is param:
        scale = 1 / float(others[0].literal)
    elif name in ("add", "add_any"):
        shift = float(others[0].literal)
    elif name == "sub":
        scale, shift = (
            (1.0, -float(others[0].literal))
            if values[0] is param
            else (-1.0, float(others[0].literal))
        )
    else:
        return None
    return with_view(
        param,
        mean=scale * param.mean + shift,
        variance=scale**2 * param.variance,
        eta=scale**2 * param.eta,
        box=(*param.box, (("scale", scale, shift), None, 0, 1)) if scale != 1 else param.box,
    )


def _multiplied(name: str, param: Param, values: list[Any], others: list[Det]) -> Param | None:
    """A parameter times a deterministic value, which waits for the wide value that both meet."""
    if name == "neg":
        others, name = [number(-1.0)], "mul"
    if name not in ("mul", "div") or (name == "div" and values[0] is not param):
        return None
    (other,) = others
    by = other if name == "mul" else inverse(other)
    return with_view(param, factor=by if param.factor is None else param.factor.times(by))


def inverse(d: Det) -> Det:
    """1 / d."""
    literal = None if d.literal is None else 1 / float(d.literal)
    sides = [1 / (np.asarray(a) if d.static else jnp.asarray(a)) for a in d.sides]
    return Det((sides[0], sides[1]), d.wide, literal, d.static)


def promoted(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """Parameters as values: along an axis where another operand is wide, their entries are
    units.
    """
    wides = [v.wide for v in values if isinstance(v, Wide)]
    rank = eqn.outvars[0].aval.ndim
    target = tuple(int(w) for w in np.max(wides, axis=0)) if wides else (1,) * rank
    return [entries(program, v, target) if isinstance(v, Param) else v for v in values]


def entries(program: Interpreter, param: Param, target: tuple[int, ...]) -> Any:
    """The entries of a parameter as a value next to one of multiplicities `target`."""
    rank = len(target)
    shape = (1,) * (rank - len(param.shape)) + param.shape
    if param.factor is not None:
        plain = entries(program, with_view(param, factor=None), target)
        factor = param.factor
        if any(
            w > 1 and size > 1 for w, size in zip(target[::-1], factor.shape[::-1], strict=False)
        ):
            raise NoLimitError(
                f"parameter {param.leaf} is multiplied by an array that differs along an infinite "
                "axis: its units are not alike,"
            )
        return (
            plain.times(factor)
            if isinstance(plain, Det)
            else algebra.scaled(plain, factor, plain.wide)
        )
    if param.frozen:
        return number(param.mean, rank)
    shared = [a for a, w in enumerate(target) if w > 1 and shape[a] != w]
    if shared or not shape:
        raise NoLimitError(
            f"the entries of parameter {param.leaf} are shared by all units of a wide axis: its "
            "gradient does not average out,",
            "Freeze it: learning_rates with 0 for this parameter, and a constant initializer.",
        )
    stored = tuple(1 if w > 1 else s for s, w in zip(shape, target, strict=True))
    g = Entries(
        param.leaf,
        stored,
        param.variance,
        param.eta,
        program.uses.add(param, "entries", param.axes),
    )
    wide = tuple(w if w > 1 else 1 for w in target)
    offset = None if param.mean == 0 else number(param.mean, rank)
    return Wide(stored, wide, [Term((Factor((g,)),))], offset)


def view(param: Param, eqn: Any) -> Param:
    """A parameter with its axes moved, added or cut.

    Raises:
        NoLimitError: another operation.
    """
    name, p = eqn.primitive.name, eqn.params
    if param.factor is not None:
        raise NoLimitError(
            f"parameter {param.leaf} times an array goes through `{name}` before it meets a wide "
            "value,"
        )
    if name == "transpose":
        at = p["permutation"]
        return with_view(
            param, shape=tuple(param.shape[i] for i in at), axes=tuple(param.axes[i] for i in at)
        )
    if name in ("reshape", "squeeze", "expand_dims"):
        return _reshaped(param, eqn.outvars[0].aval.shape)
    if name == "broadcast_in_dim":
        shape = [1] * len(p["shape"])
        axes: list[int | None] = [None] * len(p["shape"])
        for i, d in enumerate(p["broadcast_dimensions"]):
            shape[d], axes[d] = param.shape[i], param.axes[i]
        if any(f != s and s > 1 for f, s in zip(p["shape"], shape, strict=True)):
            raise NoLimitError(f"parameter {param.leaf} is repeated along an axis of its own,")
        return with_view(param, shape=tuple(shape), axes=tuple(axes))
    if (
        name == "rev" and not param.box
    ):  # read backwards, the entries are as independent, but another layout
        return with_view(
            param,
            axes=tuple(range(len(param.shape))),
            layout=(*param.layout, param.axes, ("rev", p["dimensions"])),
        )
    if name == "slice" and set(p["strides"] or (1,)) == {1}:
        return cut(param, p["start_indices"], p["limit_indices"])
    raise NoLimitError(f"parameter {param.leaf} goes through `{name}` before it meets data,")


def _reshaped(param: Param, new: tuple[int, ...]) -> Param:
    """A reshape that only adds or drops axes of size 1 keeps the axes; any other reads the leaf as
    a new shape.
    """
    kept = [a for a, s in zip(param.axes, param.shape, strict=True) if s > 1]
    if [s for s in new if s > 1] == [s for s in param.shape if s > 1]:
        rest = iter(kept)
        return with_view(param, shape=new, axes=tuple(next(rest) if s > 1 else None for s in new))
    axis_groups(param.shape, new)
    if param.box:
        raise NoLimitError(f"a part of parameter {param.leaf} is reshaped,")
    return with_view(
        param, shape=new, axes=tuple(range(len(new))), layout=(*param.layout, param.axes, new)
    )


def cut(param: Param, starts: Any, stops: Any) -> Param:
    """A block of a parameter."""
    box = list(param.box)
    for a, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if stop - start < param.shape[a]:
            if any(b[1] == param.axes[a] for b in box):
                raise NoLimitError(f"a part of a part of parameter {param.leaf} is taken,")
            box.append((param.layout, param.axes[a], int(start), int(stop)))
    shape = tuple(int(b) - int(a) for a, b in zip(starts, stops, strict=True))
    return with_view(param, shape=shape, box=tuple(box))


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
        return with_view(
            part,
            shape=tuple(shape),
            axes=tuple(range(len(shape))),
            layout=(*part.layout, tuple(shape)),
        )
    bounds = [(start, start + size) if a == axis else (0, s) for a, s in enumerate(param.shape)]
    return cut(param, *zip(*bounds, strict=True))


@rule("stop_gradient")
def stop_gradient(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """On random values it removes a part of the tangent kernel: only samples know which."""
    if program.moments.sampling is None or not isinstance(values[0], Wide):
        raise NoLimitError("stop_gradient acts on a random value,")
    return [
        sampled(program, lambda _, arrays: jax.lax.stop_gradient(arrays[0]), values, values[0].wide)
    ]
