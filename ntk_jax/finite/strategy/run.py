"""Kernels by a strategy: features of rows, contracted tile by tile."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.closures.programs import compiled
from ntk_jax.examples import Examples, num_rows
from ntk_jax.finite.contraction.gram import contract_features, contract_upper
from ntk_jax.finite.contraction.pairing import arranged
from ntk_jax.finite.contraction.vector_products import vector_product_kernel
from ntk_jax.finite.features.features import TangentFeatures, join_rows
from ntk_jax.finite.features.tangents import features_jit, features_of
from ntk_jax.finite.strategy import cost
from ntk_jax.finite.strategy.choose import Options, Strategy, choose_strategy
from ntk_jax.finite.strategy.finite_values import check_kernel
from ntk_jax.finite.strategy.tiles import TileLoop, count_tiles
from ntk_jax.memory import memory_budget
from ntk_jax.networks.apply_fn import forward_mode
from ntk_jax.platforms import by_platform
from ntk_jax.progress import progress_bar
from ntk_jax.tiling import mirrored, row_tiles
from ntk_jax.types import ApplyFn, Params


def ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None,
    options: Options,
    *,
    progress: bool = False,
) -> Array:
    """The tangent kernel by the strategy that options and shapes ask for, if it is finite."""

    def run(on_cpu: bool, params: Params, x1: Examples, x2: Examples | None) -> Array:
        strategy = choose_strategy(apply_fn, params, x1, x2, options, on_cpu)
        return _run(strategy, apply_fn, params, x1, x2, progress=progress)

    with forward_mode("method"):
        kernel = by_platform(partial(run, True), partial(run, False), params, x1, x2)
    return check_kernel(kernel, apply_fn, params, x1, x2)


def _run(
    s: Strategy,
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None,
    *,
    progress: bool,
) -> Array:
    """The kernel: one tile at once, or a loop over many."""
    n1, n2 = s.result.shape[:2]
    one_tile = n1 <= s.tiling.rows1 and (x2 is None or n2 <= s.tiling.rows2)
    if one_tile and (s.rows_at_once is None or s.rows_at_once >= max(n1, n2)):
        how = {"method": s.method, "forms": s.forms, "outputs": s.request.outputs}
        kernel = _one_tile(apply_fn, params, x1, x2, precision=s.precision, **how)
        return mirrored(kernel) if x2 is None else kernel
    prepare, combine, combine_own = _steps(s, apply_fn, params)
    if one_tile:
        f1 = prepare(x1)
        return combine_own(f1) if x2 is None else combine(f1, prepare(x2))
    num_tiles = count_tiles(n1, None if x2 is None else n2, s.tiling)
    with progress_bar(num_tiles, "kernel tiles", enabled=progress) as bar:
        out = jnp.zeros(s.result.shape, s.result.dtype)
        loop = TileLoop(prepare, combine, combine_own, s.tiling, out, lambda: bar.update(1))
        return loop.symmetric(x1) if x2 is None else loop.rectangle(x1, x2)


@compiled
def _one_tile(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None,
    *,
    method: str,
    forms: tuple[str, ...],
    outputs: str,
    precision: str,
) -> Array:
    """The kernel of all rows in one program; of x1 with itself the upper triangle."""
    if method == "vector_products":
        with jax.default_matmul_precision(precision):
            return vector_product_kernel(apply_fn, params, x1, x1 if x2 is None else x2, outputs)
    options: dict[str, Any] = {"method": method, "precision": precision, "forms": forms}
    make = lambda x: features_of(apply_fn, params, x, for_mean=outputs == "mean", **options)
    f1, f2 = make(x1), None if x2 is None else make(x2)
    return contract_jit(f1, f2, outputs=outputs, precision=precision)


def _steps(
    s: Strategy, apply_fn: ApplyFn, params: Params
) -> tuple[Callable[[Examples], Any], Callable[[Any, Any], Array], Callable[[Any], Array]]:
    """The three steps of a tile, as in `TileLoop`."""
    how = {"outputs": s.request.outputs, "precision": s.precision}
    if s.method == "vector_products":
        products = partial(_vector_products, apply_fn, params, **how)
        return lambda x: x, products, lambda x: mirrored(products(x, x))
    options = {"method": s.method, "precision": s.precision, "for_mean": how["outputs"] == "mean"}
    features = partial(features_jit, apply_fn, params, forms=s.forms, **options)
    combine = partial(contract_jit, **how)
    prepare = partial(_few_at_once, features, s.rows_at_once)
    return prepare, combine, lambda f: mirrored(combine(f, None))


def _few_at_once(
    prepare: Callable[[Examples], TangentFeatures], few: int | None, x: Examples
) -> TangentFeatures:
    """`prepare(x)`, `few` rows at a time.

    The loop is Python's, as XLA's convolutions are slow in a loop of its own.
    """
    n = num_rows(x)
    if few is None or n <= few:
        return prepare(x)
    return _join(tuple(prepare(tile) for _, tile in row_tiles(x, few)), n)


@partial(jax.jit, static_argnums=1)
def _join(parts: tuple[TangentFeatures, ...], num_rows: int) -> TangentFeatures:
    return join_rows(parts).rows(0, num_rows)


def contract_batches(
    f1: TangentFeatures, f2: TangentFeatures | None, *, outputs: str, precision: str
) -> Array:
    """The kernel of two batches of features, factors as gradients where that is cheaper."""
    # A random key is no part of a program.
    f1, f2 = replace(f1, projection=None), None if f2 is None else replace(f2, projection=None)
    k = _contract_in_best_forms(f1, f2, outputs=outputs, precision=precision)
    return mirrored(k) if f2 is None else k


@partial(jax.jit, static_argnames=("outputs", "precision"))
def _contract_in_best_forms(
    f1: TangentFeatures, f2: TangentFeatures | None, *, outputs: str, precision: str
) -> Array:
    num_columns = (f1 if f2 is None else f2).num_rows
    request = cost.Request(f1.num_rows, num_columns, f2 is None, outputs, memory_budget())
    if f2 is None:
        f1 = f1.in_forms(cost.choose_forms(f1.blocks, request), precision)
    else:
        matches = cost.choose_matches(f1.blocks, f2.blocks, request)
        f1, f2 = (arranged(f, matches, precision) for f in (f1, f2))
    return contract_jit(f1, f2, outputs=outputs, precision=precision)


@partial(jax.jit, static_argnames=("outputs", "precision"))
def contract_jit(
    f1: TangentFeatures, f2: TangentFeatures | None, *, outputs: str, precision: str
) -> Array:
    """The kernel of two batches; of one with itself (None) the upper triangle."""
    if f2 is None:
        return contract_upper(f1, outputs, precision)
    return contract_features(f1, f2, outputs, precision)


@compiled
def _vector_products(
    apply_fn: ApplyFn, params: Params, x1: Examples, x2: Examples, *, outputs: str, precision: str
) -> Array:
    with jax.default_matmul_precision(precision):
        return vector_product_kernel(apply_fn, params, x1, x2, outputs)
