"""The only place where JAX and Flax versions differ."""

from typing import Any

import jax


def is_concrete(x: Any) -> bool:
    """Whether the values of `x` can be looked at now: False inside jit, vmap and grad."""
    return not isinstance(x, jax.core.Tracer)
