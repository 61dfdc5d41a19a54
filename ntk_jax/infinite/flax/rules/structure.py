"""Entries moved, repeated, picked and joined: linear maps over finite axes, and parts of an
infinite one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.layouts import LAYOUTS
from ntk_jax.infinite.flax.rules.attention import check_apart
from ntk_jax.infinite.flax.rules.parameters import cut, entries, view
from ntk_jax.infinite.flax.rules.weights import embedding
from ntk_jax.infinite.flax.values import linear
from ntk_jax.infinite.flax.values.fields import Segment
from ntk_jax.infinite.flax.values.linear import Linear
from ntk_jax.infinite.flax.values.values import Det, Factor, Joined, Masked, Param, Term, Wide


@rule("layout")
def layout(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """Any operation of `layouts.py` on a random value."""
    value = values[0]
    if isinstance(value, Param):
        return [view(value, eqn)]
    if any(not isinstance(v, Det) for v in values[1:]):
        raise NoLimitError(f"`{eqn.primitive.name}` with a random second operand has no rule,")
    if eqn.primitive.name == "pad" and not values[1].is_zero:
        raise NoLimitError("a random value is padded with something other than zeros,")
    if eqn.primitive.name == "slice":
        p = eqn.params
        for a, w in enumerate(value.wide):
            part = (p["start_indices"][a], p["limit_indices"][a])
            if w > 1 and part != (0, eqn.invars[0].aval.shape[a]):
                return [_part_of_wide(value, eqn, a, *part)]
    return [_moved(value, LAYOUTS[eqn.primitive.name](eqn, value.shape, value.wide))]


def _moved(value: Wide, found: Any) -> Wide:
    if found.key == ():
        return Wide(
            found.shape, found.wide, value.random, value.offset and _reshaped(value.offset, found)
        )
    return algebra.mapped(
        value, Linear(lambda _, z: found.apply(z), found.shape, found.key), found.wide
    )


def _reshaped(offset: Det, found: Any) -> Det:
    rank = len(found.shape)
    if offset.literal is not None or all(np.ndim(s) == rank for s in offset.sides):
        return offset
    sides = [jnp.broadcast_to(jnp.asarray(s), found.shape) for s in offset.sides]
    return Det((sides[0], sides[1]), found.wide, offset.literal, offset.static)


def _part_of_wide(value: Wide, eqn: Any, axis: int, start: int, stop: int) -> Wide:
    """A part of an infinite axis: the same law, independent of the other parts."""
    p = eqn.params
    if set(p["strides"] or (1,)) != {1} or value.shape[axis] != 1:
        raise NoLimitError("an infinite axis is cut into interleaved parts,")
    full = eqn.invars[0].aval.shape
    others = [a for a in range(len(full)) if a != axis]
    if any((p["start_indices"][a], p["limit_indices"][a]) != (0, full[a]) for a in others):
        raise NoLimitError(
            "a finite and an infinite axis are cut at once,", "Cut one after the other."
        )
    wide = tuple(stop - start if a == axis else w for a, w in enumerate(value.wide))
    return parts(value, (value.wide, axis), start, stop, wide)


def parts(value: Wide, of: Any, start: int, stop: int, wide: tuple[int, ...]) -> Wide:
    """The value of the units from start to stop."""
    check_apart(value)
    tag = (of, start, stop)
    terms = [Term(tuple(_part(f, tag, wide) for f in t.factors), t.map) for t in value.random]
    return Wide(value.shape, wide, terms, value.offset)


def _part(f: Factor, tag: tuple[Any, int, int], wide: tuple[int, ...]) -> Factor:
    if isinstance(f, Masked):
        inner = parts(
            f.value, tag[0], tag[1], tag[2], wide
        )  # other units, hence other entries of the mask
        return Masked(inner, (f.source, tag), f.mask_shape, f.keep)
    return Factor(tuple(Segment(g, tag) for g in f.gaussians), f.node, f.operands, f.sampled)


@rule("split")
def split(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """Consecutive parts along one axis."""
    (value,), axis, start = values, eqn.params["axis"], 0
    out: list[Any] = []
    for size in map(int, eqn.params["sizes"]):
        stop = start + size
        if isinstance(value, Param):
            starts = [start if a == axis else 0 for a in range(len(value.shape))]
            stops = [stop if a == axis else s for a, s in enumerate(value.shape)]
            out.append(cut(value, starts, stops))
        elif value.wide[axis] > 1:
            if value.shape[axis] != 1:
                raise NoLimitError("a partly infinite axis is split,")
            wide = tuple(size if a == axis else w for a, w in enumerate(value.wide))
            out.append(parts(value, (value.wide, axis), start, stop, wide))
        else:
            out.append(_taken(value, axis, np.arange(start, stop)))
        start = stop
    return out


def _taken(value: Wide, axis: int, at: np.ndarray) -> Wide:
    shape = tuple(len(at) if a == axis else s for a, s in enumerate(value.shape))
    key = (("take", axis, value.shape, tuple(at.tolist())),)
    return algebra.mapped(
        value, Linear(lambda _, z: jnp.take(z, at, axis=axis), shape, key), value.wide
    )


@rule("concatenate")
def concatenate(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """Values one after the other along a finite axis."""
    shapes = [a.aval.shape for a in eqn.invars]
    if _along_wide(values, eqn.params["dimension"]):
        return [side_by_side(values, eqn.params["dimension"], shapes)]
    return [joined(program, values, eqn.params["dimension"], shapes, eqn.outvars[0].aval.shape)]


def _along_wide(values: list[Any], d: int) -> bool:
    return any(isinstance(v, Joined) or (isinstance(v, Wide) and v.wide[d] > 1) for v in values)


def side_by_side(values: list[Any], d: int, shapes: Any) -> Joined:
    """Values along an infinite axis; those that are joined already bring their parts."""
    parts_: list[Any] = []
    sizes: list[int] = []
    for v, shape in zip(values, shapes, strict=True):
        if isinstance(v, Joined):
            if v.axis != d or v.repeats > 1:
                raise NoLimitError("values joined along different infinite axes meet,")
            parts_ += v.parts
            sizes += v.sizes
        elif isinstance(v, Param):
            raise NoLimitError("a parameter is joined to a wide value,")
        else:
            parts_.append(v)
            sizes.append(shape[d])
    return Joined(d, tuple(sizes), parts_)


def joined(
    program: Interpreter, values: list[Any], d: int, shapes: Any, out: tuple[int, ...]
) -> Wide:
    """Values of full `shapes` one after the other along axis d."""
    wides = [v.wide for v in values if isinstance(v, Wide)]
    if not wides:
        raise NoLimitError("parameters are joined before they meet data,")
    target = tuple(int(w) for w in np.max(wides, axis=0))
    values = [entries(program, v, target) if isinstance(v, Param) else v for v in values]
    if target[d] > 1:
        raise NoLimitError("values are joined along an infinite axis: that has no rule yet,")
    if any(isinstance(v, Wide) and v.wide != target for v in values):
        raise NoLimitError("a finite and an infinite axis are joined with each other,")
    stored = [tuple(s // w for s, w in zip(shape, target, strict=True)) for shape in shapes]
    if any(
        isinstance(v, Det)
        and any(w > 1 and np.shape(v.sides[0])[i] > 1 for i, w in enumerate(target))
        for v in values
    ):
        raise NoLimitError(
            "a fixed array that differs along an infinite axis is joined with wide values,"
        )
    shape = tuple(s // w for s, w in zip(out, target, strict=True))
    sizes = [s[d] for s in stored]
    starts = np.cumsum([0, *sizes[:-1]])
    found: dict[Any, list[tuple[int, Term]]] = {}
    for i, v in enumerate(values):
        for t in v.random if isinstance(v, Wide) else []:
            found.setdefault(t.factors if not t.is_gaussian else t.factors[0].gaussians, []).append(
                (i, t)
            )
    terms = [_places(group, d, stored, starts.tolist(), shape) for group in found.values()]
    offset = None
    if any(isinstance(v, Det) or v.offset is not None for v in values):
        sides = []
        for side in (0, 1):
            dets = [v if isinstance(v, Det) else v.offset for v in values]
            arrays = [
                jnp.zeros(s, program.moments.dtype)
                if c is None
                else jnp.broadcast_to(jnp.asarray(c.sides[side], program.moments.dtype), s)
                for c, s in zip(dets, stored, strict=True)
            ]
            sides.append(jnp.concatenate(arrays, axis=d))
        offset = Det((sides[0], sides[1]), target)
        if all(
            (v if isinstance(v, Det) else v.offset) is None
            or (v if isinstance(v, Det) else v.offset).is_zero
            for v in values
        ):
            offset = None
    return Wide(shape, target, algebra.tidy(terms, shape), offset)


def _places(
    group: list[tuple[int, Term]], d: int, stored: Any, starts: list[int], shape: Any
) -> Term:
    """The places that one Gaussian (or product of functions) takes in the result."""
    pieces = [(i, algebra.broadcasting(t.shape, stored[i]), t.map) for i, t in group]
    maps: list[tuple[int, Linear | None]] = []
    for i, spread, m in pieces:
        maps.append((i, m if spread is None else spread if m is None else linear.then(m, spread)))
    keys = [() if m is None else m.key for _, m in maps]
    key = None
    if len({i for i, _ in maps}) == len(maps) and None not in keys:
        key = (
            ("join", d, shape, tuple((starts[i], k) for (i, _), k in zip(maps, keys, strict=True))),
        )

    def apply(side, z):
        total: Any = None
        for i, m in maps:
            piece = z if m is None else m.apply(side, z)
            config = [(0, 0, 0)] * piece.ndim
            config[d] = (starts[i], shape[d] - starts[i] - piece.shape[d], 0)
            piece = jax.lax.pad(piece, jnp.zeros((), piece.dtype), config)
            total = piece if total is None else total + piece
        return total

    term = group[0][1]
    by = Linear(apply, shape, key)
    return algebra.map_term(Term(term.factors), by)


@rule("gather")
def gather(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """Rows of an embedding table, or fixed positions of a random value."""
    value, indices = values
    if not isinstance(indices, Det):
        raise NoLimitError("indices are random,")
    if isinstance(value, Param):
        return [embedding(program, eqn, value, indices)]
    return [_picked(value, eqn, [indices], eqn.params["slice_sizes"])]


@rule("dynamic_slice")
def dynamic_slice(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """A block at fixed positions."""
    value, *indices = values
    sizes = eqn.params["slice_sizes"]
    if isinstance(value, Param):
        if any(not isinstance(i, Det) or not i.static for i in indices):
            raise NoLimitError(
                f"parameter {value.leaf} is cut at positions that depend on the input,"
            )
        starts = [
            min(int(np.asarray(i.sides[0]).reshape(-1)[0]), s - n)
            for i, s, n in zip(indices, value.shape, sizes, strict=True)
        ]
        return [cut(value, starts, [a + n for a, n in zip(starts, sizes, strict=True)])]
    return [_picked(value, eqn, indices, sizes)]


def _picked(value: Wide, eqn: Any, indices: list[Any], sizes: Any) -> Wide:
    """Positions along finite axes, which may depend on the example."""
    if any(not isinstance(i, Det) for i in indices):
        raise NoLimitError("positions are random,")
    full = eqn.invars[0].aval.shape
    if any(w > 1 and n != s for w, n, s in zip(value.wide, sizes, full, strict=True)):
        raise NoLimitError(
            "single units of an infinite axis are picked,",
            "Cut it by jnp.split or a slice of fixed bounds.",
        )
    stored = tuple(n // w for n, w in zip(sizes, value.wide, strict=True))
    params = {**eqn.params, "slice_sizes": stored}

    def apply(side, z):
        at = [
            jnp.broadcast_to(jnp.asarray(i.sides[side]), v.aval.shape)
            for i, v in zip(indices, eqn.invars[1:], strict=True)
        ]
        return eqn.primitive.bind(z, *at, **params)

    shape = tuple(
        jax.eval_shape(
            lambda z: apply(0, z), jax.ShapeDtypeStruct(value.shape, program_dtype())
        ).shape
    )
    out = eqn.outvars[0].aval.shape
    wide = tuple(f // s for f, s in zip(out, shape, strict=True))
    static = all(i.static for i in indices)
    key = (
        (("pick", tuple(np.asarray(i.sides[0]).tobytes() for i in indices), stored, value.shape),)
        if static
        else None
    )
    return algebra.mapped(value, Linear(apply, shape, key), wide)


def program_dtype() -> Any:
    """JAX's default float."""
    return jnp.zeros(()).dtype
