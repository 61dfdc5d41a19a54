"""Norms of numbers of any scale: squares over- and underflow early, unless the largest is 1."""

from functools import cache

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float


def magnitude(x: Array, axis: int | None = None) -> Float[Array, "..."]:
    """The largest absolute value, 1 where all are 0; along an axis, which is kept.

    It is a constant to derivatives: nothing depends on what is divided out first and multiplied in
    last.
    """
    largest = lax.stop_gradient(
        jnp.max(jnp.abs(x), axis=axis, keepdims=axis is not None, initial=0)
    )
    return jnp.where(largest > 0, largest, jnp.ones_like(largest))


def norm(x: Array, axis: int | None = None) -> Float[Array, "..."]:
    """The Euclidean norm, over all entries or along an axis; its derivative at 0 is 0."""
    scale = magnitude(x, axis)
    squares = jnp.sum(jnp.square(x / scale), axis=axis)
    root = jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))
    return root * scale.reshape(root.shape)


def host_norm(x: np.ndarray) -> float:
    """The Euclidean norm of all entries, by NumPy."""
    flat = x.reshape(-1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        square = float(np.dot(flat, flat))
        if _least_exact(x.dtype) < square < np.inf:
            return square**0.5
        scale = float(np.abs(flat).max(initial=0))
        return scale * host_norm(flat / scale) if scale > 0 else scale


@cache
def _least_exact(dtype: np.dtype) -> float:
    """What a sum of squares must exceed for the smallest of them not to matter."""
    info = np.finfo(dtype)
    return float(info.tiny / info.eps**2)


def norm_ratio(x: Array, y: Array) -> Float[Array, ""]:
    """|x| / |y|: 0 for x = 0 whatever y is, infinite for y = 0 alone."""
    x_scale, y_scale = magnitude(x), magnitude(y)
    top, bottom = norm(x / x_scale), norm(y / y_scale)
    return top / jnp.where(top == 0, 1, bottom) * jnp.where(top == 0, 1, x_scale / y_scale)


def standard_error(samples: Float[Array, " n"]) -> Float[Array, ""]:
    """Of the mean of independent samples, from their own spread."""
    scale = magnitude(samples)
    return jnp.std(samples / scale, ddof=1) / samples.size**0.5 * scale
