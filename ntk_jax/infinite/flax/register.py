"""Rules of the user's own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ntk_jax.infinite.flax.interpreter import USER_RULES, Interpreter


def register_rule(primitive: str, function: Callable[..., Any]) -> None:
    """Tell `infinite_width` what an operation without a rule computes, in operations that have one.

    Wherever a model's trace has the primitive, `function` is read in its place. A model that calls
    NumPy, for instance:

        def phi(h):
            return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(h.shape, h.dtype), h,
            vmap_method="sequential")

        ntk_jax.register_rule("pure_callback", lambda h, **params: jnp.tanh(h))

    Args:
        primitive: its name, as the error of `infinite_width` tells it. Every equation of that name
            is meant: a function for several of them tells them apart by their parameters.
        function: `function(*operands, **params)` -> the result, or a sequence of several; params
            are those of the equation.

    Raises:
        ValueError: a name that is no string, or something that cannot be called.
    """
    if not isinstance(primitive, str) or not primitive:
        raise ValueError(
            "primitive: expected the name of an operation, such as 'pure_callback'; got "
            f"{primitive!r}."
        )
    if not callable(function):
        raise ValueError(
            "function: expected a function(*operands, **params) of JAX operations; got "
            f"{function!r}."
        )
    USER_RULES[primitive] = _rule(function)


def _rule(function: Callable[..., Any]) -> Callable[[Interpreter, Any, list[Any]], list[Any]]:
    def rule(program, eqn, values):
        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        closed = jax.make_jaxpr(lambda *operands: _several(function(*operands, **eqn.params)))(
            *avals
        )
        found = [v.aval.shape for v in closed.jaxpr.outvars]
        expected = [v.aval.shape for v in eqn.outvars]
        if found != expected:
            raise ValueError(
                f"register_rule: expected a function with results of shape {expected} for "
                f"{eqn.primitive.name!r}; got {found}."
            )
        return program.run(closed.jaxpr, closed.consts, values)

    return rule


def _several(result: Any) -> Sequence[Any]:
    return result if isinstance(result, tuple | list) else (result,)
