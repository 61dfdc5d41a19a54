"""What examples have with themselves: the diagonal of the kernel, which costs n and not n².

It is computed once per call, ahead of the pairs: it says whether the kernel overflows, at which
variances the dual must be exact, and it is the diagonal of the result to the bit.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.compat import is_compiling, is_concrete
from ntk_jax.duals.hermite_series.fit import fitted_rule
from ntk_jax.duals.numerics import ratio
from ntk_jax.infinite.mlp.layers import (
    Architecture,
    Layers,
    Moments,
    Network,
    add_skip,
    dense,
    first_dense,
    normalized,
    scan_layers,
    split_layers,
)
from ntk_jax.tiling import bucket, padded


class Diagonal(NamedTuple):
    """What each example has with itself, layer by layer.

    Second moments of the inputs (n,); variances and tangent kernels entering each hidden layer, and
    E[phi²] in it (depth, n); the kernels after the last layer (n,); the largest number met.
    """

    q0: Array
    variances: Array
    tangents: Array
    active: Array
    nngp: Array
    ntk: Array
    largest: Array

    @property
    def by_layer(self) -> Moments:
        """Variances and tangent kernels after every Dense layer, (depth + 1, n)."""
        parts = ((self.variances, self.nngp), (self.tangents, self.ntk))
        nngp, ntk = (jnp.concatenate([before, last[None]]) for before, last in parts)
        return nngp, ntk


Sizes = tuple[Array, ...] | None
Diagonals = tuple[Diagonal, ...]  # of x1 and x2; of x1 alone where x2 is None


def diagonals(network: Network, sizes: tuple[int, ...] | None = None) -> Diagonals:
    """Of both sets of examples; all is 0 of the rows beyond `sizes`, which are padding."""
    x1, x2, layers, arch = network
    return _diagonals(x1, x2, layers, sizes, arch._replace(rule=arch.rule.own))


@partial(jax.jit, static_argnames=("arch",))
def _diagonals(
    x1: Array, x2: Array | None, layers: Layers, sizes: Sizes, arch: Architecture
) -> Diagonals:
    both = [x for x in (x1, x2) if x is not None]
    return tuple(
        _diagonal(x, layers, arch, None if sizes is None else sizes[i]) for i, x in enumerate(both)
    )


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
    x1, x2, layers, arch = network
    if is_compiling() or not all(map(is_concrete, jax.tree.leaves((x1, x2, layers)))):
        return network, None
    sizes = tuple(len(x) for x in (x1, x2) if x is not None)
    x1, *others = (padded(x, bucket(len(x))) for x in (x1, x2) if x is not None)
    network = network._replace(x1=x1, x2=others[0] if others else None)
    found, depth = diagonals(network, sizes), len(layers.W) - 1
    if not all(np.isfinite(d.largest) for d in found):
        raise overflow
    if not depth:
        return network, found
    q = 1.0 if arch.layer_norm else max(float(np.max(np.asarray(d.variances))) for d in found)
    rule = fitted_rule(caller, arch.rule, q, x1.dtype, stacklevel=stacklevel)
    network = network._replace(arch=arch._replace(rule=rule))
    if rule.own == arch.rule.own:
        return network, found
    # another quadrature: the diagonal must be that of the kernel to the bit
    return network, diagonals(network, sizes)


def _diagonal(x: Array, layers: Layers, arch: Architecture, size: Array | None) -> Diagonal:
    """Everything about examples alone: costs n, not n²."""
    real = lambda a: a if size is None else jnp.where(jnp.arange(len(x)) < size, a, 0)
    q0 = jnp.sum(x * x, axis=1) / x.shape[1]
    first, rest = split_layers(layers)

    def step(carry: Any, layer_and_last: Any) -> tuple[Any, tuple[Array, ...]]:
        layer, last = layer_and_last
        (q, theta), largest = carry
        qn, thetan = q, theta
        if arch.layer_norm:
            qn, thetan = normalized(q)[0], ratio(theta, q)
        k, k_dot = arch.rule.diagonal(qn)
        nngp, ntk = add_skip(arch, last, dense(layer, k, k_dot, thetan), (q, theta))
        new = real(nngp), real(ntk)
        return (new, jnp.maximum(largest, _largest(new))), (q, theta, k)

    nngp, ntk = first_dense(first, q0)
    start = real(nngp), real(ntk)
    ((nngp, ntk), largest), (variances, tangents, active) = scan_layers(
        arch, step, (start, _largest(start)), rest
    )
    return Diagonal(q0, variances, tangents, active, nngp, ntk, largest)


def _largest(kernels: Moments) -> Array:
    """The largest entry: infinite or NaN if any is, as maxima propagate both."""
    return jnp.maximum(*(jnp.max(jnp.abs(k)) for k in kernels))
