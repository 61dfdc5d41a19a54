"""Hermite coefficients E[f(z) h_k(z)], z ~ N(0, 1), h_k = He_k / sqrt(k!): nodes, basis, and the
kinks' exact ones.

Panels of Gauss-Legendre nodes with a break at 0, geometrically finer towards it: an activation of
scale 1 seen through a large standard deviation is nearly a kink at 0. (Gauss-Hermite nodes converge
like 1/K there.)
"""

import math
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import erfc

PANEL, NODES = 0.75, 20
RANGE, WIDE = (
    14.0,
    36.75,
)  # the density is 1e-43 and 1e-294 there: the latter is for functions that grow


def breakpoints(levels: int, reach: float = RANGE) -> np.ndarray:
    """The ends of the panels, from -reach to reach, with `levels` halvings towards 0."""
    right = [
        *(PANEL * 0.5**j for j in range(levels, 0, -1)),
        *np.arange(PANEL, reach + PANEL / 2, PANEL),
    ]
    return np.array([*(-b for b in right[::-1]), 0.0, *right])


def panel_rule(breaks: Array | np.ndarray, nodes: int = NODES) -> tuple[Any, Any]:
    """Nodes and weights, which contain the normal density, of the panels between `breaks` (..., B)
    -> (..., nodes (B - 1)).
    """
    xp = np if isinstance(breaks, np.ndarray) else jnp
    rule = np.polynomial.legendre.leggauss(nodes)
    x, w = (a.astype(breaks.dtype).reshape(*[1] * breaks.ndim, -1) for a in rule)
    half = (breaks[..., 1:, None] - breaks[..., :-1, None]) / 2
    u = (breaks[..., 1:, None] + breaks[..., :-1, None]) / 2 + half * x
    weights = half * w * xp.exp(-u * u / 2) / (2 * np.pi) ** 0.5
    return u.reshape(*u.shape[:-2], -1), weights.reshape(*u.shape[:-2], -1)


@lru_cache(maxsize=16)
def nodes_and_weights(levels: int, reach: float = RANGE) -> tuple[np.ndarray, np.ndarray]:
    """The rule of the fixed panels, in double precision; nodes are symmetric about 0."""
    return panel_rule(breakpoints(levels, reach))


@lru_cache(maxsize=16)
def basis(levels: int, terms: int, reach: float = RANGE) -> np.ndarray:
    """weights[m] h_k(nodes[m]), shape (nodes, terms)."""
    u, w = nodes_and_weights(levels, reach)
    h = [w, u * w]
    for k in range(1, terms - 1):
        h.append((u * h[k] - np.sqrt(k) * h[k - 1]) / np.sqrt(k + 1))
    return np.stack(h[:terms], axis=1)


def step_coefficients(b: Array | np.ndarray, terms: int, order: int) -> Array | np.ndarray:
    """E[g(z - b) h_k(z)], shape (terms, *b.shape), of the `order`-th antiderivative g of the step:
    relu(z)^order / order!.

    Order -1 is the delta function, -2 its derivative. By parts, e_k(order) = e_(k-1)(order - 1) /
    sqrt(k).
    """
    xp: Any = np if isinstance(b, np.ndarray) else jnp
    b = xp.clip(b, -13.0, 13.0)  # beyond, the density is 0 to double precision
    e = _at(b, terms + max(0, -1 - order))
    roots = np.sqrt(np.arange(1.0, len(e) + 1)).reshape(-1, *[1] * b.ndim).astype(b.dtype)
    for _ in range(-1 - order):
        e = roots[: len(e) - 1] * e[1:]
    means = [_tail_probability(b), e[0] - b * _tail_probability(b)] if order >= 0 else []
    for p in range(2, order + 1):
        means.append((means[p - 2] - b * means[p - 1]) / p)
    for p in range(order + 1):
        e = xp.concatenate([means[p][None], e[:-1] / roots[:-1]])
    return e


def _at(b: Array | np.ndarray, count: int) -> Array | np.ndarray:
    """density(b) h_k(b) for k below `count`."""
    if isinstance(b, np.ndarray):
        e = [np.exp(-b * b / 2) / (2 * np.pi) ** 0.5]
        e.append(b * e[0])
        for k in range(1, count - 1):
            e.append((b * e[k] - k**0.5 * e[k - 1]) / (k + 1) ** 0.5)
        return np.stack(e[:count])

    # a loop: unrolled, hundreds of terms would compile for seconds
    def step(
        last: tuple[Array, Array, Array], root_k: Array
    ) -> tuple[tuple[Array, Array, Array], Array]:
        e, before, root_before = last
        return ((b * e - root_before * before) / root_k, e, root_k), e

    first = jnp.exp(-b * b / 2) / (2 * np.pi) ** 0.5
    roots = jnp.asarray(np.sqrt(np.arange(1.0, count + 1)), b.dtype)
    return lax.scan(step, (first, jnp.zeros_like(b), jnp.zeros((), b.dtype)), roots, unroll=8)[1]


def _tail_probability(b: Any) -> Any:
    """P(z > b)."""
    if isinstance(b, np.ndarray):
        return np.array([math.erfc(v * 0.5**0.5) / 2 for v in b])
    return erfc(b * 0.5**0.5) / 2
