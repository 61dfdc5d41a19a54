"""Checks of shapes, values and options: every failure says what was expected, what came, and the way out.

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


def working_dtype(*dtypes: Any) -> jnp.dtype:
    """float64 if any of `dtypes` is, else float32: kernels of half-precision networks are accumulated in single.

    Integers count as JAX's default float.
    """
    floats = [jnp.dtype(d) if jnp.issubdtype(d, jnp.floating) else jnp.zeros(()).dtype for d in dtypes]
    return jnp.dtype("float64") if jnp.dtype("float64") in floats else jnp.dtype("float32")


def check_option(name: str, value: Any, options: Iterable[Any]) -> None:
    """Raise unless `value` is one of `options`."""
    options = tuple(options)
    if value not in options:
        known = {option.lower(): option for option in options if isinstance(option, str)}
        close = difflib.get_close_matches(str(value).lower(), known, n=1)
        hint = f" Did you mean {known[close[0]]!r}?" if close else ""
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}; got {value!r}.{hint}")


def check_number(name: str, value: Any, *, minimum: float = 0.0, strict: bool = False, finite: bool = True) -> None:
    """Raise unless `value` is a real scalar (or an array of them) at least `minimum` (above it if `strict`)."""
    if not is_concrete(value):
        return
    array = np.asarray(value)
    if array.size and not (np.issubdtype(array.dtype, np.number) and np.isrealobj(array)):
        raise ValueError(f"{name}: expected a real number; got {value!r}.")
    bad = ~(array > minimum) if strict else ~(array >= minimum)
    if finite:
        bad |= ~np.isfinite(array)
    if np.any(bad):
        bound = f"{'above' if strict else 'at least'} {minimum:g}"
        raise ValueError(f"{name}: expected {'finite and ' if finite else ''}{bound}; got {value!r}.")


def check_integer(name: str, value: Any, *, minimum: int) -> None:
    """Raise unless `value` is a Python or NumPy integer at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name}: expected an integer of at least {minimum}; got {value!r}.")


def check_finite(name: str, x: Array) -> None:
    """Raise if `x` holds NaN or infinity."""
    if not is_concrete(x) or not jnp.issubdtype(x.dtype, jnp.inexact):
        return
    if _all_finite([x]):
        return
    with jax.ensure_compile_time_eval():
        bad = int(jnp.sum(~jnp.isfinite(x)))
    raise ValueError(
        f"{name}: expected finite values; got {bad} NaN or infinite of {x.size}. Clean or drop those rows first."
    )


def _all_finite(arrays: list[Array]) -> bool:
    if sum(x.size for x in arrays) <= 2**18:  # launching a program would take longer than reading them
        return all(np.isfinite(np.asarray(x)).all() for x in arrays)
    with jax.ensure_compile_time_eval():  # a constant inside someone's jit can still be looked at
        return bool(_all_finite_jit(arrays))


@jax.jit
def _all_finite_jit(arrays: list[Array]) -> Array:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays]).all()


def as_examples(name: str, x: Any) -> Array:
    """`x` as an array whose rows are examples: at least two axes, at least one row, real and finite."""
    x = jnp.asarray(x)
    if x.ndim < 2:
        raise ValueError(
            f"{name}: expected examples in rows, shape (n, ...) with at least two axes; got shape {x.shape}. "
            f"Use {name}[:, None] for n examples of one feature, {name}[None] for one example."
        )
    if x.size == 0:
        raise ValueError(f"{name}: expected at least one example with at least one feature; got shape {x.shape}.")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"{name}: expected real values; got {x.dtype}. Stack real and imaginary parts as features.")
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
    """`k` as a finite floating-point kernel of shape (n1, n2), (n1, n2, O) or (n1, n2, O, O)."""
    k = jnp.asarray(k)
    if k.ndim not in (2, 3, 4) or (k.ndim == 4 and k.shape[2] != k.shape[3]):
        raise ValueError(f"{name}: expected a kernel of shape (n1, n2), (n1, n2, O) or (n1, n2, O, O); got {k.shape}.")
    if k.size == 0:
        raise ValueError(f"{name}: expected at least one example on each side; got shape {k.shape}.")
    if not jnp.issubdtype(k.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floating-point values; got {k.dtype}. Convert with .astype(float).")
    check_finite(name, k)
    return k


def check_symmetric(name: str, k: Array) -> None:
    """Raise unless the matrix `k` (n, n) is square and symmetric to within rounding."""
    if k.shape[0] != k.shape[1]:
        raise ValueError(f"{name}: expected a square kernel (n, n); got shape {k.shape}. Is it k_test_train?")
    if not is_concrete(k):
        return
    with jax.ensure_compile_time_eval():
        gap, scale = float(jnp.max(jnp.abs(k - k.T))), float(jnp.max(jnp.abs(k)))
    if gap > float(jnp.finfo(k.dtype).eps) ** 0.5 * scale:
        raise ValueError(
            f"{name}: expected a symmetric kernel; got max |K - K.T| = {gap:.3g} with max |K| = {scale:.3g}. "
            "Build it with x2=None, or from the same rows in the same order on both sides."
        )


def _check_real(name: str, values: Array) -> None:
    """Raise for complex values, whose imaginary parts a conversion would drop."""
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"{name}: expected real values; got {values.dtype}. Use two outputs, real and imaginary part.")


def as_targets(name: str, y: Any, num_rows: int, dtype: Any) -> Array:
    """`y` as a finite array of shape (n,) or (n, O) with one row per example."""
    y = jnp.asarray(y)
    if y.ndim not in (1, 2) or y.shape[0] != num_rows or y.size == 0:
        raise ValueError(
            f"{name}: expected one row per training example, shape ({num_rows},) or ({num_rows}, O); got {y.shape}."
        )
    _check_real(name, y)
    check_finite(name, y)
    return y.astype(dtype)


def as_outputs(name: str, f: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Network outputs `f`, a scalar or exactly of `shape`: (n,) against (n, 1) would broadcast to (n, n)."""
    f = jnp.asarray(f)
    if f.ndim and f.shape != shape:
        raise ValueError(
            f"{name}: expected a scalar or shape {shape}, like the targets; got {f.shape}. "
            "Reshape one of the two: broadcasting them against each other would be silently wrong."
        )
    _check_real(name, f)
    check_finite(name, f)
    return jnp.broadcast_to(f.astype(dtype), shape)


def check_params(params: Any) -> None:
    """Raise unless `params` is a non-empty pytree of floating-point arrays, and nothing but parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params: expected a pytree with at least one array; got an empty one.")
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        others = sorted(set(map(str, params)) - {"params"})
        raise ValueError(
            f"params: expected parameters alone; got Flax variables that also hold {', '.join(others)}. "
            "Use apply_fn, params = ntk_jax.from_linen(model, variables), which keeps those fixed."
        )
    for path, leaf in leaves:
        dtype = leaf.dtype if isinstance(leaf, Array) else jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)}: expected a floating-point array; got {dtype}. "
                "Pass what is trained, and close over the rest."
            )
    # All leaves in one program: one at a time, a deep network would wait seconds for it to compile.
    arrays = ((path, leaf if isinstance(leaf, Array) else jnp.asarray(leaf)) for path, leaf in leaves)
    known = [(path, leaf) for path, leaf in arrays if is_concrete(leaf)]
    if known and not _all_finite([leaf for _, leaf in known]):
        for path, leaf in known:
            check_finite(f"params{jax.tree_util.keystr(path)}", leaf)
