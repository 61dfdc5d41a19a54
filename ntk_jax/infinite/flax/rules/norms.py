"""Weights divided by their norm (weight normalization, Salimans and Kingma 2016, arXiv:1602.07868).

The squared norm of n entries of variance s² is n s² up to relative errors of order 1 / sqrt(n): a
number. What the gradient loses by its derivative, the part along the weight, is 1 / n of it.
"""

import math
from collections.abc import Sequence
from typing import cast

from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.evaluation import deterministic
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.parameter_views import divided_by_norm, entries
from ntk_jax.infinite.flax.products import product
from ntk_jax.infinite.flax.values import ELEMENTWISE, Det, Param, Squares, Value, Wide, number
from ntk_jax.jaxprs import Eqn, shape_of

MOVES = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims")


@rule("squares")
def squares(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> Sequence[Value]:
    """The sum of a parameter's squares, a function of it, or the parameter divided by its norm."""
    name = eqn.primitive.name
    (found, *more) = [v for v in values if isinstance(v, Squares)]
    others = [v for v in values if v is not found]
    if found.summed is None and name == "reduce_sum":
        axes = tuple(eqn.params["axes"])
        terms = math.prod(found.param.shape[a] for a in axes)
        return [Squares(found.param, found.number.times(number(terms)), axes)]
    if found.summed is None:
        return program.step(eqn, [_entries_squared(program, v) for v in values])
    if name in MOVES:
        return [found]
    if not more and name in ELEMENTWISE and all(_is_number(v) for v in others):
        numbers = [v.number if isinstance(v, Squares) else cast(Det, v) for v in values]
        (by,) = deterministic(eqn, numbers, program.moments.dtype)
        return [Squares(found.param, by, found.summed)]
    shape = shape_of(eqn.invars[list(values).index(found)])
    if len(values) == 2 and isinstance(param := others[0], Param):
        divided = divided_by_norm(name, param, found, shape, values[0] is param)
        if divided is not None:
            return [divided]
    raise NoLimitError(
        f"the norm of parameter {found.param.leaf} meets something other than a number, or than "
        "the entries that it is the norm of (weight normalization),"
    )


def _is_number(value: Value) -> bool:
    return isinstance(value, Squares) or (isinstance(value, Det) and value.literal is not None)


def _entries_squared(program: Interpreter, value: Value) -> Value:
    """Squares that are not summed, as values along finite axes."""
    if not isinstance(value, Squares):
        return value
    of_one = entries(program.uses, value.param, (1,) * len(value.param.shape))
    if isinstance(of_one, Wide):
        return product(of_one, of_one, of_one.wide, program.related)
    return of_one.times(of_one)
