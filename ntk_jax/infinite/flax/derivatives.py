"""Custom derivative rules: a limit is that of the function, so the rule must be its derivative."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from ntk_jax.compat import CUSTOM_CALLS, bind, outside_traces
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.jaxprs import Atom, Eqn, closed_jaxpr, dtype_of, shape_of

Evaluate = Callable[[list[Any]], Sequence[jax.Array]]


def check_custom_derivative(eqn: Eqn, checked: dict[int, Eqn]) -> None:
    """Raise unless the custom rule of an equation is the derivative of its function, at random
    arguments.

    `checked` is the program's memory of the equations that passed, kept alive so that their ids
    stay taken.
    """
    if id(eqn) in checked:
        return
    if not _is_of_jax(eqn) and not outside_traces(_agrees, eqn):
        name = eqn.params.get("name", eqn.primitive.name)
        raise NoLimitError(
            f"`{name}` has a custom derivative that is not the derivative of its values (such as a "
            "straight-through gradient), which has no rule,"
        )
    checked[id(eqn)] = eqn


def _is_of_jax(eqn: Eqn) -> bool:
    """Whether it is `jax.nn.relu`, whose rule is known to be right: then nothing is compiled."""
    if len(eqn.invars) != 1:
        return False
    (own,) = jax.make_jaxpr(jax.nn.relu)(eqn.invars[0].aval).eqns
    # JAX keeps the trace of a function, and its rule with it.
    return own.primitive is eqn.primitive and own.params == eqn.params


def _agrees(eqn: Eqn) -> bool:
    closed = closed_jaxpr(eqn.params[CUSTOM_CALLS[eqn.primitive.name]])
    rng = np.random.default_rng(0)
    args = [_sample(rng, v) for v in eqn.invars]
    floats = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]

    def along(f: Evaluate, *chosen: Any) -> list[jax.Array]:
        full: list[Any] = list(args)
        for i, a in zip(floats, chosen, strict=True):
            full[i] = a
        return [o for o in f(full) if jnp.issubdtype(o.dtype, jnp.floating)]

    def pulled(f: Evaluate, *chosen: np.ndarray) -> Sequence[jax.Array]:
        out, pull = jax.vjp(partial(along, f), *chosen)
        draw = np.random.default_rng(1).standard_normal
        return pull([jnp.asarray(draw(o.shape), o.dtype) for o in out])

    # The rule as it stands, against the derivative of the function that it belongs to: both pull
    # the same cotangents back.
    own: list[Evaluate] = [partial(bind, eqn), lambda a: jex_core.jaxpr_as_fun(closed)(*a)]
    both = jax.jit(lambda *chosen: [pulled(f, *chosen) for f in own])(*(args[i] for i in floats))
    return all(
        np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        for a, b in zip(*both, strict=True)
    )


def _sample(rng: np.random.Generator, atom: Atom) -> np.ndarray:
    shape, dtype = shape_of(atom), dtype_of(atom)
    floating = jnp.issubdtype(dtype, jnp.floating)
    return np.asarray(rng.standard_normal(shape) if floating else np.zeros(shape), dtype)
