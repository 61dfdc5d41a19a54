"""How pairs of examples go through the layers: by their covariance, or by its gap to a pole if the
activation has kinks.

The state of pairs is the one or the other, and their tangent kernel; after the last layer it is the
covariance.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.infinite.mlp.diagonal import Diagonal, Diagonals
from ntk_jax.infinite.mlp.gaps import (
    FirstSide,
    GapSide,
    covariance,
    first_side,
    first_step,
    gap_side,
    gap_step,
    with_derivatives_of_moments,
)
from ntk_jax.infinite.mlp.layers import (
    Architecture,
    Flag,
    Layers,
    Moments,
    first_pairs,
    pair_step,
    rows,
    scan_layers,
    split_layers,
)

Side = GapSide | tuple[Any, Array | None]
"""Of some examples at one hidden layer."""


def has_cusp(layers: Layers, arch: Architecture) -> bool:
    """Whether pairs are followed by their gaps."""
    return layers.W.shape[0] > 1 and arch.rule.cusp


def side(
    arch: Architecture, layer: Layers, last: Flag, q: Array, second: Array, factor: Array | None
) -> Side:
    """What `step` needs of one side, given the variances that enter a hidden layer, E[phi²], and
    its factor.
    """
    if arch.rule.cusp:
        return gap_side(arch, layer, last, q, second, factor)
    return rows(arch, q, factor)


def step(
    arch: Architecture,
    layer: Layers,
    last: Flag,
    one: Side,
    state: Moments,
    other: Side,
) -> Moments:
    """One hidden layer and the Dense after it."""
    if isinstance(one, GapSide) and isinstance(other, GapSide):
        return gap_step(arch, layer, last, one, state, other)
    assert not isinstance(one, GapSide) and not isinstance(other, GapSide)
    return pair_step(arch, layer, last, one, state, other)


class Inputs(NamedTuple):
    """One side before the first layer: examples, second moments, variances after that layer."""

    x: Array
    q0: Array
    q: Array


Start = Inputs | FirstSide


def inputs(layers: Layers, arch: Architecture, x: Array, known: Diagonal) -> Start:
    """What `start` needs of one side."""
    plain = _inputs(x, known)
    return first_side(split_layers(layers)[0], *plain) if has_cusp(layers, arch) else plain


def _inputs(x: Array, known: Diagonal) -> Inputs:
    return Inputs(x, known.q0, (known.variances if len(known.variances) else known.nngp[None])[0])


def start(layers: Layers, one: Start, products: Array, other: Start, distinct: Flag) -> Moments:
    """The state after the first Dense layer, given the second moments of the inputs; pairs that are
    not `distinct` are an example and itself.
    """
    first, _ = split_layers(layers)
    if isinstance(one, FirstSide) and isinstance(other, FirstSide):
        return first_step(first, one, products, other, distinct)
    assert isinstance(one, Inputs) and isinstance(other, Inputs)
    variances = (one.q0[:, None], one.q[:, None]), (other.q0[None, :], other.q[None, :])
    return first_pairs(first, products, *variances)


def differentiable_start(
    layers: Layers,
    one: Start,
    products: Array,
    other: Start,
    distinct: Flag,
    known: Diagonals,
) -> Moments:
    """The same, with derivatives."""
    sides = [_inputs(s.x, d) for s, d in zip((one, other), known, strict=True)]
    moments = start(layers, sides[0], products, sides[1], distinct)
    if not isinstance(one, FirstSide):
        return moments
    values = lax.stop_gradient((layers, one, products, other))
    q1, q2 = sides[0].q[:, None], sides[1].q[None, :]
    return with_derivatives_of_moments(start(*values, distinct), q1, moments, q2)


def all_layers(
    state: Moments,
    known: Diagonals,
    layers: Layers,
    arch: Architecture,
    every: bool = False,
) -> Moments:
    """The reference path, from `start` on: a scan over layers of whole arrays.

    With `every`, a leading axis of depth + 1 layers.
    """
    _, rest = split_layers(layers)
    one, other = ((d.variances, d.active, d.factors) for d in (known[0], known[-1]))

    def through(state: Moments, inputs: Any) -> tuple[Moments, Moments | None]:
        (layer, last), left, right = inputs
        a = side(arch, layer, last, *jax.tree.map(lambda v: v[:, None], left))
        b = side(arch, layer, last, *jax.tree.map(lambda v: v[None, :], right))
        return step(arch, layer, last, a, state, b), state if every else None

    # in reverse, a few operations are quicker done again than their results read
    body = jax.checkpoint(through) if has_cusp(layers, arch) else through
    out, before = scan_layers(arch, body, state, (rest, one, other))
    if before is None:
        return out
    if has_cusp(layers, arch):
        nngp = covariance(before[0], one[0][:, :, None], other[0][:, None, :])
        before = nngp, before[1]
    nngp, ntk = (jnp.concatenate([a, b[None]]) for a, b in zip(before, out, strict=True))
    return nngp, ntk
