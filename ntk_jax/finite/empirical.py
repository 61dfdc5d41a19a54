"""The tangent kernel and output covariance of a network with given parameters: the front door."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import as_example_pair, check_integer, check_option, check_params
from ntk_jax.finite.contraction import OUTPUTS, assemble, contract_jacobians, contract_leaf, mirror_upper
from ntk_jax.finite.features import count_outputs, jacobian_features, row_bytes
from ntk_jax.finite.vector_products import vector_product_block
from ntk_jax.types import ApplyFn, Params

METHODS = ("auto", "jacobian", "vector_products")


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Float[ArrayLike, "n1 *d"],
    x2: Float[ArrayLike, "n2 *d"] | None = None,
    *,
    outputs: str = "mean",
    method: str = "auto",
    memory_limit: int = 2**30,
) -> Float[Array, "n1 n2 ..."]:
    """The finite-width neural tangent kernel, Theta(x, x')_{oo'} = sum_p df_o(x)/dtheta_p df_o'(x')/dtheta_p.

    Args:
        apply_fn: `apply_fn(params, x)` -> one row of outputs per example, (n, ...); the trailing axes count as O outputs.
        params: any pytree of floating-point arrays.
        x1: examples in rows.
        x2: more examples, or None for x1 again: then the result is symmetric to the bit and costs half.
        outputs: "mean", the average over o of the diagonal blocks, which the infinite-width kernel is the limit of;
            "diagonal", o = o'; "full", all pairs.
        method: "jacobian" contracts per-example gradients; "vector_products" needs no gradients of x1, which pays where
            many parameters are read from few activations; "auto" chooses "jacobian". All are exact.
        memory_limit: bytes that per-example gradients may take; examples are cut into blocks accordingly.

    Returns:
        (n1, n2) for "mean", (n1, n2, O) for "diagonal", (n1, n2, O, O) for "full", in at least float32.

    Raises:
        ValueError: mismatched, empty or non-finite examples; parameters that are not floating-point; unknown options;
            a network that does not return one row per example.

    Reference: Jacot, Gabriel, Hongler 2018, eq. 2; both methods: Novak, Sohl-Dickstein, Schoenholz 2022, section 3.
    """
    check_option("outputs", outputs, OUTPUTS)
    check_option("method", method, METHODS)
    check_integer("memory_limit", memory_limit, minimum=1)
    num_outputs, a1, a2 = _check(apply_fn, params, x1, x2)
    row = row_bytes(params, num_outputs)
    if method == "vector_products":  # the activations of every pair are held: quadratic in the block
        combine = partial(_vector_products, apply_fn, params, outputs=outputs)
        return assemble(lambda x: x, combine, a1, a2, math.isqrt(memory_limit // row))
    prepare, combine = partial(_features, apply_fn, params), partial(_contract, outputs=outputs)
    return assemble(prepare, combine, a1, a2, memory_limit // (2 * row))


def empirical_nngp(
    apply_fn: ApplyFn,
    params: Params,
    x1: Float[ArrayLike, "n1 *d"],
    x2: Float[ArrayLike, "n2 *d"] | None = None,
    *,
    outputs: str = "mean",
) -> Float[Array, "n1 n2 ..."]:
    """The finite-width output covariance from one draw of the parameters, f_o(x) f_o'(x').

    With many outputs its "mean" estimates the NNGP kernel; average over initializations for the rest of the error.

    Args:
        apply_fn: see `empirical_ntk`, as are the further arguments.
        params: parameters.
        x1: examples in rows.
        x2: more examples, or None for x1 again.
        outputs: "mean", "diagonal" or "full".

    Returns:
        (n1, n2), (n1, n2, O) or (n1, n2, O, O).

    Raises:
        ValueError: as `empirical_ntk`.

    Reference: Lee et al. 2018, eq. 3, before the average over parameters.
    """
    check_option("outputs", outputs, OUTPUTS)
    _, a1, a2 = _check(apply_fn, params, x1, x2)
    return _nngp(apply_fn, params, a1, a2, outputs)


def _check(apply_fn: ApplyFn, params: Params, x1: Any, x2: Any) -> tuple[int, Array, Array | None]:
    check_params(params)
    a1, a2 = as_example_pair(x1, x2)
    return count_outputs(apply_fn, params, a1), a1, a2


@partial(jax.jit, static_argnums=0)
def _features(apply_fn: ApplyFn, params: Params, x: Array) -> tuple[Array, ...]:
    return jacobian_features(apply_fn, params, x)


@partial(jax.jit, static_argnames="outputs")
def _contract(f1: tuple[Array, ...], f2: tuple[Array, ...], *, outputs: str) -> Array:
    return contract_jacobians(f1, f2, outputs)


@partial(jax.jit, static_argnums=0, static_argnames="outputs")
def _vector_products(apply_fn: ApplyFn, params: Params, x1: Array, x2: Array, *, outputs: str) -> Array:
    return vector_product_block(apply_fn, params, x1, x2, outputs)


@partial(jax.jit, static_argnums=(0, 4))
def _nngp(apply_fn: ApplyFn, params: Params, x1: Array, x2: Array | None, outputs: str) -> Array:
    f1 = apply_fn(params, x1).reshape(x1.shape[0], -1, 1)
    f2 = f1 if x2 is None else apply_fn(params, x2).reshape(x2.shape[0], -1, 1)
    k = contract_leaf(f1, f2, outputs)
    return mirror_upper(k) if x2 is None else k
