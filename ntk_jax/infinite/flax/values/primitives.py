"""The two primitives that the algebra itself writes, read off a trace."""

from collections.abc import Callable
from typing import Any

import jax


def _primitive(f: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    (eqn,) = jax.make_jaxpr(f)(1.0, 2.0).eqns
    return eqn.primitive, dict(eqn.params)


MUL: tuple[Any, dict[str, Any]] = _primitive(jax.lax.mul)
ADD: tuple[Any, dict[str, Any]] = _primitive(jax.lax.add)
