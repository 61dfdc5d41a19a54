"""What has no closed form, from samples where the user asked for them: maxima and the like, and
functions of such.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.compat import bind
from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import SAMPLES, NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.values.expression import bind_elementwise
from ntk_jax.infinite.flax.values.slots import Slots
from ntk_jax.infinite.flax.values.values import Det, Factor, Sampled, Term, Wide

MIXING = {
    "reduce_max": "a maximum over positions or units is not Gaussian and has no closed form,",
    "reduce_min": "a minimum over positions or units is not Gaussian and has no closed form,",
    "reduce_prod": "a product over positions or units is not Gaussian and has no closed form,",
    "reduce_window_max": "max pooling has no closed form,",
    "reduce_window_min": "min pooling has no closed form,",
    "sort": "sorting random values has no closed form,",
}


@rule(*MIXING)
def mixing(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """A function of several positions of every unit."""
    name, value = eqn.primitive.name, values[0]
    if (
        len(values) > 1
        or not isinstance(value, Wide)
        or any(value.wide[a] > 1 for a in _mixed(eqn, value))
    ):
        raise NoLimitError(
            MIXING[name],
            "Rewrite that part of the model, or estimate with ntk_jax.monte_carlo_kernels.",
        )
    if program.moments.sampling is None:
        raise NoLimitError(
            MIXING[name],
            f"Use average pooling, or {SAMPLES}" if "pooling" in MIXING[name] else None,
        )
    axes = eqn.params.get("axes", ()) if name.startswith("reduce_") else ()
    wide = tuple(w for a, w in enumerate(value.wide) if a not in axes)
    return [sampled(program, lambda _, arrays: bind(eqn, arrays)[0], [value], wide)]


def _mixed(eqn: Any, value: Wide) -> Sequence[int]:
    """The axes along which entries meet."""
    p = eqn.params
    if "window_dimensions" in p:
        return [a for a, d in enumerate(p["window_dimensions"]) if d > 1]
    return p["axes"] if "axes" in p else [p["dimension"]]


def sampled(
    program: Interpreter,
    apply: Callable[[int, list[Array]], Array],
    values: Sequence[Any],
    wide: Sequence[int],
) -> Wide:
    """A function of values, on stored shapes, as one known by samples."""
    dtype = program.moments.dtype
    if any(t.masked for v in values if isinstance(v, Wide) for t in v.random):
        raise NoLimitError(
            "a dropout mask enters a function that has no closed form,",
            "Apply dropout behind it, turn dropout off, or estimate with "
            "ntk_jax.monte_carlo_kernels.",
        )
    fields = algebra.fields_of(values)
    slots = Slots()
    slots.resolve(fields)
    variables = tuple(dict.fromkeys(slots.resolved[g][0] for g in fields))
    for g in variables:
        program.moments.number(g)
    examples = [
        jax.ShapeDtypeStruct(v.shape, dtype if isinstance(v, Wide) else v.sides[0].dtype)
        for v in values
    ]
    shape = tuple(jax.eval_shape(partial(apply, 0), examples).shape)
    function = Sampled(apply, list(values), variables, slots.resolved, shape)
    return Wide(shape, tuple(wide), [Term((Factor(variables, sampled=function),))])


def elementwise(program: Interpreter, eqn: Any, values: Sequence[Any], wide: Sequence[int]) -> Wide:
    """An elementwise function of values of any kind."""
    values = [_typed(v) for v in values]

    def apply(_, arrays):
        return bind_elementwise(eqn.primitive, eqn.params, arrays, program.moments.dtype)

    return sampled(program, apply, values, wide)


def _typed(value: Any) -> Any:
    if not isinstance(value, Det):
        return value
    sides = [jnp.asarray(s) for s in value.sides]
    return Det((sides[0], sides[1]), value.wide, value.literal, value.static)
