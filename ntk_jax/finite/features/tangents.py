"""Tangent features of a batch by zero taps and one vector-Jacobian product per output."""

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Num

from ntk_jax.checks import working_dtype
from ntk_jax.closures.programs import remembered
from ntk_jax.finite.features.features import Block, FactoredBlock, GradientBlock, TangentFeatures
from ntk_jax.finite.features.separable import separate
from ntk_jax.finite.uses.entries import order_of
from ntk_jax.finite.uses.plan import BlockPlan, Plan, make_plan, outputs_of_one, trace_one, walk_one
from ntk_jax.finite.uses.sites import canonical
from ntk_jax.finite.uses.walk import Walk
from ntk_jax.types import ApplyFn, Params


@remembered
def _cached_plan(
    apply_fn: ApplyFn, structure: Any, shapes: tuple[Any, ...], x: tuple[Any, ...]
) -> Plan:
    params = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*s) for s in shapes])
    return make_plan(apply_fn, params, jax.ShapeDtypeStruct(*x))


def plan_features(apply_fn: ApplyFn, params: Params, x: Any) -> Plan:
    """The plan for a batch x (n, ...), remembered by network and shapes."""
    return _cached_plan(apply_fn, *shapes_of(params), (tuple(x.shape[1:]), jnp.dtype(x.dtype)))


def shapes_of(params: Params) -> tuple[Any, tuple[Any, ...]]:
    """The structure of a pytree, and shape and dtype of every leaf: what plans are remembered
    by.
    """
    leaves, structure = jax.tree.flatten(params)
    return structure, tuple(
        (jnp.shape(leaf), getattr(leaf, "dtype", None) or jnp.result_type(leaf)) for leaf in leaves
    )


@remembered
def _cached_outputs(
    apply_fn: ApplyFn, structure: Any, shapes: tuple[Any, ...], x: tuple[Any, ...]
) -> Any:
    params = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*s) for s in shapes])
    return jax.eval_shape(apply_fn, params, jax.ShapeDtypeStruct(*x))


def count_outputs(apply_fn: ApplyFn, params: Params, x: Array) -> int:
    """O, the number of output coordinates per example.

    Raises:
        ValueError: the network does not return one array with one row per example.
    """
    out = _cached_outputs(apply_fn, *shapes_of(params), (x.shape, x.dtype))
    if (
        not hasattr(out, "shape")
        or not out.shape
        or out.shape[0] != x.shape[0]
        or math.prod(out.shape) == 0
    ):
        got = jax.tree.map(lambda leaf: leaf.shape, out)
        raise ValueError(
            f"apply_fn: expected one array with a row per example, ({x.shape[0]}, ...); got {got}. "
            "Wrap it: lambda params, x: apply_fn(params, x)[0] picks one of several results."
        )
    if jnp.issubdtype(out.dtype, jnp.complexfloating):
        raise ValueError(
            f"apply_fn: expected real outputs; got {out.dtype}. Stack real and imaginary parts as "
            "two outputs: "
            "jnp.stack([f.real, f.imag], axis=-1)."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"apply_fn: expected real floating-point outputs; got {out.dtype}. Return logits, not "
            "classes."
        )
    return math.prod(out.shape[1:])


def factored_features(
    apply_fn: ApplyFn, params: Params, x: Num[Array, "n ..."], plan: Plan, *, for_mean: bool = False
) -> TangentFeatures:
    """Features with factored gradients wherever the plan found them.

    With `for_mean`, cotangents that are the same for all outputs up to weights are kept once: for
    means over outputs only.
    """
    params = jax.tree.map(jnp.asarray, params)
    closed, leaves = trace_one(apply_fn, params, x[0]), jax.tree.leaves(params)
    shared = _shared(closed, leaves, plan, x[0]) if for_mean and plan.num_outputs > 1 else {}
    blocks = jax.vmap(lambda x_one: _features_of_one(closed, leaves, plan, x_one))(x)
    for i, (masks, scales) in shared.items():
        blocks[i] = replace(blocks[i], cotangents=jax.vmap(masks)(x), scales=scales)
    dtype, parameters = (
        kernel_dtype(params, plan.out_dtype),
        tuple(zip(plan.names, plan.shapes, strict=True)),
    )
    return TangentFeatures(tuple(blocks), x.shape[0], plan.num_outputs, dtype, parameters)


def kernel_dtype(params: Params, out_dtype: Any) -> Any:
    """float64 if the network or a parameter is, else float32."""
    return working_dtype(out_dtype, *(jnp.result_type(leaf) for leaf in jax.tree.leaves(params)))


