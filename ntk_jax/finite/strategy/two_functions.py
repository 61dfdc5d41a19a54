"""The kernel between two functions of the same parameters: features of each, matched by leaf."""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.checks import working_dtype
from ntk_jax.closures.fingerprint import Reading, read
from ntk_jax.closures.programs import compiled, remember
from ntk_jax.examples import Examples, num_rows, shapes_of_rows
from ntk_jax.finite.contraction.gram import contract_features
from ntk_jax.finite.contraction.pairing import Match, arranged
from ntk_jax.finite.contraction.vector_products import vector_product_kernel
from ntk_jax.finite.features.features import TangentFeatures
from ntk_jax.finite.features.tangents import blocks_of_row, features_of, plan_features
from ntk_jax.finite.inputs import output_axes
from ntk_jax.finite.strategy import cost
from ntk_jax.finite.strategy.choose import Options
from ntk_jax.finite.strategy.finite_values import check_kernel
from ntk_jax.finite.strategy.run import contract_jit
from ntk_jax.finite.strategy.tiles import (
    Footprint,
    TileLoop,
    Tiling,
    choose_tiling,
    count_tiles,
)
from ntk_jax.memory import check_result_fits, memory_budget
from ntk_jax.networks.apply_fn import ShapeAndDtype, as_structs, forward_mode, shapes_of
from ntk_jax.platforms import by_platform, is_on_cpu
from ntk_jax.progress import progress_bar
from ntk_jax.types import ApplyFn, Params

Shapes: TypeAlias = tuple[tuple[jax.tree_util.PyTreeDef, tuple[ShapeAndDtype, ...]], ...]
"""Of parameters, and of an example of either function."""


class Decided(NamedTuple):
    """How leaves meet, rows of tiles, shape and dtype of the kernel."""

    matches: tuple[Match, ...]
    tiling: Tiling
    result: jax.ShapeDtypeStruct


def ntk_of_two(
    functions: tuple[ApplyFn, ApplyFn],
    params: Params,
    x1: Examples,
    x2: Examples,
    options: Options,
    *,
    progress: bool = False,
) -> Array:
    """J_f(x1) J_g(x2)ᵀ by the methods of `empirical_ntk`, if it is finite."""
    reading = read(functions)

    def run(on_cpu: bool, params: Params, x1: Examples, x2: Examples) -> Array:
        decided = _decide(reading, params, x1, x2, options, on_cpu)
        return _run(decided, reading, params, x1, x2, options, progress=progress)

    with forward_mode("method"):
        kernel = by_platform(partial(run, True), partial(run, False), params, x1, x2)
    return check_kernel(kernel, functions[0], params, x1, x2, functions[1])


def _decide(
    functions: Reading,
    params: Params,
    x1: Examples,
    x2: Examples,
    options: Options,
    on_cpu: bool,
) -> Decided:
    here = is_on_cpu(params, x1, x2)
    limit = memory_budget(options.memory_limit, on_cpu=on_cpu if here is None else here)
    request = cost.Request(num_rows(x1), num_rows(x2), False, options.outputs, limit)
    shapes = tuple(shapes_of(tree) for tree in (params, *(shapes_of_rows(x, 1) for x in (x1, x2))))
    key = _decided, shapes, request, options.method, on_cpu
    decided = remember(
        functions, key, lambda reading: _decided(reading, shapes, request, options.method, on_cpu)
    )
    check_result_fits(decided.result)
    return decided


def _decided(
    functions: Reading, shapes: Shapes, request: cost.Request, method: str, on_cpu: bool
) -> Decided:
    params, *rows = (as_structs(*s) for s in shapes)
    sides = list(zip(functions.function, rows, strict=True))
    plans = [plan_features(f, params, row) for f, row in sides]
    blocks1, blocks2 = (
        jax.eval_shape(partial(_features, f, method=method), params, row).blocks
        if method == "jacobian"
        else blocks_of_row(f, params, row, "highest", False)
        for f, row in sides
    )
    matches = cost.choose_matches(blocks1, blocks2, request)
    if method == "vector_products":
        found = [cost.vector_product_footprint(plan, params) for plan in plans]
    else:
        made = zip((blocks1, blocks2), plans, strict=True)
        found = [cost.footprint(b, ("factors",) * len(b), p, request.outputs) for b, p in made]
        sizes = [cost.match_bytes(blocks1, blocks2, m, request.outputs) for m in matches]
        row, pair = sum(size[0] for size in sizes), max([8, *(size[1] for size in sizes)])
        found = [Footprint(row, f.work + row, pair) for f in found]
    footprint = Footprint(*map(max, *found))
    tiling = choose_tiling(request.n1, request.n2, footprint, request.memory_limit, on_cpu=on_cpu)
    outputs = tuple(plan.num_outputs for plan in plans)[: output_axes(request.outputs)]
    dtype = working_dtype(*(plan.dtype for plan in plans))
    result = jax.ShapeDtypeStruct((request.n1, request.n2, *outputs), dtype)
    return Decided(matches, tiling, result)


def _run(
    d: Decided,
    functions: Reading,
    params: Params,
    x1: Examples,
    x2: Examples,
    options: Options,
    *,
    progress: bool,
) -> Array:
    (n1, n2), t = d.result.shape[:2], d.tiling
    how: dict[str, Any] = {
        "method": options.method,
        "precision": options.precision,
        "matches": d.matches,
    }
    if n1 <= t.rows1 and n2 <= t.rows2:
        return _one_tile(functions, params, x1, x2, outputs=options.outputs, **how)
    f, g = functions.function
    never = lambda features: features
    if options.method == "vector_products":
        combine = partial(_one_tile, functions, params, outputs=options.outputs, **how)
        sides: tuple[Any, ...] = never, never
    else:
        combine = partial(contract_jit, outputs=options.outputs, precision=options.precision)
        sides = tuple(partial(_features_jit, function, params, **how) for function in (f, g))
    with progress_bar(count_tiles(n1, n2, t), "kernel tiles", enabled=progress) as bar:
        out = jnp.zeros(d.result.shape, d.result.dtype)
        loop = TileLoop(sides[0], combine, never, t, out, lambda: bar.update(1), sides[1])
        return loop.rectangle(x1, x2)


def _features(
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    *,
    method: str,
    precision: str = "highest",
    matches: tuple[Match, ...] | None = None,
) -> TangentFeatures:
    """Of one side, in the blocks and forms that the other has too."""
    way = "jacobian" if method == "jacobian" else "layerwise"
    features = features_of(apply_fn, params, x, method=way, precision=precision)
    return features if matches is None else arranged(features, matches, precision)


_features_jit = compiled(_features)


@compiled
def _one_tile(
    functions: Reading,
    params: Params,
    x1: Examples,
    x2: Examples,
    *,
    outputs: str,
    method: str,
    precision: str,
    matches: tuple[Match, ...],
) -> Array:
    """The kernel of all rows in one program."""
    f, g = functions.function
    if method == "vector_products":
        with jax.default_matmul_precision(precision):
            return vector_product_kernel(f, params, x1, x2, outputs, g)
    how: dict[str, Any] = {"method": method, "precision": precision, "matches": matches}
    f1, f2 = _features(f, params, x1, **how), _features(g, params, x2, **how)
    return contract_features(f1, f2, outputs, precision)
