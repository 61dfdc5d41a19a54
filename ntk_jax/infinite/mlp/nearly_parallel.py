"""Pairs of nearly parallel examples: their kernels again, from the distance between the directions
of the two inputs.

The angle of a pair is the root of what its covariance lacks of sqrt(q1 q2), which is all rounding
where that is a few ulps: k_dot of ReLU would be off by sqrt(eps) from one pair to the next, and
the tangent kernel of a cluster not be positive semi-definite. Here pairs are followed by 1 -+ rho,
which starts as |u1 -+ u2|² / 2 of unit vectors and never cancels.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.duals.dual_rule import PoleGaps
from ntk_jax.duals.numerics import NEAR, ratio, root
from ntk_jax.infinite.mlp.layers import (
    Architecture,
    Layers,
    Moments,
    add_skip,
    before_activation,
    dense,
    split_layers,
)
from ntk_jax.tiling import bucket

PAIRS = 1024
"""How many pairs are followed at once."""


def is_near(q1: Array, q12: Array, q2: Array) -> Array:
    """Which pairs to follow by their distance."""
    s = root(q1) * root(q2)
    return (s > 0) & (jnp.abs(q12) >= s * (1 - NEAR))


def coincident(
    x1: Array, x2: Array | None, variances: np.ndarray, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The rows i of x1 and j of x2 that are the same, if these are all nearly parallel pairs there
    are: their kernels are known, and what follows pairs takes long to compile. Else None.

    `near` (tiles, 2) says how many pairs there are. Beyond the pairs, indices are out of bounds.
    """
    most = 4 * len(x1)
    if np.any(np.sum(near, axis=0) != np.sum(near[:, 0])) or np.sum(near[:, 0]) > most:
        return None
    places: dict[bytes, list[int]] = defaultdict(list)
    for j, row in enumerate(np.asarray(x1 if x2 is None else x2)):
        places[row.tobytes()].append(j)
    alive = enumerate(zip(np.asarray(x1), variances > 0, strict=True))
    rows = [(i, places[row.tobytes()]) for i, (row, some) in alive if some]
    pairs = [(i, j) for i, found in rows for j in found if x2 is not None or i < j]
    if len(pairs) != np.sum(near[:, 0]):
        return None
    beyond = [(len(x1), len(x1 if x2 is None else x2))] * (bucket(len(pairs)) - len(pairs))
    i, j = np.array(pairs + beyond, np.int32).T
    return i, j


def directions(x: Array, variances: Array, first: Layers) -> Array:
    """The unit vectors (n, d + 1) whose products are the correlations after the first Dense
    layer.
    """
    r = ratio(jnp.ones_like(variances), root(variances))
    weights = jnp.sqrt(first.W / x.shape[1])
    return jnp.concatenate([x * (weights * r)[:, None], (jnp.sqrt(first.b) * r)[:, None]], axis=1)


class _Seen(NamedTuple):
    """One side at one layer: deviation after the activation, roots of shares, what LayerNorm
    divides by, rows of the dual.

    The shares are those of activation, bias and skip connection in the variance to come.
    """

    deviation: Array
    shares: list[Array]
    scale: Any
    rows: Any


def near_kernels(
    left: tuple[Array, Array],
    start: Moments,
    right: tuple[Array, Array],
    wanted: Array,
    layers: Layers,
    arch: Architecture,
) -> tuple[Array, Array]:
    """The kernels of the pairs that are `wanted`, as `all_layers` returns them; 0 for others, which
    cost nothing.

    `left` and `right` are `directions` (n, d + 1) and variances (depth, n) of either side, `start`
    the covariance and the tangent kernel after the first Dense layer.
    """
    groups = _Groups(wanted)
    (_, out), _ = _followed(groups, left, start, right, layers, arch)
    return jax.tree.map(groups.scatter, out)


