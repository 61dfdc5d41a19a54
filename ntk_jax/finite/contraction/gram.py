"""Features x features -> kernel, block by block: Gram matrices of factors, or explicit gradients.

K = sum over blocks and positions of (A A'ᵀ) ∘ (Δ Δ'ᵀ)       from factors
K = sum over leaves of J J'ᵀ                                 from gradients
"""

import itertools
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import working_dtype
from ntk_jax.finite.features.features import (
    Block,
    FactoredBlock,
    Projection,
    TangentFeatures,
)
from ntk_jax.finite.inputs import output_axes
from ntk_jax.platforms import by_platform

Kernel = TypeVar("Kernel", Array, list[Array])

HALF = 256  # rows below which smaller products are slower than the entries that they save


def contract_features(
    f1: TangentFeatures, f2: TangentFeatures, outputs: str, precision: str
) -> Float[Array, "n1 n2 ..."]:
    """The kernel block of all pairs: the sum over the blocks of both features."""
    dtype = working_dtype(f1.dtype, f2.dtype)
    # Two functions of the same parameters may read none in common.
    if not f1.blocks:
        num_outputs = (f1.num_outputs, f2.num_outputs)[: output_axes(outputs)]
        return jnp.zeros((f1.num_rows, f2.num_rows, *num_outputs), dtype)
    pairs = zip(f1.blocks, f2.blocks, strict=True)
    parts = (_parts(b1, b2, outputs, precision, dtype) for b1, b2 in pairs)
    return reduce(operator.add, itertools.chain.from_iterable(parts))


def check_same_parameters(f1: TangentFeatures, f2: TangentFeatures, outputs: str) -> None:
    """Raise unless features are of the same parameters, projected alike, with outputs that pair."""
    if f1.parameters != f2.parameters:
        raise ValueError(
            "features2: expected features of the same network's parameters; got "
            f"{_difference(f1, f2)}. Compute both with params of the same structure; the functions "
            "of them may differ."
        )
    if _unlike(f1.projection, f2.projection):
        raise ValueError(
            "features2: expected features of the same network projected alike, "
            f"{_words(f1.projection)}; got {_words(f2.projection)}. Compute both with the same "
            "projection and key."
        )
    if f1.num_outputs != f2.num_outputs and outputs != "full":
        raise ValueError(
            f"features2: expected {f1.num_outputs} outputs, like features1; got {f2.num_outputs}. "
            "outputs='full' contracts every output with every other."
        )


def _difference(f1: TangentFeatures, f2: TangentFeatures) -> str:
    """Leaves that only one of the two has, or that differ in shape, in words."""
    first, second = dict(f1.parameters), dict(f2.parameters)
    sides = {"features1": first.keys() - second.keys(), "features2": second.keys() - first.keys()}
    listed = {side: ", ".join(map(repr, sorted(names))) for side, names in sides.items()}
    unequal = [name for name in first if name in second and first[name] != second[name]]
    return "; ".join(
        [f"{names} only in {side}" for side, names in listed.items() if names]
        + [f"{name!r} of shape {first[name]} and {second[name]}" for name in unequal]
    )


def _unlike(p1: Projection | None, p2: Projection | None) -> bool:
    if p1 is None or p2 is None:
        return p1 is not p2
    other_key = "" not in (p1.key, p2.key) and p1.key != p2.key
    return other_key or p1.num_dimensions != p2.num_dimensions


def _words(projection: Projection | None) -> str:
    if projection is None:
        return "exact"
    return f"{projection.num_dimensions} dimensions{projection.key}"


def contract_upper(f: TangentFeatures, outputs: str, precision: str) -> Float[Array, "n n ..."]:
    """The kernel of a batch with itself: its upper triangle; on a CPU half of what is below is left
    out.
    """
    whole = lambda f: contract_features(f, f, outputs, precision)
    if f.num_rows < 2 * HALF:
        return whole(f)
    return by_platform(partial(_upper, outputs=outputs, precision=precision), whole, f)


def _upper(f: TangentFeatures, outputs: str, precision: str) -> Float[Array, "n n ..."]:
    n, h = f.num_rows, f.num_rows // 2
    upper = contract_features(f.rows(0, h), f, outputs, precision)
    lower = contract_features(f.rows(h, n), f.rows(h, n), outputs, precision)
    nothing = jnp.zeros((n - h, h, *upper.shape[2:]), upper.dtype)
    return jnp.concatenate([upper, jnp.concatenate([nothing, lower], axis=1)])


def contract_by_leaf(
    f1: TangentFeatures, f2: TangentFeatures, outputs: str, precision: str
) -> dict[str, Array]:
    """The kernel of each parameter leaf alone; they add up to the kernel."""
    kernels: dict[str, Array] = {}
    for b1, b2 in zip(f1.blocks, f2.blocks, strict=True):
        parts = _parts(b1, b2, outputs, precision, working_dtype(f1.dtype, f2.dtype), split=True)
        kernels |= dict(zip(b1.leaves, parts, strict=True))
    return kernels


def _parts(
    b1: Block, b2: Block, outputs: str, precision: str, dtype: jnp.dtype, *, split: bool = False
) -> list[Array]:
    """The kernel of a block, or with `split` one per leaf."""
    # Shared cotangents carry the mean's weights on one side alone: they enter once.
    b1 = b1.weighted(dtype)
    if isinstance(b1, FactoredBlock) and isinstance(b2, FactoredBlock):
        return _factored(b1, b2, outputs, precision, dtype, split)
    g1, g2 = b1.gradients(precision), b2.gradients(precision)
    pairs = zip(g1.jacobians, g2.jacobians, strict=True)
    return [_explicit(j1.astype(dtype), j2.astype(dtype), outputs, precision) for j1, j2 in pairs]


