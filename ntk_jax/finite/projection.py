"""Random projections of tangent features by signs that belong to the parameters.

    z = J S / sqrt(dimensions),  S random signs

Entry p of a leaf has the same signs whichever function reads the leaf, in whatever way, and however
the work is divided: they are drawn from the user's key, the path and the shape of the leaf, and p.
"""

import hashlib
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from ntk_jax.compat import is_concrete
from ntk_jax.examples import Examples, num_rows, shapes_of_rows
from ntk_jax.finite.features.features import (
    Block,
    FactoredBlock,
    GradientBlock,
    Projection,
    TangentFeatures,
)
from ntk_jax.finite.features.tangents import blocks_of_row, features_jit, plan_features
from ntk_jax.finite.strategy import cost
from ntk_jax.finite.strategy.tiles import MAX_ROWS
from ntk_jax.finite.uses.entries import Order, entries
from ntk_jax.finite.uses.plan import Plan
from ntk_jax.memory import check_result_fits, how_many, memory_budget
from ntk_jax.platforms import by_platform, is_on_cpu
from ntk_jax.tiling import even, row_tiles, write_tile
from ntk_jax.types import ApplyFn, Params

CHUNK = 2048
"""Entries of a gradient that a CPU forms, and draws the signs of, at a time."""

WORD = 32
"""Signs that one random word holds."""


def projected_features(
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    k: int,
    key: Array,
    precision: str,
    memory_limit: int | None,
) -> TangentFeatures:
    """Features of `k` numbers per example and output: their products estimate the kernel unbiased.

    Dimension j is sum_p s_pj df/dtheta_p / sqrt(k) with independent random signs s, so that
    E[z · z'] = df/dtheta · df'/dtheta.
    """
    plan, n = plan_features(apply_fn, params, x), num_rows(x)
    result = jax.ShapeDtypeStruct((n, plan.num_outputs, k), plan.dtype)
    way_out = "Use fewer dimensions, or rows of x at a time."
    check_result_fits(result, "projected features", way_out)
    blocks = blocks_of_row(apply_fn, params, shapes_of_rows(x, 1), "highest", False)
    rows = even(n, _rows_at_once(blocks, plan, k, memory_budget(memory_limit)))
    # The key enters once, as two words: the signs are a hash of them, see `_signs`.
    root, out = jax.random.bits(key, (2,), jnp.uint32), jnp.zeros(result.shape, result.dtype)
    for taken, tile in row_tiles(x, rows):
        features = features_jit(apply_fn, params, tile, precision=precision)
        part = _project(features, k, root, precision)
        out = (
            part if rows == n else write_tile(out, part[: taken.stop - taken.start], taken.start, 0)
        )
        if is_on_cpu(out):
            # Work that is only queued would hold more features than the budget allows; an
            # accelerator's memory is given out in the order of its work.
            out.block_until_ready()
    blocks, projection = (GradientBlock((out,), ("projection",)),), Projection(k, _in_words(key))
    return TangentFeatures(blocks, n, plan.num_outputs, plan.dtype, plan.parameters, projection)


def _rows_at_once(blocks: tuple[Block, ...], plan: Plan, k: int, budget: int) -> int:
    """Rows whose features, chunk of gradients and projections fit beside a chunk of signs."""
    features = cost.footprint(blocks, ("factors",) * len(blocks), plan, "full").work
    size = plan.dtype.itemsize
    per_row = features + plan.num_outputs * (2 * CHUNK + 2 * k) * size
    signs = CHUNK * k * (size + 4)
    return how_many(MAX_ROWS, per_row, budget - signs)


def _project(
    features: TangentFeatures, k: int, root: Array, precision: str
) -> Float[Array, "n O k"]:
    """One leaf after the other: leaves of the same shape share a program."""
    total = jnp.zeros((features.num_rows, features.num_outputs, k), features.dtype)
    shapes = dict(features.parameters)
    for block in features.blocks:
        for j, leaf in enumerate(block.leaves):
            *factors, order = _as_factors(block, j)
            words = _name_in_words(leaf, shapes[leaf])
            total = _add_leaf(total, *factors, root, words, order, precision)
    return total / k**0.5


def _as_factors(block: Block, j: int) -> tuple[Array | None, Array, Order | None]:
    """Inputs (n, B, T, I) and cotangents (n, O, B, T, D) of a leaf; or None and its gradients."""
    if isinstance(block, FactoredBlock):
        return block.inputs[j], block.cotangents, block.orders[j]
    return None, block.jacobians[j], None


