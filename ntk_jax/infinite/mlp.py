"""The infinite-width kernels of a fully connected network, written from the recursion."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import as_example_pair, check_integer, check_number, check_option, working_dtype
from ntk_jax.compat import is_concrete
from ntk_jax.infinite import duals
from ntk_jax.linalg import matmul
from ntk_jax.networks import check_scales, per_layer
from ntk_jax.types import Kernels

DualFn = Callable[[Array, Array, Array], duals.Dual]

DUALS: dict[str, DualFn] = {"relu": duals.relu}


class Layers(NamedTuple):
    """The coefficients of each Dense layer: its covariance is W k + b, its own part of the tangent kernel W_eta k + b_eta."""

    W: Float[Array, " layers"]
    b: Float[Array, " layers"]
    W_eta: Float[Array, " layers"]
    b_eta: Float[Array, " layers"]


class Moments(NamedTuple):
    """What one layer hands to the next: variances of either side, covariance and tangent kernel."""

    q11: Array
    q12: Array
    q22: Array
    theta: Array


def mlp_kernels(
    x1: Float[ArrayLike, "n1 *d"],
    x2: Float[ArrayLike, "n2 *d"] | None = None,
    *,
    depth: int,
    activation: str | Callable[..., Any] = "relu",
    W_std: Any = 1.0,
    b_std: Any = 0.0,
    parameterization: str = "ntk",
    width: Any = None,
) -> Kernels:
    """The NNGP and NTK of the infinitely wide `MLP` with `depth` hidden layers, in closed form.

    With k, k_dot the dual activation of (q11, K, q22), K⁰ = b_std² + W_std² x·x'/d and Θ⁰ = K⁰, each hidden layer and
    the Dense layer after it give

        K ← b_std² + W_std² k,    Θ ← b_std² + W_std² k + W_std² k_dot Θ              ("ntk")
        K ← b_std² + W_std² k,    Θ ← 1 + width k + W_std² k_dot Θ                    ("standard"; Θ⁰ = 1 + x·x')

    Args:
        x1: examples in rows; more than one feature axis is flattened.
        x2: more examples, or None for x1 again: then the result is symmetric to the bit and its diagonal exact.
        depth: number of hidden layers; 0 is a linear model.
        activation: "relu" or the function `jax.nn.relu`.
        W_std: weight scale, a number or one per Dense layer (depth + 1: hidden layers, then readout).
        b_std: bias scale, likewise; None means no bias parameters. With 0.0 a "standard" network still trains them.
        parameterization: "ntk" or "standard", as in `MLP`.
        width: "standard" only: units of the hidden layers, a number or one each. It enters the tangent kernel because
            gradient descent on unscaled weights moves wide layers further.

    Returns:
        Kernels(nngp, ntk), each (n1, n2), per output coordinate: outputs are independent and alike.

    Raises:
        ValueError: bad examples or options; a depth and scale for which the kernel overflows its dtype.

    Reference: Lee et al. 2018, eq. 5; Jacot, Gabriel, Hongler 2018, theorem 1; "standard": Sohl-Dickstein et al. 2020, eq. 19.
    """
    check_integer("depth", depth, minimum=0)
    a1, a2 = as_example_pair(x1, x2)
    dtype = working_dtype(*(a.dtype for a in (a1, a2) if a is not None))
    a1, a2 = (a if a is None else a.reshape(a.shape[0], -1).astype(dtype) for a in (a1, a2))
    layers = _layers(depth, W_std, b_std, parameterization, width, a1.shape[1], dtype)
    nngp, ntk, largest = _kernels(a1, a2, layers, _dual(activation))
    if is_concrete(largest) and not bool(jnp.isfinite(largest)):
        raise ValueError(
            f"mlp_kernels: expected kernels within the range of {dtype}; they overflow at depth {depth} with W_std = {W_std}. "
            "Use float64, smaller inputs, or the critical scale (W_std = sqrt(2), b_std = 0 for ReLU)."
        )
    return Kernels(nngp, ntk)


def _dual(activation: Any) -> DualFn:
    names = {jax.nn.relu: "relu"}
    name = names.get(activation, activation) if callable(activation) else activation
    if callable(name):
        raise ValueError(f"activation: expected one of {', '.join(map(repr, DUALS))} or jax.nn.relu; got {activation!r}.")
    check_option("activation", name, DUALS)
    return DUALS[name]


def _layers(depth: int, W_std: Any, b_std: Any, parameterization: str, width: Any, num_features: int, dtype: Any) -> Layers:
    W = per_layer("W_std", W_std, depth + 1)
    b = per_layer("b_std", b_std, depth + 1)
    for W_l, b_l in zip(W, b, strict=True):
        check_scales(W_l, b_l, parameterization)
    stack = lambda values: jnp.stack([jnp.asarray(v, dtype) for v in values])  # noqa: E731
    W2, b2 = stack(W) ** 2, stack([0.0 if b_l is None else b_l for b_l in b]) ** 2
    if parameterization == "ntk":
        if width is not None:
            raise ValueError("width: expected None with parameterization='ntk', whose limit has none; drop it or use 'standard'.")
        return Layers(W2, b2, W2, b2)
    if width is None and depth:
        raise ValueError("width: expected the units of the hidden layers with parameterization='standard'; got None.")
    fan_in = (num_features, *per_layer("width", width, depth))
    check_number("width", jnp.asarray(fan_in), strict=True)
    return Layers(W2, b2, stack(fan_in), stack([0.0 if b_l is None else 1.0 for b_l in b]))


@partial(jax.jit, static_argnames="dual")
def _kernels(x1: Array, x2: Array | None, layers: Layers, dual: DualFn) -> tuple[Array, Array, Array]:
    """NNGP, NTK, and the largest variance or tangent kernel met on the diagonal: what bounds every entry."""
    num_features = x1.shape[1]
    q11 = jnp.sum(x1 * x1, axis=1) / num_features
    q22 = q11 if x2 is None else jnp.sum(x2 * x2, axis=1) / num_features
    q12 = matmul(x1, (x1 if x2 is None else x2).T) / num_features
    if x2 is None:
        q12 = _mirror(q12, q11)
    out = _recursion(q11[:, None], q12, q22[None, :], layers, dual)
    on1 = _recursion(q11, q11, q11, layers, dual)
    on2 = on1 if x2 is None else _recursion(q22, q22, q22, layers, dual)
    nngp, ntk = out.q12, out.theta
    if x2 is None:
        nngp, ntk = _with_diagonal(nngp, on1.q12), _with_diagonal(ntk, on1.theta)
    largest = jnp.max(jnp.stack([jnp.max(part) for side in (on1, on2) for part in (side.q12, side.theta)]))
    return nngp, ntk, largest


def _recursion(q11: Array, q12: Array, q22: Array, layers: Layers, dual: DualFn) -> Moments:
    """All layers, for arrays that broadcast to the shape of `q12`."""
    first, rest = jax.tree.map(lambda c: c[0], layers), jax.tree.map(lambda c: c[1:], layers)
    q11, q12_next, q22 = (first.W * q + first.b for q in (q11, q12, q22))
    start = Moments(q11, q12_next, q22, first.W_eta * q12 + first.b_eta)

    def step(m: Moments, layer: Layers) -> tuple[Moments, None]:
        k, k_dot = dual(m.q11, m.q12, m.q22)
        own = [layer.W * dual(q, q, q).k + layer.b for q in (m.q11, m.q22)]
        theta = layer.W_eta * k + layer.b_eta + layer.W * k_dot * m.theta
        return Moments(own[0], layer.W * k + layer.b, own[1], theta), None

    depth = layers.W.shape[0] - 1
    return jax.lax.scan(step, start, rest, unroll=max(1, min(depth, 16)))[0]


def _mirror(q12: Array, diagonal: Array) -> Array:
    """`q12` with its lower triangle copied from the upper one, and the given diagonal."""
    row, column = jnp.arange(q12.shape[0])[:, None], jnp.arange(q12.shape[0])[None, :]
    return _with_diagonal(jnp.where(row < column, q12, q12.T), diagonal)


def _with_diagonal(k: Array, diagonal: Array) -> Array:
    return jnp.where(jnp.eye(k.shape[0], dtype=bool), diagonal[:, None], k)