def _explicit(
    j1: Float[Array, "n1 O1 p"], j2: Float[Array, "n2 O2 p"], outputs: str, precision: str
) -> Array:
    """sum_p J1 J2; outputs are folded into an axis of one flat product wherever the mode allows."""
    (n1, outs, _), (n2, outs2, _) = j1.shape, j2.shape
    if outputs == "mean":
        return jnp.matmul(j1.reshape(n1, -1), j2.reshape(n2, -1).T, precision=precision) / outs
    if outputs == "diagonal":
        per_output = lambda pair: jnp.matmul(pair[0], pair[1].T, precision=precision)
        return _each_output(per_output, j1, j2)
    full = jnp.matmul(j1.reshape(n1 * outs, -1), j2.reshape(n2 * outs2, -1).T, precision=precision)
    return full.reshape(n1, outs, n2, outs2).transpose(0, 2, 1, 3)


def _gram(
    u: Float[Array, "B r k"], v: Float[Array, "B s k"], precision: str
) -> Float[Array, "B r s"]:
    """Products of rows, per block; a single block is a flat product."""
    if u.shape[0] == 1:
        return jnp.matmul(u[0], v[0].T, precision=precision)[None]
    return jnp.einsum("brk,bsk->brs", u, v, precision=precision)


def _factored(
    b1: FactoredBlock,
    b2: FactoredBlock,
    outputs: str,
    precision: str,
    dtype: jnp.dtype,
    split: bool,
) -> list[Array]:
    """K = sum over blocks and positions of (A A'ᵀ) ∘ (Δ Δ'ᵀ): Gram matrices, Hadamard product."""
    rows = lambda a: a.astype(dtype).swapaxes(0, 1).reshape(a.shape[1], -1, a.shape[3])
    pairs = zip(b1.inputs, b2.inputs, strict=True)
    grams = [_gram(rows(a1), rows(a2), precision) for a1, a2 in pairs]
    # The cotangents are the same for all leaves, so their Gram matrix multiplies one sum.
    grams = grams if split else [reduce(operator.add, grams)]
    d1, d2 = b1.cotangents.astype(dtype), b2.cotangents.astype(dtype)
    combine = {"mean": _mean, "diagonal": _diagonal, "full": _full}[outputs]
    return combine(grams, d1, d2, precision)


def _positions_summed(product: Array, n1: int, n2: int) -> Float[Array, "n1 n2"]:
    """The sum over blocks and position pairs of (B, n1 T1, n2 T2)."""
    B, r, s = product.shape
    if (B, r, s) == (1, n1, n2):
        return product[0]
    return jnp.sum(product.reshape(B, n1, r // n1, n2, s // n2), axis=(0, 2, 4))


def _mean(grams: list[Array], d1: Array, d2: Array, precision: str) -> list[Array]:
    """Outputs folded into the contracted axis: one flat product per block."""
    fold = lambda d: d.transpose(2, 0, 3, 1, 4).reshape(d.shape[2], d.shape[0] * d.shape[3], -1)
    d_gram = _gram(fold(d1), fold(d2), precision) / d1.shape[1]
    return [_positions_summed(a_gram * d_gram, d1.shape[0], d2.shape[0]) for a_gram in grams]


def _diagonal(grams: list[Array], d1: Array, d2: Array, precision: str) -> list[Array]:
    def one(pair: tuple[Array, Array]) -> list[Array]:
        e1, e2 = (e[:, None] for e in pair)
        return _mean(grams, e1, e2, precision)

    return _each_output(one, d1, d2)


def _each_output(one: Callable[[tuple[Array, Array]], Kernel], a1: Array, a2: Array) -> Kernel:
    """`one` of what each output has, (n1, O, ...) and (n2, O, ...), with outputs last.

    On a CPU one output after the other: there a batched product is several times slower.
    """
    sides = a1.swapaxes(0, 1), a2.swapaxes(0, 1)
    kernels = by_platform(partial(jax.lax.map, one), jax.vmap(one), sides)
    return jax.tree.map(lambda k: jnp.moveaxis(k, 0, 2), kernels)


def _full(grams: list[Array], d1: Array, d2: Array, precision: str) -> list[Array]:
    """Outputs folded into the rows and columns."""
    (n1, outs, B, T1, D), (n2, outs2, _, T2, _) = d1.shape, d2.shape
    rows = lambda d: d.transpose(2, 0, 1, 3, 4).reshape(B, -1, D)
    d_gram = _gram(rows(d1), rows(d2), precision).reshape(B, n1, outs, T1, n2, outs2, T2)
    kernels = []
    for a_gram in grams:
        product = a_gram.reshape(B, n1, 1, T1, n2, 1, T2) * d_gram
        kernels.append(jnp.sum(product, axis=(0, 3, 6)).transpose(0, 2, 1, 3))
    return kernels


def nngp_of_outputs(
    f1: Float[Array, "n1 O"], f2: Float[Array, "n2 O"], outputs: str
) -> Float[Array, "n1 n2 ..."]:
    """Products of network outputs, as if each output were a feature of its own."""
    dtype = working_dtype(f1.dtype, f2.dtype)
    return _explicit(f1.astype(dtype)[..., None], f2.astype(dtype)[..., None], outputs, "highest")
