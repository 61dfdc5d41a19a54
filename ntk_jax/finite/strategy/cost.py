"""What a kernel costs: operations and bytes of every block in either form, and of every method."""

import math
from typing import NamedTuple

import jax.numpy as jnp

from ntk_jax.finite.contraction.pairing import Match, block_of, matches_of
from ntk_jax.finite.features.features import Block, FactoredBlock
from ntk_jax.finite.strategy.tiles import Footprint
from ntk_jax.finite.uses.plan import Place, Plan
from ntk_jax.memory import tree_bytes
from ntk_jax.types import Params


class BlockCost(NamedTuple):
    """Operations and bytes of a block: per row to make its features, per pair to contract them."""

    row_ops: float
    pair_ops: float
    row_bytes: int
    pair_bytes: int

    def total(self, rows: float, pairs: float) -> float:
        """Operations for so many rows and pairs."""
        return rows * self.row_ops + pairs * self.pair_ops


class Request(NamedTuple):
    """The kernel that is asked for: rows on either side, the mode of outputs, the budget."""

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


def factored_cost(
    block: FactoredBlock, outputs: str, other: FactoredBlock | None = None
) -> BlockCost:
    """Two Gram matrices of all positions, and their Hadamard product; of another side, or twice."""
    (_, outs, B, T, D), size = block.cotangents.shape, jnp.dtype(block.cotangents.dtype).itemsize
    inputs = sum(a.shape[3] for a in block.inputs)
    _, outs2, _, T2, _ = (block if other is None else other).cotangents.shape
    per_pair = outs * outs2 if outputs == "full" else outs
    entries = B * T * T2
    temporaries = entries * (1 + (per_pair if outputs == "full" else 1))
    ops = 2 * entries * (inputs + per_pair * D) + (PASS * temporaries if entries > 1 else 0)
    return BlockCost(0.0, ops, B * T * (inputs + outs * D) * size, 2 * temporaries * max(size, 4))


def gradient_cost(block: Block, outputs: str, other: Block | None = None) -> BlockCost:
    """Explicit gradients, then one flat product."""
    outs, outs2 = block.num_outputs, (block if other is None else other).num_outputs
    if isinstance(block, FactoredBlock):
        (_, _, B, T, D), dtype = block.cotangents.shape, block.cotangents.dtype
        entries = B * D * sum(a.shape[3] for a in block.inputs)
        making = SHORT_PRODUCT * 2 * outs * T * entries
    else:
        entries, dtype = sum(j.shape[2] for j in block.jacobians), block.jacobians[0].dtype
        making = 0.0
    per_pair = outs * outs2 if outputs == "full" else outs
    tile, size = per_pair if outputs != "mean" else 1, jnp.dtype(dtype).itemsize
    ops = 2.0 * per_pair * entries
    return BlockCost(making, ops, outs * entries * size, 2 * tile * max(size, 4))


def block_cost(block: Block, outputs: str, form: str) -> BlockCost:
    """The cost of a block in the given form."""
    if form == "factors" and isinstance(block, FactoredBlock):
        return factored_cost(block, outputs)
    return gradient_cost(block, outputs)


def choose_form(block: Block, request: Request) -> str:
    """The cheaper of "factors" and "gradients"."""

    def operations(form: str) -> float:
        cost = block_cost(block, request.outputs, form)
        # Features that do not fit in memory are made again for other tiles.
        visits = max(1.0, 0.5 + 2 * request.rows * cost.row_bytes / request.memory_limit)
        return cost.total(visits * request.rows, request.pairs)

    forms = ("factors", "gradients") if isinstance(block, FactoredBlock) else ("gradients",)
    return min(forms, key=operations)


def choose_forms(blocks: tuple[Block, ...], request: Request) -> tuple[str, ...]:
    """The form of every block."""
    return tuple(choose_form(block, request) for block in blocks)


def choose_matches(
    blocks1: tuple[Block, ...], blocks2: tuple[Block, ...], request: Request
) -> tuple[Match, ...]:
    """How the leaves of two functions meet, factors as gradients where that is cheaper."""
    return tuple(_cheaper(blocks1, blocks2, m, request) for m in matches_of(blocks1, blocks2))


