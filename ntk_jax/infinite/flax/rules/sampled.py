"""What has no closed form, from samples where the user asked for them: maxima and the like."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ntk_jax.compat import bind
from ntk_jax.infinite.flax.errors import SAMPLES, NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.sampling import sampled
from ntk_jax.infinite.flax.values import Value, Wide
from ntk_jax.jaxprs import Eqn

MIXING = {
    "reduce_max": "a maximum over positions or units is not Gaussian and has no closed form,",
    "reduce_min": "a minimum over positions or units is not Gaussian and has no closed form,",
    "reduce_prod": "a product over positions or units is not Gaussian and has no closed form,",
    "reduce_window_max": "max pooling has no closed form,",
    "reduce_window_min": "min pooling has no closed form,",
    "sort": "sorting random values has no closed form,",
}


@rule(*MIXING)
def mixing(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> list[Wide]:
    """A function of several positions of every unit."""
    name, value = eqn.primitive.name, values[0]
    why = MIXING[name]
    if (
        len(values) > 1
        or not isinstance(value, Wide)
        or any(value.wide[a] > 1 for a in _mixed_axes(eqn))
    ):
        raise NoLimitError(
            why, "Rewrite that part of the model, or estimate with ntk_jax.monte_carlo_kernels."
        )
    if program.moments.sampling is None:
        raise NoLimitError(why, f"Use average pooling, or {SAMPLES}" if "pooling" in why else None)
    axes = eqn.params.get("axes", ()) if name.startswith("reduce_") else ()
    wide = tuple(w for a, w in enumerate(value.wide) if a not in axes)
    return [sampled(program.moments, lambda _, arrays: bind(eqn, arrays)[0], [value], wide)]


def _mixed_axes(eqn: Eqn) -> Sequence[int]:
    """The axes along which entries meet."""
    p = eqn.params
    if "window_dimensions" in p:
        return [a for a, d in enumerate(p["window_dimensions"]) if d > 1]
    return p["axes"] if "axes" in p else [p["dimension"]]


@rule("stop_gradient")
def stop_gradient(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> list[Wide]:
    """On random values it removes a part of the tangent kernel: only samples know which."""
    (value,) = values
    if program.moments.sampling is None or not isinstance(value, Wide):
        raise NoLimitError("stop_gradient acts on a random value,")
    stop = lambda _, arrays: jax.lax.stop_gradient(jnp.asarray(arrays[0]))
    return [sampled(program.moments, stop, [value], value.wide)]