def near_pole_gaps(
    left: tuple[Array, Array],
    start: Moments,
    right: tuple[Array, Array],
    wanted: Array,
    layers: Layers,
    arch: Architecture,
) -> Array:
    """1 - |rho| of the pairs that are `wanted` as it enters every hidden layer, (depth, n1, n2); 0
    for others.
    """
    groups = _Groups(wanted)
    return groups.scatter(
        _followed(groups, left, start, right, layers, arch, lambda gaps: gaps.pole_gap)[1]
    )


def all_pole_gaps(
    left: tuple[Array, Array],
    start: Moments,
    right: tuple[Array, Array],
    wanted: Array,
    layers: Layers,
    arch: Architecture,
) -> Array:
    """The same of all pairs, where the dual can afford it: only those `wanted` ask for the distance
    of their directions.
    """
    (u1, variances1), (u2, variances2) = left, right
    groups = _Groups(wanted)
    sign = _poles(start[0])
    q1, q2 = variances1[0][:, None], variances2[0][None, :]
    exact = groups.scatter(groups.map(lambda at: _distance(u1, u2, sign, at)))
    pole_gap = jnp.where(wanted, exact, from_afar(q1, start[0], q2))
    first = PoleGaps(
        jnp.where(sign > 0, pole_gap, 2 - pole_gap), jnp.where(sign > 0, 2 - pole_gap, pole_gap)
    )

    def step(gaps: PoleGaps, inputs: Any) -> tuple[PoleGaps, Array]:
        (layer, last), q1, q2 = inputs
        one, other = _seen(arch, layer, last, q1[:, None]), _seen(arch, layer, last, q2[None, :])
        active, _ = arch.rule.pole_gaps(gaps, one.rows, other.rows)
        alive = (q1 > 0)[:, None] & (q2 > 0)[None, :]
        return _in_sum(one.shares, other.shares, [active, PoleGaps(0, 2), gaps]), jnp.where(
            alive, gaps.pole_gap, 1
        )

    return lax.scan(step, first, (split_layers(layers)[1], variances1, variances2))[1]


class _Groups:
    """The pairs that are wanted, `PAIRS` at a time."""

    def __init__(self, wanted: Array):
        self.shape = wanted.shape
        self.listed = jnp.flatnonzero(
            wanted, size=-(-wanted.size // PAIRS) * PAIRS, fill_value=wanted.size
        )
        self.at = jnp.divmod(
            jnp.minimum(self.listed, wanted.size - 1).reshape(-1, PAIRS), wanted.shape[1]
        )
        self.some = jnp.arange(len(self.at[0])) * PAIRS < jnp.count_nonzero(wanted)

    def map(self, f: Callable[..., Any], *state: Any) -> Any:
        """`f` of the pairs that are listed, a group at a time; others cost nothing."""
        groups = (self.at, *state)
        empty = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(f, *jax.tree.map(lambda a: a[0], groups)),
        )
        return lax.map(
            lambda group: lax.cond(group[0], f, lambda *_: empty, *group[1:]), (self.some, *groups)
        )

    def scatter(self, values: Array) -> Array:
        """Values (..., groups, PAIRS) in their places of an array (..., *shape) of zeros."""
        lead = values.shape[:-2]
        flat = jnp.zeros((*lead, math.prod(self.shape)), values.dtype)
        return (
            flat.at[..., self.listed]
            .set(values.reshape(*lead, -1), mode="drop")
            .reshape(*lead, *self.shape)
        )


def _poles(q12: Array) -> Array:
    """The pole that is nearer."""
    return jnp.where(q12 > 0, 1, -1).astype(q12.dtype)


def from_afar(q1: Array, q12: Array, q2: Array) -> Array:
    """1 - |rho| of covariances."""
    return 1 - jnp.minimum(_poles(q12) * ratio(q12, root(q1) * root(q2)), 1)


def _distance(u1: Array, u2: Array, sign: Array, at: tuple[Array, Array]) -> Array:
    """1 - |rho| of directions."""
    return jnp.sum((u1[at[0]] - sign[at][:, None] * u2[at[1]]) ** 2, axis=1) / 2