def _cheaper(
    blocks1: tuple[Block, ...], blocks2: tuple[Block, ...], match: Match, request: Request
) -> Match:
    b1, b2 = block_of(blocks1, match), block_of(blocks2, match)
    if not (match.form == "factors" and isinstance(b1, FactoredBlock)):
        return match
    assert isinstance(b2, FactoredBlock)
    making = (
        request.n1 * gradient_cost(b1, request.outputs).row_ops
        + request.n2 * gradient_cost(b2, request.outputs).row_ops
    )
    by_gradients = making + request.pairs * gradient_cost(b1, request.outputs, b2).pair_ops
    by_factors = request.pairs * factored_cost(b1, request.outputs, b2).pair_ops
    return match if by_factors <= by_gradients else match._replace(form="gradients")


def match_bytes(
    blocks1: tuple[Block, ...], blocks2: tuple[Block, ...], match: Match, outputs: str
) -> tuple[int, int]:
    """Bytes of a row, of the larger side, and of a pair."""
    b1, b2 = block_of(blocks1, match), block_of(blocks2, match)
    if match.form == "factors" and isinstance(b1, FactoredBlock) and isinstance(b2, FactoredBlock):
        costs = factored_cost(b1, outputs, b2), factored_cost(b2, outputs, b1)
    else:
        costs = gradient_cost(b1, outputs, b2), gradient_cost(b2, outputs, b1)
    return max(c.row_bytes for c in costs), costs[0].pair_bytes


def forward_ops(plan: Plan) -> float:
    """Operations of the network on one example: its products with weights, or a use per entry."""
    positions = dict.fromkeys(range(len(plan.shapes)), 1)
    for block in plan.blocks:
        for leaf, places in zip(block.leaves, block.places, strict=True):
            positions[leaf] = sum(_positions(plan, place) for place in places)
    return sum(2.0 * positions[leaf] * math.prod(s) for leaf, s in enumerate(plan.shapes))


def _positions(plan: Plan, place: Place) -> int:
    """How often a use reads each entry of its leaf, on average."""
    use, shape = plan.at(place), plan.taps[place.tap].shape
    outer = [size for size, kind in zip(shape, use.scans, strict=False) if kind == "positions"]
    _, T, _ = use.use.axes.sizes(shape[len(use.scans) :])
    return T * math.prod(outer)


def features_and_pairs(
    plan: Plan, forward: float, blocks: tuple[Block, ...], forms: tuple[str, ...], request: Request
) -> float:
    """Operations of features (forward once, backward once per output) and of all contractions."""
    pairs = zip(blocks, forms, strict=True)
    costs = [block_cost(block, request.outputs, form) for block, form in pairs]
    features = request.rows * forward * (1 + plan.num_outputs)
    return features + sum(c.total(request.rows, request.pairs) for c in costs)


def vector_product_ops(plan: Plan, forward: float, request: Request) -> float:
    """Operations of "vector_products": a Jacobian-vector product for each pair and output."""
    return plan.num_outputs * forward * (3.0 * request.n2 + 2.0 * request.n1 * request.n2)


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


# A quarter of the budget, as in `choose_tiling`, is for what is in the making.
def rows_at_once(forms: tuple[str, ...], footprint: Footprint, request: Request) -> int | None:
    """Rows whose features are made together: few if what they are made from is the larger part."""
    if all(form == "factors" for form in forms) or footprint.work < 4 * footprint.row:
        return None
    return max(1, min(IN_THE_MAKING, request.memory_limit // 4) // footprint.work)


def vector_product_footprint(plan: Plan, params: Params) -> Footprint:
    """Bytes of "vector_products": the gradients of one row, and the activations of every pair."""
    taps = tree_bytes(plan.taps)
    gradients = tree_bytes(params)
    work, pair = gradients + 2 * taps, 2 * taps + 8 * plan.num_outputs
    return Footprint(8, plan.num_outputs * work, plan.num_outputs * pair)
