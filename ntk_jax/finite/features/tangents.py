"""Tangent features of a batch by zero taps and one vector-Jacobian product per output."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Float

from ntk_jax.closures.programs import compiled, remembered, traced
from ntk_jax.examples import Examples, as_batch, num_rows, shapes_of_rows
from ntk_jax.finite.features.features import (
    Block,
    FactoredBlock,
    GradientBlock,
    Node,
    TangentFeatures,
)
from ntk_jax.finite.features.separable import Cotangents, Separable, separate
from ntk_jax.finite.uses.canonical import OutputAxes, canonical
from ntk_jax.finite.uses.entries import order_of
from ntk_jax.finite.uses.plan import (
    BlockPlan,
    Place,
    Plan,
    Shaped,
    as_shapes,
    jaxpr_of_one,
    make_plan,
    outputs_of_one,
    tapped_outputs,
)
from ntk_jax.finite.uses.taps import Inputs
from ntk_jax.networks.apply_fn import ShapeAndDtype, as_structs, shapes_of
from ntk_jax.types import ApplyFn, Params

PullBack: TypeAlias = Callable[[Array], tuple[list[Array], list[Array]]]
"""From the cotangent of the outputs to those of the taps and of the explicit leaves."""

Scales: TypeAlias = tuple[Node, ...]
"""For each block the weights of cotangents that all outputs share; None where they do not."""


def features_of(
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    *,
    forms: tuple[str, ...] | None = None,
    method: str = "layerwise",
    precision: str = "highest",
    for_mean: bool = False,
) -> TangentFeatures:
    """Features of a batch, each block in the form asked for.

    `for_mean`: for means over outputs only; cotangents that all outputs share up to weights are
    kept once.
    """
    plan = plan_features(apply_fn, params, x)
    if method == "jacobian":
        with jax.default_matmul_precision(precision):
            blocks = _jacobian_blocks(apply_fn, params, x, plan)
    else:
        params = jax.tree.map(jnp.asarray, params)
        one, shapes = row_features(apply_fn, params, x, precision, for_mean)
        leaves, structure = jax.tree.leaves(params), jax.tree.structure(shapes)
        row = lambda x: jax.tree.unflatten(
            structure, jaxpr_as_fun(one)(*leaves, *jax.tree.leaves(x))
        )
        # What cotangents share depends on no example.
        found, scales = jax.vmap(row, out_axes=(0, None))(x)
        blocks = with_scales(found, scales)
    features = TangentFeatures(blocks, num_rows(x), plan.num_outputs, plan.dtype, plan.parameters)
    return features if forms is None else features.in_forms(forms, precision)


features_jit = compiled(features_of)


def blocks_of_row(
    apply_fn: ApplyFn, params: Params, row: Shaped, precision: str, for_mean: bool
) -> tuple[Block, ...]:
    """The blocks of a batch of one row, as shapes."""
    _, (blocks, scales) = row_features(apply_fn, params, row, precision, for_mean)
    in_front = lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
    return with_scales(jax.tree.map(in_front, blocks), scales)


def row_features(
    apply_fn: ApplyFn, params: Params, x: Shaped, precision: str, for_mean: bool
) -> tuple[ClosedJaxpr, Any]:
    """The program of leaves and one example of x that makes blocks and scales, and their shapes."""
    options = {"precision": precision, "for_mean": for_mean}
    return traced(_of_row, apply_fn, as_shapes(params), shapes_of_rows(x), **options)


def with_scales(blocks: tuple[Block, ...], scales: Scales) -> tuple[Block, ...]:
    """The blocks, each with the weights of cotangents that all outputs share, where they do."""
    pairs = zip(blocks, scales, strict=True)
    return tuple(b if s is None else replace(b, scales=s) for b, s in pairs)


def plan_features(apply_fn: ApplyFn, params: Params, x: Shaped) -> Plan:
    """The plan for a batch x (n, ...), remembered by network and shapes."""
    return _remembered_plan(apply_fn, *shapes_of(params), *shapes_of(shapes_of_rows(x)))


@remembered
def _remembered_plan(
    apply_fn: ApplyFn,
    structure: jax.tree_util.PyTreeDef,
    shapes: tuple[ShapeAndDtype, ...],
    x_structure: jax.tree_util.PyTreeDef,
    x_shapes: tuple[ShapeAndDtype, ...],
) -> Plan:
    one = as_structs(x_structure, x_shapes)
    return make_plan(apply_fn, as_structs(structure, shapes), one)


def _of_row(
    apply_fn: ApplyFn, params: Params, x: Examples, *, precision: str, for_mean: bool
) -> tuple[tuple[Block, ...], Scales]:
    """Blocks of one example, without an axis of rows, and the scales of each."""
    plan = plan_features(apply_fn, params, as_batch(x))
    with jax.default_matmul_precision(precision):
        closed, leaves = jaxpr_of_one(apply_fn, params, x), jax.tree.leaves(params)
        shared = _shared(closed, leaves, plan, x) if for_mean and plan.num_outputs > 1 else {}
        factored, explicit = _features_of_one(closed, leaves, plan, x)
        for i, (masks, _) in shared.items():
            factored[i] = replace(factored[i], cotangents=masks(x))
    scales = tuple(shared[i][1] if i in shared else None for i in range(len(factored)))
    return (*factored, *explicit), (*scales, *(None for _ in explicit))


def _pull_back(
    closed: ClosedJaxpr, leaves: list[Array], plan: Plan, x: Examples
) -> tuple[Array, PullBack, list[Inputs]]:
    """Outputs of one example, their pull-back to taps and explicit leaves, and layer inputs."""

    def network(taps: list[Array], explicit: list[Array]) -> tuple[Array, list[Inputs]]:
        values = list(leaves)
        for i, leaf in zip(plan.explicit, explicit, strict=True):
            values[i] = leaf
        out, run = tapped_outputs(closed, values, plan.tracked, x, taps)
        return out, run.inputs

    taps = [jnp.zeros(tap.shape, tap.dtype) for tap in plan.taps]
    return jax.vjp(network, taps, [leaves[i] for i in plan.explicit], has_aux=True)


def _shared(
    closed: ClosedJaxpr, leaves: list[Array], plan: Plan, x: Examples
) -> dict[int, tuple[Callable[[Examples], Array], Array]]:
    """By block: example -> cotangents that all outputs share (1, B, T, D), and their weights."""
    eye = jnp.eye(plan.num_outputs, dtype=plan.out_dtype)
    cotangents = separate(lambda x, e: _pull_back(closed, leaves, plan, x)[1](e)[0], x, eye[0])
    shared: dict[int, tuple[Callable[[Examples], Array], Array]] = {}
    for i, block in enumerate(plan.blocks):
        if any(len(places) != 1 for places in block.places):
            continue
        tap, use = block.places[0][0].tap, plan.at(block.places[0][0])
        found, axes, shape = cotangents.found[tap], use.use.axes, plan.taps[tap].shape
        # A weight that differs between positions would not leave the sum over them as it is.
        varies = lambda p, shape=shape, found=found: shape[p] > 1 and p not in found.constant
        if found is None or use.scans or any(map(varies, axes.positions)):
            continue
        weights = jax.vmap(partial(cotangents.weight, found))(eye)
        scales = jnp.mean(jax.vmap(axes.arrange)(weights)[:, :, :1] ** 2, axis=0)
        shared[i] = partial(_mask, cotangents, found, axes), scales
    return shared


def _mask(cotangents: Cotangents, part: Separable, axes: OutputAxes, x: Examples) -> Array:
    return axes.arrange(cotangents.mask(part, x))[None]


def _features_of_one(
    closed: ClosedJaxpr, leaves: list[Array], plan: Plan, x: Examples
) -> tuple[list[FactoredBlock], list[GradientBlock]]:
    out, vjp, inputs = _pull_back(closed, leaves, plan, x)
    cotangents, jacobians = jax.vmap(vjp)(jnp.eye(out.shape[0], dtype=out.dtype))
    factored = [_factored(plan, block, inputs, cotangents) for block in plan.blocks]
    flat = tuple(j.reshape(j.shape[0], -1) for j in jacobians)
    names = tuple(plan.names[i] for i in plan.explicit)
    return factored, [GradientBlock(flat, names)] if names else []


def _factored(
    plan: Plan, block: BlockPlan, inputs: list[Inputs], cotangents: list[Array]
) -> FactoredBlock:
    """All uses of a block's leaves in canonical form, joined along the positions."""

    def recorded(at: Place) -> Float[Array, "B T X"]:
        found, array = plan.at(at), jnp.asarray(inputs[at.tap][at.use])
        out_shape = plan.taps[at.tap].shape[len(found.scans) :]
        return canonical(partial(found.use.arrange, out_shape=out_shape), found.scans, array)

    def pulled(at: Place) -> Float[Array, "O B T X"]:
        found = plan.at(at)
        arrange = lambda one: canonical(found.use.axes.arrange, found.scans, one)
        return jax.vmap(arrange)(cotangents[at.tap])

    def layer_input(at: Place) -> Float[Array, "B T I"]:
        return _one_after_the_other(pulled(at)) if at.swapped else recorded(at)

    def layer_cotangents(at: Place) -> Float[Array, "O B T D"]:
        return _each_alone(recorded(at), plan.num_outputs) if at.swapped else pulled(at)

    reference = [next(at for at in places if not at.swapped) for places in block.places]
    return FactoredBlock(
        tuple(jnp.concatenate([*map(layer_input, at)], axis=1) for at in block.places),
        jnp.concatenate([*map(layer_cotangents, block.places[0])], axis=2),
        tuple(plan.names[i] for i in block.leaves),
        tuple(
            order_of(plan.at(at), plan.shapes[i])
            for i, at in zip(block.leaves, reference, strict=True)
        ),
    )


