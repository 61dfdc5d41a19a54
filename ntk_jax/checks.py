"""Checks of shapes, values and options: every failure says what was expected, what came, and the
way out.

Values are looked at only where they exist: inside `jax.jit` the checks of shape and dtype remain.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.compat import is_concrete
from ntk_jax.types import Kernels


def working_dtype(*dtypes: Any) -> jnp.dtype:
    """float64 if any of `dtypes` is, else float32: kernels of half-precision networks are
    accumulated in single.

    Integers count as JAX's default float.
    """
    floats = [
        jnp.dtype(d) if jnp.issubdtype(d, jnp.floating) else jnp.zeros(()).dtype for d in dtypes
    ]
    return jnp.dtype("float64") if jnp.dtype("float64") in floats else jnp.dtype("float32")


def check_option(name: str, value: Any, options: Iterable[Any]) -> None:
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
    value: Any,
    *,
    minimum: float = 0.0,
    strict: bool = False,
    finite: bool = True,
    max_ndim: int | None = None,
) -> None:
    """Raise unless `value` is a real number at least `minimum` (above it if `strict`), or an array
    of them.

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


def check_integer(name: str, value: Any, *, minimum: int) -> None:
    """Raise unless `value` is a Python or NumPy integer at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name}: expected an integer of at least {minimum}; got {value!r}.")


def check_finite(name: str, x: Array) -> None:
    """Raise if `x` holds NaN or infinity."""
    if not is_concrete(x) or not jnp.issubdtype(x.dtype, jnp.inexact):
        return
    if all_finite([x]):
        return
    with jax.ensure_compile_time_eval():
        bad = int(jnp.sum(~jnp.isfinite(x)))
    raise ValueError(
        f"{name}: expected finite values; got {bad} NaN or infinite of {x.size}. Clean or drop "
        "those rows first."
    )


def all_finite(arrays: list[Array]) -> bool:
    """Whether no array holds NaN or infinity."""
    if (
        sum(x.size for x in arrays) <= 2**18
    ):  # launching a program would take longer than reading them
        return all(np.isfinite(np.asarray(x)).all() for x in arrays)
    with jax.ensure_compile_time_eval():  # a constant inside someone's jit can still be looked at
        return bool(_all_finite_jit(arrays))


@jax.jit
def _all_finite_jit(arrays: list[Array]) -> Array:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays]).all()


def as_array(name: str, value: Any) -> Array:
    """`value` as an array of the same numbers: no integer wraps, no name is parsed, no mask is
    dropped.
    """
    if isinstance(value, Array):
        _check_alive(name, value)
        return value
    fields = getattr(value, "_fields", None) or getattr(
        value, "__dataclass_fields__", None
    )  # of a named tuple, a dataclass
    if fields:
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
    return array if isinstance(array, Array) else jnp.asarray(_native(name, array))


def _as_numpy(value: Any) -> Any:
    """A NumPy array if the values can be looked at, else a JAX array."""
    return (
        np.asarray(value) if all(map(is_concrete, jax.tree.leaves(value))) else jnp.asarray(value)
    )


def _native(name: str, array: np.ndarray) -> np.ndarray:
    """The array in a dtype that JAX has: wide and foreign ones are converted, what is no number is
    refused.
    """
    dtype = array.dtype
    if not (jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"):
        some = f", such as {array.flat[0]!r}" if array.size else ""
        raise ValueError(
            f"{name}: expected numbers; got dtype {dtype}{some}. Numbers that are held as objects: "
            f"{name}.astype(float). "
            f"Names: one column for each, ({name}[:, None] == np.unique({name})).astype(float)."
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


def _check_alive(name: str, array: Array) -> None:
    if is_concrete(array) and array.is_deleted():
        raise ValueError(
            f"{name}: expected an array; got one that was deleted, or donated. Keep a copy of it."
        )


def as_examples(name: str, x: Any) -> Array:
    """`x` as an array whose rows are examples: at least two axes, at least one row, real and
    finite.
    """
    x = as_array(name, x)
    if x.ndim < 2:
        raise ValueError(
            f"{name}: expected examples in rows, shape (n, ...) with at least two axes; got shape "
            f"{x.shape}. "
            f"Use {name}[:, None] for n examples of one feature, {name}[None] for one example."
        )
    if x.size == 0:
        raise ValueError(
            f"{name}: expected at least one example with at least one feature; got shape {x.shape}."
        )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name}: expected real values; got {x.dtype}. Stack real and imaginary parts as "
            "features."
        )
    check_finite(name, x)
    return x


def as_example_pair(x1: Any, x2: Any) -> tuple[Array, Array | None]:
    """Both sets of examples, of equal feature shape; `x2` may be None."""
    x1 = as_examples("x1", x1)
    if x2 is None:
        return x1, None
    x2 = as_examples("x2", x2)
    if x1.shape[1:] != x2.shape[1:]:
        raise ValueError(
            f"x2: expected examples shaped like those of x1, {x1.shape[1:]}; got {x2.shape[1:]}. "
            "Both sets must go through the same preprocessing."
        )
    return x1, x2


def as_kernel(name: str, k: Any) -> Array:
    """`k` as a finite kernel of shape (n1, n2), (n1, n2, O) or (n1, n2, O, O), in single precision
    at least.
    """
    if isinstance(k, Kernels):
        raise ValueError(
            f"{name}: expected one kernel; got Kernels(nngp, ntk). Take one of the two, .nngp or "
            ".ntk."
        )
    k = as_array(name, k)
    if k.ndim not in (2, 3, 4) or (k.ndim == 4 and k.shape[2] != k.shape[3]):
        raise ValueError(
            f"{name}: expected a kernel of shape (n1, n2), (n1, n2, O) or (n1, n2, O, O); got "
            f"{k.shape}."
        )
    if k.size == 0:
        raise ValueError(
            f"{name}: expected at least one example on each side; got shape {k.shape}."
        )
    if not jnp.issubdtype(k.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected floating-point values; got {k.dtype}. Convert with .astype(float)."
        )
    check_finite(name, k)
    return k.astype(working_dtype(k.dtype))  # decompositions of half precision do not exist


def check_symmetric(name: str, k: Array) -> None:
    """Raise unless the matrix `k` (n, n) is square and symmetric to within rounding."""
    if k.shape[0] != k.shape[1]:
        raise ValueError(
            f"{name}: expected a square kernel (n, n); got shape {k.shape}. Is it k_test_train?"
        )
    if not is_concrete(k):
        return
    with jax.ensure_compile_time_eval():
        gap, scale = float(jnp.max(jnp.abs(k - k.T))), float(jnp.max(jnp.abs(k)))
    if gap > float(jnp.finfo(k.dtype).eps) ** 0.5 * scale:
        raise ValueError(
            f"{name}: expected a symmetric kernel; got max |K - K.T| = {gap:.3g} with max |K| = "
            f"{scale:.3g}. "
            "Build it with x2=None, or from the same rows in the same order on both sides."
        )


def as_targets(name: str, y: Any, num_rows: int, dtype: Any) -> Array:
    """`y` as a finite array of shape (n,) or (n, O) with one row per example."""
    y = as_array(name, y)
    if y.ndim not in (1, 2) or y.shape[0] != num_rows or y.size == 0:
        raise ValueError(
            f"{name}: expected one row per training example, shape ({num_rows},) or ({num_rows}, "
            f"O); got {y.shape}."
        )
    return _cast(name, y, dtype)


def as_outputs(name: str, f: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Network outputs `f`, a scalar or exactly of `shape`: (n,) against (n, 1) would broadcast to
    (n, n).
    """
    f = as_array(name, f)
    if f.ndim and f.shape != shape:
        raise ValueError(
            f"{name}: expected a scalar or shape {shape}, like the targets; got {f.shape}. "
            "Reshape one of the two: broadcasting them against each other would be silently wrong."
        )
    return jnp.broadcast_to(_cast(name, f, dtype), shape)


