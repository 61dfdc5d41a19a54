"""Values one after the other along an axis, finite or wide."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.parameter_uses import Uses
from ntk_jax.infinite.flax.parameter_views import check_alone, entries
from ntk_jax.infinite.flax.values import (
    Det,
    Joined,
    Key,
    Linear,
    Param,
    Part,
    Shape,
    Term,
    Value,
    Wide,
    both_sides,
    then,
)


def with_size(shape: Shape, axis: int | None, size: int) -> Shape:
    """The shape with another size along one axis."""
    return tuple(size if a == axis else s for a, s in enumerate(shape))


def side_by_side(values: Sequence[Value], axis: int, shapes: Sequence[Shape]) -> Joined:
    """Values along an infinite axis, or parameters along one of theirs; those that are joined
    already bring their parts.
    """
    parts: list[Part] = []
    sizes: list[int] = []
    for v, shape in zip(values, shapes, strict=True):
        if isinstance(v, Joined):
            if v.axis != axis or v.repeats > 1:
                raise NoLimitError("values joined along different infinite axes meet,")
            parts += v.parts
            sizes += v.sizes
        elif isinstance(v, Det | Param | Wide):
            parts.append(v)
            sizes.append(shape[axis])
    params = [isinstance(v, Param) for v in parts]
    if any(params) and not all(params):
        raise NoLimitError("a parameter is joined to a wide value,")
    return Joined(axis, tuple(sizes), parts)


def joined(
    uses: Uses,
    dtype: np.dtype,
    values: Sequence[Value],
    axis: int,
    shapes: Sequence[Shape],
    out: Shape,
) -> Wide:
    """Values of full `shapes` one after the other along a finite axis."""
    parts, wide = _alike(uses, values, axis)
    stored = [tuple(s // w for s, w in zip(shape, wide, strict=True)) for shape in shapes]
    shape = tuple(s // w for s, w in zip(out, wide, strict=True))
    starts = np.cumsum([0, *(s[axis] for s in stored[:-1])]).tolist()
    found = [(i, t) for i, v in enumerate(parts) if isinstance(v, Wide) for t in v.random]
    terms = [_places(g, axis, stored, starts, shape) for g in algebra.by_law(found)]
    offsets = [v if isinstance(v, Det) else v.offset for v in parts]
    if all(d is None or d.is_zero for d in offsets):
        return Wide(shape, wide, algebra.tidy(terms, shape))

    def joint(side: int) -> jax.Array:
        arrays = [0 if d is None else d.sides[side] for d in offsets]
        full = [
            jnp.broadcast_to(jnp.asarray(a, dtype), s) for a, s in zip(arrays, stored, strict=True)
        ]
        return jnp.concatenate(full, axis=axis)

    return Wide(shape, wide, algebra.tidy(terms, shape), both_sides(joint, wide))


def _alike(uses: Uses, values: Sequence[Value], axis: int) -> tuple[list[Wide | Det], Shape]:
    """The values, and their common multiplicities."""
    wides = [v.wide for v in values if isinstance(v, Wide)]
    if not wides:
        raise NoLimitError("parameters are joined before they meet data,")
    wide = tuple(int(w) for w in np.max(wides, axis=0))
    parts = [entries(uses, v, wide) if isinstance(v, Param) else v for v in values]
    found = [v for v in parts if isinstance(v, Wide | Det)]
    if wide[axis] > 1:
        raise NoLimitError("values are joined along an infinite axis: that has no rule yet,")
    if any(v.wide != wide for v in found if isinstance(v, Wide)):
        raise NoLimitError("a finite and an infinite axis are joined with each other,")
    fixed = [v.shape for v in found if isinstance(v, Det)]
    if any(w > 1 and s[a] > 1 for s in fixed for a, w in enumerate(wide)):
        raise NoLimitError(
            "a fixed array that differs along an infinite axis is joined with wide values,"
        )
    return found, wide


def _places(
    group: Sequence[tuple[int, Term]],
    axis: int,
    stored: Sequence[Shape],
    starts: Sequence[int],
    shape: Shape,
) -> Term:
    """The places that one Gaussian (or product of functions) takes in the result."""
    maps: list[tuple[int, Linear | None]] = []
    for i, t in group:
        spread = algebra.broadcasting(t.shape, stored[i])
        maps.append((starts[i], t.map if spread is None else then(t.map, spread)))
    keys = [(start, () if m is None else m.key) for start, m in maps]
    once = len(dict(keys)) == len(keys) and all(k is not None for _, k in keys)
    key: Key | None = (("join", axis, shape, tuple(keys)),) if once else None

    def apply(side: int, z: jax.Array) -> jax.Array:
        total: jax.Array | None = None
        for start, m in maps:
            piece = z if m is None else m.apply(side, z)
            config = [(0, 0, 0)] * piece.ndim
            config[axis] = (start, shape[axis] - start - piece.shape[axis], 0)
            piece = jax.lax.pad(piece, jnp.zeros((), piece.dtype), config)
            total = piece if total is None else total + piece
        assert total is not None
        return total

    return algebra.map_term(Term(group[0][1].factors), Linear(apply, shape, key))


def with_axis(value: Det | Param | Wide, axis: int) -> Det | Param | Wide:
    """A value with a new axis of size 1."""
    insert = lambda s, new: (*s[:axis], new, *s[axis:])
    if isinstance(value, Det):
        expand = np.expand_dims if value.static else jnp.expand_dims
        return value.mapped(lambda a: expand(a, axis), insert(value.wide, 1))
    shape = insert(value.shape, 1)
    if isinstance(value, Param):
        check_alone(value, "stack")
        return replace(value, shape=shape, axes=insert(value.axes, None))
    by = Linear(lambda _, z: jnp.expand_dims(z, axis), shape, (("axis", axis, value.shape),))
    return algebra.mapped(value, by, insert(value.wide, 1))
