"""One layer of the recursion, on any pairs of examples, and all layers one after the other.

Moments of pairs are their covariance and their tangent kernel; variances are covariances of
examples with themselves.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from ntk_jax.compat import in_dtype, is_concrete
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.duals.numerics import covariance_at_poles, ratio, root

Coefficients: TypeAlias = Any
"""An array (depth + 1,), or one of NumPy's, which goes to the device with the call of a program."""


class Layers(NamedTuple):
    """The coefficients of each Dense layer: its covariance is W k + b, its own part of the tangent
    kernel W_eta k + b_eta; that of a trained `shift` of what the activation before it sees, if any
    layer has one.
    """

    W: Array
    b: Array
    W_eta: Array
    b_eta: Array
    shift: Array | None = None


class Architecture(NamedTuple):
    """What is static: the activation's dual, skip connections around hidden layers, normalization
    before activations.
    """

    rule: DualRule
    residual: bool = False
    layer_norm: bool = False


Moments = tuple[Array, Array]
Flag = Array | bool
Carry = TypeVar("Carry")
Factors = tuple[Array | None, Array | None]


class Network(NamedTuple):
    """What a kernel is of: examples in rows, x2 = None for x1 again, layers, and what is static.

    `factors` are both sides': (n, depth), what each example multiplies its units by before each
    activation, such as a normalization with an epsilon.
    """

    x1: Array
    x2: Array | None
    layers: Layers
    arch: Architecture
    factors: Factors = (None, None)


def stack(values: Sequence[Any], dtype: DTypeLike) -> Coefficients:
    """Coefficients of layers, traced ones among them."""
    if all(map(is_concrete, values)):
        return np.array([float(value) for value in values], dtype)
    return jnp.stack([jnp.asarray(value, dtype) for value in values])


def as_rows(x: Array, dtype: DTypeLike) -> Array:
    """Examples as rows of features."""
    return in_dtype(x if x.ndim == 2 else x.reshape(x.shape[0], -1), dtype)


def dense(layer: Layers, k: Array, k_dot: Array, theta: Array) -> Moments:
    """A Dense layer after an activation."""
    return layer.W * k + layer.b, layer.W_eta * k + layer.b_eta + layer.W * (k_dot * theta)


def first_dense(layer: Layers, q: Array) -> Moments:
    """The Dense layer on the inputs."""
    return layer.W * q + layer.b, layer.W_eta * q + layer.b_eta


def first_pairs(
    layer: Layers, products: Array, variances1: Moments, variances2: Moments
) -> Moments:
    """The same on pairs, given both sides' second moments before and after it.

    An example in both sets is the same example, to the bit: compiled code may round one
    multiplication and addition in two ways.
    """
    q1, q2 = variances1[0], variances2[0]
    c = covariance_at_poles(products, q1, q2, root(q1), root(q2))
    k, theta = first_dense(layer, c)
    same = (c == variances1[0]) & (c == variances2[0])
    return k + lax.stop_gradient(jnp.where(same, variances1[1] - k, 0)), theta


def add_skip(arch: Architecture, last: Flag, new: Moments, old: Moments) -> Moments:
    """The kernels after a layer, with those before it if a skip connection leads around it: not
    around the readout.
    """
    if not arch.residual:
        return new
    return jax.tree.map(lambda a, b: a + jnp.where(last, jnp.zeros_like(b), b), new, old)


def split_layers(layers: Layers) -> tuple[Layers, tuple[Layers, Array]]:
    """The first layer; the others, each with whether it is the readout."""
    depth = layers.W.shape[0] - 1
    rest = jax.tree.map(lambda c: c[1:], layers)
    return jax.tree.map(lambda c: c[0], layers), (rest, jnp.arange(depth) == depth - 1)


def normalized(q: Array) -> tuple[Array, Array]:
    """Variances `q` after LayerNorm, and the factor of one side's covariances; 0 at a zero one."""
    return jnp.where(q > 0, jnp.ones_like(q), 0), ratio(jnp.ones_like(q), root(q))


def before_activation(
    arch: Architecture, q: Array, factor: Array | None
) -> tuple[Array, Array | None]:
    """Variances as the activation sees them, and the factor of one side's covariances: None where
    there is neither a given one nor LayerNorm.
    """
    if factor is not None:
        return q * factor**2, factor
    return normalized(q) if arch.layer_norm else (q, None)


def tangent_before_activation(layer: Layers, theta: Array, scale: Array | None) -> Array:
    """The tangent kernel as the activation sees it, given the factor of covariances."""
    theta = theta if scale is None else theta * scale
    return theta if layer.shift is None else theta + layer.shift


def rows(arch: Architecture, q: Array, factor: Array | None) -> tuple[Any, Array | None]:
    """What a pair needs of one side at one layer: the dual's rows, and its factor."""
    variance, scale = before_activation(arch, q, factor)
    return arch.rule.rows(variance), scale


def pair_step(
    arch: Architecture,
    layer: Layers,
    last: Flag,
    rows1: tuple[Any, Array | None],
    moments: Moments,
    rows2: tuple[Any, Array | None],
) -> Moments:
    """One hidden layer and the Dense after it, for (covariance, tangent kernel) of pairs."""
    (dual1, r1), (dual2, r2) = rows1, rows2
    q12, theta = moments
    scale = None if r1 is None or r2 is None else r1 * r2
    q12 = q12 if scale is None else q12 * scale
    k, k_dot = arch.rule.pair(dual1, q12, dual2)
    new = dense(layer, k, k_dot, tangent_before_activation(layer, theta, scale))
    return add_skip(arch, last, new, moments)


def scan_layers(
    arch: Architecture, step: Callable[[Carry, Any], tuple[Carry, Any]], carry: Carry, layers: Any
) -> tuple[Carry, Any]:
    """`lax.scan` over layers; a few of a smooth dual are written out.

    Reverse mode through `scan` drops custom derivatives, so that nested ones differentiate values
    as they are computed, and saves every number for later: four nested derivatives would compile
    for minutes. The barrier keeps XLA from computing a layer anew for each of its two results.
    """
    depth = len(jax.tree.leaves(layers)[0])
    if arch.rule.cusp or not 0 < depth <= arch.rule.unroll:
        return lax.scan(step, carry, layers)
    outs = []
    for i in range(depth):
        carry, out = step(carry, jax.tree.map(lambda a, i=i: a[i], layers))
        carry = lax.optimization_barrier(carry)
        outs.append(out)
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *outs)
