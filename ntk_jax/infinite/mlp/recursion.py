"""The layer recursion on two sets of examples: in fused tiles, with the derivatives of the plain
path.
"""

from collections.abc import Sized
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.compat import given_to_device
from ntk_jax.infinite.mlp.diagonal import Diagonal, Diagonals, are_on_host, diagonals
from ntk_jax.infinite.mlp.layers import Architecture, Factors, Layers, Moments, Network
from ntk_jax.infinite.mlp.pairs import all_layers, differentiable_start, has_cusp, inputs
from ntk_jax.infinite.mlp.tiles import (
    Rows,
    asked,
    block_on_host,
    block_rows,
    both_on_host,
    in_blocks,
    in_tiles,
    tiled,
)
from ntk_jax.linalg import matmul
from ntk_jax.platforms import by_platform, is_on_cpu
from ntk_jax.small_programs import LESS, jit_by_size
from ntk_jax.tiling import mirror_upper
from ntk_jax.types import Which

TERMS = 4  # times the time of a closed form, about, of series, mixtures and integrals


def kernels(network: Network, known: Diagonals | None, which: Which) -> tuple[Array, ...]:
    """NNGP, NTK, or both, (n1, n2), given the diagonals where they are known, with their padding.

    What some duals do for nearly parallel pairs takes long to compile, and is compiled when there
    are such: only where values are known can one look.
    """
    if known is None:
        return _compiled(*network, which)
    x1, x2, layers, arch, _ = network
    if not (are_on_host(known) or is_on_cpu(known)):
        return _compiled_blocks(x1, x2, layers, arch, known, which, block_rows(arch, x1.dtype))
    far = arch._replace(rule=arch.rule.far)
    if not has_cusp(layers, arch) or far == arch:
        return _in_tiles(network, known, which)[0]
    out, near = _in_tiles(network._replace(arch=far), known, which, watched=True)
    return _in_tiles(network, known, which)[0] if bool(near) else out


def _in_tiles(
    network: Network, known: Diagonals, which: Which, watched: bool = False
) -> tuple[tuple[Array, ...], Array | bool]:
    """`in_tiles`, with what belongs to one side computed by NumPy where it can."""
    x1, x2, layers, arch, _ = network
    here = are_on_host(known)
    if here and not watched and (out := block_on_host(network, known, which)) is not None:
        return tuple(given_to_device(list(out))), False
    sides = both_on_host(network, known) if here else None
    if sides is None:
        return _compiled_tiles(x1, x2, layers, arch, known, which, watched)
    return _compiled_tiles_of_rows(*sides, layers, arch, which, watched)


def kernels_by_layer(network: Network, known: Diagonals | None) -> Moments:
    """Both after every Dense layer, (depth + 1, n1, n2)."""
    return _compiled_by_layer(*network, known)


@partial(jax.custom_jvp, nondiff_argnums=(3, 5))
def _kernels(
    x1: Array,
    x2: Array | None,
    layers: Layers,
    arch: Architecture,
    factors: Factors,
    which: Which,
) -> tuple[Array, ...]:
    """In tiles or blocks, as the platform wants, with the derivatives of the reference path."""
    known = diagonals(Network(x1, x2, layers, arch, factors))
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    cropped = lambda out: jax.tree.map(lambda k: k[:n1, :n2], out)
    rows = block_rows(arch, x1.dtype)
    return by_platform(
        lambda x1, x2: cropped(in_tiles(x1, x2, layers, arch, known, which)[0]),
        lambda x1, x2: cropped(in_blocks(x1, x2, layers, arch, known, which, rows)),
        x1,
        x2,
    )


@_kernels.defjvp
def _kernels_jvp(
    arch: Architecture, which: Which, primals: Any, tangents: Any
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    reference = lambda x1, x2, layers, factors: asked(
        _reference(x1, x2, layers, arch, factors), which
    )
    return jax.jvp(reference, primals, tangents)


def _reference(
    x1: Array,
    x2: Array | None,
    layers: Layers,
    arch: Architecture,
    factors: Factors,
    known: Diagonals | None = None,
    every: bool = False,
) -> Moments:
    """The same without tiles; with `every` layer on a leading axis."""
    known = diagonals(Network(x1, x2, layers, arch, factors)) if known is None else known
    one, other = known[0], known[-1]
    x2_, same = (x1, True) if x2 is None else (x2, False)
    products = matmul(x1, x2_.T) / x1.shape[1]
    if same:
        products = _with_diagonal(products, one.q0)
    # an example and itself are not a pair
    distinct = ~jnp.eye(len(x1), dtype=bool) if same else True
    left, right = (inputs(layers, arch, x, d) for x, d in ((x1, one), (x2_, other)))
    state = differentiable_start(layers, left, products, right, distinct, (one, other))
    out = all_layers(state, known, layers, arch, every)
    if not same:
        return out
    if not every:
        return _exact_diagonal(jax.tree.map(mirror_upper, out), one)
    both = zip(out, one.by_layer, strict=True)
    nngp, ntk = (jax.vmap(_with_diagonal)(jax.vmap(mirror_upper)(k), d) for k, d in both)
    return nngp, ntk


def _exact_diagonal(out: Moments, known: Diagonal) -> Moments:
    return _with_diagonal(out[0], known.nngp), _with_diagonal(out[1], known.ntk)


def _with_diagonal(k: Array, diagonal: Array) -> Array:
    return jnp.where(jnp.eye(len(k), dtype=bool), diagonal[:, None], k)


def _work(rows: int, columns: int, arch: Architecture) -> int:
    """Entries of a kernel; those with many terms count more."""
    closed = arch.rule.exact and not arch.rule.adaptive
    return rows * columns * (1 if closed else TERMS)


def _work_of_examples(
    x1: Sized, x2: Sized | None, layers: Layers, arch: Architecture, *_: object
) -> int:
    return _work(len(x1), len(x1 if x2 is None else x2), arch)


def _work_of_rows(
    one: Rows, other: Rows | None, layers: Layers, arch: Architecture, *_: object
) -> int:
    return _work(len(one.own[0]), len((other or one).own[0]), arch)


_compiled = jax.jit(_kernels, static_argnums=(3, 5))
_compiled_tiles = jit_by_size(in_tiles, (3, 5, 6), LESS, _work_of_examples)
_compiled_tiles_of_rows = jit_by_size(tiled, (3, 4, 5), LESS, _work_of_rows)
_compiled_blocks = jax.jit(in_blocks, static_argnums=(3, 5, 6))
_compiled_by_layer = jit_by_size(partial(_reference, every=True), 3, LESS, _work_of_examples)
