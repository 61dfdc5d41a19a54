"""Which leaves have factored gradients, and where: found once per network and shape."""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr

from ntk_jax.checks import working_dtype
from ntk_jax.closures.programs import traced
from ntk_jax.examples import Examples, as_batch
from ntk_jax.finite.uses.rules import RULES
from ntk_jax.finite.uses.taps import Tap, TappedEvaluation, UseAtTap
from ntk_jax.finite.uses.tracked import Reindexed
from ntk_jax.types import ApplyFn, Params

Shaped: TypeAlias = Examples
"""Examples as arrays, or as their shapes and dtypes."""


@dataclass(frozen=True)
class Place:
    """Where a use of a leaf is: which tap, which of the uses there."""

    tap: int
    use: int


@dataclass(frozen=True)
class BlockPlan:
    """Leaves that meet the same cotangents, each with the places of its uses, in order of taps."""

    leaves: tuple[int, ...]
    places: tuple[tuple[Place, ...], ...]


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
        dtype: of the kernel: float64 if the network or a parameter is, else float32.
    """

    taps: tuple[Tap, ...]
    blocks: tuple[BlockPlan, ...]
    explicit: tuple[int, ...]
    unused: tuple[int, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_outputs: int
    out_dtype: Any
    dtype: Any

    @property
    def tracked(self) -> set[int]:
        """The leaves that are followed to the products they enter."""
        return {leaf for block in self.blocks for leaf in block.leaves}

    @property
    def parameters(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Path and shape of every leaf."""
        return tuple(zip(self.names, self.shapes, strict=True))

    def at(self, place: Place) -> UseAtTap:
        """The use at a place."""
        return self.taps[place.tap].uses[place.use]


def outputs_of_one(apply_fn: ApplyFn, params: Params, x: Examples) -> Array:
    """The outputs of a single example x (...), flattened."""
    return apply_fn(params, as_batch(x))[0].reshape(-1)


def jaxpr_of_one(apply_fn: ApplyFn, params: Params, x: Shaped) -> ClosedJaxpr:
    """The outputs of one example as a program of the leaves and x; only shapes are looked at."""
    return traced(outputs_of_one, apply_fn, *as_shapes((params, x)))[0]


def as_shapes(tree: Params) -> Params:
    """Shapes and dtypes in place of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def tapped_outputs(
    closed: ClosedJaxpr,
    leaves: list[Array],
    tracked: set[int],
    x: Examples,
    taps: list[Array] | None = None,
) -> tuple[Array, TappedEvaluation]:
    """The outputs of one example with the `tracked` leaves followed, and what was found there."""
    run = TappedEvaluation(RULES, taps)
    values = [
        Reindexed(leaf, i, axes=tuple(range(leaf.ndim))) if i in tracked else leaf
        for i, leaf in enumerate(leaves)
    ]
    (out,) = run.settle(run.run(closed.jaxpr, list(closed.consts), [*values, *jax.tree.leaves(x)]))
    return out, run


def make_plan(apply_fn: ApplyFn, params: Params, x: Shaped) -> Plan:
    """The plan for examples like `x` (one example, or its shape and dtype)."""
    with jax.default_matmul_precision("highest"):  # as for features: the same trace
        closed = jaxpr_of_one(apply_fn, params, x)
    found = jax.tree_util.tree_leaves_with_path(params)
    leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for _, leaf in found]
    tracked = set(range(len(leaves)))
    while True:
        out, run = _found(closed, tracked, leaves, x)
        places = _places_by_leaf(run.taps)
        apart = {leaf for leaf, at in places.items() if not _joinable(run.taps, at)}
        unfit = (run.unfit | apart) & tracked
        if not unfit:
            break
        # Without a leaf, the biases that ride on its products can become unfit: look again.
        tracked -= unfit
    return Plan(
        taps=tuple(run.taps),
        blocks=_group(run.taps, places),
        explicit=tuple(i for i in range(len(leaves)) if i not in tracked),
        unused=tuple(sorted(tracked - set(places))),
        names=tuple(jax.tree_util.keystr(path) for path, _ in found),
        shapes=tuple(leaf.shape for leaf in leaves),
        num_outputs=out.shape[0],
        out_dtype=out.dtype,
        dtype=working_dtype(out.dtype, *(leaf.dtype for leaf in leaves)),
    )


def _found(
    closed: ClosedJaxpr, tracked: set[int], leaves: list[jax.ShapeDtypeStruct], x: Shaped
) -> tuple[jax.ShapeDtypeStruct, TappedEvaluation]:
    """The shape of the outputs, and the taps and unfit leaves that one evaluation meets."""
    runs = []

    def outputs(leaves: list[Array], x: Examples) -> Array:
        out, run = tapped_outputs(closed, leaves, tracked, x)
        run.inputs.clear()  # values of a trace that ends here
        runs.append(run)
        return out

    return jax.eval_shape(outputs, leaves, x), runs[0]


def _places_by_leaf(taps: list[Tap]) -> dict[int, tuple[Place, ...]]:
    places = defaultdict(list)
    for t, tap in enumerate(taps):
        for u, use in enumerate(tap.uses):
            places[use.leaf].append(Place(t, u))
    return {leaf: tuple(found) for leaf, found in places.items()}


def _joinable(taps: list[Tap], places: tuple[Place, ...]) -> bool:
    """Whether all uses see the leaf's entries in the same order, each at its own tap."""
    uses = [taps[at.tap].uses[at.use] for at in places]
    orders = {(use.use.signature, use.path, bool(use.stacked)) for use in uses}
    return len(orders) == 1 and len({at.tap for at in places}) == len(places)


def _group(taps: list[Tap], places: dict[int, tuple[Place, ...]]) -> tuple[BlockPlan, ...]:
    """Leaves with the same taps, arranged in the same way, share their cotangents."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for leaf, found in places.items():
        uses = [(at.tap, taps[at.tap].uses[at.use]) for at in found]
        groups[tuple((tap, use.use.axes, use.scans) for tap, use in uses)].append(leaf)
    return tuple(
        BlockPlan(tuple(group), tuple(places[leaf] for leaf in group)) for group in groups.values()
    )
