"""The tangent kernel of each parameter leaf alone."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import working_dtype
from ntk_jax.closures.fingerprint import read
from ntk_jax.examples import Examples
from ntk_jax.finite.contraction.gram import contract_by_leaf
from ntk_jax.finite.contraction.pairing import arranged, matches_of
from ntk_jax.finite.features.features import TangentFeatures
from ntk_jax.finite.features.tangents import features_jit
from ntk_jax.finite.inputs import check_inputs, check_two, output_axes
from ntk_jax.finite.strategy.finite_values import check_kernel
from ntk_jax.tiling import mirror_upper
from ntk_jax.types import ApplyFn, Params


def empirical_ntk_by_layer(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None = None,
    *,
    apply_fn2: ApplyFn | None = None,
    outputs: str = "mean",
    precision: str = "highest",
) -> dict[str, Float[Array, "n1 n2 ..."]]:
    """The tangent kernel of each parameter leaf alone, Theta_l = sum over the parameters of leaf l.

    Example:
        >>> apply_fn = lambda p, x: jnp.tanh(x @ p["W"]) @ p["V"]
        >>> params = {"V": jnp.ones((2, 1)), "W": jnp.eye(2)}
        >>> k = ntk_jax.empirical_ntk_by_layer(apply_fn, params, jnp.eye(2))
        >>> {name: round(float(k_l[0, 0]), 3) for name, k_l in k.items()}
        {"['V']": 0.58, "['W']": 1.176}

    Args:
        apply_fn: `apply_fn(params, x)` -> outputs (n, O), see `empirical_ntk`.
        params: parameters.
        x1: examples in rows; all at once, so keep them to what fits in memory.
        x2: more examples, or None for x1 again.
        apply_fn2: another function of the same parameters, or None.
        outputs: "mean" (n1, n2), "diagonal" (n1, n2, O), or "full" (n1, n2, O, O).
        precision: of products, "highest", "high" or "default"; lower ones may be indefinite.

    Returns:
        A dictionary from the leaf's path, such as `"['Dense_0']['kernel']"`, to its kernel, in
        order of the leaves; the kernels add up to `empirical_ntk`.

    Raises:
        ValueError: as `empirical_ntk`.

    Reference: Jacot, Gabriel, Hongler 2018, section 4.
    """
    apply_fn = read(apply_fn)
    g = apply_fn if apply_fn2 is None else read(apply_fn2)
    if apply_fn2 is None:
        a1, a2 = check_inputs(apply_fn, params, x1, x2, outputs, precision)
    else:
        a1, a2, _ = check_two((apply_fn, g), params, x1, x2, outputs, precision)
    f1 = features_jit(apply_fn, params, a1, precision=precision)
    f2 = None if a2 is None else features_jit(g, params, a2, precision=precision)
    found = check_kernel(
        _by_leaf(f1, f2, outputs, precision), apply_fn, params, a1, a2, apply_fn2 and g
    )
    return {name: found[name] for name, _ in f1.parameters}  # jit sorts names


@partial(jax.jit, static_argnums=(2, 3))
def _by_leaf(
    f1: TangentFeatures, f2: TangentFeatures | None, outputs: str, precision: str
) -> dict[str, Array]:
    g1, g2 = f1, f1 if f2 is None else f2
    if f2 is not None:
        matches = matches_of(f1.blocks, f2.blocks)
        g1, g2 = (arranged(f, matches, precision) for f in (f1, f2))
    kernels = contract_by_leaf(g1, g2, outputs, precision)
    # A leaf that the network never reads is in no block.
    num_outputs = (g1.num_outputs, g2.num_outputs)[: output_axes(outputs)]
    unread = jnp.zeros((g1.num_rows, g2.num_rows, *num_outputs), working_dtype(g1.dtype, g2.dtype))
    kernels = {name: kernels.get(name, unread) for name, _ in f1.parameters}
    return {name: mirror_upper(k) for name, k in kernels.items()} if f2 is None else kernels
