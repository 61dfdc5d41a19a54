"""What a kernel costs: operations and bytes per layer, in factored and in explicit form, and per
method.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from ntk_jax.finite.features.features import Block, FactoredBlock
from ntk_jax.finite.strategy.tiles import Footprint
from ntk_jax.finite.uses.plan import Plan
from ntk_jax.memory import tree_bytes


class BlockCost(NamedTuple):
    """Operations and bytes of one block: to make its features per row, and to contract them per
    pair of rows.
    """

    row_ops: float
    pair_ops: float
    row_bytes: int
    pair_bytes: int

    def total(self, rows: float, pairs: float) -> float:
        """Operations for so many rows and pairs."""
        return rows * self.row_ops + pairs * self.pair_ops


class Problem(NamedTuple):
    """How many rows and pairs there are, the mode, and the budget."""

    n1: int
    n2: int
    symmetric: bool
    outputs: str
    memory_limit: int

    @property
    def rows(self) -> int:
        """Rows whose features are needed."""
        return self.n1 if self.symmetric else self.n1 + self.n2

    @property
    def pairs(self) -> float:
        """Pairs to contract."""
        return self.n1 * (self.n1 + 1) / 2 if self.symmetric else float(self.n1 * self.n2)


# Forming gradients is one short product per example, far below the rate of the large ones it is
# weighed against.
SHORT_PRODUCT = 3.0
# Operations that one element of a temporary costs by being written and read, at the rate of matrix
# products.
PASS = 24.0
# Bytes of temporaries that stay in caches, and that the C library does not map and clear anew for
# every call.
IN_THE_MAKING = 2**24


def factored_cost(block: FactoredBlock, outputs: str) -> BlockCost:
    """Two Gram matrices of all positions, and their Hadamard product."""
    (_, outs, B, T, D), size = block.cotangents.shape, jnp.dtype(block.cotangents.dtype).itemsize
    inputs = sum(a.shape[3] for a in block.inputs)
    per_pair = outs * outs if outputs == "full" else outs
    entries = B * T * T
    temporaries = entries * (1 + (per_pair if outputs == "full" else 1))
    ops = 2 * entries * (inputs + per_pair * D) + (PASS * temporaries if entries > 1 else 0)
    return BlockCost(0.0, ops, B * T * (inputs + outs * D) * size, 2 * temporaries * max(size, 4))


def gradient_cost(block: Block, outputs: str) -> BlockCost:
    """Explicit gradients, then one flat product."""
    if isinstance(block, FactoredBlock):
        (_, outs, B, T, D), size = (
            block.cotangents.shape,
            jnp.dtype(block.cotangents.dtype).itemsize,
        )
        entries = B * D * sum(a.shape[3] for a in block.inputs)
        making = SHORT_PRODUCT * 2 * outs * T * entries
    else:
        outs, size = block.num_outputs, jnp.dtype(block.jacobians[0].dtype).itemsize
        entries, making = sum(j.shape[2] for j in block.jacobians), 0.0
    per_pair = outs * outs if outputs == "full" else outs
    tile = per_pair if outputs != "mean" else 1
    return BlockCost(
        making, 2.0 * per_pair * entries, outs * entries * size, 2 * tile * max(size, 4)
    )


def block_cost(block: Block, outputs: str, form: str) -> BlockCost:
    """The cost of a block in the given form."""
    if form == "factors" and isinstance(block, FactoredBlock):
        return factored_cost(block, outputs)
    return gradient_cost(block, outputs)


def choose_form(block: Block, problem: Problem) -> str:
    """The cheaper of "factors" and "gradients", counting features that do not fit in memory as made
    again.
    """
    if not isinstance(block, FactoredBlock):
        return "gradients"
    totals = {}
    for form in ("factors", "gradients"):
        cost = block_cost(block, problem.outputs, form)
        visits = max(1.0, 0.5 + 2 * problem.rows * cost.row_bytes / problem.memory_limit)
        totals[form] = cost.total(visits * problem.rows, problem.pairs)
    return min(totals, key=totals.__getitem__)


def choose_forms(blocks: tuple[Block, ...], problem: Problem) -> tuple[str, ...]:
    """The form of every block."""
    return tuple(choose_form(block, problem) for block in blocks)


def forward_ops(plan: Plan, shapes: list[tuple[int, ...]]) -> float:
    """Operations of the network on one example: its products with weights; other leaves count one
    use per entry.
    """
    total = 0.0
    for leaf, shape in enumerate(shapes):
        positions = 1
        if leaf in plan.tracked:
            uses = next(
                u for b in plan.blocks for i, u in zip(b.leaves, b.uses, strict=True) if i == leaf
            )
            positions = sum(_positions(plan, use) for use in uses)
        total += 2.0 * positions * math.prod(shape)
    return total


def _positions(plan: Plan, use: Any) -> int:
    """How often a use reads each entry of its leaf, on average."""
    record, shape = plan.record(use), plan.taps[use.tap].shape
    outer = [size for size, kind in zip(shape, record.scans, strict=False) if kind == "positions"]
    _, T, _ = record.use.layout.sizes(shape[len(record.scans) :])
    return T * math.prod(outer)


def features_and_pairs(
    plan: Plan, forward: float, blocks: tuple[Block, ...], forms: tuple[str, ...], problem: Problem
) -> float:
    """Operations of features (forward once, backward once per output) and of all contractions."""
    costs = [
        block_cost(block, problem.outputs, form) for block, form in zip(blocks, forms, strict=True)
    ]
    features = problem.rows * forward * (1 + plan.num_outputs)
    return features + sum(c.total(problem.rows, problem.pairs) for c in costs)


def vector_product_ops(plan: Plan, forward: float, problem: Problem) -> float:
    """Operations of the method "vector_products": for each pair and output, one Jacobian-vector
    product.
    """
    return plan.num_outputs * forward * (3.0 * problem.n2 + 2.0 * problem.n1 * problem.n2)


def footprint(
    blocks: tuple[Block, ...], forms: tuple[str, ...], plan: Plan, outputs: str
) -> Footprint:
    """Bytes per row and pair of the chosen forms."""
    costs = [block_cost(block, outputs, form) for block, form in zip(blocks, forms, strict=True)]
    factors = [block_cost(block, outputs, "factors").row_bytes for block in blocks]
    row = sum(c.row_bytes for c in costs)
    taps = tree_bytes(plan.taps)
    # Features, the cotangents they are arranged from, and what the backward pass keeps.
    work = row + 2 * sum(factors) + 4 * taps + (1 + plan.num_outputs) * taps
    return Footprint(row, work, max([8, *(c.pair_bytes for c in costs)]))


def rows_at_once(forms: tuple[str, ...], footprint: Footprint, problem: Problem) -> int | None:
    """Rows whose features are made together: few where what they are made from is larger than what
    is kept of them.
    """
    if all(form == "factors" for form in forms) or footprint.work < 4 * footprint.row:
        return None
    return max(1, min(IN_THE_MAKING, problem.memory_limit // 4) // footprint.work)


def vector_product_footprint(plan: Plan, params: Any, outputs: str) -> Footprint:
    """Bytes of the method "vector_products": the gradients of one row, and the activations of every
    pair.
    """
    taps = tree_bytes(plan.taps)
    gradients = tree_bytes(params)
    return Footprint(
        8,
        plan.num_outputs * (gradients + 2 * taps),
        plan.num_outputs * (2 * taps + 8 * plan.num_outputs),
    )
