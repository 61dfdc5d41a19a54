"""Entries picked by index: rows of an embedding table, positions of a random value."""

from collections.abc import Sequence
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import RULES, Interpreter, rule
from ntk_jax.infinite.flax.layouts import shape_after
from ntk_jax.infinite.flax.parameter_views import cut
from ntk_jax.infinite.flax.values import Det, Linear, Param, Shape, Value, Wide
from ntk_jax.jaxprs import Eqn, shape_of


@rule("gather")
def gather(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> Sequence[Value]:
    """Rows of an embedding table, or fixed positions of a random value."""
    value, indices = values
    if not isinstance(indices, Det):
        raise NoLimitError("indices are random,")
    if isinstance(value, Param):
        return RULES["embedding"](program, eqn, values)
    return [_picked(cast(Wide, value), eqn, [indices], eqn.params["slice_sizes"])]


@rule("dynamic_slice")
def dynamic_slice(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> list[Wide | Param]:
    """A block at fixed positions."""
    (value, *indices), sizes = values, eqn.params["slice_sizes"]
    fixed = [i for i in indices if isinstance(i, Det)]
    if isinstance(value, Param):
        if len(fixed) < len(indices) or any(not i.static for i in fixed):
            raise NoLimitError(
                f"parameter {value.leaf} is cut at positions that depend on the input,"
            )
        starts = [
            min(int(np.asarray(i.sides[0]).reshape(-1)[0]), s - n)
            for i, s, n in zip(fixed, value.shape, sizes, strict=True)
        ]
        return [cut(value, starts, [a + n for a, n in zip(starts, sizes, strict=True)])]
    if len(fixed) < len(indices):
        raise NoLimitError("positions are random,")
    return [_picked(cast(Wide, value), eqn, fixed, sizes)]


def _picked(value: Wide, eqn: Eqn, indices: Sequence[Det], sizes: Shape) -> Wide:
    """Positions along finite axes, which may depend on the example."""
    full = shape_of(eqn.invars[0])
    if any(w > 1 and n != s for w, n, s in zip(value.wide, sizes, full, strict=True)):
        raise NoLimitError(
            "single units of an infinite axis are picked,",
            "Cut it by jnp.split or a slice of fixed bounds.",
        )
    stored = tuple(n // w for n, w in zip(sizes, value.wide, strict=True))
    params = {**eqn.params, "slice_sizes": stored}

    def apply(side: int, z: Array) -> Array:
        at = [
            jnp.broadcast_to(jnp.asarray(i.sides[side]), shape_of(v))
            for i, v in zip(indices, eqn.invars[1:], strict=True)
        ]
        return eqn.primitive.bind(z, *at, **params)

    shape = shape_after(lambda z: apply(0, z), value.shape)
    wide = tuple(f // s for f, s in zip(shape_of(eqn.outvars[0]), shape, strict=True))
    key = None
    if all(i.static for i in indices):
        places = tuple(np.asarray(i.sides[0]).tobytes() for i in indices)
        key = (("pick", places, stored, value.shape),)
    return algebra.mapped(value, Linear(apply, shape, key), wide)
