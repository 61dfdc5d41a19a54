"""Which blocks of two functions' features meet: by leaf, as functions read parameters differently.

Leaves that both functions use alike keep their factors, in groups that share cotangents on either
side; others become gradients, leaf by leaf; a leaf that one function never reads adds nothing.
"""

from collections.abc import Hashable
from dataclasses import replace
from typing import NamedTuple

from ntk_jax.finite.features.features import Block, FactoredBlock, GradientBlock, TangentFeatures


class Match(NamedTuple):
    """Leaves that are contracted together, as "factors", as "gradients", or in the "leaf" order."""

    leaves: tuple[str, ...]
    form: str


Blocks = tuple[Block, ...]


def matches_of(blocks1: Blocks, blocks2: Blocks) -> tuple[Match, ...]:
    """The common refinement of how both group their leaves."""
    of2 = {leaf: (block, j) for block in blocks2 for j, leaf in enumerate(block.leaves)}
    groups: dict[Hashable, list[str]] = {}
    forms: dict[Hashable, str] = {}
    for block in blocks1:
        for i, leaf in enumerate(block.leaves):
            if leaf not in of2:
                continue
            other, j = of2[leaf]
            alike = block.kind_of(i) == other.kind_of(j)
            key = (id(block), id(other)) if alike else leaf
            groups.setdefault(key, []).append(leaf)
            factored = isinstance(block, FactoredBlock)
            forms[key] = ("factors" if factored else "gradients") if alike else "leaf"
    return tuple(Match(tuple(leaves), forms[key]) for key, leaves in groups.items())


def block_of(blocks: Blocks, match: Match) -> Block:
    """The leaves of a match alone, as they are."""
    return next(b for b in blocks if match.leaves[0] in b.leaves).only(match.leaves)


def arranged(
    features: TangentFeatures, matches: tuple[Match, ...], precision: str
) -> TangentFeatures:
    """One side's features in the blocks and forms of the matches."""
    blocks: list[Block] = []
    for match in matches:
        block = block_of(features.blocks, match)
        if match.form == "leaf":
            found = block.gradients(precision).by_leaf()
            block = GradientBlock((found[match.leaves[0]],), match.leaves)
        blocks.append(block.gradients(precision) if match.form == "gradients" else block)
    return replace(features, blocks=tuple(blocks))
