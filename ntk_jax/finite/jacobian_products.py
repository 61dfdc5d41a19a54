"""Products with the Jacobian of a network and with its transpose, some rows at a time."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from ntk_jax.checks import working_dtype
from ntk_jax.tiling import even, pad_rows
from ntk_jax.types import ApplyFn, Params


def pulled(
    apply_fn: ApplyFn, params: Params, x: Array, v: Float[Array, "n O"], size: int
) -> Params:
    """J(x)ᵀ v, a gradient, summed over blocks of rows; what fills up the last has weight 0."""
    blocks = (in_blocks(x, size), in_blocks(v, size, zeros=True))

    def add(total: Params, block: tuple[Array, Array]) -> tuple[Params, None]:
        rows, weights = block
        out, vjp = jax.vjp(lambda p: apply_fn(p, rows), params)
        (gradient,) = vjp(weights.reshape(out.shape).astype(out.dtype))
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradient), None

    # Half-precision gradients are summed in single: blocks add up rounding errors.
    start = jax.tree.map(lambda p: jnp.zeros(p.shape, working_dtype(p.dtype)), params)
    return jax.lax.scan(add, start, blocks)[0]


def pushed(
    apply_fn: ApplyFn, params: Params, x: Array, direction: Params, size: int, dtype: DTypeLike
) -> Float[Array, "n O"]:
    """J(x) times a parameter direction, by forward mode."""
    tangent = jax.tree.map(lambda t, p: t.astype(p.dtype), direction, params)

    def push(rows: Array) -> Array:
        out = jax.jvp(lambda p: apply_fn(p, rows), (params,), (tangent,))[1]
        return out.reshape(rows.shape[0], -1).astype(dtype)

    out = jax.lax.map(push, in_blocks(x, size))
    return out.reshape(-1, out.shape[2])[: x.shape[0]]


def in_blocks(x: Array, most: int, *, zeros: bool = False) -> Array:
    """Rows in equal blocks of at most `most`, (blocks, rows, ...)."""
    size = even(x.shape[0], most)
    return pad_rows(x, size, zeros=zeros).reshape(-1, size, *x.shape[1:])
