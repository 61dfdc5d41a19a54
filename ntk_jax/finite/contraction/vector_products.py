"""The kernel of a pair of examples from Jacobian-vector products, without Jacobians of both."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import working_dtype
from ntk_jax.examples import Examples
from ntk_jax.finite.uses.plan import outputs_of_one
from ntk_jax.types import ApplyFn, Params


def pair_kernel(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples,
    apply_fn2: ApplyFn | None = None,
) -> Float[Array, "O1 O2"]:
    """J(x1) J(x2)ᵀ of two examples: one vjp at x2 and one jvp at x1 for each output of x2."""
    of_x2 = apply_fn if apply_fn2 is None else apply_fn2
    f1 = lambda p: outputs_of_one(apply_fn, p, x1)
    out, vjp = jax.vjp(lambda p: outputs_of_one(of_x2, p, x2), params)

    def column(cotangent: Array) -> Array:
        return jax.jvp(f1, (params,), vjp(cotangent))[1]

    return jax.vmap(column, out_axes=1)(jnp.eye(out.size, dtype=out.dtype))


def vector_product_kernel(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples,
    outputs: str,
    apply_fn2: ApplyFn | None = None,
) -> Float[Array, "n1 n2 ..."]:
    """The kernel of all pairs; the gradients of one example of `x2` serve all of `x1`."""
    functions = (apply_fn, x1), (apply_fn if apply_fn2 is None else apply_fn2, x2)
    dtype = working_dtype(*(jax.eval_shape(f, params, x).dtype for f, x in functions))

    def pair(x1_one: Examples, x2_one: Examples) -> Array:
        k = pair_kernel(apply_fn, params, x1_one, x2_one, apply_fn2).astype(dtype)
        if outputs == "mean":
            return jnp.trace(k) / k.shape[0]
        return jnp.diagonal(k) if outputs == "diagonal" else k

    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(x1, x2)
