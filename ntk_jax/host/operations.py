"""Operations of traces, by NumPy."""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk_jax.host.arrangements import ARRANGEMENTS, UnknownOperationError, Value
from ntk_jax.host.sums import SUMS
from ntk_jax.jaxprs import Eqn, branch_of_platform


def operation(eqn: Eqn) -> Callable[..., Value] | None:
    """What NumPy makes of the operands of an equation with one result; None: what they are.

    Both may have axes of one entry for more, which who needs them all broadcasts.

    Raises:
        UnknownOperationError: NumPy does not know it.
    """
    name, aval = eqn.primitive.name, _aval(eqn.outvars[0])
    if name in _SAME:
        return None
    if name == "convert_element_type":
        return _convert(eqn)
    if name in _SHAPED:
        whole = [_aval(a).shape for a in eqn.invars]
        return _SHAPED[name](eqn.params, aval, *whole)
    inexact = jnp.issubdtype(aval.dtype, jnp.inexact)
    if name not in _ELEMENTWISE or (not inexact and name in _FLOATING):
        raise UnknownOperationError(name)
    if inexact and aval.dtype.itemsize < 4:  # XLA rounds once for many operations
        raise UnknownOperationError(f"{name} in half precision")
    f = _ELEMENTWISE[name]
    if name == "select_n" and len(eqn.invars) > 3:
        raise UnknownOperationError(name)
    return (lambda *x: np.asarray(f(*x), aval.dtype)) if name in _DOUBLE else f


def _aval(atom: Value) -> Value:
    return atom.aval


def _each(f: Callable[[float], float]) -> Callable[[Any], Value]:
    many = np.frompyfunc(f, 1, 1)
    return lambda x: np.asarray(many(np.asarray(x, float)), float)


def _logistic(x: Value) -> Value:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _polynomial(x: Value, *coefficients: Value) -> Value:
    total = coefficients[-1]
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


def _platform(params: Value, aval: Value) -> Callable[..., Value]:
    number = np.asarray(branch_of_platform(params["platforms"], on_cpu=True), aval.dtype)
    return lambda: number


_SAME = ("copy", "copy_p", "device_put", "optimization_barrier", "stop_gradient")
_FLOATING = ("div", "pow", "rem")
_DOUBLE = ("erf", "erfc", "complex", "logistic")
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
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
    "complex": lambda real, imag: real + 1j * np.asarray(imag),
    "imag": np.imag,
    "real": np.real,
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
    "select_n": lambda which, *cases: np.where(which, cases[-1], cases[0]),
    "xor": np.bitwise_xor,
}


def _convert(eqn: Eqn) -> Callable[..., Value] | None:
    dtype = _aval(eqn.outvars[0]).dtype
    return None if _aval(eqn.invars[0]).dtype == dtype else lambda x: np.asarray(x, dtype)


_SHAPED: dict[str, Callable[..., Callable[..., Value] | None]] = {
    **ARRANGEMENTS,
    **SUMS,
    "integer_pow": lambda params, aval, shape: lambda x: _integer_pow(x, params["y"]),
    "platform_index": _platform,
}


def _integer_pow(x: Value, y: int) -> Value:
    """By products, as XLA: NumPy's power of single precision would round otherwise."""
    power = x if y else np.ones_like(x)
    for bit in bin(abs(y))[3:]:
        power = power * power * x if bit == "1" else power * power
    return power if y >= 0 else 1 / power
