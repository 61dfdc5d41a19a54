"""How far training has left the kernel regime: weights, Jacobian, kernel, and gap to Taylor."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import Look, Number, as_array, check_looks, looks, working_dtype
from ntk_jax.closures.programs import compiled
from ntk_jax.compat import is_on_host
from ntk_jax.examples import Examples, num_rows
from ntk_jax.finite.inputs import check_inputs
from ntk_jax.finite.linearize import linearize
from ntk_jax.finite.uses.plan import outputs_of_one
from ntk_jax.memory import how_many
from ntk_jax.norms import host_norm, norm, norm_ratio
from ntk_jax.small_programs import jit_by_size
from ntk_jax.types import ApplyFn, Params

# Numbers in the gradients that are held at the same time.
GRADIENTS_AT_ONCE = 2**24


class RelativeChange(NamedTuple):
    """Relative movement of all parameters together, and of each layer (the parameters that share a
    parent path).
    """

    total: Float[Array, ""]
    by_layer: dict[str, Float[Array, ""]]


class TaylorGap(NamedTuple):
    """Distance |f - f_lin| over all examples and outputs, and the same as a share of the movement
    |f - f_0|.
    """

    absolute: Float[Array, ""]
    relative: Float[Array, ""]


def relative_change(params: Params, params_0: Params) -> RelativeChange:
    """How far the parameters have moved, |params - params_0| / |params_0| in the Euclidean norm.

    Layers are reported apart because the ratio mixes them: their norms differ by orders of
    magnitude. A layer that starts at exactly zero and moves counts as infinite, one that stays
    there as 0.

    Args:
        params: parameters now.
        params_0: parameters at the start, of the same structure.

    Returns:
        RelativeChange(total, by_layer), by_layer keyed by path such as "Dense_0".

    Raises:
        ValueError: the two pytrees differ in structure.

    Reference: Chizat, Oyallon, Bach 2019, section 1; Lee et al. 2019, figure S6.

    Example:
        >>> start = {"a": {"w": jnp.array([3.0, 4.0])}, "b": {"w": jnp.array([12.0])}}
        >>> now = {"a": {"w": jnp.array([3.0, 3.0])}, "b": {"w": jnp.array([12.0])}}
        >>> change = ntk_jax.relative_change(now, start)
        >>> round(float(change.total), 3), round(float(change.by_layer["a"]), 3)
        (0.077, 0.2)
    """
    total, by_layer = changes(params, params_0)
    total, *each = jax.device_put([total, *by_layer.values()])
    return RelativeChange(total, dict(zip(by_layer, each, strict=True)))


def changes(params: Params, params_0: Params) -> tuple[Number, dict[str, Number]]:
    """`relative_change` where it was computed: NumPy's numbers of arrays in the memory of the CPU,
    for which nothing is compiled.
    """
    _check_same(params, params_0)
    layers = _layers(params)
    if all(map(is_on_host, jax.tree.leaves((params, params_0)))):
        total, by_layer = _on_host(params, params_0, list(layers.values()))
    else:
        total, by_layer = _changes(params, params_0)
    return total, dict(zip(layers, by_layer, strict=True))


def _on_host(
    params: Params, params_0: Params, layers: list[list[int]]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """`_changes` by NumPy."""
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(params_0), strict=True))
    dtype = working_dtype(*{jnp.result_type(leaf) for pair in pairs for leaf in pair})
    arrays = ([np.asarray(leaf).astype(dtype, copy=False) for leaf in pair] for pair in pairs)
    norms = np.array([[host_norm(p - p_0), host_norm(p_0)] for p, p_0 in arrays])

    def change(of: list[int]) -> np.ndarray:
        moved, start = (host_norm(norms[of, side]) for side in (0, 1))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.where(moved == 0, 0, np.divide(moved, start)).astype(dtype)

    return change(list(range(len(pairs)))), list(map(change, layers))


@jit_by_size
def _changes(params: Params, params_0: Params) -> tuple[Array, list[Array]]:
    """The change of all parameters, and of each layer."""
    leaves, leaves_0 = jax.tree.leaves(params), jax.tree.leaves(params_0)
    dtype = working_dtype(*(jnp.result_type(leaf) for leaf in (*leaves, *leaves_0)))
    pairs = [
        (jnp.asarray(p, dtype), jnp.asarray(p_0, dtype))
        for p, p_0 in zip(leaves, leaves_0, strict=True)
    ]
    moved, start = [norm(p - p_0) for p, p_0 in pairs], [norm(p_0) for _, p_0 in pairs]

    def change(of: list[int]) -> Array:
        return norm_ratio(*(jnp.stack([norms[i] for i in of]) for norms in (moved, start)))

    return change(list(range(len(pairs)))), [change(layer) for layer in _layers(params).values()]


def _layers(params: Params) -> dict[str, list[int]]:
    """Numbers of the leaves that share a parent path."""
    layers: dict[str, list[int]] = {}
    for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        layer = "/".join(jax.tree_util.keystr((key,), simple=True) for key in path[:-1]) or "params"
        layers.setdefault(layer, []).append(i)
    return layers


def kernel_change(
    k: Float[ArrayLike, "n1 n2 *outputs"], k_0: Float[ArrayLike, "n1 n2 *outputs"]
) -> Float[Array, ""]:
    """How far a kernel is from another, |K - K_0| / |K_0| in the Frobenius norm.

    Args:
        k: kernel now.
        k_0: kernel at the start, or in the limit, of the same shape.

    Returns:
        A scalar; 0 between equal kernels, also if both are zero, and infinite if K_0 alone is.

    Raises:
        ValueError: the shapes differ; NaN or infinite entries.

    Reference: Fort et al. 2020, section 3, without their normalization of both kernels.

    Example:
        >>> round(float(ntk_jax.kernel_change(1.1 * jnp.eye(2), jnp.eye(2))), 3)
        0.1
    """
    k, k_0 = (as_array(name, value) for name, value in (("k", k), ("k_0", k_0)))
    if k.shape != k_0.shape:
        raise ValueError(
            f"k: expected the shape of k_0, {k_0.shape}; got {k.shape}. Compute both from the same "
            "examples."
        )
    change, seen = _distance_ratio(k, k_0)
    check_looks(seen, {"k": k, "k_0": k_0})
    return change


@jit_by_size
def _distance_ratio(k: Array, k_0: Array) -> tuple[Float[Array, ""], dict[str, Look | None]]:
    seen, dtype = looks({"k": k, "k_0": k_0}), working_dtype(k.dtype, k_0.dtype)
    k, k_0 = k.astype(dtype), k_0.astype(dtype)
    return norm_ratio(k - k_0, k_0), seen


def jacobian_change(
    apply_fn: ApplyFn, params: Params, params_0: Params, x: Examples
) -> Float[Array, ""]:
    """How far the Jacobian of the outputs has moved, |J - J_0| / |J_0| in the Frobenius norm.

    This, not the movement of the weights, is what must be small for the kernel picture to hold. It
    bounds the change of the kernel, which can be much smaller: its first-order part is an average
    over many units. For ReLU it falls like width^(-1/4), because units switch. Gradients are
    compared a few examples at a time: no Jacobian is held.

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

    Example:
        >>> network = lambda w, x: x**2 * w**2
        >>> now, start = jnp.array(1.1), jnp.array(1.0)
        >>> change = ntk_jax.jacobian_change(network, now, start, jnp.ones((1, 1)))
        >>> round(float(change), 3)
        0.1
    """
    _check_same(params, params_0)
    a, _ = check_inputs(apply_fn, params_0, x, None)
    return _jacobian_ratio(apply_fn, params, params_0, a)


@compiled
def _jacobian_ratio(
    apply_fn: ApplyFn, params: Params, params_0: Params, x: Examples
) -> Float[Array, ""]:
    """|J - J_0| over |J_0|, from the norms of their rows."""

    def of_example(one: Examples) -> Array:
        out, now = jax.vjp(lambda p: outputs_of_one(apply_fn, p, one), params)
        _, start = jax.vjp(lambda p: outputs_of_one(apply_fn, p, one), params_0)

        def of_output(cotangent: Array) -> Array:
            (g,), (g_0,) = now(cotangent), start(cotangent)
            return jnp.stack([_tree_norm(jax.tree.map(jnp.subtract, g, g_0)), _tree_norm(g_0)])

        return jax.vmap(of_output)(jnp.eye(out.size, dtype=out.dtype))

    # A few examples at a time: the gradients of all outputs of an example are held together.
    size = (
        jax.eval_shape(apply_fn, params, x).size
        // num_rows(x)
        * sum(p.size for p in jax.tree.leaves(params))
    )
    with jax.default_matmul_precision("highest"):
        rows = jax.lax.map(of_example, x, batch_size=how_many(num_rows(x), size, GRADIENTS_AT_ONCE))
    return norm_ratio(rows[..., 0], rows[..., 1])


def taylor_gap(apply_fn: ApplyFn, params: Params, params_0: Params, x: Examples) -> TaylorGap:
    """How far the network is from its first-order expansion at the start, |f - f_lin|.

    f_lin is `linearize(apply_fn, params_0)`, both at the same parameters.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params: parameters now.
        params_0: the point of expansion.
        x: examples in rows.

    Returns:
        TaylorGap(absolute, relative): the Euclidean norm over all n·O outputs, and its ratio to
        |f(params) - f(params_0)|.

    Raises:
        ValueError: as `empirical_ntk`.

    Reference: Lee et al. 2019, eq. 3 and theorem 2.1.

    Example:
        >>> network = lambda w, x: x * w**2
        >>> gap = ntk_jax.taylor_gap(network, jnp.array(1.5), jnp.array(1.0), jnp.ones((1, 1)))
        >>> round(float(gap.absolute), 3), round(float(gap.relative), 3)
        (0.25, 0.2)
    """
    _check_same(params, params_0)
    a, _ = check_inputs(apply_fn, params_0, x, None)
    return _gap(apply_fn, params, params_0, a)


@compiled
def _gap(apply_fn: ApplyFn, params: Params, params_0: Params, x: Examples) -> TaylorGap:
    f, f_0 = apply_fn(params, x), apply_fn(params_0, x)
    gap = f - linearize(apply_fn, params_0)(params, x)
    return TaylorGap(norm(gap), norm_ratio(gap, f - f_0))


def _check_same(params: Params, params_0: Params) -> None:
    shapes, shapes_0 = (jax.tree.map(jnp.shape, tree) for tree in (params, params_0))
    if shapes != shapes_0:
        raise ValueError(
            f"params: expected the structure and shapes of params_0, {shapes_0}; got {shapes}. "
            "Both must be parameters of the same network."
        )


def _tree_norm(tree: Params) -> Array:
    return norm(jnp.stack([norm(leaf) for leaf in jax.tree.leaves(tree)]))
