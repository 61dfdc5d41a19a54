"""Custom derivative rules: a limit is that of the function, so the rule must be its derivative."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core
from jax.typing import ArrayLike

from ntk_jax.compat import CUSTOM_CALLS, bind, outside_traces
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.jaxprs import (
    Atom,
    Eqn,
    Jaxpr,
    closed_jaxpr,
    dtype_of,
    needed,
    open_jaxpr,
    same_jaxpr,
    shape_of,
)

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
    """Whether it is `jax.nn.relu`, whose rule is known to be right: then nothing is evaluated."""
    if eqn.primitive.name != "custom_jvp_call" or len(eqn.invars) != 1:
        return False
    x = jax.ShapeDtypeStruct(shape_of(eqn.invars[0]), dtype_of(eqn.invars[0]))
    (known,) = jax.make_jaxpr(jax.nn.relu)(x).eqns
    values = (open_jaxpr(e.params["call_jaxpr"])[0] for e in (eqn, known))
    return same_jaxpr(*values) and same_jaxpr(*(_slope(e, x) for e in (eqn, known)))


def _slope(eqn: Eqn, x: jax.ShapeDtypeStruct) -> Jaxpr:
    """The rule of an equation, without the values."""
    jaxpr = jax.make_jaxpr(lambda x, t: jax.jvp(lambda x: bind(eqn, [x])[0], (x,), (t,))[1])(x, x)
    return jaxpr.jaxpr.replace(eqns=needed(jaxpr.jaxpr, jaxpr.jaxpr.outvars))


def _agrees(eqn: Eqn) -> bool:
    closed = closed_jaxpr(eqn.params[CUSTOM_CALLS[eqn.primitive.name]])
    rng = np.random.default_rng(0)
    args = [_sample(rng, v) for v in eqn.invars]
    floats = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]

    def along(f: Evaluate, *chosen: ArrayLike) -> list[jax.Array]:
        full: list[Any] = list(args)
        for i, a in zip(floats, chosen, strict=True):
            full[i] = a
        return [o for o in f(full) if jnp.issubdtype(o.dtype, jnp.floating)]

    def pulled(f: Evaluate, *chosen: ArrayLike) -> Sequence[jax.Array]:
        out, pull = jax.vjp(partial(along, f), *chosen)
        draw = np.random.default_rng(1).standard_normal
        return pull([jnp.asarray(draw(o.shape), o.dtype) for o in out])

    # The rule as it stands, against the derivative of the function that it belongs to: both pull
    # the same cotangents back.
    own: list[Evaluate] = [partial(bind, eqn), lambda a: jex_core.jaxpr_as_fun(closed)(*a)]
    both = jax.jit(lambda *chosen: [pulled(f, *chosen) for f in own])(*(args[i] for i in floats))
    return all(
        np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in zip(*both, strict=True)
    )


def _sample(rng: np.random.Generator, atom: Atom) -> np.ndarray:
    shape, dtype = shape_of(atom), dtype_of(atom)
    floating = jnp.issubdtype(dtype, jnp.floating)
    return np.asarray(rng.standard_normal(shape) if floating else np.zeros(shape), dtype)
