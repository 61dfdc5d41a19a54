"""Which parameter leaves have factored gradients, and where: found once per network and shape,
without values.
"""

import functools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from ntk_jax.finite.uses.sites import Layout
from ntk_jax.finite.uses.views import initial_view
from ntk_jax.finite.uses.walk import Record, Tap, Walk
from ntk_jax.types import ApplyFn, Params


@dataclass(frozen=True)
class LeafUse:
    """A use of a leaf: which tap, which record of that tap."""

    tap: int
    position: int


@dataclass(frozen=True)
class BlockPlan:
    """Leaves that meet the same cotangents, each with its uses in order of the taps."""

    leaves: tuple[int, ...]
    uses: tuple[tuple[LeafUse, ...], ...]


@dataclass(frozen=True)
class Plan:
    """How to get the features of one example.

    Attributes:
        taps: where zeros are added, in order of evaluation.
        blocks: the leaves with factored gradients.
        explicit: leaves that get their own Jacobian block.
        unused: leaves that the network does not read.
        names: the path of every leaf.
        shapes: of every leaf.
        num_outputs: O.
        out_dtype: of the network's outputs.
    """

    taps: tuple[Tap, ...]
    blocks: tuple[BlockPlan, ...]
    explicit: tuple[int, ...]
    unused: tuple[int, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_outputs: int
    out_dtype: Any

    @property
    def tracked(self) -> set[int]:
        """The leaves that enter the walk as views."""
        return {leaf for block in self.blocks for leaf in block.leaves}

    def record(self, use: LeafUse) -> Record:
        """What was found at a use."""
        return self.taps[use.tap].records[use.position]


def outputs_of_one(apply_fn: ApplyFn, params: Params, x: Array) -> Array:
    """The outputs of a single example x (...), flattened."""
    return apply_fn(params, x[None])[0].reshape(-1)


def trace_one(apply_fn: ApplyFn, params: Params, x: Any) -> Any:
    """The closed jaxpr of the outputs of one example of the shape of `x`; its inputs are the
    leaves, then x.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return jax.make_jaxpr(functools.partial(outputs_of_one, apply_fn))(
        shapes, jax.ShapeDtypeStruct(x.shape, x.dtype)
    )


def walk_one(walk: Walk, closed: Any, leaves: list[Array], tracked: set[int], x: Array) -> Array:
    """The outputs of one example, with the `tracked` leaves followed."""
    values = [initial_view(leaf, i) if i in tracked else leaf for i, leaf in enumerate(leaves)]
    return walk.settle(walk.run(closed.jaxpr, list(closed.consts), [*values, x]))[0]


def make_plan(apply_fn: ApplyFn, params: Params, x: Any) -> Plan:
    """The plan for examples like `x` (one example, or its shape and dtype)."""
    closed = trace_one(apply_fn, params, x)
    leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)]
    names = tuple(
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)
    )
    tracked = set(range(len(leaves)))
    while (
        True
    ):  # dropping a leaf can make the biases that ride on its products unfit, hence the loop
        walk = Walk()
        out = jax.eval_shape(functools.partial(_abstract_walk, walk, closed, tracked), leaves, x)
        uses = _uses_by_leaf(walk.taps)
        unfit = (
            walk.unfit | {leaf for leaf, found in uses.items() if not _joinable(walk.taps, found)}
        ) & tracked
        if not unfit:
            break
        tracked -= unfit
    blocks = _group(walk.taps, uses)
    unused = tuple(sorted(tracked - set(uses)))
    explicit = tuple(i for i in range(len(leaves)) if i not in tracked)
    shapes = tuple(leaf.shape for leaf in leaves)
    return Plan(tuple(walk.taps), blocks, explicit, unused, names, shapes, out.shape[0], out.dtype)


def _abstract_walk(
    walk: Walk, closed: Any, tracked: set[int], leaves: list[Array], x: Array
) -> Array:
    out = walk_one(walk, closed, leaves, tracked, x)
    walk.inputs.clear()  # values of a trace that ends here
    return out


def _uses_by_leaf(taps: list[Tap]) -> dict[int, tuple[LeafUse, ...]]:
    uses = defaultdict(list)
    for t, tap in enumerate(taps):
        for position, record in enumerate(tap.records):
            uses[record.leaf].append(LeafUse(t, position))
    return {leaf: tuple(found) for leaf, found in uses.items()}


def _joinable(taps: list[Tap], uses: tuple[LeafUse, ...]) -> bool:
    """Whether all uses see the leaf's entries in the same order, each at its own tap."""
    records = [taps[u.tap].records[u.position] for u in uses]
    layouts = {(r.use.signature, r.path, bool(r.stacked)) for r in records}
    return len(layouts) == 1 and len({u.tap for u in uses}) == len(uses)


def _group(taps: list[Tap], uses: dict[int, tuple[LeafUse, ...]]) -> tuple[BlockPlan, ...]:
    """Leaves with the same taps, arranged in the same way, share their cotangents."""

    def key(found: tuple[LeafUse, ...]) -> tuple[tuple[int, Layout, tuple[str, ...]], ...]:
        records = [(u.tap, taps[u.tap].records[u.position]) for u in found]
        return tuple((tap, r.use.layout, r.scans) for tap, r in records)

    groups: dict[Any, list[int]] = defaultdict(list)
    for leaf, found in uses.items():
        groups[key(found)].append(leaf)
    return tuple(
        BlockPlan(tuple(group), tuple(uses[leaf] for leaf in group)) for group in groups.values()
    )
