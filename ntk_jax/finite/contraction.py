"""Features x features -> kernel block, and the assembly of a kernel from blocks under a byte budget."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import working_dtype
from ntk_jax.linalg import matmul

OUTPUTS = ("mean", "diagonal", "full")


def contract_leaf(j1: Float[Array, "n1 O p"], j2: Float[Array, "n2 O p"], outputs: str) -> Float[Array, "n1 n2 ..."]:
    """The part of the kernel that one parameter leaf contributes, sum_p J1 J2; see `OUTPUTS`."""
    dtype = working_dtype(j1.dtype, j2.dtype)
    j1, j2 = j1.astype(dtype), j2.astype(dtype)
    (n1, num_outputs, _), n2 = j1.shape, j2.shape[0]
    if outputs == "mean":  # outputs folded into the contracted axis: one flat product
        return matmul(j1.reshape(n1, -1), j2.reshape(n2, -1).T) / num_outputs
    if outputs == "diagonal":
        per_output = matmul(j1.transpose(1, 0, 2), j2.transpose(1, 2, 0))
        return per_output.transpose(1, 2, 0)
    full = matmul(j1.reshape(n1 * num_outputs, -1), j2.reshape(n2 * num_outputs, -1).T)
    return full.reshape(n1, num_outputs, n2, num_outputs).transpose(0, 2, 1, 3)


def contract_jacobians(f1: tuple[Array, ...], f2: tuple[Array, ...], outputs: str) -> Float[Array, "n1 n2 ..."]:
    """The sum of `contract_leaf` over all leaves."""
    parts = [contract_leaf(j1, j2, outputs) for j1, j2 in zip(f1, f2, strict=True)]
    dtype = working_dtype(*(part.dtype for part in parts))
    return functools.reduce(jnp.add, [part.astype(dtype) for part in parts])


def swap_sides(k: Float[Array, "n1 n2 ..."]) -> Float[Array, "n2 n1 ..."]:
    """K(x2, x1) from K(x1, x2): rows and columns swap, and output pairs with them."""
    return k.transpose(1, 0, 3, 2) if k.ndim == 4 else jnp.swapaxes(k, 0, 1)


def mirror_upper(k: Float[Array, "n n ..."]) -> Float[Array, "n n ..."]:
    """The kernel with its lower triangle copied from the upper one: symmetric to the bit."""
    if k.ndim == 4:  # as the matrix of all (example, output) pairs
        n, num_outputs = k.shape[0], k.shape[2]
        matrix = mirror_upper(k.transpose(0, 2, 1, 3).reshape(n * num_outputs, -1))
        return matrix.reshape(n, num_outputs, n, num_outputs).transpose(0, 2, 1, 3)
    n = k.shape[0]
    upper = (jnp.arange(n)[:, None] <= jnp.arange(n)[None, :]).reshape(n, n, *(1,) * (k.ndim - 2))
    return jnp.where(upper, k, swap_sides(k))


def row_blocks(num_rows: int, block: int) -> list[slice]:
    """Slices that cut `num_rows` into nearly equal blocks of at most `block` rows: at most two shapes to compile."""
    num_blocks = -(-num_rows // max(block, 1))
    cuts = [num_rows * i // num_blocks for i in range(num_blocks + 1)]
    return [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]


def assemble(
    prepare: Callable[[Array], Any],
    combine: Callable[[Any, Any], Array],
    x1: Array,
    x2: Array | None,
    block: int,
) -> Float[Array, "n1 n2 ..."]:
    """The kernel from blocks `combine(prepare(x1 rows), prepare(x2 rows))`, holding two prepared blocks at a time.

    With `x2=None` only blocks on and above the diagonal are computed. Preparing a block again for every row of blocks
    costs b examples' work, combining it b² pairs' work: for blocks of some tens of rows the repetition is small.
    """
    if x2 is not None:
        return _assemble_rectangle(prepare, combine, x1, x2, block)
    cuts = row_blocks(x1.shape[0], block)
    tiles: dict[tuple[int, int], Array] = {}
    for i, rows in enumerate(cuts):
        left = prepare(x1[rows])
        tiles[i, i] = mirror_upper(combine(left, left))
        for j in range(i + 1, len(cuts)):
            tiles[i, j] = combine(left, prepare(x1[cuts[j]]))
            tiles[j, i] = swap_sides(tiles[i, j])
    lines = [jnp.concatenate([tiles[i, j] for j in range(len(cuts))], axis=1) for i in range(len(cuts))]
    return jnp.concatenate(lines)


def _assemble_rectangle(prepare, combine, x1: Array, x2: Array, block: int) -> Array:
    columns = row_blocks(x2.shape[0], block)
    only = prepare(x2) if len(columns) == 1 else None
    lines = []
    for rows in row_blocks(x1.shape[0], block):
        left = prepare(x1[rows])
        tiles = [combine(left, prepare(x2[c]) if only is None else only) for c in columns]
        lines.append(jnp.concatenate(tiles, axis=1))
    return jnp.concatenate(lines)
