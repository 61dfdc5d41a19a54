"""Power iteration: the largest eigenvalue of an operator that is only multiplied."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.draws import draw_flat
from ntk_jax.norms import magnitude, norm


def largest_eigenvalue(
    multiply: Callable[[Array], Array],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    num_steps: int = 30,
) -> Float[Array, ""]:
    """The largest eigenvalue of a PSD operator on arrays of `shape`, from a fixed random start.

    A lower bound, good to a few per cent after 30 steps whatever the gap below it, for operators of
    any scale.
    """

    def step(_: Array, v: Array) -> Array:
        w = multiply(v)
        length = norm(w)
        return w / jnp.where(length == 0, 1, length)

    start = draw_flat(jax.random.normal, jax.random.key(0), shape, dtype)
    v = jax.lax.fori_loop(0, num_steps, step, start / norm(start))
    w = multiply(v)
    scale = magnitude(w)  # products with the small entries of v would underflow
    return jnp.vdot(v, w / scale) * scale
