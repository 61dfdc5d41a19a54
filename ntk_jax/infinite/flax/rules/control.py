"""Loops of static length are unrolled; what depends on random values, or has no limit, is refused
by name.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, deterministic, rule
from ntk_jax.infinite.flax.rules.parameters import cut
from ntk_jax.infinite.flax.rules.stacking import with_axis
from ntk_jax.infinite.flax.rules.structure import joined
from ntk_jax.infinite.flax.values.linear import Linear
from ntk_jax.infinite.flax.values.values import Det, Noise, Param, with_view
from ntk_jax.jaxprs import open_jaxpr

REFUSED = {
    "argmax": "argmax of random values is not differentiable and not a function of single units,",
    "argmin": "argmin of random values is not differentiable and not a function of single units,",
    "cond": "a branch depends on random values or meets them,",
    "custom_lin": "a derivative inside the network has no rule,",
    "select_and_gather_add": "max pooling has no closed form,",
    "top_k": "sorting random values has no closed form,",
    "while": "a loop of unknown length meets random values,",
}


def _refuse(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    advice = (
        "Use average pooling"
        if "pooling" in REFUSED[eqn.primitive.name]
        else "Rewrite that part of the model"
    )
    raise NoLimitError(
        REFUSED[eqn.primitive.name], f"{advice}, or estimate with ntk_jax.monte_carlo_kernels."
    )


rule(*REFUSED)(_refuse)


@rule("scan")
def scan(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """A loop over steps, unrolled: the same weights at every step, or a slice of stacked ones."""
    p = eqn.params
    consts, carry, xs = p["num_consts"], p["num_carry"], values[p["num_consts"] + p["num_carry"] :]
    if all(isinstance(v, Det) for v in values) and _small(eqn):
        return deterministic(program, eqn, values)
    fixed, state = values[:consts], values[consts : consts + carry]
    inner, inner_consts = open_jaxpr(p["jaxpr"])
    avals = [v.aval for v in eqn.invars[consts + carry :]]
    steps, results = range(p["length"]), []
    for t in reversed(steps) if p["reverse"] else steps:
        at = [_step_of(x, aval.shape, t) for x, aval in zip(xs, avals, strict=True)]
        outs = program.run(inner, inner_consts, [*fixed, *state, *at])
        state, collected = outs[:carry], outs[carry:]
        results.append(collected)
    if p["reverse"]:
        results.reverse()
    stacked = [
        _stacked(program, list(column), v)
        for column, v in zip(zip(*results, strict=True), eqn.outvars[carry:], strict=True)
    ]
    return [*state, *stacked]


def _small(eqn: Any) -> bool:
    return not any(
        e.primitive.name == "random_bits" for e in open_jaxpr(eqn.params["jaxpr"])[0].eqns
    )


def _step_of(value: Any, full: tuple[int, ...], t: int) -> Any:
    if isinstance(value, Noise):
        return value
    if isinstance(value, Param):
        part = cut(value, (t,) + (0,) * (len(full) - 1), (t + 1, *full[1:]))
        return with_view(part, shape=part.shape[1:], axes=part.axes[1:])
    if isinstance(value, Det):
        sides = [
            jnp.broadcast_to(jnp.asarray(s), full)[t]
            if not value.static
            else np.broadcast_to(s, full)[t]
            for s in value.sides
        ]
        return Det((sides[0], sides[1]), (1,) * (len(full) - 1), value.literal, value.static)
    if value.wide[0] > 1:
        raise NoLimitError("a scan over an infinite axis,")
    key = (("step", t, value.shape),)
    return algebra.mapped(value, Linear(lambda _, z: z[t], value.shape[1:], key), value.wide[1:])


def _stacked(program: Interpreter, column: list[Any], var: Any) -> Any:
    """The results of all steps along a new first axis."""
    if any(isinstance(v, Noise) for v in column):
        return column[0]
    if all(isinstance(v, Det) for v in column):
        full = var.aval.shape[1:]
        sides = [
            jnp.stack([jnp.broadcast_to(jnp.asarray(v.sides[i]), full) for v in column])
            for i in (0, 1)
        ]
        return Det((sides[0], sides[1]), (1,) * (len(full) + 1))
    return joined(
        program,
        [_collected(v) for v in column],
        0,
        [(1, *var.aval.shape[1:])] * len(column),
        var.aval.shape,
    )


def _collected(value: Any) -> Any:
    if isinstance(value, Param):
        raise NoLimitError("a scan collects parameters,")
    return with_axis(value, 0)
