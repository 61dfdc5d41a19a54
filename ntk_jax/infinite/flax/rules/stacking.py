"""Values along a new axis, one entry of an axis each, repeated blocks, and sums into fixed
places.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.rules.structure import joined
from ntk_jax.infinite.flax.values.linear import Linear
from ntk_jax.infinite.flax.values.values import Det, Param, Wide, with_view


@rule("stack")
def stack(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """Values of one shape along a new finite axis."""
    axis, out = eqn.params["axis"], eqn.outvars[0].aval.shape
    shape = tuple(1 if a == axis else s for a, s in enumerate(out))
    return [joined(program, [with_axis(v, axis) for v in values], axis, [shape] * len(values), out)]


def with_axis(value: Any, axis: int) -> Any:
    """A value with a new axis of size 1."""
    insert = lambda s, new: (*s[:axis], new, *s[axis:])
    if isinstance(value, Det):
        sides = [
            np.expand_dims(a, axis) if value.static else jnp.expand_dims(a, axis)
            for a in value.sides
        ]
        return Det((sides[0], sides[1]), insert(value.wide, 1), value.literal, value.static)
    if isinstance(value, Param):
        return with_view(value, shape=insert(value.shape, 1), axes=insert(value.axes, None))
    by = Linear(
        lambda _, z: jnp.expand_dims(z, axis),
        insert(value.shape, 1),
        (("axis", axis, value.shape),),
    )
    return algebra.mapped(value, by, insert(value.wide, 1))


@rule("unstack")
def unstack(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """The entries of a finite axis."""
    (value,), axis = values, eqn.params["axis"]
    if not isinstance(value, Wide) or value.wide[axis] > 1:
        raise NoLimitError("single entries of a parameter or of an infinite axis are taken,")
    drop = lambda s: (*s[:axis], *s[axis + 1 :])

    def entry(i):
        key = (("entry", axis, i, value.shape),)
        return Linear(lambda _, z: jnp.take(z, i, axis=axis), drop(value.shape), key)

    return [algebra.mapped(value, entry(i), drop(value.wide)) for i in range(len(eqn.outvars))]


@rule("tile")
def tile(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """Finite axes repeated as a whole."""
    (value,), reps = values, tuple(eqn.params["reps"])
    if isinstance(value, Param):
        if any(r > 1 and s > 1 for r, s in zip(reps, value.shape, strict=True)):
            raise NoLimitError(f"parameter {value.leaf} is repeated along an axis of its own,")
        return [value]  # repetition along axes of size 1 is a matter of broadcasting
    if any(r > 1 and w > 1 for r, w in zip(reps, value.wide, strict=True)):
        raise NoLimitError("an infinite axis is repeated,")
    shape = tuple(r * s for r, s in zip(reps, value.shape, strict=True))
    by = Linear(lambda _, z: jnp.tile(z, reps), shape, (("tile", reps, value.shape),))
    return [algebra.mapped(value, by, value.wide)]


@rule("scatter-add", "scatter_add")
def scatter_add(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """Random values added into fixed places of finite axes, as messages along the edges of a fixed
    graph.
    """
    operand, indices, updates = values
    if (
        not isinstance(operand, Det)
        or not isinstance(indices, Det)
        or not isinstance(updates, Wide)
    ):
        raise NoLimitError(
            "random values are added at random places, or to other random values in place,"
        )
    full, numbers = eqn.outvars[0].aval.shape, eqn.params["dimension_numbers"]
    fixed = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    wide = [1] * len(full)
    for a, u in zip(
        [a for a in range(len(full)) if a not in fixed], numbers.update_window_dims, strict=True
    ):
        wide[a] = updates.wide[u]
        if wide[a] > 1 and eqn.invars[2].aval.shape[u] != full[a]:
            raise NoLimitError("random values are added into a part of an infinite axis,")
    if math.prod(wide) != math.prod(updates.wide):
        raise NoLimitError("an infinite axis lists the places that random values are added to,")
    stored = tuple(s // w for s, w in zip(full, wide, strict=True))

    def apply(side, z):
        at = jnp.broadcast_to(jnp.asarray(indices.sides[side]), eqn.invars[1].aval.shape)
        return eqn.primitive.bind(jnp.zeros(stored, z.dtype), at, z, **eqn.params)

    out = algebra.mapped(updates, Linear(apply, stored, None), wide)
    return [out if operand.is_zero else algebra.shifted(out, _fitted(operand, wide), wide)]


def _fitted(operand: Det, wide: list[int]) -> Det:
    if any(w > 1 and np.shape(operand.sides[0])[a] > 1 for a, w in enumerate(wide)):
        raise NoLimitError(
            "random values are added to a fixed array that differs along an infinite axis,"
        )
    return operand
