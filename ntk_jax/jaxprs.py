"""Whether two traced programs compute the same of their inputs and constants."""

from typing import Any

import jax
import numpy as np

from ntk_jax.compat import Literal, open_jaxpr


def same_jaxpr(a: Any, b: Any) -> bool:
    """Whether the jaxprs `a` and `b` are equal up to names; in doubt (functions in their
    parameters), not.
    """
    numbers: dict[Any, int] = {}

    def same_atoms(xs: Any, ys: Any) -> bool:
        return len(xs) == len(ys) and all(map(same_atom, xs, ys))

    def same_atom(x: Any, y: Any) -> bool:
        if isinstance(x, Literal) or isinstance(y, Literal):
            return (
                isinstance(x, Literal)
                and isinstance(y, Literal)
                and x.aval == y.aval
                and _same(x.val, y.val)
            )
        return numbers.get(x, -1) == numbers.get(y, -2)

    def bind(xs: Any, ys: Any) -> bool:
        for x, y in zip(xs, ys, strict=False):
            numbers[x] = numbers[y] = len(numbers)
        return len(xs) == len(ys) and all(x.aval == y.aval for x, y in zip(xs, ys, strict=True))

    if a is b:
        return True
    if len(a.eqns) != len(b.eqns) or not bind([*a.constvars, *a.invars], [*b.constvars, *b.invars]):
        return False
    for e, f in zip(a.eqns, b.eqns, strict=True):
        if (
            e.primitive is not f.primitive
            or not same_atoms(e.invars, f.invars)
            or not _same(e.params, f.params)
        ):
            return False
        if not bind(e.outvars, f.outvars):
            return False
    return same_atoms(a.outvars, b.outvars)


def _same(x: Any, y: Any) -> bool:
    """Whether two parameters of an equation are equal."""
    if x is y:
        return True
    if type(x) is not type(y):
        return False
    if hasattr(x, "eqns"):
        (a, consts_a), (b, consts_b) = open_jaxpr(x), open_jaxpr(y)
        return _all_same(consts_a, consts_b) and same_jaxpr(a, b)
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(_same(x[k], y[k]) for k in x)
    if isinstance(x, tuple | list) and not hasattr(x, "_fields"):
        return _all_same(x, y)
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    return False if isinstance(x, jax.Array) else bool(x == y)


def _all_same(xs: Any, ys: Any) -> bool:
    return len(xs) == len(ys) and all(map(_same, xs, ys))
