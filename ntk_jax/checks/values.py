"""Checks of options, numbers and arrays, whatever these stand for."""

import difflib
from collections.abc import Iterable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from ntk_jax.compat import is_concrete, is_on_host, on_device

Number: TypeAlias = Array | np.ndarray
"""A number, or several, as an argument of a compiled program."""


def working_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """float64 if any of `dtypes` is, else float32, in which kernels of half precision accumulate.

    Integers count as JAX's default float.
    """
    floats = [
        jnp.dtype(d) if jnp.issubdtype(d, jnp.floating) else jnp.result_type(float) for d in dtypes
    ]
    return jnp.dtype("float64") if jnp.dtype("float64") in floats else jnp.dtype("float32")


def check_option(name: str, value: object, options: Iterable[object]) -> None:
    """Raise unless `value` is one of `options`."""
    options = tuple(options)
    if value not in options:
        known = {option.lower(): option for option in options if isinstance(option, str)}
        close = difflib.get_close_matches(str(value).lower(), known, n=1)
        hint = f" Did you mean {known[close[0]]!r}?" if close else ""
        raise ValueError(
            f"{name}: expected one of {', '.join(map(repr, options))}; got {value!r}.{hint}"
        )


def check_number(
    name: str,
    value: object,
    *,
    minimum: float = 0.0,
    strict: bool = False,
    finite: bool = True,
    max_ndim: int | None = None,
) -> None:
    """Raise unless `value` is a real number at least `minimum` (above it if `strict`), or several.

    `max_ndim` is how many axes it may have: 0 where only a scalar is meant, which an array would be
    broadcast against.
    """
    array = _as_numpy(value)
    if max_ndim is not None and array.ndim > max_ndim:
        expected = ("a number", "a number or a vector of them")[max_ndim]
        raise ValueError(
            f"{name}: expected {expected}; got shape {array.shape}. Call once for each value."
        )
    if array.size and not (
        jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    ):
        raise ValueError(f"{name}: expected a real number; got {value!r}.")
    if not is_concrete(array):
        return
    bad = ~(array > minimum) if strict else ~(array >= minimum)
    if finite:
        bad |= ~np.isfinite(array)
    if np.any(bad):
        bound = f"{'above' if strict else 'at least'} {minimum:g}"
        raise ValueError(
            f"{name}: expected {'finite and ' if finite else ''}{bound}; got {value!r}."
        )


def as_number(
    name: str, value: object, dtype: DTypeLike, *, max_ndim: int | None = 0, strict: bool = False
) -> Number:
    """A checked number of at least 0, or several, in `dtype`: an argument of a compiled program.

    Python's and NumPy's numbers and arrays without axes all are the same argument to it.
    """
    check_number(name, value, max_ndim=max_ndim, strict=strict)
    return _as_numpy(value).astype(dtype)


def is_zero(value: ArrayLike) -> bool:
    """Whether a number, not an array of them, is known to be 0."""
    return is_concrete(value) and np.ndim(value) == 0 and not np.asarray(value)


def check_integer(name: str, value: object, *, minimum: int) -> None:
    """Raise unless `value` is a Python or NumPy integer at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name}: expected an integer of at least {minimum}; got {value!r}.")


def check_vector(name: str, x: Array | np.ndarray) -> None:
    """Raise unless times, or numbers of steps, are a scalar or a non-empty vector."""
    if x.ndim > 1 or not x.size:
        raise ValueError(f"{name}: expected a scalar or a non-empty vector; got shape {x.shape}.")


def check_finite(name: str, x: Array) -> None:
    """Raise if `x` holds NaN or infinity."""
    if not is_concrete(x) or not is_inexact(x) or all_finite([x]):
        return
    bad = np.sum(~np.isfinite(np.asarray(x)))
    raise ValueError(
        f"{name}: expected finite values; got {bad} NaN or infinite of {x.size}. Clean or drop "
        "those rows first."
    )


def is_inexact(x: Array) -> bool:
    """Whether an array can hold NaN or infinity."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def all_finite(arrays: list[Array]) -> bool:
    """Whether no array holds NaN or infinity."""
    # Launching a program would take longer than reading a few numbers.
    on_host = all(map(is_on_host, arrays))
    is_here = on_host or all(getattr(x, "is_fully_addressable", True) for x in arrays)
    if is_here and sum(x.size for x in arrays) <= (2**20 if on_host else 2**18):
        return all(np.isfinite(np.asarray(x)).all() for x in arrays)
    with jax.ensure_compile_time_eval():  # a constant inside someone's jit can still be looked at
        return bool(_all_finite_jit(arrays))


@jax.jit
def _all_finite_jit(arrays: list[Array]) -> Array:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays]).all()


def as_array(name: str, value: object) -> Array:
    """`value` as an array of the same numbers: no integer wraps, no mask is dropped."""
    if isinstance(value, Array):
        check_alive(name, value)
        return value
    # Of a named tuple or a dataclass: NumPy would stack the fields, or hold them as objects.
    if fields := getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None):
        parts = ", ".join(f".{field}" for field in fields)
        raise ValueError(
            f"{name}: expected one array; got {type(value).__name__}. Take one of its parts: "
            f"{parts}."
        )
    if hasattr(value, "todense"):
        dense = "toarray" if hasattr(value, "toarray") else "todense"
        raise ValueError(
            f"{name}: expected a dense array; got a sparse {type(value).__name__}. Pass "
            f"{name}.{dense}()."
        )
    try:
        array = _as_numpy(value)
    except ValueError as error:
        raise ValueError(
            f"{name}: expected an array; got a {type(value).__name__} that is none: {error}"
        ) from None
    if np.ma.is_masked(value):
        raise ValueError(f"{name}: expected no masked values; got some. Fill or drop them.")
    return array if isinstance(array, Array) else on_device(_native(name, array))


def _as_numpy(value: object) -> np.ndarray | Array:
    """A NumPy array if the values can be looked at, else a JAX array."""
    return (
        np.asarray(value) if all(map(is_concrete, jax.tree.leaves(value))) else jnp.asarray(value)
    )


def _native(name: str, array: np.ndarray) -> np.ndarray:
    """The array in a dtype that JAX has, converted from wide and foreign ones."""
    dtype = array.dtype
    if not (jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"):
        some = f", such as {array.flat[0]!r}" if array.size else ""
        raise ValueError(
            f"{name}: expected numbers; got dtype {dtype}{some}. Numbers that are held as objects: "
            f"{name}.astype(float). Names: one column for each, ({name}[:, None] == "
            f"np.unique({name})).astype(float)."
        )
    widest = {"f": np.float64, "c": np.complex128}.get(dtype.kind)
    if widest is not None and dtype.itemsize > np.dtype(widest).itemsize:
        return array.astype(widest)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind in "iu" and array.size:
        range_of = np.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
        if array.min() < range_of.min or array.max() > range_of.max:  # JAX would wrap them
            return array.astype(float)
    return array


def check_alive(name: str, array: Array) -> None:
    """Raise if the memory of an array was given away, as a donated argument or by `delete`."""
    if is_concrete(array) and array.is_deleted():
        raise ValueError(
            f"{name}: expected an array; got one that was deleted, or donated. Keep a copy of it."
        )
