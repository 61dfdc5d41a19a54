"""The infinite-width kernels of a fully connected network, written from the recursion."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import as_example_pair, check_integer, check_number, working_dtype
from ntk_jax.compat import is_concrete
from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.duals.hermite_series.fit import fitted_rule
from ntk_jax.infinite.mlp.layers import Architecture, Layers, Side, has_cusp
from ntk_jax.infinite.mlp.recursion import begin, cropped, follow, kernels, reference_kernels, sides
from ntk_jax.networks.mlp import check_scales, per_layer
from ntk_jax.types import Kernels


def mlp_kernels(
    x1: Float[ArrayLike, "n1 *d"],
    x2: Float[ArrayLike, "n2 *d"] | None = None,
    *,
    depth: int,
    activation: str | Callable[..., Any] | DualRule = "relu",
    W_std: Any = 1.0,
    b_std: Any = 0.0,
    parameterization: str = "ntk",
    width: Any = None,
    residual: bool = False,
    layer_norm: bool = False,
) -> Kernels:
    """The NNGP and NTK of the infinitely wide `MLP` with `depth` hidden layers.

    With k, k_dot the dual activation of (q11, K, q22), K⁰ = b_std² + W_std² x·x'/d and Θ⁰ = K⁰,
    each hidden layer and the Dense layer after it give

        K ← b_std² + W_std² k,    Θ ← b_std² + W_std² k + W_std² k_dot Θ              ("ntk")
        K ← b_std² + W_std² k,    Θ ← 1 + width k + W_std² k_dot Θ                    ("standard";
        Θ⁰ = 1 + x·x')

    Args:
        x1: examples in rows; more than one feature axis is flattened.
        x2: more examples, or None for x1 again: then the result is symmetric to the bit and its
            diagonal exact.
        depth: number of hidden layers; 0 is a linear model.
        activation: a name of `duals`, an elementwise function, or `duals.rule(...)` for one with
            options.
        W_std: weight scale, a number or one per Dense layer (depth + 1: hidden layers, then
            readout).
        b_std: bias scale, likewise; None means no bias parameters. With 0.0 a "standard" network
            still trains them.
        parameterization: "ntk" or "standard", as in `MLP`.
        width: "standard" only: units of the hidden layers, a number or one each. It enters the
            tangent kernel because gradient descent on unscaled weights moves wide layers further.
        residual: every hidden layer after the first is z + Dense(phi(z)); the old K and Θ are added
            to the new.
        layer_norm: every activation sees (z - mean) / std over its layer's units: K and Θ are
            divided by sqrt(K_xx K_x'x') first (no learned scale and no epsilon).

    Returns:
        Kernels(nngp, ntk), each (n1, n2), per output coordinate: outputs are independent and alike.

    Raises:
        ValueError: bad examples or options; a depth and scale for which the kernel overflows its
            dtype.

    Warns:
        UserWarning: an activation without closed form whose series misses its tolerance.

    Reference: Lee et al. 2018, eq. 5; Jacot, Gabriel, Hongler 2018, theorem 1; "standard":
    Sohl-Dickstein et al. 2020, eq. 19.
    """
    network = _prepare(
        x1, x2, depth, activation, W_std, b_std, parameterization, width, residual, layer_norm
    )
    return Kernels(*_kernels(*network))


def mlp_kernels_by_layer(
    x1: Float[ArrayLike, "n1 *d"],
    x2: Float[ArrayLike, "n2 *d"] | None = None,
    *,
    depth: int,
    **options: Any,
) -> Kernels:
    """`mlp_kernels` after every Dense layer: Kernels of shape (depth + 1, n1, n2), the last being
    `mlp_kernels` itself.

    Arguments and errors are those of `mlp_kernels`. The l-th entry is the kernel of the network cut
    after its l-th Dense layer.
    """
    return Kernels(*_compiled_by_layer(*_prepare(x1, x2, depth, **{**_DEFAULTS, **options})))


def kernel_diagonal(x: Float[ArrayLike, "n *d"], *, depth: int, **options: Any) -> Kernels:
    """The kernels of every example with itself, each (n,): the diagonal of `mlp_kernels`, without
    forming it.

    Arguments and errors are those of `mlp_kernels`.
    """
    network, both = _checked(x, None, depth, **{**_DEFAULTS, **options})
    own = (both or sides(*network))[0]
    return Kernels(own.nngp, own.ntk)


_DEFAULTS: dict[str, Any] = {
    "activation": "relu",
    "W_std": 1.0,
    "b_std": 0.0,
    "parameterization": "ntk",
    "width": None,
    "residual": False,
    "layer_norm": False,
}
_compiled = jax.jit(kernels, static_argnums=3)
_begin = jax.jit(begin, static_argnums=3)
_follow = jax.jit(follow, static_argnums=5, donate_argnums=0)
_compiled_by_layer = jax.jit(partial(reference_kernels, every=True), static_argnums=3)


def _kernels(
    x1: Array, x2: Array | None, layers: Layers, arch: Architecture
) -> tuple[Array, Array]:
    """`kernels`; what follows nearly parallel pairs, which takes long to compile, is compiled when
    there are some.
    """
    if not (
        has_cusp(layers, arch) and all(is_concrete(a) for a in jax.tree.leaves((x1, x2, layers)))
    ):
        return _compiled(x1, x2, layers, arch)
    out, near = _begin(x1, x2, layers, arch)
    if not is_concrete(near) or bool(jnp.any(near)):
        out = _follow(out, near, x1, x2, layers, arch)
    return cropped(out, x1, x2)


Network = tuple[Array, Array | None, Layers, Architecture]


def _prepare(*args: Any, **options: Any) -> Network:
    """Checked arguments of the compiled functions."""
    return _checked(*args, **options)[0]


def _checked(
    x1, x2, depth, activation, W_std, b_std, parameterization, width, residual, layer_norm
) -> tuple[Network, tuple[Side, Side] | None]:
    """`_prepare`, and what each example has with itself; None where that is traced."""
    check_integer("depth", depth, minimum=0)
    a1, a2 = as_example_pair(x1, x2)
    dtype = working_dtype(*(a.dtype for a in (a1, a2) if a is not None))
    a1 = a1.reshape(a1.shape[0], -1).astype(dtype)
    a2 = None if a2 is None else a2.reshape(a2.shape[0], -1).astype(dtype)
    layers = _layers(depth, W_std, b_std, parameterization, width, a1.shape[1], dtype)
    arch = Architecture(dual_rule(activation), bool(residual), bool(layer_norm))
    if not all(is_concrete(a) for a in jax.tree.leaves((jnp.zeros(()), a1, a2, layers))):
        return (a1, a2, layers, arch), None  # traced, where nothing can be looked at
    both = sides(a1, a2, layers, arch)
    if not all(bool(jnp.isfinite(s.largest)) for s in both):
        raise ValueError(
            f"mlp_kernels: expected kernels within the range of {dtype}; they overflow at depth "
            f"{depth} with W_std = {W_std}. "
            "Use float64, smaller inputs, or the critical scale (W_std = sqrt(2), b_std = 0 for "
            "ReLU)."
        )
    fitted = _fitted(arch, both, dtype) if depth else arch
    if fitted != arch:  # another quadrature: the diagonal must be that of the kernel to the bit
        both = sides(a1, a2, layers, fitted)
    return (a1, a2, layers, fitted), both


def _fitted(arch: Architecture, both: tuple[Side, Side], dtype: Any) -> Architecture:
    """With the cheapest exact dual at the variances that it will meet: a series has as many terms
    as they ask for.
    """
    q = 1.0 if arch.layer_norm else max(float(jnp.max(s.variances)) for s in both)
    return arch._replace(rule=fitted_rule("mlp_kernels", arch.rule, q, dtype, stacklevel=5))


def _layers(
    depth: int,
    W_std: Any,
    b_std: Any,
    parameterization: str,
    width: Any,
    num_features: int,
    dtype: Any,
) -> Layers:
    W = per_layer("W_std", W_std, depth + 1)
    b = per_layer("b_std", b_std, depth + 1)
    for W_l, b_l in zip(W, b, strict=True):
        check_scales(W_l, b_l, parameterization)
    stack = partial(_stack, dtype=dtype)
    W2, b2 = (
        stack([_square(v) for v in values])
        for values in (W, [0.0 if b_l is None else b_l for b_l in b])
    )
    if parameterization == "ntk":
        if width is not None:
            raise ValueError(
                "width: expected None with parameterization='ntk', whose limit has none; drop it "
                "or use 'standard'."
            )
        return Layers(W2, b2, W2, b2)
    if width is None and depth:
        raise ValueError(
            "width: expected the units of the hidden layers with parameterization='standard'; got "
            "None."
        )
    fan_in = (num_features, *per_layer("width", width, depth))
    for units in fan_in:
        check_number("width", units, strict=True, max_ndim=0)
    return Layers(W2, b2, stack(fan_in), stack([0.0 if b_l is None else 1.0 for b_l in b]))


def _square(value: Any) -> Any:
    """Numbers are squared in double precision: 2 for sqrt(2), where float32 would give
    1.9999999.
    """
    return float(value) ** 2 if is_concrete(value) else value * value


def _stack(values: Any, dtype: Any) -> Array:
    if all(map(is_concrete, values)):
        return jnp.asarray(np.array([float(value) for value in values]), dtype)
    return jnp.stack([jnp.asarray(value, dtype) for value in values])
