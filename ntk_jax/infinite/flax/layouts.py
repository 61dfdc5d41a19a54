"""Operations that move, repeat, pick or add entries along finite axes, wide axes having size 1."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array, lax

from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.values import Key, Shape
from ntk_jax.jaxprs import Eqn, shape_of


class Layout(NamedTuple):
    """What an operation does to a stored array: the map, the stored shape and multiplicities of the
    result, and its key.

    The key describes which entry each result takes; None if entries are added. Interleaved: see
    `Wide`.
    """

    apply: Callable[[Array], Array]
    shape: Shape
    wide: Shape
    key: Key | None
    interleaved: bool = False


def transpose(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """Axes in another order."""
    p = eqn.params["permutation"]
    shape, wide = (tuple(s[i] for i in p) for s in (shape, wide))
    return Layout(lambda z: z.transpose(p), shape, wide, (("transpose", p),))


def reshape(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """Axes split and merged: a wide axis stays wide, and a merged one is wide by its wide
    factor.
    """
    old, new = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    out, interleaved = [1] * len(new), False
    for before, after, size in axis_groups(old, new):
        factor = math.prod(wide[i] for i in before)
        if factor == 1:
            continue
        after = [j for j in after if new[j] > 1]
        if factor == size:
            for j in after:
                out[j] = new[j]
            continue
        # The last axes take the wide factor: in (finite, .., wide) a unit's entries lie together.
        for j in reversed(after):
            out[j] = math.gcd(factor, new[j])
            factor //= out[j]
        finite_last = [i for i in before if old[i] > 1 and wide[i] == 1]
        wide_first = [i for i in before if wide[i] > 1]
        inside = bool(finite_last) and max(finite_last) > min(wide_first)
        if inside and len(after) == 1 and min(finite_last) > max(wide_first):
            interleaved, inside = True, False
        if factor > 1 or inside or _mixed(new, out, after):
            raise NoLimitError(
                f"a reshape from {old} to {new} mixes finite axes with an infinite one,"
            )
    target = tuple(n // w for n, w in zip(new, out, strict=True))
    key: Key = () if target == shape else (("reshape", shape, target),)
    return Layout(lambda z: z.reshape(target), target, tuple(out), key, interleaved)


def _mixed(new: Shape, out: list[int], after: list[int]) -> bool:
    """Whether a finite part would follow a wide one inside a group."""
    wide_seen = False
    for j in after:
        if wide_seen and out[j] < new[j]:
            return True
        wide_seen = wide_seen or out[j] > 1
    return False


def axis_groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int], int]]:
    """The smallest groups of axes that a reshape maps onto each other: axes before, axes after,
    entries.
    """
    i = j = 0
    groups = []
    while i < len(old) or j < len(new):
        before, after = ([i] if i < len(old) else []), ([j] if j < len(new) else [])
        a, b = old[i] if before else 1, new[j] if after else 1
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, before, i = a * old[i], [*before, i], i + 1
            else:
                b, after, j = b * new[j], [*after, j], j + 1
        groups.append((before, after, a))
    return groups


def broadcast_in_dim(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """New and repeated axes."""
    full, dims = list(eqn.params["shape"]), eqn.params["broadcast_dimensions"]
    out = [1] * len(full)
    for i, d in enumerate(dims):
        out[d] = wide[i]
        full[d] //= wide[i]
    target = tuple(full)
    key = (("broadcast", shape, target, dims),)
    return Layout(lambda z: lax.broadcast_in_dim(z, target, dims), target, tuple(out), key)


def lazy_broadcast(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """New and repeated axes, stored with size 1: for deterministic values."""
    full, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    stored, out = [1] * len(full), list(full)
    for i, d in enumerate(dims):
        stored[d] = shape[i]
        out[d] = full[d] if shape[i] == 1 else 1
    target = tuple(stored)
    return Layout(lambda z: lax.broadcast_in_dim(z, target, dims), target, tuple(out), None)


def slice_(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """A regular part of finite axes; all of the wide ones."""
    p = eqn.params
    strides = p["strides"] or (1,) * len(shape)
    limits = list(p["limit_indices"])
    full = shape_of(eqn.invars[0])
    for a, w in enumerate(wide):
        if w > 1:
            if p["start_indices"][a] or limits[a] != full[a] or strides[a] != 1:
                raise NoLimitError("a part of a partly infinite axis is taken,")
            limits[a] = shape[a]
    key = ("slice", shape, p["start_indices"], tuple(limits), strides)
    take = lambda z: lax.slice(z, p["start_indices"], limits, strides)
    return Layout(take, shape_after(take, shape), wide, (key,))


def pad(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """Zeros around and between finite entries."""
    config = eqn.params["padding_config"]
    if any(w > 1 and tuple(c) != (0, 0, 0) for w, c in zip(wide, config, strict=True)):
        raise NoLimitError("an infinite axis is padded,")
    extend = lambda z: lax.pad(z, np.zeros((), z.dtype), config)
    return Layout(
        extend, shape_after(extend, shape), wide, (("pad", shape, tuple(map(tuple, config))),)
    )


def rev(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """Finite axes backwards."""
    dims = eqn.params["dimensions"]
    if any(wide[d] > 1 for d in dims):
        raise NoLimitError("an infinite axis is reversed,")
    return Layout(lambda z: lax.rev(z, dims), shape, wide, (("rev", dims),))


def reduce_sum(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """Sums over finite axes."""
    axes = eqn.params["axes"]
    shape, wide = (tuple(v for i, v in enumerate(s) if i not in axes) for s in (shape, wide))
    return Layout(lambda z: z.sum(axes), shape, wide, None)


def cumulative(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """Running sums along a finite axis."""
    if wide[eqn.params["axis"]] > 1:
        raise NoLimitError("a running sum along an infinite axis,")
    return Layout(lambda z: eqn.primitive.bind(z, **eqn.params), shape, wide, None)


def window_sum(eqn: Eqn, shape: Shape, wide: Shape) -> Layout:
    """Sums over windows of finite axes."""
    p = eqn.params
    if any(w > 1 and d > 1 for w, d in zip(wide, p["window_dimensions"], strict=True)):
        raise NoLimitError("a pooling window spans an infinite axis,")
    pool = lambda z: eqn.primitive.bind(z, **p)
    return Layout(pool, shape_after(pool, shape), wide, None)


def shape_after(f: Callable[[Array], Array], shape: Shape) -> Shape:
    """The shape of what f makes of an array."""
    return tuple(jax.eval_shape(f, jax.ShapeDtypeStruct(shape, np.float32)).shape)


LAYOUTS: dict[str, Callable[[Eqn, Shape, Shape], Layout]] = {
    "transpose": transpose,
    "reshape": reshape,
    "squeeze": reshape,
    "expand_dims": reshape,
    "broadcast_in_dim": broadcast_in_dim,
    "slice": slice_,
    "pad": pad,
    "rev": rev,
    "reduce_sum": reduce_sum,
    "cumsum": cumulative,
    "reduce_window_sum": window_sum,
}