def _followed(
    groups: _Groups,
    left: tuple[Array, Array],
    start: Moments,
    right: tuple[Array, Array],
    layers: Layers,
    arch: Architecture,
    keep: Callable[[PoleGaps], Any] = lambda _: None,
) -> Any:
    """The gaps of the pairs of some groups and their moments, after all layers; what to
    `keep` as it enters each.
    """
    (u1, variances1), (u2, variances2) = left, right
    poles = _poles(start[0])

    def begin(at: tuple[Array, Array]) -> tuple[PoleGaps, Moments]:
        moments, q1, q2 = (start[0][at], start[1][at]), variances1[0][at[0]], variances2[0][at[1]]
        far, near, sign = from_afar(q1, moments[0], q2), is_near(q1, moments[0], q2), poles[at]
        exact = lambda: jnp.where(near, _distance(u1, u2, poles, at), far)
        pole_gap = lax.cond(jnp.any(near), exact, lambda: far)
        return PoleGaps(
            jnp.where(sign > 0, pole_gap, 2 - pole_gap), jnp.where(sign > 0, 2 - pole_gap, pole_gap)
        ), moments

    def step(state: Any, inputs: Any) -> tuple[Any, Any]:
        (layer, last), q1, q2 = inputs
        seen = jax.tree.map(
            lambda a: jnp.moveaxis(a, -1, 0), _seen(arch, layer, last, jnp.concatenate([q1, q2]))
        )

        def through(at: tuple[Array, Array], state: Any) -> tuple[PoleGaps, Moments]:
            of = lambda i: jax.tree.map(lambda a: jnp.moveaxis(a[i], 0, -1), seen)
            return _layer(arch, layer, last, of(at[0]), state[0], state[1], of(at[1] + len(q1)))

        return groups.map(through, state), keep(state[0])

    return lax.scan(step, groups.map(begin), (split_layers(layers)[1], variances1, variances2))


def _seen(arch: Architecture, layer: Layers, last: Any, q: Array) -> _Seen:
    v, scale = before_activation(arch, q)
    second = arch.rule.diagonal(v).k
    parts = [layer.W * second, jnp.broadcast_to(layer.b, q.shape)]
    if arch.residual:
        parts.append(jnp.where(last, 0, q))
    total = sum(parts, jnp.zeros_like(q))
    return _Seen(
        root(second), [root(ratio(p, total)) for p in parts], scale, arch.rule.near_rows(v)
    )


def _layer(
    arch: Architecture,
    layer: Layers,
    last: Any,
    one: _Seen,
    gaps: PoleGaps,
    moments: Moments,
    other: _Seen,
) -> tuple[PoleGaps, Moments]:
    """One hidden layer and the Dense after it, `pair_step` for pairs that are known by their
    gaps.
    """
    active, k_dot = arch.rule.pole_gaps(gaps, one.rows, other.rows)
    k = one.deviation * other.deviation * ((active.plus - active.minus) / 2)
    theta = moments[1] * (one.scale * other.scale) if arch.layer_norm else moments[1]
    after = add_skip(arch, last, dense(layer, k, k_dot, theta), moments)
    return _in_sum(one.shares, other.shares, [active, PoleGaps(0, 2), gaps]), after


def _in_sum(a: list[Array], b: list[Array], parts: list[PoleGaps]) -> PoleGaps:
    """The gaps of pairs under a sum of kernels, given those under each of them.

    With shares a_m² and b_m² of the two variances, 1 -+ rho = sum_m a_m b_m (1 -+ rho_m) + (1 -
    sum_m a_m b_m), and the last term is the sum over m < n of (a_m b_n - a_n b_m)², over 1 + sum_m
    a_m b_m.
    """
    aligned = [a_m * b_m for a_m, b_m in zip(a, b, strict=True)]
    crossed = [(a[m] * b[n] - a[n] * b[m]) ** 2 for n in range(len(a)) for m in range(n)]
    unequal = sum(crossed) / (1 + sum(aligned))
    minus, plus = (
        [share * p[sign] for share, p in zip(aligned, parts, strict=False)] for sign in (0, 1)
    )
    return PoleGaps(sum(minus, unequal), sum(plus, unequal))