@partial(jax.jit, static_argnames=("order", "precision"), donate_argnums=0)
def _add_leaf(
    total: Float[Array, "n O k"],
    a: Float[Array, "n B T I"] | None,
    d: Float[Array, "n O B T D"] | Float[Array, "n O p"],
    root: Array,
    words: Array | np.ndarray,
    order: Order | None,
    precision: str,
) -> Float[Array, "n O k"]:
    """`total` + G S, with a chunk of the gradients G and of the signs S at a time."""
    if a is None:
        a, d = jnp.ones((len(d), 1, 1, 1), d.dtype), d[:, :, None, None]
    each = (total.shape[2] + total.shape[0] * d.shape[1]) * 2 * total.dtype.itemsize
    many = max(CHUNK, memory_budget(on_cpu=False) // 8 // each)
    run = lambda chunk: partial(_added, order=order, precision=precision, chunk=chunk)
    return by_platform(run(CHUNK), run(many), total, a, d, root, words)


def _added(
    total: Float[Array, "n O k"],
    a: Float[Array, "n B T I"],
    d: Float[Array, "n O B T D"],
    root: Array,
    words: Array | np.ndarray,
    *,
    order: Order | None,
    precision: str,
    chunk: int,
) -> Float[Array, "n O k"]:
    (n, B, T, I), (_, O, _, _, D), k = a.shape, d.shape, total.shape[2]
    index = jnp.arange(B * I * D) if order is None else entries(order)
    # A chunk spans whole rows of cotangents before it spans inputs: these are cheaper to cut.
    columns = even(D, chunk)
    rows = even(I, max(1, chunk // columns))
    fill_rows, fill_columns = -I % rows, -D % columns
    # A gradient of 0 at the entries that fill up the last chunk.
    a = jnp.pad(a.astype(total.dtype), ((0, 0), (0, 0), (0, 0), (0, fill_rows)))
    d = jnp.pad(d.astype(total.dtype), ((0, 0), (0, 0), (0, 0), (0, 0), (0, fill_columns)))
    index = jnp.pad(index.reshape(B, I, D), ((0, 0), (0, fill_rows), (0, fill_columns)))

    def add(total: Array, at: Array) -> tuple[Array, None]:
        b, i, c = at
        inputs = lax.dynamic_slice(a, (0, b, 0, i), (n, 1, T, rows))[:, 0]
        cotangents = lax.dynamic_slice(d, (0, 0, b, 0, c), (n, O, 1, T, columns))[:, :, 0]
        gradients = jnp.einsum("nti,notd->noid", inputs, cotangents, precision=precision)
        here = lax.dynamic_slice(index, (b, i, c), (1, rows, columns)).reshape(-1)
        signs = _signs(_mixed(root ^ words), here, k, total.dtype)
        return total + jnp.matmul(gradients.reshape(n, O, -1), signs, precision=precision), None

    starts = itertools.product(range(B), range(0, I, rows), range(0, D, columns))
    return lax.scan(add, total, jnp.asarray(np.array(list(starts))))[0]


def _signs(seed: Array, index: Int[Array, " p"], k: int, dtype: DTypeLike) -> Float[Array, "p k"]:
    """Row i: the random signs of entry index[i].

    They are a hash of the seed and the entry, as JAX's generators take seconds to compile, leaf by
    leaf.
    """
    rows = _mixed(index.astype(jnp.uint32) ^ seed[0])
    places = _mixed(jnp.arange(-(-k // WORD), dtype=jnp.uint32) ^ seed[1])
    words = _mixed(_mixed(rows[:, None] ^ places[None]) + seed[0])
    bits = (words[:, :, None] >> jnp.arange(WORD, dtype=jnp.uint32)[None, None]) & 1
    return (1 - 2 * bits.astype(dtype)).reshape(index.size, -1)[:, :k]


def _mixed(h: Array) -> Array:
    """MurmurHash3's last step: a permutation in which any bit flips each with probability 1/2."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * np.uint32(factor)
    return h ^ (h >> 16)


def _name_in_words(leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    """Two numbers that no other path and shape has, the same in every process."""
    digest = hashlib.sha256(f"{leaf} {shape}".encode()).digest()
    return np.frombuffer(digest, "<u4")[:2].astype(np.uint32)


def _in_words(key: Array) -> str:
    """The key in words: features projected with different keys must not be contracted."""
    if not is_concrete(key):
        return ""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return f", key {data.tolist()}"