def _pull_back(closed: Any, leaves: list[Array], plan: Plan, x: Array) -> tuple[Array, Any, Any]:
    """Outputs of one example, the vjp that takes their cotangents to those of taps and explicit
    leaves, and layer inputs.
    """

    def network(taps: list[Array], explicit: list[Array]) -> tuple[Array, Any]:
        values = list(leaves)
        for i, leaf in zip(plan.explicit, explicit, strict=True):
            values[i] = leaf
        walk = Walk(taps)
        return walk_one(walk, closed, values, plan.tracked, x), walk.inputs

    taps = [jnp.zeros(tap.shape, tap.dtype) for tap in plan.taps]
    return jax.vjp(network, taps, [leaves[i] for i in plan.explicit], has_aux=True)


def _shared(closed: Any, leaves: list[Array], plan: Plan, x: Array) -> dict[int, tuple[Any, Array]]:
    """By block: the function from an example to the cotangents (1, B, T, D) that all outputs share,
    and their weights.
    """
    eye = jnp.eye(plan.num_outputs, dtype=plan.out_dtype)
    cotangents = separate(lambda x, e: _pull_back(closed, leaves, plan, x)[1](e)[0], x, eye[0])
    shared = {}
    for i, block in enumerate(plan.blocks):
        if any(len(uses) != 1 for uses in block.uses):
            continue
        tap, record = block.uses[0][0].tap, plan.record(block.uses[0][0])
        found, layout, shape = cotangents.found[tap], record.use.layout, plan.taps[tap].shape
        if (
            found is None
            or record.scans
            or any(shape[p] > 1 and p not in found.constant for p in layout.positions)
        ):
            continue
        weights = jax.vmap(
            lambda e, tap=tap, arrange=layout.arrange: arrange(cotangents.weight(tap, e))
        )(eye)
        masks = lambda x, tap=tap, arrange=layout.arrange: arrange(cotangents.mask(tap, x))[None]
        shared[i] = (masks, jnp.mean(weights[:, :, :1] ** 2, axis=0))
    return shared


def _features_of_one(closed: Any, leaves: list[Array], plan: Plan, x: Array) -> list[Block]:
    out, vjp, inputs = _pull_back(closed, leaves, plan, x)
    cotangents, jacobians = jax.vmap(vjp)(jnp.eye(out.shape[0], dtype=out.dtype))
    blocks: list[Block] = [_factored(plan, block, inputs, cotangents) for block in plan.blocks]
    if plan.explicit:
        flat = tuple(j.reshape(j.shape[0], -1) for j in jacobians)
        blocks.append(GradientBlock(flat, tuple(plan.names[i] for i in plan.explicit)))
    return blocks


def _factored(plan: Plan, block: BlockPlan, inputs: Any, cotangents: Any) -> Block:
    """All uses of a block's leaves in canonical form, joined along the positions."""

    def joined_inputs(uses: Any) -> Array:
        parts = []
        for use in uses:
            record = plan.record(use)
            out_shape = plan.taps[use.tap].shape[len(record.scans) :]
            arrange = functools.partial(record.use.arrange, out_shape=out_shape)
            parts.append(
                canonical(arrange, record.scans, jnp.asarray(inputs[use.tap][use.position]))
            )
        return jnp.concatenate(parts, axis=1)

    def arrange_cotangents(use: Any, d: Array) -> Array:
        record = plan.record(use)
        return jax.vmap(lambda one: canonical(record.use.layout.arrange, record.scans, one))(d)

    d = [arrange_cotangents(use, cotangents[use.tap]) for use in block.uses[0]]
    names = tuple(plan.names[i] for i in block.leaves)
    orders = tuple(
        order_of(plan.record(uses[0]), plan.shapes[i])
        for i, uses in zip(block.leaves, block.uses, strict=True)
    )
    inputs = tuple(joined_inputs(uses) for uses in block.uses)
    return FactoredBlock(inputs, jnp.concatenate(d, axis=2), names, orders)


def jacobian_features(apply_fn: ApplyFn, params: Params, x: Num[Array, "n ..."]) -> TangentFeatures:
    """One explicit block d f_o(x_i) / d theta_l (n, O, p_l) per parameter leaf l, by reverse
    mode.
    """

    def jacobian(x_one: Array) -> Any:
        return jax.jacrev(lambda p: outputs_of_one(apply_fn, p, x_one))(params)

    found = jax.tree_util.tree_leaves_with_path(jax.vmap(jacobian)(x))
    blocks = tuple(
        GradientBlock((leaf.reshape(*leaf.shape[:2], -1),), (jax.tree_util.keystr(path),))
        for path, leaf in found
    )
    num_outputs, out_dtype = blocks[0].num_outputs, blocks[0].jacobians[0].dtype
    parameters = tuple(
        (jax.tree_util.keystr(p), jnp.shape(leaf))
        for p, leaf in jax.tree_util.tree_leaves_with_path(params)
    )
    return TangentFeatures(
        blocks, x.shape[0], num_outputs, kernel_dtype(params, out_dtype), parameters
    )
