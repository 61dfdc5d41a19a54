"""How far training has left the kernel regime: movement of the weights and of the kernel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.types import Params


class RelativeChange(NamedTuple):
    """Relative movement of all parameters together, and of each layer (the parameters that share a parent path)."""

    total: Float[Array, ""]
    by_layer: dict[str, Float[Array, ""]]


def relative_change(params: Params, params_0: Params) -> RelativeChange:
    """How far the parameters have moved, |params - params_0| / |params_0| in the Euclidean norm.

    Layers are reported apart because the ratio mixes them: their norms differ by orders of magnitude. A layer that
    starts at exactly zero and moves counts as infinite.

    Args:
        params: parameters now.
        params_0: parameters at the start, of the same structure.

    Returns:
        RelativeChange(total, by_layer), by_layer keyed by path such as "Dense_0".

    Raises:
        ValueError: the two pytrees differ in structure.

    Reference: Chizat, Oyallon, Bach 2019, section 1; Lee et al. 2019, figure S6.
    """
    moved = jax.tree.map(lambda p, p_0: jnp.sum(jnp.square(p - p_0)), params, params_0)
    start = jax.tree.map(lambda p_0: jnp.sum(jnp.square(p_0)), params_0)
    sums: dict[str, tuple[Array, Array]] = {}
    for (path, moved_leaf), start_leaf in zip(
        jax.tree_util.tree_leaves_with_path(moved), jax.tree.leaves(start), strict=True
    ):
        layer = "/".join(jax.tree_util.keystr((key,), simple=True) for key in path[:-1]) or "params"
        moved_sum, start_sum = sums.get(layer, (0.0, 0.0))
        sums[layer] = (moved_sum + moved_leaf, start_sum + start_leaf)
    total = _ratio(*(sum(part) for part in zip(*sums.values(), strict=True)))
    return RelativeChange(total, {layer: _ratio(*pair) for layer, pair in sums.items()})


def kernel_change(k: Float[ArrayLike, "n1 n2 *outputs"], k_0: Float[ArrayLike, "n1 n2 *outputs"]) -> Float[Array, ""]:
    """How far a kernel is from another, |K - K_0| / |K_0| in the Frobenius norm.

    Args:
        k: kernel now.
        k_0: kernel at the start, or in the limit, of the same shape.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ.

    Reference: Fort et al. 2020, section 3, without their normalization of both kernels.
    """
    k, k_0 = jnp.asarray(k), jnp.asarray(k_0)
    if k.shape != k_0.shape:
        raise ValueError(
            f"k: expected the shape of k_0, {k_0.shape}; got {k.shape}. Compute both from the same examples."
        )
    return _ratio(jnp.sum(jnp.square(k - k_0)), jnp.sum(jnp.square(k_0)))


def _ratio(moved: Array, start: Array) -> Array:
    """sqrt(moved / start), 0 / 0 being 0."""
    return jnp.where(moved > 0, jnp.sqrt(moved / start), 0)
