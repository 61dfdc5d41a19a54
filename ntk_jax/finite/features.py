"""Tangent features of a batch: what each parameter contributes to each output, per example."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.types import ApplyFn, Params


def outputs_of_one(apply_fn: ApplyFn, params: Params, x: Array) -> Float[Array, " O"]:
    """The outputs of a single example x (...), flattened."""
    return apply_fn(params, x[None])[0].reshape(-1)


def count_outputs(apply_fn: ApplyFn, params: Params, x: Array) -> int:
    """O, the number of output coordinates per example.

    Raises:
        ValueError: the network does not return one array with one row per example.
    """
    out = jax.eval_shape(apply_fn, params, x)
    if not hasattr(out, "shape") or not out.shape or out.shape[0] != x.shape[0] or math.prod(out.shape) == 0:
        got = jax.tree.map(lambda leaf: leaf.shape, out)
        raise ValueError(
            f"apply_fn: expected one array with a row per example, ({x.shape[0]}, ...); got {got}. "
            "Wrap it: lambda params, x: apply_fn(params, x)[0] picks one of several results."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"apply_fn: expected real floating-point outputs; got {out.dtype}. Return logits, not classes."
        )
    return math.prod(out.shape[1:])


def jacobian_features(apply_fn: ApplyFn, params: Params, x: Array) -> tuple[Float[Array, "n O p"], ...]:
    """One block d f_o(x_i) / d theta_l of shape (n, O, p_l) per parameter leaf l, by reverse mode."""

    def jacobian(x_one: Array) -> Any:
        return jax.jacrev(lambda p: outputs_of_one(apply_fn, p, x_one))(params)

    leaves = jax.tree.leaves(jax.vmap(jacobian)(x))
    return tuple(leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves)


def row_bytes(params: Params, num_outputs: int) -> int:
    """Bytes of the Jacobian rows of one example: O · P numbers."""
    return num_outputs * sum(jnp.size(leaf) * jnp.result_type(leaf).itemsize for leaf in jax.tree.leaves(params))
