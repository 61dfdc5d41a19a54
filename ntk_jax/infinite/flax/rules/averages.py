"""Sums over an infinite axis are numbers: means of features."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.layouts import reduce_sum as summed
from ntk_jax.infinite.flax.scores import check_heads
from ntk_jax.infinite.flax.values import (
    Det,
    Linear,
    Param,
    Wide,
    both_sides,
    zeros,
)
from ntk_jax.jaxprs import Eqn

FEW = 3  # fewer units of an axis, beside others that stay, are not meant to be infinitely many


@rule("reduce_sum")
def reduce_sum(program: Interpreter, eqn: Eqn, values: Sequence[Wide | Param]) -> list[Wide | Det]:
    """A sum over finite axes is a linear map; over a wide axis the law of large numbers makes it
    deterministic.
    """
    (value,) = values
    if isinstance(value, Param):
        raise NoLimitError(f"the entries of parameter {value.leaf} are summed,")
    units = math.prod(value.wide[a] for a in eqn.params["axes"])
    layout = summed(eqn, value.shape, value.wide)
    if units == 1:
        by = Linear(lambda _, z: layout.apply(z), layout.shape)
        return [algebra.mapped(value, by, layout.wide)]
    if any(w > 1 for w in layout.wide):  # else a mean over all units, however few the model has
        if units < FEW:
            raise NoLimitError(
                f"a mean over {units} units of each group is not deterministic, and not Gaussian,"
            )
        check_heads(value)
    means = [_mean(program, value, side) for side in (0, 1)]
    of_two = value.product is not None and value.product[0] is not value.product[1]
    dtype = program.moments.dtype
    if all(m is None for m in means) and not of_two:
        return [zeros(layout.shape, layout.wide, dtype)]
    full = [
        jnp.zeros(value.shape, dtype) if m is None else jnp.broadcast_to(m, value.shape)
        for m in means
    ]
    pending = units if of_two and program.inner_products == "error" else None
    return [both_sides(lambda side: units * layout.apply(full[side]), layout.wide, pending)]


def _mean(program: Interpreter, value: Wide, side: int) -> Array | None:
    if value.product is None:
        return program.moments.mean_of(value, side)
    x, y = (
        algebra.mapped(v, algebra.broadcasting(v.shape, value.shape), value.wide)
        for v in value.product
    )
    if value.product[0] is value.product[1]:
        y = x
    return program.moments.second(x, y, (side, side), True)
