"""The strategy for one kernel (method, form of every layer, tiles) and its execution."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.closures.programs import compiled, remembered
from ntk_jax.compat import is_concrete
from ntk_jax.finite.contraction.gram import (
    contract_features,
    contract_upper,
    output_axes,
    paired,
)
from ntk_jax.finite.contraction.vector_products import vector_product_block
from ntk_jax.finite.features.features import Block, TangentFeatures, join_rows
from ntk_jax.finite.features.tangents import (
    factored_features,
    jacobian_features,
    kernel_dtype,
    plan_features,
    shapes_of,
)
from ntk_jax.finite.strategy import cost
from ntk_jax.finite.strategy.tiles import (
    Footprint,
    TileLoop,
    Tiling,
    choose_tiling,
    count_tiles,
)
from ntk_jax.finite.uses.plan import Plan
from ntk_jax.memory import check_result_fits, memory_budget
from ntk_jax.progress import progress_bar
from ntk_jax.tiling import mirror_upper, row_tiles
from ntk_jax.types import ApplyFn, Params

METHODS = ("auto", "layerwise", "jacobian", "vector_products")


class Strategy(NamedTuple):
    """Everything decided before anything is computed.

    Attributes:
        method: "layerwise", "jacobian" or "vector_products".
        forms: "factors" or "gradients" for every block.
        blocks: the blocks of one row, as shapes.
        plan: how features are found.
        problem: the sizes.
        operations: of every method.
        footprint: bytes per row and pair.
        tiling: blocks and tiles.
        rows_at_once: in the making of features.
        precision: of the matrix products.
        shape: of the result.
        dtype: of the result.
    """

    method: str
    forms: tuple[str, ...]
    blocks: tuple[Block, ...]
    plan: Plan
    problem: cost.Problem
    operations: dict[str, float]
    footprint: Footprint
    tiling: Tiling
    rows_at_once: int | None
    precision: str
    shape: tuple[int, ...]
    dtype: Any


def make_strategy(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None,
    outputs: str,
    method: str,
    memory_limit: int | None,
    precision: str,
) -> Strategy:
    """Plan, costs, method, forms and tiles, from shapes alone.

    Raises:
        ValueError: the result does not fit in the free memory.
    """
    plan = plan_features(apply_fn, params, x1)
    n1, n2 = x1.shape[0], x1.shape[0] if x2 is None else x2.shape[0]
    shape, dtype = (
        (n1, n2, *(plan.num_outputs,) * output_axes(outputs)),
        kernel_dtype(params, plan.out_dtype),
    )
    check_result_fits(jax.ShapeDtypeStruct(shape, dtype))
    problem = cost.Problem(n1, n2, x2 is None, outputs, memory_budget(memory_limit))
    # Inside jit a loop of Python's would be unrolled; an accelerator needs many rows at a time.
    in_parts = jax.default_backend() == "cpu" and all(
        is_concrete(a) for a in jax.tree.leaves((params, x1, x2))
    )
    x = (x1.shape[1:], x1.dtype)
    return _decide(
        apply_fn, *shapes_of(params), x, problem, method, precision, in_parts, shape, dtype
    )


@remembered
def _decide(
    apply_fn: ApplyFn,
    structure: Any,
    shapes: Any,
    x: Any,
    problem: cost.Problem,
    method: str,
    precision: str,
    in_parts: bool,
    shape: tuple[int, ...],
    dtype: Any,
) -> Strategy:
    params = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*s) for s in shapes])
    row = jax.ShapeDtypeStruct((1, *x[0]), x[1])
    plan = plan_features(apply_fn, params, row)
    for_mean = problem.outputs == "mean"
    factored, explicit = (
        row_blocks(apply_fn, params, row, m, precision, for_mean) for m in ("layerwise", "jacobian")
    )
    forms, gradients = cost.choose_forms(factored, problem), ("gradients",) * len(explicit)
    operations = _operations(plan, params, factored, forms, explicit, problem)
    if method == "auto":
        method = min(("layerwise", "vector_products"), key=operations.__getitem__)
    if method == "jacobian":
        factored, forms = explicit, gradients
    if method == "vector_products":
        footprint = cost.vector_product_footprint(plan, params, problem.outputs)
    else:
        footprint = cost.footprint(factored, forms, plan, problem.outputs)
    few = (
        cost.rows_at_once(forms, footprint, problem) if method == "layerwise" and in_parts else None
    )
    if few is not None:
        footprint = footprint._replace(work=2 * footprint.row)  # in parts, and joined
    tiling = choose_tiling(problem.n1, problem.n2, footprint, problem.memory_limit)
    return Strategy(
        method,
        forms,
        factored,
        plan,
        problem,
        operations,
        footprint,
        tiling,
        few,
        precision,
        shape,
        dtype,
    )


def row_blocks(
    apply_fn: ApplyFn, params: Params, row: Any, method: str, precision: str, for_mean: bool
) -> tuple[Block, ...]:
    """The blocks of one row, as shapes."""
    fn = partial(features_jit, apply_fn, method=method, precision=precision, for_mean=for_mean)
    return tuple(jax.eval_shape(fn, params, row).blocks)


def _operations(
    plan: Plan, params: Params, factored: Any, forms: Any, explicit: Any, problem: Any
) -> dict[str, float]:
    """Operations of every method."""
    forward = cost.forward_ops(plan, [tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)])
    gradients = ("gradients",) * len(explicit)
    return {
        "layerwise": cost.features_and_pairs(plan, forward, factored, forms, problem),
        "jacobian": cost.features_and_pairs(plan, 2 * forward, explicit, gradients, problem),
        "vector_products": cost.vector_product_ops(plan, forward, problem),
    }


def run_strategy(
    strategy: Strategy,
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None,
    *,
    progress: bool = False,
) -> Array:
    """The kernel."""
    s = strategy
    if s.method == "vector_products":
        prepare: Any = lambda x: x
        combine: Any = partial(
            _vector_products, apply_fn, params, outputs=s.problem.outputs, precision=s.precision
        )
        own: Any = lambda x: _mirror(combine(x, x))
    else:
        options = {
            "method": s.method,
            "precision": s.precision,
            "for_mean": s.problem.outputs == "mean",
        }
        prepare = partial(
            _few_at_once,
            partial(features_jit, apply_fn, params, forms=s.forms, **options),
            s.rows_at_once,
        )
        combine = partial(_contract, outputs=s.problem.outputs, precision=s.precision)
        own = lambda f: _mirror(combine(f, None))
    if x2 is None and s.shape[0] <= s.tiling.rows1:
        return own(prepare(x1))
    if x2 is not None and s.shape[0] <= s.tiling.rows1 and s.shape[1] <= s.tiling.rows2:
        return combine(prepare(x1), prepare(x2))
    num_tiles = count_tiles(s.shape[0], None if x2 is None else s.shape[1], s.tiling)
    with progress_bar(num_tiles, "kernel tiles", enabled=progress) as bar:
        out = jnp.zeros(s.shape, s.dtype)
        loop = TileLoop(prepare, combine, own, s.tiling, out, lambda: bar.update(1))
        return loop.symmetric(x1) if x2 is None else loop.rectangle(x1, x2)


@compiled
def features_jit(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    *,
    forms: tuple[str, ...] | None = None,
    method: str = "layerwise",
    precision: str = "highest",
    for_mean: bool = False,
) -> TangentFeatures:
    """Features of a batch, each block in the form asked for; `for_mean`: for the mean over outputs
    only.
    """
    with jax.default_matmul_precision(precision):
        if method == "jacobian":
            return jacobian_features(apply_fn, params, x)
        features = factored_features(
            apply_fn, params, x, plan_features(apply_fn, params, x), for_mean=for_mean
        )
    return features if forms is None else _in_forms(features, forms, precision)


def _few_at_once(
    prepare: Callable[[Array], TangentFeatures], few: int | None, x: Array
) -> TangentFeatures:
    """`prepare(x)`, `few` rows at a time: in a loop of Python's, as XLA's convolutions are slow in
    a loop of its own.
    """
    n = x.shape[0]
    if few is None or n <= few:
        return prepare(x)
    return _join(tuple(prepare(tile) for _, tile in row_tiles(x, few)), n)


@partial(jax.jit, static_argnums=1)
def _join(parts: tuple[TangentFeatures, ...], num_rows: int) -> TangentFeatures:
    return join_rows(parts).rows(0, num_rows)


def contract_batches(
    f1: TangentFeatures, f2: TangentFeatures | None, *, outputs: str, precision: str
) -> Array:
    """The kernel of two batches of features; per block, factors become gradients where that is
    cheaper.
    """
    # A random key is no part of a program.
    f1, f2 = replace(f1, projection=None), None if f2 is None else replace(f2, projection=None)
    k = _contract_in_best_forms(f1, f2, outputs=outputs, precision=precision)
    return _mirror(k) if f2 is None else k


@partial(jax.jit, static_argnames=("outputs", "precision"))
def _contract_in_best_forms(
    f1: TangentFeatures, f2: TangentFeatures | None, *, outputs: str, precision: str
) -> Array:
    if f2 is not None:
        f1, f2 = paired(f1, f2, precision)
    num_columns = f1.num_rows if f2 is None else f2.num_rows
    problem = cost.Problem(f1.num_rows, num_columns, f2 is None, outputs, memory_budget())
    forms = cost.choose_forms(f1.blocks, problem)
    other = None if f2 is None else _in_forms(f2, forms, precision)
    return _contract(_in_forms(f1, forms, precision), other, outputs=outputs, precision=precision)


def _in_forms(features: TangentFeatures, forms: tuple[str, ...], precision: str) -> TangentFeatures:
    blocks = tuple(
        block.gradients(precision) if form == "gradients" else block
        for block, form in zip(features.blocks, forms, strict=True)
    )
    return replace(features, blocks=blocks)


@partial(jax.jit, static_argnames=("outputs", "precision"))
def _contract(
    f1: TangentFeatures, f2: TangentFeatures | None, *, outputs: str, precision: str
) -> Array:
    """The kernel of two batches; of one with itself (None) the upper triangle."""
    return (
        contract_upper(f1, outputs, precision)
        if f2 is None
        else contract_features(f1, f2, outputs, precision)
    )


@compiled
def _vector_products(
    apply_fn: ApplyFn, params: Params, x1: Array, x2: Array, *, outputs: str, precision: str
) -> Array:
    with jax.default_matmul_precision(precision):
        return vector_product_block(apply_fn, params, x1, x2, outputs)


# Compiled alone: fused with what makes the kernel, an entry and its mirror image may be rounded
# differently.
_mirror = jax.jit(mirror_upper)
