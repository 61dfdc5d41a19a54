"""Rules of the user's own."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax

from ntk_jax.infinite.flax.interpreter import USER_RULES, Interpreter
from ntk_jax.jaxprs import Eqn, dtype_of, shape_of

Rule: TypeAlias = Callable[[Interpreter, Eqn, list[Any]], list[Any]]


def register_rule(primitive: str, function: Callable[..., Any]) -> None:
    """Tell `infinite_width` what an operation without a rule computes, in operations that have one.

    Wherever a model's trace has the primitive, `function` is read in its place. Of a model that
    calls NumPy, for instance, by `jax.pure_callback(np.tanh, ...)`, it is told by
    `ntk_jax.register_rule("pure_callback", lambda h, **params: jnp.tanh(h))`.

    Example:
        >>> phi = lambda h: jax.lax.igamma(jnp.ones_like(h), h * h)
        >>> ntk_jax.register_rule("igamma", lambda a, x: 1 - jnp.exp(-x))
        >>> kernel_fn = ntk_jax.infinite_width(ntk_jax.MLP((64,), 1, phi))
        >>> print(round(float(kernel_fn(np.eye(2, dtype=np.float32)).nngp[0, 1]), 3))
        0.086

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


def _rule(function: Callable[..., Any]) -> Rule:
    def rule(program: Interpreter, eqn: Eqn, values: list[Any]) -> list[Any]:
        avals = [jax.ShapeDtypeStruct(shape_of(v), dtype_of(v)) for v in eqn.invars]
        closed = jax.make_jaxpr(lambda *operands: _several(function(*operands, **eqn.params)))(
            *avals
        )
        found, expected = (list(map(shape_of, vs)) for vs in (closed.jaxpr.outvars, eqn.outvars))
        if found != expected:
            raise ValueError(
                f"register_rule: expected a function with results of shape {expected} for "
                f"{eqn.primitive.name!r}; got {found}."
            )
        return program.run(closed.jaxpr, closed.consts, values)

    return rule


def _several(result: Any) -> Sequence[Any]:
    return result if isinstance(result, tuple | list) else (result,)