def _one_after_the_other(d: Float[Array, "O B T X"]) -> Float[Array, "B TO X"]:
    """What differs between outputs as positions, (output, position)."""
    O, B, T, X = d.shape
    return d.transpose(1, 0, 2, 3).reshape(B, O * T, X)


def _each_alone(a: Float[Array, "B T X"], O: int) -> Float[Array, "O B TO X"]:
    """What all outputs share, at the positions (output, position) of `_one_after_the_other`: output
    o sees its own, and zeros at those of the others.
    """
    B, T, X = a.shape
    own = jnp.eye(O, dtype=a.dtype)[:, None, :, None, None]
    return (own * a[None, :, None]).reshape(O, B, O * T, X)


def _jacobian_blocks(
    apply_fn: ApplyFn, params: Params, x: Examples, plan: Plan
) -> tuple[Block, ...]:
    """One explicit block d f_o(x_i) / d theta_l (n, O, p_l) per leaf l, by reverse mode."""
    jacobian = jax.jacrev(lambda p, x_one: outputs_of_one(apply_fn, p, x_one))
    found = jax.tree.leaves(jax.vmap(jacobian, (None, 0))(params, x))
    return tuple(
        GradientBlock((leaf.reshape(*leaf.shape[:2], -1),), (name,))
        for name, leaf in zip(plan.names, found, strict=True)
    )
