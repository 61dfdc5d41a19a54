"""The moments q11, q12, q22 that a dual is called on: real numbers that two Gaussian variables can
have.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.checks import working_dtype
from ntk_jax.compat import is_concrete
from ntk_jax.duals.numerics import covariance_slack
from ntk_jax.small_programs import jit_by_size

NAMES = ("q11", "q12", "q22")


def as_moments(q11: Any, q12: Any, q22: Any) -> list[Array]:
    """Possible moments as arrays of one dtype, float32 or float64, and equal rank, still to be
    broadcast.

    Inside jit, where values are not known, impossible ones count as the nearest possible: negative
    variances as 0, covariances beyond +-sqrt(q11 q22) as that bound; of NaN and infinity, NaN
    comes.

    Raises:
        ValueError: not real numbers, or shapes that do not broadcast; where values are known,
            moments that no Gaussians have.
    """
    arrays = [_as_real(name, m) for name, m in zip(NAMES, (q11, q12, q22), strict=True)]
    floats = [
        jax.dtypes.canonicalize_dtype(a.dtype)
        for a in arrays
        if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    dtype, rank = working_dtype(*floats or [jnp.result_type(float)]), max(a.ndim for a in arrays)
    with np.errstate(
        over="ignore"
    ):  # NumPy's integers are converted by NumPy: JAX would wrap around
        moments = [
            jnp.asarray(a.astype(dtype).reshape((1,) * (rank - a.ndim) + a.shape), dtype)
            for a in arrays
        ]
    try:
        np.broadcast_shapes(*(m.shape for m in moments))
    except ValueError as error:
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise ValueError(
            f"q11, q12, q22: expected shapes that broadcast; got {shapes}. Use q11[:, None]."
        ) from error
    if not all(is_concrete(m) for m in moments):
        return _nearest_possible(*moments)
    xp: Any = (
        np if sum(m.size for m in moments) <= 2**18 else jnp
    )  # NumPy compiles nothing; large arrays stay where they are
    _check_possible(xp, *(xp.asarray(m) for m in moments))
    return moments


def _as_real(name: str, m: Any) -> Any:
    """An array, of JAX or of NumPy, of real numbers; those that JAX has no dtype for go by
    float64.
    """
    array = m if isinstance(m, Array) else np.asarray(m)
    if array.dtype in (object, np.longdouble) or not array.dtype.isnative:
        try:
            array = np.asarray(array, np.float64)
        except (TypeError, ValueError):
            pass
    if (
        array.dtype == bool
        or jnp.issubdtype(array.dtype, jnp.integer)
        or jnp.issubdtype(array.dtype, jnp.floating)
    ):
        return array
    raise ValueError(
        f"{name}: expected real numbers, moments of two Gaussian variables; got {array.dtype}."
    )


def _check_possible(xp: Any, q11: Any, q12: Any, q22: Any) -> None:
    for name, m in zip(NAMES, (q11, q12, q22), strict=True):
        bad = ~xp.isfinite(m) if name == "q12" else ~((m >= 0) & xp.isfinite(m))
        if xp.any(bad):
            kind = "a finite covariance" if name == "q12" else "a finite variance of at least 0"
            raise ValueError(f"{name}: expected {kind}; got {float(m[bad].ravel()[0]):g}.")
    bound = xp.sqrt(q11) * xp.sqrt(q22)
    excess = xp.abs(q12) - bound * (1 + covariance_slack(q12.dtype))
    if xp.any(excess > 0):
        at = np.unravel_index(int(xp.argmax(excess)), excess.shape)
        found = [float(xp.broadcast_to(m, excess.shape)[at]) for m in (q12, bound)]
        raise ValueError(
            f"q12: expected a covariance within +-sqrt(q11 q22) = {found[1]:g}; got {found[0]:g}. "
            "The order is (q11, q12, q22): "
            "variance, covariance, variance."
        )


@jit_by_size
def _nearest_possible(q11: Array, q12: Array, q22: Array) -> list[Array]:
    """With the derivatives of what was given."""
    v1, c, v2 = lax.stop_gradient((q11, q12, q22))
    v1, v2 = (jnp.where(v < 0, 0, v) for v in (v1, v2))
    bound = jnp.sqrt(v1) * jnp.sqrt(v2)
    possible = jnp.where(
        jnp.abs(c) <= bound * (1 + covariance_slack(c.dtype)), c, jnp.sign(c) * bound
    )
    unknown = jnp.where(
        jnp.isnan(possible), jnp.nan, 0
    )  # in all three: square roots and angles may not show it
    return [
        q + (v - lax.stop_gradient(q) + unknown) for q, v in ((q11, v1), (q12, possible), (q22, v2))
    ]
