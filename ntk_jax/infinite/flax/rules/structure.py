"""Entries moved, repeated, cut and joined: linear maps over finite axes, and parts of an infinite
one.
"""

from collections.abc import Hashable, Sequence

import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.joining import joined, side_by_side
from ntk_jax.infinite.flax.layouts import LAYOUTS, Layout
from ntk_jax.infinite.flax.parameter_views import cut, view
from ntk_jax.infinite.flax.scores import check_heads
from ntk_jax.infinite.flax.values import (
    Det,
    Factor,
    Joined,
    Linear,
    Masked,
    Param,
    Segment,
    Shape,
    Term,
    Value,
    Wide,
)
from ntk_jax.jaxprs import Eqn, shape_of

Tag = tuple[Hashable, int, int]
"""(which axis, start, stop) of a part of an infinite axis; or in which order infinite axes are."""


@rule("layout")
def layout(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> list[Value]:
    """Any operation of `layouts.py` on a random value."""
    (value, *others), name = values, eqn.primitive.name
    if isinstance(value, Param):
        return [view(value, eqn)]
    if not isinstance(value, Wide) or any(not isinstance(v, Det) for v in others):
        raise NoLimitError(f"`{name}` with a random second operand has no rule,")
    if name == "pad" and not all(isinstance(v, Det) and v.is_zero for v in others):
        raise NoLimitError("a random value is padded with something other than zeros,")
    if name == "slice":
        p = eqn.params
        for a, w in enumerate(value.wide):
            part = (p["start_indices"][a], p["limit_indices"][a])
            if w > 1 and part != (0, shape_of(eqn.invars[0])[a]):
                return [_part_of_wide(value, eqn, a, *part)]
    if name == "transpose":
        value = _in_order(value, eqn.params["permutation"])
    return [_moved(value, LAYOUTS[name](eqn, value.shape, value.wide))]


def _in_order(value: Wide, permutation: Sequence[int]) -> Wide:
    """The value before its axes move; if infinite ones change places, as one of other units: it has
    no moment with what has them in another order.
    """
    infinite = [a for a in permutation if value.wide[a] > 1]
    if infinite == sorted(infinite):
        return value
    order = (("order", value.wide, tuple(infinite)), 0, 1)
    return _of_units(value, order, value.wide)


def _moved(value: Wide, found: Layout) -> Wide:
    # Entries that stay in place need no map, behind which a nonlinearity would see no function of
    # Gaussians any more.
    if found.key != ():
        by = Linear(lambda _, z: found.apply(z), found.shape, found.key, scale=1.0)
        out = algebra.mapped(value, by, found.wide)
    else:
        offset = value.offset
        if offset is not None and offset.literal is None and len(offset.shape) != len(found.shape):
            spread = lambda s: jnp.broadcast_to(jnp.asarray(s), found.shape)
            offset = offset.mapped(spread, found.wide)
        out = Wide(found.shape, found.wide, value.random, offset)
    out.interleaved = found.interleaved
    return out


def _part_of_wide(value: Wide, eqn: Eqn, axis: int, start: int, stop: int) -> Wide:
    """A part of an infinite axis: the same law, independent of the other parts."""
    p, full = eqn.params, shape_of(eqn.invars[0])
    if set(p["strides"] or (1,)) != {1} or value.shape[axis] != 1:
        raise NoLimitError("an infinite axis is cut into interleaved parts,")
    others = [a for a in range(len(full)) if a != axis]
    if any((p["start_indices"][a], p["limit_indices"][a]) != (0, full[a]) for a in others):
        raise NoLimitError(
            "a finite and an infinite axis are cut at once,", "Cut one after the other."
        )
    return _units(value, axis, start, stop)


def _units(value: Wide, axis: int, start: int, stop: int) -> Wide:
    """The value of the units from start to stop of an axis."""
    wide = tuple(stop - start if a == axis else w for a, w in enumerate(value.wide))
    return _tagged(value, ((value.wide, axis), start, stop), wide)


def _tagged(value: Wide, tag: Tag, wide: Shape) -> Wide:
    check_heads(value)
    return _of_units(value, tag, wide)


def _of_units(value: Wide, tag: Tag, wide: Shape) -> Wide:
    terms = [Term(tuple(_part(f, tag, wide) for f in t.factors), t.map) for t in value.random]
    return Wide(value.shape, wide, terms, value.offset)


def _part(f: Factor, tag: Tag, wide: Shape) -> Factor:
    if isinstance(f, Masked):
        # Other units have other entries of the mask, hence its tag as well.
        return Masked(_of_units(f.value, tag, wide), (f.source, tag), f.mask_shape, f.keep)
    return Factor(tuple(Segment(g, tag) for g in f.gaussians), f.node, f.operands, f.sampled)


@rule("split")
def split(program: Interpreter, eqn: Eqn, values: Sequence[Wide | Param]) -> list[Wide | Param]:
    """Consecutive parts along one axis."""
    (value,), axis, sizes = values, eqn.params["axis"], [int(s) for s in eqn.params["sizes"]]
    stops = np.cumsum(sizes).tolist()
    bounds = [(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
    return [_consecutive(value, axis, start, stop) for start, stop in bounds]


def _consecutive(value: Wide | Param, axis: int, start: int, stop: int) -> Wide | Param:
    """The entries start to stop of an axis."""
    sizes = tuple(stop - start if a == axis else s for a, s in enumerate(value.shape))
    if isinstance(value, Param):
        starts = [start if a == axis else 0 for a in range(len(sizes))]
        return cut(value, starts, [a + s for a, s in zip(starts, sizes, strict=True)])
    if value.wide[axis] > 1:
        if value.shape[axis] != 1:
            raise NoLimitError("a partly infinite axis is split,")
        return _units(value, axis, start, stop)
    at = np.arange(start, stop)
    key = (("take", axis, value.shape, tuple(at.tolist())),)
    by = Linear(lambda _, z: jnp.take(z, at, axis=axis), sizes, key)
    return algebra.mapped(value, by, value.wide)


@rule("concatenate")
def concatenate(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> list[Wide | Joined]:
    """Values one after the other along an axis."""
    axis, shapes = eqn.params["dimension"], [shape_of(a) for a in eqn.invars]
    infinite = (isinstance(v, Joined) or (isinstance(v, Wide) and v.wide[axis] > 1) for v in values)
    if any(infinite) or all(isinstance(v, Param) for v in values):
        return [side_by_side(values, axis, shapes)]
    out = shape_of(eqn.outvars[0])
    return [joined(program.uses, program.moments.dtype, values, axis, shapes, out)]
