"""How pairs of examples go through the layers: by their covariance, or by its gap to a pole if the
activation has kinks.

The state of pairs is the one or the other, and their tangent kernel; after the last layer it is the
covariance.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from ntk_jax.infinite.mlp.gaps import (
    Inputs,
    covariance,
    first_gaps,
    gap_side,
    gap_step,
    with_derivative_of_covariance,
)
from ntk_jax.infinite.mlp.layers import (
    Architecture,
    Layers,
    Moments,
    first_pairs,
    pair_step,
    rows,
    scan_layers,
    split_layers,
)


def has_cusp(layers: Layers, arch: Architecture) -> bool:
    """Whether pairs are followed by their gaps."""
    return layers.W.shape[0] > 1 and arch.rule.cusp


def side(arch: Architecture, layer: Layers, last: Any, q: Array) -> Any:
    """What `step` needs of one side, given the variances that enter a hidden layer."""
    return gap_side(arch, layer, last, q) if arch.rule.cusp else rows(arch, q)


def step(
    arch: Architecture, layer: Layers, last: Any, one: Any, state: Moments, other: Any
) -> Moments:
    """One hidden layer and the Dense after it."""
    return (gap_step if arch.rule.cusp else pair_step)(arch, layer, last, one, state, other)


def start(
    layers: Layers, arch: Architecture, left: Inputs, products: Array, right: Inputs, distinct: Any
) -> Moments:
    """The state after the first Dense layer, given the second moments of the inputs; pairs that are
    not `distinct` are an example and itself.
    """
    first, _ = split_layers(layers)
    (q0, q1), (q0_, q2) = ((a.q0, a.q) for a in (left, right))
    k, theta = first_pairs(first, products, (q0[:, None], q1[:, None]), (q0_[None, :], q2[None, :]))
    if not has_cusp(layers, arch):
        return k, theta
    signed = first_gaps(first, left, products, right, distinct)
    return with_derivative_of_covariance(signed, q1[:, None], k, q2[None, :]), theta


def all_layers(
    state: Moments,
    variances1: Array,
    variances2: Array,
    layers: Layers,
    arch: Architecture,
    every: bool = False,
) -> Moments:
    """The reference path, from `start` on: a scan over layers of whole arrays.

    Variances (depth, n) are those entering each hidden layer. With `every`, a leading axis of
    depth + 1 layers.
    """
    _, rest = split_layers(layers)

    def through(state: Moments, inputs: Any) -> tuple[Moments, Moments | None]:
        (layer, last), q1, q2 = inputs
        one, other = side(arch, layer, last, q1[:, None]), side(arch, layer, last, q2[None, :])
        return step(arch, layer, last, one, state, other), state if every else None

    out, before = scan_layers(arch, through, state, (rest, variances1, variances2))
    if before is None:
        return out
    if has_cusp(layers, arch):
        nngp = covariance(before[0], variances1[:, :, None], variances2[:, None, :])
        before = nngp, before[1]
    nngp, ntk = (jnp.concatenate([a, b[None]]) for a, b in zip(before, out, strict=True))
    return nngp, ntk