def _cast(name: str, values: Array, dtype: Any) -> Array:
    """Real and finite values in the dtype of the kernel, whose range may be smaller."""
    if jnp.issubdtype(
        values.dtype, jnp.complexfloating
    ):  # a conversion would drop the imaginary parts
        raise ValueError(
            f"{name}: expected real values; got {values.dtype}. Use two outputs, real and "
            "imaginary part."
        )
    check_finite(name, values)
    cast = values.astype(dtype)
    if values.dtype.itemsize > cast.dtype.itemsize and is_concrete(cast) and not all_finite([cast]):
        raise ValueError(
            f"{name}: expected values in the range of the kernel's {cast.dtype}. Use float64 "
            "kernels."
        )
    return cast


def check_params(params: Any) -> None:
    """Raise unless `params` is a non-empty pytree of floating-point arrays, and nothing but
    parameters.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params: expected a pytree with at least one array; got an empty one.")
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        others = sorted(set(map(str, params)) - {"params"})
        raise ValueError(
            "params: expected parameters alone; got Flax variables that also hold "
            f"{', '.join(others)}. "
            "Use apply_fn, params = ntk_jax.from_linen(model, variables), which keeps those fixed."
        )
    for path, leaf in leaves:
        _check_parameter(f"params{jax.tree_util.keystr(path)}", leaf)
    # All leaves in one program: one at a time, a deep network would wait seconds for it to compile.
    arrays = (
        (path, leaf if isinstance(leaf, Array) else jnp.asarray(leaf)) for path, leaf in leaves
    )
    known = [(path, leaf) for path, leaf in arrays if is_concrete(leaf)]
    if known and not all_finite([leaf for _, leaf in known]):
        for path, leaf in known:
            check_finite(f"params{jax.tree_util.keystr(path)}", leaf)


def _check_parameter(name: str, leaf: Any) -> None:
    """Raise unless a leaf is a floating-point array of a dtype that JAX has."""
    array = leaf if isinstance(leaf, Array) else np.asarray(leaf)
    if array.dtype == np.dtype(object):
        raise ValueError(
            f"{name}: expected a floating-point array; got {type(leaf).__name__}. Of an Equinox "
            "module, pass the first part "
            "of eqx.partition(model, eqx.is_inexact_array) and combine it with the second in "
            "apply_fn."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected a floating-point array; got {array.dtype}. Pass what is trained, "
            "and close over the rest."
        )
    if isinstance(array, Array):
        _check_alive(name, array)
    elif array.dtype.itemsize > 8 or not array.dtype.isnative:
        raise ValueError(
            f"{name}: expected a dtype that JAX has; got {array.dtype}. Convert with "
            ".astype(float)."
        )
