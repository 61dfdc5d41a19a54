"""Random projections of tangent features: the factors are projected, never the gradients they stand for."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.compat import is_concrete
from ntk_jax.finite.blocks import FactoredBlock, GradientBlock, TangentFeatures


def project(features: TangentFeatures, num_dimensions: int, key: Array, precision: str) -> TangentFeatures:
    """Features of `num_dimensions` numbers per example and output whose products estimate the kernel without bias.

    Dimension j of a factored block is sum_t (r_j · a_t)(s_j · delta_t) / sqrt(num_dimensions) with independent random
    signs r_j, s_j: E[z · z'] = sum (a · a')(delta · delta'). Blocks have independent signs: their sum is unbiased.
    """
    total: Any = jnp.zeros((), features.dtype)
    for i, block in enumerate(features.blocks):
        for j in range(len(block.leaves)):
            leaf_key = jax.random.fold_in(jax.random.fold_in(key, i), j)
            total = total + _projected(block, j, num_dimensions, leaf_key, features.dtype, precision)
    total = jnp.broadcast_to(total, (features.num_rows, features.num_outputs, num_dimensions))
    block = GradientBlock((total / num_dimensions**0.5,), (f"{num_dimensions} dimensions{_identity(key)}",))
    return TangentFeatures((block,), features.num_rows, features.num_outputs, features.dtype)


def _projected(block: Any, leaf: int, k: int, key: Array, dtype: Any, precision: str) -> Float[Array, "n O k"]:
    if isinstance(block, GradientBlock):
        gradients = block.jacobians[leaf].astype(dtype)
        signs = jax.random.rademacher(key, (gradients.shape[2], k), dtype)
        return jnp.einsum("nop,pk->nok", gradients, signs, precision=precision)
    assert isinstance(block, FactoredBlock)
    a, d = block.inputs[leaf].astype(dtype), block.cotangents.astype(dtype)
    key_r, key_s = jax.random.split(key)
    r = jax.random.rademacher(key_r, (a.shape[1], a.shape[3], k), dtype)
    s = jax.random.rademacher(key_s, (d.shape[2], d.shape[4], k), dtype)
    inputs = jnp.einsum("nbti,bik->nbtk", a, r, precision=precision)
    cotangents = jnp.einsum("nobtd,bdk->nobtk", d, s, precision=precision)
    return jnp.einsum("nbtk,nobtk->nok", inputs, cotangents, precision=precision)


def _identity(key: Array) -> str:
    """The key in words: features projected with different keys must not be contracted with each other."""
    if not is_concrete(key):
        return ""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return f", key {data.tolist()}"
