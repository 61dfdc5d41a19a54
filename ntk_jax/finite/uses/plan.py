"""Which leaves have factored gradients, and where: found once per network and shape."""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr

from ntk_jax.checks import working_dtype
from ntk_jax.closures.programs import traced
from ntk_jax.examples import Examples, as_batch
from ntk_jax.finite.uses.canonical import DotUse
from ntk_jax.finite.uses.rules import RULES
from ntk_jax.finite.uses.taps import Tap, TappedEvaluation, UseAtTap
from ntk_jax.finite.uses.tracked import Reindexed
from ntk_jax.types import ApplyFn, Params

Shaped: TypeAlias = Examples
"""Examples as arrays, or as their shapes and dtypes."""


SMALL = 2**14
"""Entries per example that may be held although the gradient has fewer."""


@dataclass(frozen=True)
class Place:
    """Where a use of a leaf is: which tap, which of the uses there.

    `swapped`: it uses the transpose of what the leaf's other uses do, as derivatives by x do. The
    cotangents there take the part of layer inputs, and its input that of cotangents.
    """

    tap: int
    use: int
    swapped: bool = False


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
        reversed: explicit leaves, of which derivatives by x use the transposes at too many places.
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
    reversed: tuple[int, ...]
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
    tracked, backward = set(range(len(leaves))), set()
    while True:
        out, run = _found(closed, tracked, leaves, x)
        by_leaf = _places_by_leaf(run.taps)
        oriented = {leaf: _oriented(run.taps, at, out.shape[0]) for leaf, at in by_leaf.items()}
        places = {leaf: at for leaf, at in oriented.items() if at is not None}
        apart = oriented.keys() - places.keys()
        backward |= {leaf for leaf in apart if _has_transposes(run.taps, by_leaf[leaf])}
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
        reversed=tuple(sorted(backward)),
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


def _oriented(
    taps: list[Tap], places: tuple[Place, ...], num_outputs: int
) -> tuple[Place, ...] | None:
    """The places of a leaf, if all uses see its entries in the same order, each at its own tap.

    Uses of the transpose are swapped, unless that would hold more than the gradient itself.
    """
    uses = [taps[at.tap].uses[at.use] for at in places]
    if len({at.tap for at in places}) < len(places):
        return None
    if len({(use.path, bool(use.stacked)) for use in uses}) > 1:
        return None
    first = min((use.use for use in uses), key=lambda use: use.signature[:2])
    same = [use.use.signature == first.signature for use in uses]
    if all(same):
        return places
    found = tuple(replace(at, swapped=not s) for at, s in zip(places, same, strict=True))
    swapped = [use.use for use, s in zip(uses, same, strict=True) if not s]
    if not all(isinstance(use, DotUse) and use.transposes(first) for use in swapped):
        return None
    sizes = [_sizes(taps[at.tap], taps[at.tap].uses[at.use]) for at in found if at.swapped]
    B, _, I = sizes[0]
    D = next(_sizes(taps[at.tap], taps[at.tap].uses[at.use])[2] for at in found if not at.swapped)
    held = num_outputs * sum(T for _, T, _ in sizes) * (I + num_outputs * D)
    return found if B * held <= max(num_outputs * B * I * D, SMALL) else None


def _has_transposes(taps: list[Tap], places: tuple[Place, ...]) -> bool:
    """Whether a use of a leaf is of the transpose of what another one uses."""
    uses = [taps[at.tap].uses[at.use].use for at in places]
    dots = [use for use in uses if isinstance(use, DotUse)]
    return any(use.transposes(dots[0]) for use in dots)


def _sizes(tap: Tap, use: UseAtTap) -> tuple[int, int, int]:
    """(B, T, D) of a tap as the outputs of a use."""
    depth = len(use.scans)
    B, T, D = use.use.axes.sizes(tap.shape[depth:])
    for size, kind in zip(tap.shape[:depth], use.scans, strict=True):
        B, T = (B * size, T) if kind == "blocks" else (B, T * size)
    return B, T, D


def _group(taps: list[Tap], places: dict[int, tuple[Place, ...]]) -> tuple[BlockPlan, ...]:
    """Leaves with the same taps, arranged in the same way, share their cotangents."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for leaf, found in places.items():
        uses = [(at.tap, taps[at.tap].uses[at.use]) for at in found]
        # What takes the part of cotangents at a swapped use is the leaf's own.
        own = leaf if any(at.swapped for at in found) else None
        groups[own, *((tap, use.use.axes, use.scans) for tap, use in uses)].append(leaf)
    return tuple(
        BlockPlan(tuple(group), tuple(places[leaf] for leaf in group)) for group in groups.values()
    )
