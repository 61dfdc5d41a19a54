"""How far training has left the kernel regime: movement of weights, Jacobian and kernel, and the gap to the Taylor line."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.finite.empirical import check_inputs
from ntk_jax.finite.linearize import linearize
from ntk_jax.finite.plan import outputs_of_one
from ntk_jax.types import ApplyFn, Params

# Numbers in the gradients that are held at the same time.
GRADIENTS_AT_ONCE = 2**24


class RelativeChange(NamedTuple):
    """Relative movement of all parameters together, and of each layer (the parameters that share a parent path)."""

    total: Float[Array, ""]
    by_layer: dict[str, Float[Array, ""]]


class TaylorGap(NamedTuple):
    """Distance |f - f_lin| over all examples and outputs, and the same as a share of the movement |f - f_0|."""

    absolute: Float[Array, ""]
    relative: Float[Array, ""]


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


def jacobian_change(apply_fn: ApplyFn, params: Params, params_0: Params, x: Num[ArrayLike, "n *d"]) -> Float[Array, ""]:
    """How far the Jacobian of the outputs has moved, |J - J_0| / |J_0| in the Frobenius norm.

    This, not the movement of the weights, is what must be small for the kernel picture to hold. It bounds the change
    of the kernel, which can be much smaller: its first-order part is an average over many units. For ReLU it falls
    like width^(-1/4), because units switch. Gradients are compared a few examples at a time: no Jacobian is held.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params: parameters now.
        params_0: parameters at the start.
        x: examples in rows.

    Returns:
        A scalar.

    Raises:
        ValueError: as `empirical_ntk`; the two pytrees differ.

    Reference: Chizat, Oyallon, Bach 2019, section 1.1.
    """
    _check_same(params, params_0)
    a, _ = check_inputs(apply_fn, params_0, x, None)
    return _ratio(*_jacobian_sums(apply_fn, params, params_0, a))


@partial(jax.jit, static_argnums=0)
def _jacobian_sums(apply_fn: ApplyFn, params: Params, params_0: Params, x: Array) -> tuple[Array, Array]:
    """|J - J_0|² and |J_0|²."""

    def of_example(one: Array) -> Array:
        out, now = jax.vjp(lambda p: outputs_of_one(apply_fn, p, one), params)
        _, start = jax.vjp(lambda p: outputs_of_one(apply_fn, p, one), params_0)

        def of_output(cotangent: Array) -> Array:
            (g,), (g_0,) = now(cotangent), start(cotangent)
            return jnp.stack([_sum_of_squares(jax.tree.map(jnp.subtract, g, g_0)), _sum_of_squares(g_0)])

        return jnp.sum(jax.vmap(of_output)(jnp.eye(out.size, dtype=out.dtype)), axis=0)

    size = jax.eval_shape(apply_fn, params, x).size // x.shape[0] * sum(p.size for p in jax.tree.leaves(params))
    with jax.default_matmul_precision("highest"):
        rows = jax.lax.map(of_example, x, batch_size=max(1, min(x.shape[0], GRADIENTS_AT_ONCE // size)))
    moved, start = jnp.sum(rows, axis=0)
    return moved, start


def taylor_gap(apply_fn: ApplyFn, params: Params, params_0: Params, x: Num[ArrayLike, "n *d"]) -> TaylorGap:
    """How far the network is from its first-order expansion at the start, |f(params) - f_lin(params)|.

    f_lin is `linearize(apply_fn, params_0)` at the same parameters.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params: parameters now.
        params_0: the point of expansion.
        x: examples in rows.

    Returns:
        TaylorGap(absolute, relative): the Euclidean norm over all n·O outputs, and its ratio to |f(params) - f(params_0)|.

    Raises:
        ValueError: as `empirical_ntk`.

    Reference: Lee et al. 2019, eq. 3 and theorem 2.1.
    """
    _check_same(params, params_0)
    a, _ = check_inputs(apply_fn, params_0, x, None)
    f, f_0 = apply_fn(params, a), apply_fn(params_0, a)
    gap, moved = (jnp.sum(jnp.square(f - g)) for g in (linearize(apply_fn, params_0)(params, a), f_0))
    return TaylorGap(jnp.sqrt(gap), _ratio(gap, moved))


def _check_same(params: Params, params_0: Params) -> None:
    shapes, shapes_0 = (jax.tree.map(jnp.shape, tree) for tree in (params, params_0))
    if shapes != shapes_0:
        raise ValueError(
            f"params: expected the structure and shapes of params_0, {shapes_0}; got {shapes}. "
            "Both must be parameters of the same network."
        )


def _sum_of_squares(tree: Params) -> Array:
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]))


def _ratio(moved: Array, start: Array) -> Array:
    """sqrt(moved / start), 0 / 0 being 0."""
    return jnp.where(moved > 0, jnp.sqrt(moved / start), 0)
