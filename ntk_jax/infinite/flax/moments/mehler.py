"""E[f(u) g(v)] for functions of up to three Gaussians that need not be equal nor scalar: the Mehler
series in each variable.

f is seen through its coefficients a_k1..kn = E[f(s1 z1, .., sn zn) h_k1(z1) .. h_kn(zn)]; with
correlations rho_i between the i-th variables, E[f g] = sum a_k b_k rho^k. One variable takes 64
terms on panels with a break at 0, more of them take a product of Gauss-Hermite rules.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.duals.hermite_coefficients import basis, nodes_and_weights
from ntk_jax.duals.numerics import clip_rounding, ratio, root
from ntk_jax.infinite.flax.errors import NoLimitError

Function: TypeAlias = Callable[[Sequence[Array]], Array]

TERMS = {1: 64, 2: 32, 3: 14}
NODES = {2: 96, 3: 32}
LEVELS = 8


@lru_cache(maxsize=8)
def _rule(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights, and weights times the normalized Hermite polynomials (nodes, terms), of each
    of n variables.
    """
    if n == 1:
        u, w = nodes_and_weights(LEVELS)
        return u, w, basis(LEVELS, TERMS[1])
    if n not in TERMS:
        raise NoLimitError(
            f"a nonlinearity of {n} independent Gaussians at each unit needs an integral in {n} "
            "dimensions,"
        )
    u, w = np.polynomial.hermite_e.hermegauss(NODES[n])
    w = w / w.sum()
    h = [np.ones_like(u), u]
    for k in range(1, TERMS[n] - 1):
        h.append((u * h[k] - math.sqrt(k) * h[k - 1]) / math.sqrt(k + 1))
    return u, w, np.stack(h, 1) * w[:, None]


def coefficients(f: Function, variances: Sequence[Array]) -> Array:
    """(terms, .., terms, *shape) of f, a function of lists of arrays (..., *shape), at variances of
    that shape.
    """
    values, projections = _on_grid(f, variances)
    for i, projection in enumerate(projections):
        p = jnp.asarray(projection, values.dtype)
        values = jnp.moveaxis(jnp.tensordot(p, values, ((0,), (i,)), precision="highest"), 0, i)
    return values


def mean(f: Function, variances: Sequence[Array]) -> Array:
    """E[f]."""
    return _integral(*_on_grid(f, variances))


def relative_tail(f: Function, variances: Sequence[Array]) -> Array:
    """What the coefficients leave out of E[f²], relative to it."""
    values, projections = _on_grid(f, variances)
    energy = _integral(values * values, projections)
    a = coefficients(f, variances)
    kept = jnp.sum(a * a, axis=tuple(range(len(variances))))
    return ratio(jnp.abs(energy - kept), energy)


def _integral(values: Array, projections: list[np.ndarray]) -> Array:
    """Of values on the grid: times the first polynomial, 1."""
    for projection in projections:
        weights = jnp.asarray(projection[:, 0], values.dtype)
        values = jnp.tensordot(weights, values, ((0,), (0,)), precision="highest")
    return values


def _on_grid(f: Function, variances: Sequence[Array]) -> tuple[Array, list[np.ndarray]]:
    """The values of f on the product of the rules, and each rule's projections."""
    n, shape, dtype = len(variances), jnp.shape(variances[0]), variances[0].dtype
    points, _, projection = _rule(n)
    along = lambda i: (1,) * i + (-1,) + (1,) * (n - 1 - i + len(shape))
    u = jnp.asarray(points, dtype)
    zs = [u.reshape(along(i)) * root(q) for i, q in enumerate(variances)]
    return jnp.broadcast_to(f(zs), (len(points),) * n + shape), [projection] * n


def total(a: Array, b: Array, correlations: Sequence[Array | None], n: int) -> Array:
    """sum_k a_k b_k rho^k, a and b broadcast against the correlations after their first n axes."""
    if n == 0:
        return a * b
    rho = correlations[0]
    shape = jnp.broadcast_shapes(
        a.shape[n:], b.shape[n:], *(r.shape for r in correlations if r is not None)
    )
    if rho is None:  # independent: only the means meet
        return total(a[0], b[0], correlations[1:], n - 1)

    def step(value: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        ak, bk = pair
        # Horner's scheme, from the last coefficient down.
        return value * rho + total(ak, bk, correlations[1:], n - 1), None

    return lax.scan(step, jnp.zeros(shape, a.dtype), (a[::-1], b[::-1]))[0]


def correlation(q1: Array, c: Array, q2: Array) -> Array:
    """c / sqrt(q1 q2) within ±1, 0 next to a zero variance."""
    one = jnp.ones((), c.dtype)
    return clip_rounding(c * ratio(one, root(q1)) * ratio(one, root(q2)), -1, 1)


def differentiated(f: Callable[..., Array], zs: Sequence[Array], wrt: int) -> Array:
    """df / dz_wrt of an elementwise function."""
    shape = jnp.broadcast_shapes(*(z.shape for z in zs))
    zs = [jnp.broadcast_to(z, shape) for z in zs]
    tangents = [jnp.ones_like(z) if i == wrt else jnp.zeros_like(z) for i, z in enumerate(zs)]
    return jax.jvp(f, tuple(zs), tuple(tangents))[1]
