"""Pairs of nearly parallel examples: their kernels again, from the distance between the directions of the two inputs.

The angle of a pair is the root of what its covariance lacks of sqrt(q1 q2), which is all rounding where the lack is a few ulps:
k_dot of ReLU would be off by sqrt(eps) from one pair to the next, and the tangent kernel of a cluster not be positive
semi-definite. Here pairs are followed by 1 -+ rho, which starts as |u1 -+ u2|² / 2 of unit vectors and never cancels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.infinite.dual import Apart, ratio, root
from ntk_jax.infinite.layers import Architecture, Layers, add_skip, dense, normalized, split_layers

NEAR = 2.0**-14
"""1 - |rho| below which a pair counts as near: angles below .011, which rounding of a covariance moves by 90 ulps and more."""


def is_near(q1: Array, q12: Array, q2: Array) -> Array:
    """Which pairs to follow by their distance."""
    s = root(q1) * root(q2)
    return (s > 0) & (jnp.abs(q12) >= s * (1 - NEAR))


def directions(x: Array, variances: Array, first: Layers) -> Array:
    """The unit vectors (n, d + 1) whose products are the correlations after the first Dense layer."""
    r = ratio(jnp.ones_like(variances), root(variances))
    weights = jnp.sqrt(first.W / x.shape[1])
    return jnp.concatenate([x * (weights * r)[:, None], (jnp.sqrt(first.b) * r)[:, None]], axis=1)


def distances(u1: Array, u2: Array, wanted: Array, sign: Array) -> Array:
    """|u1 - sign u2|² / 2 (n1, n2), by rows; only rows with a pair that is wanted cost anything."""

    def row(inputs):
        u, wanted, sign = inputs
        far = lambda: jnp.zeros(u2.shape[0], u2.dtype)  # noqa: E731
        return lax.cond(jnp.any(wanted), lambda: jnp.sum((u[None] - sign[:, None] * u2) ** 2, axis=1) / 2, far)

    return lax.map(row, (u1, wanted, sign))


def near_kernels(
    left: tuple[Array, Array],
    start: tuple[Array, Array],
    right: tuple[Array, Array],
    wanted: Array,
    layers: Layers,
    arch: Architecture,
    every: bool = False,
) -> tuple[Array, Array]:
    """The kernels of all pairs as `all_layers` returns them; they hold for those that are `wanted`.

    `left` and `right` are `directions` (n, d + 1) and variances (depth, n) of either side, `start` the covariance and the
    tangent kernel after the first Dense layer.
    """
    (u1, variances1), (u2, variances2) = left, right
    positive = start[0] > 0
    lack = distances(u1, u2, wanted, jnp.where(positive, 1, -1).astype(u1.dtype))
    apart = Apart(jnp.where(positive, lack, 2 - lack), jnp.where(positive, 2 - lack, lack))

    def step(state, inputs):
        (layer, last), q1, q2 = inputs
        new = _layer(arch, layer, last, q1[:, None], *state, q2[None, :])
        return new, new[1] if every else None

    (_, out), history = lax.scan(step, (apart, start), (split_layers(layers)[1], variances1, variances2))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, history) if every else out


def _layer(
    arch: Architecture, layer: Layers, last: Any, q1: Array, apart: Apart, moments: tuple[Array, Array], q2: Array
) -> tuple[Apart, tuple[Array, Array]]:
    """One hidden layer and the Dense after it, `pair_step` for pairs that are known by how far apart they are."""
    v1, v2, theta = q1, q2, moments[1]
    if arch.layer_norm:
        (v1, scale1), (v2, scale2) = normalized(q1), normalized(q2)
        theta = theta * (scale1 * scale2)
    own1, own2 = arch.rule.own(v1).k, arch.rule.own(v2).k
    active, k_dot = arch.rule.apart(apart)
    k = root(own1) * root(own2) * ((active.plus - active.minus) / 2)
    parts = [(layer.W * own1, layer.W * own2, active), (layer.b, layer.b, Apart(0, 2))]
    if arch.residual:
        parts.append((jnp.where(last, 0, q1), jnp.where(last, 0, q2), apart))
    return _apart_in_sum(parts), add_skip(arch, last, dense(layer, k, k_dot, theta), moments)


def _apart_in_sum(parts: list[tuple[Any, Any, Any]]) -> Apart:
    """How far apart pairs are under a sum of kernels, given the variances of both sides and `Apart` under each of them.

    With shares a_m² and b_m² of the variances, 1 -+ rho = sum_m a_m b_m (1 -+ rho_m) + (1 - sum_m a_m b_m), and the last term
    is the sum over m < n of (a_m b_n - a_n b_m)², over 1 + sum_m a_m b_m.
    """
    total1, total2 = sum(v for v, _, _ in parts), sum(v for _, v, _ in parts)
    a, b = [root(ratio(v, total1)) for v, _, _ in parts], [root(ratio(v, total2)) for _, v, _ in parts]
    aligned = [a_m * b_m for a_m, b_m in zip(a, b, strict=True)]
    crossed = [(a[m] * b[n] - a[n] * b[m]) ** 2 for n in range(len(parts)) for m in range(n)]
    unequal = sum(crossed) / (1 + sum(aligned))
    minus, plus = (
        [share * which for share, which in zip(aligned, each, strict=True)]
        for each in zip(*(p[2] for p in parts), strict=True)
    )
    return Apart(sum(minus, unequal), sum(plus, unequal))
