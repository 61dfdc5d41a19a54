"""Loops of static length are unrolled; what depends on random values, or has no limit, is refused
by name.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import scan_counts
from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.evaluation import deterministic
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.joining import joined, with_axis
from ntk_jax.infinite.flax.parameter_views import cut
from ntk_jax.infinite.flax.values import (
    Det,
    Joined,
    Linear,
    Noise,
    Param,
    Shape,
    Squares,
    Value,
    Wide,
    both_sides,
)
from ntk_jax.jaxprs import Eqn, open_jaxpr, shape_of

REFUSED = {
    "argmax": "argmax of random values is not differentiable and not a function of single units,",
    "argmin": "argmin of random values is not differentiable and not a function of single units,",
    "cond": "a branch depends on random values or meets them,",
    "custom_lin": "a derivative inside the network has no rule,",
    "select_and_gather_add": "max pooling has no closed form,",
    "top_k": "sorting random values has no closed form,",
    "while": "a loop of unknown length meets random values,",
}


@rule(*REFUSED)
def refuse(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> Sequence[Value]:
    """No limit, or no rule."""
    why = REFUSED[eqn.primitive.name]
    advice = "Use average pooling" if "pooling" in why else "Rewrite that part of the model"
    raise NoLimitError(why, f"{advice}, or estimate with ntk_jax.monte_carlo_kernels.")


@rule("scan")
def scan(program: Interpreter, eqn: Eqn, values: list[Value]) -> Sequence[Value]:
    """A loop over steps, unrolled: the same weights at every step, or a slice of stacked ones."""
    p, fixed = eqn.params, [v for v in values if isinstance(v, Det)]
    consts, carry = scan_counts(p)
    inner, inner_consts = open_jaxpr(p["jaxpr"])
    # Random bits inside must become a mask, not numbers: such a loop is unrolled too.
    draws = any(e.primitive.name == "random_bits" for e in inner.eqns)
    if len(fixed) == len(values) and not draws:
        return deterministic(eqn, fixed, program.moments.dtype)
    shared, state, xs = values[:consts], values[consts : consts + carry], values[consts + carry :]
    shapes = [shape_of(v) for v in eqn.invars[consts + carry :]]
    steps, results = range(p["length"]), []
    for t in reversed(steps) if p["reverse"] else steps:
        at = [_step_of(x, shape, t) for x, shape in zip(xs, shapes, strict=True)]
        outs = program.run(inner, inner_consts, [*shared, *state, *at])
        state = outs[:carry]
        results.append(outs[carry:])
    if p["reverse"]:
        results.reverse()
    columns = zip(zip(*results, strict=True), eqn.outvars[carry:], strict=True)
    return [*state, *(_stacked(program, column, shape_of(v)) for column, v in columns)]


def _step_of(value: Value, full: Shape, t: int) -> Value:
    """Step t of a value whose first axis lists the steps."""
    if isinstance(value, Noise):
        return value
    if isinstance(value, Param):
        part = cut(value, (t,) + (0,) * (len(full) - 1), (t + 1, *full[1:]))
        return replace(part, shape=part.shape[1:], axes=part.axes[1:])
    if isinstance(value, Det):
        at = (
            (lambda s: np.broadcast_to(s, full)[t])
            if value.static
            else (lambda s: jnp.broadcast_to(jnp.asarray(s), full)[t])
        )
        return value.mapped(at, (1,) * (len(full) - 1))
    if isinstance(value, Squares):
        raise NoLimitError("the squares of stacked parameters go through a scan,")
    if isinstance(value, Joined) or value.wide[0] > 1:
        raise NoLimitError("a scan over an infinite axis,")
    by = Linear(lambda _, z: z[t], value.shape[1:], (("step", t, value.shape),))
    return algebra.mapped(value, by, value.wide[1:])


def _stacked(program: Interpreter, column: Sequence[Value], shape: Shape) -> Value:
    """The results of all steps along a new first axis."""
    if any(isinstance(v, Noise) for v in column):
        return column[0]
    fixed = [v for v in column if isinstance(v, Det)]
    if len(fixed) == len(column):
        spread = lambda v, side: jnp.broadcast_to(jnp.asarray(v.sides[side]), shape[1:])
        stack = lambda side: jnp.stack([spread(v, side) for v in fixed])
        return both_sides(stack, (1,) * len(shape))
    found = [with_axis(v, 0) for v in column if isinstance(v, Det | Wide)]
    if len(found) < len(column):
        raise NoLimitError("a scan collects parameters,")
    shapes = [(1, *shape[1:])] * len(column)
    return joined(program.uses, program.moments.dtype, found, 0, shapes, shape)
