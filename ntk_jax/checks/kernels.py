"""Checks of what is learned from examples: kernels, targets and outputs."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from ntk_jax.checks.values import all_finite, as_array, check_finite, working_dtype
from ntk_jax.compat import in_dtype, is_concrete, on_device
from ntk_jax.types import Kernels


def as_kernel(name: str, k: object) -> Array:
    """`k` as a kernel (n1, n2), (n1, n2, O) or (n1, n2, O, O), float32 at least.

    Its entries are looked at by the program that takes it (`checks.looks`).
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
    if jnp.issubdtype(k.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name}: expected a real kernel; got {k.dtype}. A Hermitian one solves linear systems "
            "as it is, jnp.linalg.solve(k + diag_reg * jnp.eye(len(k)), y); spectra and dynamics "
            "are of real kernels."
        )
    if not jnp.issubdtype(k.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected floating-point values; got {k.dtype}. Convert with .astype(float)."
        )
    # Decompositions of half precision do not exist.
    return as_dtype(name, k, working_dtype(k.dtype))


def as_square_kernel(name: str, k: object, *, factored: bool = True) -> Array:
    """`k` as a kernel of examples with themselves: (n, n), (n, n, O) or (n, n, O, O); what is
    `factored` must be in one piece.
    """
    k = as_kernel(name, k)
    if factored:
        check_in_one_piece(name, k)
    if k.shape[0] != k.shape[1]:
        raise ValueError(
            f"{name}: expected a square kernel (n, n); got shape {k.shape}. Is it k_test_train?"
        )
    return k


def as_single_kernel(name: str, k: object) -> Array:
    """`k` as a kernel (n, n), of one output or shared by all."""
    k = as_kernel(name, k)
    if k.ndim != 2:
        raise ValueError(
            f'{name}: expected a kernel (n, n); got {k.shape}. Compute it with outputs="mean".'
        )
    return as_square_kernel(name, k, factored=False)


def as_coupled_kernel(name: str, k: object) -> Array:
    """`k` as one matrix: a kernel (n, n), or a full one (n, n, O, O)."""
    k = as_square_kernel(name, k, factored=False)
    if k.ndim == 3:
        raise ValueError(
            f"{name}: expected a kernel (n, n) or (n, n, O, O); got {k.shape}. Take one of its "
            "outputs, k[..., 0]."
        )
    return k


def check_in_one_piece(name: str, k: Array) -> None:
    """Raise if the rows of a kernel are on several devices: a factorization would gather it, whole,
    on every one of them.
    """
    if is_concrete(k) and len(k.devices()) > 1 and not k.is_fully_replicated:
        raise ValueError(
            f"{name}: expected a kernel on one device; got one whose rows are shared out over "
            f"{len(k.devices())} devices, and its factorization would gather it on each of them. "
            "Use ntk_jax.solve, which only multiplies with it; or, if one device can hold it, "
            f"jax.device_put({name}, jax.devices()[0])."
        )


def as_targets(
    name: str,
    y: object,
    num_rows: int,
    dtype: DTypeLike,
    num_outputs: int | None = None,
    kernel: str = "a kernel with outputs",
) -> Array:
    """`y` as an array (n,) or (n, O), a row per example and the outputs that a kernel has.

    Its entries are looked at by the program that takes it (`checks.looks`).
    """
    y = as_array(name, y)
    if y.ndim not in (1, 2) or y.shape[0] != num_rows or y.size == 0:
        raise ValueError(
            f"{name}: expected one row per training example, shape ({num_rows},) or ({num_rows}, "
            f"O); got {y.shape}."
        )
    if num_outputs is not None and y.size != num_rows * num_outputs:
        raise ValueError(
            f"{name}: expected shape ({num_rows}, {num_outputs}), for {kernel}; got {y.shape}. A "
            "kernel with output axes fixes the number of outputs; one without is shared by all."
        )
    return as_dtype(name, y, dtype)


def as_targets_like(name: str, y: object, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """`y` as a finite array of exactly the shape of the outputs of a network."""
    y = as_array(name, y)
    if y.shape != shape:
        raise ValueError(
            f"{name}: expected the shape that apply_fn returns, {shape}; got {y.shape}. Reshape "
            "the targets (y[:, None] makes one output column): broadcasting would be silently "
            "wrong."
        )
    y = as_dtype(name, y, dtype)
    check_finite(name, y)
    return y


def as_outputs(name: str, f: object, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Network outputs `f`, a scalar or exactly of `shape`: (n,) against (n, 1) would broadcast to
    (n, n).

    Its entries are looked at by the program that takes it (`checks.looks`).
    """
    f = as_array(name, f)
    if f.ndim and f.shape != shape:
        raise ValueError(
            f"{name}: expected a scalar or shape {shape}, like the targets; got {f.shape}. Reshape "
            "one of the two: broadcasting them against each other would be silently wrong."
        )
    return as_dtype(name, f, dtype)


def as_dtype(name: str, values: Array, dtype: DTypeLike) -> Array:
    """Real values in the dtype of a kernel, whose range may be smaller."""
    if jnp.issubdtype(values.dtype, jnp.complexfloating):  # which a conversion would make real
        raise ValueError(
            f"{name}: expected real values; got {values.dtype}. Use two outputs, real and "
            "imaginary part."
        )
    if values.dtype == dtype or not is_concrete(values):
        return in_dtype(values, dtype)
    check_finite(name, values)
    with np.errstate(over="ignore"):  # NumPy compiles nothing
        cast = on_device(np.asarray(values).astype(dtype))
    if not all_finite([cast]):
        raise ValueError(
            f"{name}: expected values in the range of the kernel's {cast.dtype}. Use float64 "
            "kernels."
        )
    return cast
