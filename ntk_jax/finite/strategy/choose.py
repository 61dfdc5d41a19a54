"""The strategy for one kernel: method, form of every block, tiles; decided from shapes alone."""

import math
from typing import NamedTuple

import jax

from ntk_jax.closures.programs import remembered
from ntk_jax.examples import Examples, num_rows, shapes_of_rows
from ntk_jax.finite.features.features import Block, GradientBlock
from ntk_jax.finite.features.tangents import blocks_of_row, plan_features
from ntk_jax.finite.inputs import output_axes
from ntk_jax.finite.strategy import cost
from ntk_jax.finite.strategy.tiles import Footprint, Tiling, choose_tiling
from ntk_jax.finite.uses.plan import Plan
from ntk_jax.memory import LEAST_BUDGET, check_result_fits, memory_budget, tree_bytes
from ntk_jax.networks.apply_fn import ShapeAndDtype, as_structs, shapes_of
from ntk_jax.platforms import is_on_cpu
from ntk_jax.types import ApplyFn, Params

METHODS = ("auto", "layerwise", "jacobian", "vector_products")


class Options(NamedTuple):
    """How the caller wants the kernel, see `empirical_ntk`."""

    outputs: str = "mean"
    method: str = "auto"
    memory_limit: int | None = None
    precision: str = "highest"


class Strategy(NamedTuple):
    """Everything decided before anything is computed.

    Attributes:
        method: "layerwise", "jacobian" or "vector_products".
        forms: "factors" or "gradients" for every block.
        blocks: the blocks of one row, as shapes.
        plan: how features are found.
        request: the sizes.
        operations: of every method.
        footprint: bytes per row and pair.
        tiling: rows of tiles.
        rows_at_once: in the making of features; None for all rows of a tile.
        precision: of the matrix products.
        result: shape and dtype of the kernel.
    """

    method: str
    forms: tuple[str, ...]
    blocks: tuple[Block, ...]
    plan: Plan
    request: cost.Request
    operations: dict[str, float]
    footprint: Footprint
    tiling: Tiling
    rows_at_once: int | None
    precision: str
    result: jax.ShapeDtypeStruct


def choose_strategy(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None,
    options: Options,
    on_cpu: bool | None = None,
) -> Strategy:
    """Plan, costs, method, forms and tiles: on a CPU or not; None asks the arrays, and then JAX's
    default.

    Raises:
        ValueError: the result does not fit in the free memory.
    """
    n1, n2, budget = num_rows(x1), num_rows(x1 if x2 is None else x2), options.memory_limit
    here = is_on_cpu(params, x1, x2)
    if on_cpu is None:
        on_cpu = jax.default_backend() == "cpu" if here is None else here
    limit = memory_budget(budget, on_cpu=on_cpu)
    request = cost.Request(n1, n2, x2 is None, options.outputs, limit)
    # Inside jit a loop of Python's would be unrolled; an accelerator needs many rows at a time.
    in_parts = on_cpu and here is not None
    row, asked = shapes_of(shapes_of_rows(x1, 1)), (options.method, options.precision)
    found = _decide(apply_fn, *shapes_of(params), row, request, *asked, in_parts, on_cpu)
    # A budget that nobody set is within the free memory, if it is not the least one.
    is_free = budget is None and request.memory_limit > LEAST_BUDGET
    if not is_free or tree_bytes(found.result) > request.memory_limit:
        check_result_fits(found.result)
    return found


@remembered
def _decide(
    apply_fn: ApplyFn,
    structure: jax.tree_util.PyTreeDef,
    shapes: tuple[ShapeAndDtype, ...],
    row_of: tuple[jax.tree_util.PyTreeDef, tuple[ShapeAndDtype, ...]],
    request: cost.Request,
    method: str,
    precision: str,
    in_parts: bool,
    on_cpu: bool,
) -> Strategy:
    params, row = as_structs(structure, shapes), as_structs(*row_of)
    plan, for_mean = plan_features(apply_fn, params, row), request.outputs == "mean"
    blocks = blocks_of_row(apply_fn, params, row, precision, for_mean)
    explicit = _jacobian_of_row(plan, shapes)
    forms, gradients = cost.choose_forms(blocks, request), ("gradients",) * len(explicit)
    forward = cost.forward_ops(plan)
    operations = {
        "layerwise": cost.features_and_pairs(plan, forward, blocks, forms, request),
        "jacobian": cost.features_and_pairs(plan, 2 * forward, explicit, gradients, request),
        "vector_products": cost.vector_product_ops(plan, forward, request),
    }
    if method == "auto":
        # "jacobian" never does less than "layerwise", which may choose gradients for every block.
        method = min(("layerwise", "vector_products"), key=operations.__getitem__)
    if method == "jacobian":
        blocks, forms = explicit, gradients
    if method == "vector_products":
        footprint = cost.vector_product_footprint(plan, params)
    else:
        footprint = cost.footprint(blocks, forms, plan, request.outputs)
    few = None
    if method == "layerwise" and in_parts:
        few = cost.rows_at_once(forms, footprint, request)
    if few is not None:
        footprint = footprint._replace(work=2 * footprint.row)  # in parts, and joined
    rows = request.n1, request.n2
    tiling = choose_tiling(*rows, footprint, request.memory_limit, on_cpu=on_cpu)
    outputs = (plan.num_outputs,) * output_axes(request.outputs)
    result = jax.ShapeDtypeStruct((*rows, *outputs), plan.dtype)
    return Strategy(
        method, forms, blocks, plan, request, operations, footprint, tiling, few, precision, result
    )


def _jacobian_of_row(plan: Plan, leaves: tuple[ShapeAndDtype, ...]) -> tuple[Block, ...]:
    """The blocks of one row in the method "jacobian", as shapes."""
    gradient = lambda leaf: jax.ShapeDtypeStruct((1, plan.num_outputs, math.prod(leaf[0])), leaf[1])
    pairs = zip(plan.names, leaves, strict=True)
    return tuple(GradientBlock((gradient(leaf),), (name,)) for name, leaf in pairs)
