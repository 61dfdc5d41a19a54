"""Elementwise functions on the host: their traces evaluated by NumPy, which compiles nothing.

What is looked at before a program is compiled, such as how many terms a series needs, are some
thousand values: XLA would take longer to compile their program than NumPy to compute them.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import is_concrete
from ntk_jax.jaxprs import INNER, Eqn, evaluate, inner_jaxpr

Value: TypeAlias = Any
"""An array or a number of NumPy's; of parameters, whatever JAX holds there."""


def host_values(f: Callable[..., Any], *args: np.ndarray) -> Value:
    """The arrays that `f` returns, as NumPy's, in the dtypes of JAX.

    By XLA in one program where NumPy does not know an operation.
    """
    dtype = jnp.result_type(float)
    values = [np.asarray(a, dtype) for a in args]
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*values)
    structure = jax.tree.structure(shapes)
    if all(map(is_concrete, closed.consts)):
        try:
            with np.errstate(all="ignore"):
                out = evaluate(closed.jaxpr, list(map(np.asarray, closed.consts)), values, _step)
            return jax.tree.unflatten(structure, out)
        except _UnknownError:
            pass
    found = jax.jit(f)(*values)
    if not all(map(is_concrete, jax.tree.leaves(found))):  # under someone's jit
        with jax.ensure_compile_time_eval():
            found = jax.jit(f)(*values)
    return jax.tree.map(np.asarray, found)


class _UnknownError(Exception):
    """An operation that NumPy has no name for."""


def _step(eqn: Eqn, values: list[Any]) -> Sequence[Any]:
    name = eqn.primitive.name
    if name in INNER:
        jaxpr, consts = inner_jaxpr(eqn)
        return evaluate(jaxpr, list(map(np.asarray, consts)), values, _step)
    aval: Value = eqn.outvars[0].aval
    if name in _SHAPED:
        return [_SHAPED[name](eqn.params, aval, *values)]
    whole = not jnp.issubdtype(aval.dtype, jnp.inexact)
    if name not in _ELEMENTWISE or (whole and name in _FLOATING):
        raise _UnknownError
    return [np.asarray(_ELEMENTWISE[name](*values)).astype(aval.dtype, copy=False)]


def _each(f: Callable[[float], float]) -> Callable[[Any], Value]:
    many = np.frompyfunc(f, 1, 1)
    return lambda x: np.asarray(many(np.asarray(x, float)), float)


def _logistic(x: Value) -> Value:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _select(which: Value, *cases: Value) -> Value:
    if len(cases) > 2:
        raise _UnknownError
    return np.where(np.asarray(which, bool), cases[-1], cases[0])


def _polynomial(x: Value, *coefficients: Value) -> Value:
    total = coefficients[-1]
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


_FLOATING = ("div", "pow", "rem")
_SAME = ("copy", "copy_p", "optimization_barrier", "stop_gradient")
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_SAME, lambda x: x),
    **{
        name: getattr(np, name)
        for name in (
            *"add exp exp2 expm1 log log1p log2 tanh sinh cosh sin cos tan sqrt cbrt".split(),
            *"square abs sign floor ceil nextafter".split(),
        )
    },
    **{
        name: getattr(np, f"arc{name[1:]}")
        for name in "asin acos atan atan2 asinh acosh atanh".split()
    },
    **{name: getattr(operator, name) for name in "gt ge lt le eq ne sub mul neg".split()},
    "add_any": np.add,
    "and": np.bitwise_and,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "div": np.divide,
    "erf": _each(math.erf),
    "erfc": _each(math.erfc),
    "is_finite": np.isfinite,
    "logistic": _logistic,
    "max": np.maximum,
    "min": np.minimum,
    "not": np.invert,
    "one_minus_square": lambda x: (1 - x) * (1 + x),
    "or": np.bitwise_or,
    "polynomial": _polynomial,
    "pow": np.power,
    "rem": np.fmod,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": _select,
    "xor": np.bitwise_xor,
}
_SHAPED: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": lambda params, aval, x: _broadcast(params["broadcast_dimensions"], aval, x),
    "convert_element_type": lambda params, aval, x: np.asarray(x).astype(aval.dtype),
    "integer_pow": lambda params, aval, x: _integer_pow(x, params["y"]),
    "reshape": lambda params, aval, x: np.reshape(x, aval.shape),
    "squeeze": lambda params, aval, x: np.reshape(x, aval.shape),
}


def _broadcast(places: Sequence[int], aval: Value, x: Value) -> np.ndarray:
    shape = [1] * len(aval.shape)
    for place, size in zip(places, np.shape(x), strict=True):
        shape[place] = size
    return np.broadcast_to(np.reshape(x, shape), aval.shape)


def _integer_pow(x: Value, y: int) -> Value:
    """By products, as XLA: NumPy's power of single precision would round otherwise."""
    power = np.ones_like(x)
    for bit in bin(abs(y))[2:]:
        power = power * power * (x if bit == "1" else 1)
    return power if y >= 0 else 1 / power
