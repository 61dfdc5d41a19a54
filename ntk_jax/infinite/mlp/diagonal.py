"""What examples have with themselves: the diagonal of the kernel, which costs n and not n².

It is computed once per call, ahead of the pairs: it says whether the kernel overflows, at which
variances the dual must be exact, and it is the diagonal of the result to the bit.
"""

from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.compat import are_of_one_cpu, fetched, is_compiling, is_concrete
from ntk_jax.duals.hermite_series.fit import fitted_rule
from ntk_jax.host import on_host
from ntk_jax.infinite.mlp.layers import (
    Architecture,
    Factors,
    Layers,
    Moments,
    Network,
    add_skip,
    before_activation,
    dense,
    first_dense,
    scan_layers,
    split_layers,
    tangent_before_activation,
)
from ntk_jax.small_programs import LESS, jit_by_size
from ntk_jax.tiling import K, bucket, padded

NODES = 256  # of the quadrature of a variance, about


class Diagonal(NamedTuple):
    """What each example has with itself, layer by layer.

    Second moments of the inputs (n,); variances and tangent kernels entering each hidden layer,
    E[phi²] in it, and the given factors before it (depth, n); the kernels after the last layer
    (n,).
    """

    q0: Array
    variances: Array
    tangents: Array
    active: Array
    factors: Array | None
    nngp: Array
    ntk: Array

    @property
    def by_layer(self) -> Moments:
        """Variances and tangent kernels after every Dense layer, (depth + 1, n)."""
        parts = ((self.variances, self.nngp), (self.tangents, self.ntk))
        nngp, ntk = (jnp.concatenate([before, last[None]]) for before, last in parts)
        return nngp, ntk


Diagonals = tuple[Diagonal, ...]  # of x1 and x2; of x1 alone where x2 is None


def diagonals(network: Network, sizes: tuple[int, ...] | None = None) -> Diagonals:
    """Of both sets of examples; variances and tangent kernels of rows beyond `sizes`, which are
    padding, are 0.

    NumPy's where all is on one CPU, and by NumPy if it knows how: XLA would compile twenty small
    programs.
    """
    x1, x2, layers, arch, factors = network
    arch = arch._replace(rule=arch.rule.own)
    if not are_of_one_cpu(x1, x2, layers, factors):
        return _diagonals(arch, x1, x2, layers, factors, sizes)
    given = tuple(_second_moments(np.asarray(x)) for x in (x1, x2) if x is not None)
    by_numpy = not arch.rule.by_terms
    found = on_host(_of_second_moments, arch, given, layers, factors) if by_numpy else None
    if found is None:
        found = jax.tree.map(np.asarray, _by_xla(arch, given, layers, factors))
    return _of_real_rows(found, sizes)


@partial(jax.jit, static_argnums=(0, 5))
def _diagonals(
    arch: Architecture,
    x1: Array,
    x2: Array | None,
    layers: Layers,
    factors: Factors,
    sizes: tuple[int, ...] | None,
) -> Diagonals:
    given = tuple(_second_moments(x) for x in (x1, x2) if x is not None)
    return _of_real_rows(_of_second_moments(arch, given, layers, factors), sizes)


def _second_moments(x: Float[K, "n d"]) -> Float[K, " n"]:
    """Of the inputs; of arrays of NumPy one."""
    if isinstance(x, np.ndarray):
        return np.einsum("nd,nd->n", x, x) / x.shape[1]
    return jnp.sum(x * x, axis=1) / x.shape[1]


def _of_second_moments(
    arch: Architecture, given: tuple[Array, ...], layers: Layers, factors: Factors
) -> Diagonals:
    return tuple(_diagonal(q0, layers, arch, factors[i]) for i, q0 in enumerate(given))


_by_xla = jit_by_size(
    _of_second_moments, 0, LESS, lambda arch, given, *_: NODES * max(map(len, given))
)


def _of_real_rows(found: Diagonals, sizes: tuple[int, ...] | None) -> Diagonals:
    if sizes is None:
        return found
    return tuple(_without_padding(d, n) for d, n in zip(found, sizes, strict=True))


def _without_padding(d: Diagonal, n: int) -> Diagonal:
    if len(d.q0) == n:
        return d
    xp: ModuleType = np if isinstance(d.q0, np.ndarray) else jnp
    parts = d.variances, d.tangents, d.nngp, d.ntk
    variances, tangents, nngp, ntk = (xp.where(xp.arange(len(d.q0)) < n, a, 0) for a in parts)
    return d._replace(variances=variances, tangents=tangents, nngp=nngp, ntk=ntk)


def are_on_host(found: Diagonals) -> bool:
    """Whether they are NumPy's."""
    return isinstance(found[0].q0, np.ndarray)


def fitted(
    network: Network, caller: str, overflow: ValueError, stacklevel: int
) -> tuple[Network, Diagonals | None]:
    """The network with the cheapest dual that is exact at its variances, and its diagonals.

    A series has as many terms as the variances ask for, and rows are padded to whole tiles, so that
    nearly equal numbers of them share programs. Where anything is traced, nothing can be looked at:
    the network is as it was, and the diagonals are None. Warnings name the caller.

    Raises:
        ValueError: `overflow`, of a kernel that overflows.
    """
    x1, x2, layers, arch, factors = network
    if is_compiling() or not all(map(is_concrete, jax.tree.leaves((x1, x2, layers, factors)))):
        return network, None
    sizes = tuple(len(x) for x in (x1, x2) if x is not None)
    whole = lambda a: padded(a, bucket(len(a)))
    x1, x2, factors = jax.tree.map(whole, (x1, x2, factors))
    network = network._replace(x1=x1, x2=x2, factors=factors)
    found, depth = diagonals(network, sizes), len(layers.W) - 1
    if not all(map(_is_finite, found)):
        raise overflow
    if not depth or not arch.rule.adaptive:
        return network, found
    q = 1.0 if arch.layer_norm else max(map(_largest_variance, found))
    rule = fitted_rule(caller, arch.rule, q, x1.dtype, stacklevel=stacklevel)
    network = network._replace(arch=arch._replace(rule=rule))
    if rule.own == arch.rule.own:
        return network, found
    # another quadrature: the diagonal must be that of the kernel to the bit
    return network, diagonals(network, sizes)


def _is_finite(d: Diagonal) -> bool:
    """Whether no layer overflows."""
    parts = fetched([d.variances, d.tangents, d.nngp, d.ntk])
    return all(np.isfinite(a).all() for a in parts)


def _largest_variance(d: Diagonal) -> float:
    """That an activation sees, without LayerNorm."""
    factors = 1.0 if d.factors is None else np.asarray(d.factors)
    return float(np.max(np.asarray(d.variances) * factors**2))


def _diagonal(q0: Array, layers: Layers, arch: Architecture, factors: Array | None) -> Diagonal:
    """Everything about examples alone, given their second moments: costs n, not n²."""
    first, rest = split_layers(layers)
    factors = None if factors is None else factors.T

    def step(carry: Moments, inputs: Any) -> tuple[Moments, tuple[Array, ...]]:
        (layer, last), factor = inputs
        q, theta = carry
        v, scale = before_activation(arch, q, factor)
        k, k_dot = arch.rule.diagonal(v)
        before = tangent_before_activation(layer, theta, None if scale is None else scale**2)
        new = add_skip(arch, last, dense(layer, k, k_dot, before), carry)
        return new, (q, theta, k)

    start = first_dense(first, q0)
    (nngp, ntk), (variances, tangents, active) = scan_layers(arch, step, start, (rest, factors))
    return Diagonal(q0, variances, tangents, active, factors, nngp, ntk)
