"""Values along a new axis, entries of an axis, repeated blocks, and sums into fixed places."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.joining import joined, with_axis
from ntk_jax.infinite.flax.values import Det, Linear, Param, Value, Wide
from ntk_jax.jaxprs import Eqn, shape_of


@rule("stack")
def stack(program: Interpreter, eqn: Eqn, values: Sequence[Det | Param | Wide]) -> list[Wide]:
    """Values of one shape along a new finite axis."""
    axis, out = eqn.params["axis"], shape_of(eqn.outvars[0])
    shapes = [tuple(1 if a == axis else s for a, s in enumerate(out))] * len(values)
    parts = [with_axis(v, axis) for v in values]
    return [joined(program.uses, program.moments.dtype, parts, axis, shapes, out)]


@rule("unstack")
def unstack(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> list[Wide]:
    """The entries of a finite axis."""
    (value,), axis = values, eqn.params["axis"]
    if not isinstance(value, Wide) or value.wide[axis] > 1:
        raise NoLimitError("single entries of a parameter or of an infinite axis are taken,")
    shape, wide = ((*s[:axis], *s[axis + 1 :]) for s in (value.shape, value.wide))
    key = lambda i: (("entry", axis, i, value.shape),)
    take = lambda i: Linear(lambda _, z: jnp.take(z, i, axis=axis), shape, key(i))
    return [algebra.mapped(value, take(i), wide) for i in range(len(eqn.outvars))]


@rule("tile")
def tile(program: Interpreter, eqn: Eqn, values: Sequence[Wide | Param]) -> list[Wide | Param]:
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
def scatter_add(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> list[Wide]:
    """Random values added into fixed places of finite axes, as messages along the edges of a fixed
    graph.
    """
    operand, indices, updates = values
    if (
        not isinstance(updates, Wide)
        or not isinstance(operand, Det)
        or not isinstance(indices, Det)
    ):
        raise NoLimitError(
            "random values are added at random places, or to other random values in place,"
        )
    full, numbers = shape_of(eqn.outvars[0]), eqn.params["dimension_numbers"]
    inserted = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = [a for a in range(len(full)) if a not in inserted]
    wide = [1] * len(full)
    for a, u in zip(windows, numbers.update_window_dims, strict=True):
        wide[a] = updates.wide[u]
        if wide[a] > 1 and shape_of(eqn.invars[2])[u] != full[a]:
            raise NoLimitError("random values are added into a part of an infinite axis,")
    if math.prod(wide) != math.prod(updates.wide):
        raise NoLimitError("an infinite axis lists the places that random values are added to,")
    stored = tuple(s // w for s, w in zip(full, wide, strict=True))

    def apply(side: int, z: Array) -> Array:
        at = jnp.broadcast_to(jnp.asarray(indices.sides[side]), shape_of(eqn.invars[1]))
        return eqn.primitive.bind(jnp.zeros(stored, z.dtype), at, z, **eqn.params)

    out = algebra.mapped(updates, Linear(apply, stored), wide)
    if operand.is_zero:
        return [out]
    if any(w > 1 and operand.shape[a] > 1 for a, w in enumerate(wide)):
        raise NoLimitError(
            "random values are added to a fixed array that differs along an infinite axis,"
        )
    return [algebra.shifted(out, operand, wide)]
