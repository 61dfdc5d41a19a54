"""Products with the Jacobian of a network and with its transpose, some rows at a time."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from ntk_jax.checks import working_dtype
from ntk_jax.examples import Examples, num_rows
from ntk_jax.tiling import even, pad_rows
from ntk_jax.types import ApplyFn, Params


def pulled(
    apply_fn: ApplyFn, params: Params, x: Examples, v: Float[Array, "n O"], size: int
) -> Params:
    """J(x)ᵀ v, a gradient, summed over blocks of rows; what fills up the last has weight 0."""
    blocks = (in_blocks(x, size), in_blocks(v, size, zeros=True))

    def add(total: Params, block: tuple[Examples, Array]) -> tuple[Params, None]:
        rows, weights = block
        out, vjp = jax.vjp(lambda p: apply_fn(p, rows), params)
        (gradient,) = vjp(weights.reshape(out.shape).astype(out.dtype))
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradient), None

    # Half-precision gradients are summed in single: blocks add up rounding errors.
    start = jax.tree.map(lambda p: jnp.zeros(p.shape, working_dtype(p.dtype)), params)
    return jax.lax.scan(add, start, blocks)[0]


def pushed(
    apply_fn: ApplyFn, params: Params, x: Examples, direction: Params, size: int, dtype: DTypeLike
) -> Float[Array, "n O"]:
    """J(x) times a parameter direction, by forward mode."""
    tangent = jax.tree.map(lambda t, p: t.astype(p.dtype), direction, params)

    def push(rows: Examples) -> Array:
        out = jax.jvp(lambda p: apply_fn(p, rows), (params,), (tangent,))[1]
        return out.reshape(num_rows(rows), -1).astype(dtype)

    out = jax.lax.map(push, in_blocks(x, size))
    return out.reshape(-1, out.shape[2])[: num_rows(x)]


def in_blocks(x: Examples, most: int, *, zeros: bool = False) -> Examples:
    """Rows in equal blocks of at most `most`, (blocks, rows, ...)."""
    size = even(num_rows(x), most)
    blocks = lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:])
    return jax.tree.map(blocks, pad_rows(x, size, zeros=zeros))
