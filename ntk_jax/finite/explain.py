"""What `empirical_ntk` will do, and at what cost: before anything is computed."""

from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike
from jaxtyping import Num

from ntk_jax.checks import check_option
from ntk_jax.finite.empirical import check_inputs
from ntk_jax.finite.features.features import FactoredBlock
from ntk_jax.finite.strategy import cost
from ntk_jax.finite.strategy.engine import METHODS, Strategy, make_strategy
from ntk_jax.finite.strategy.tiles import peak_bytes
from ntk_jax.memory import readable_size, tree_bytes
from ntk_jax.types import ApplyFn, Params


class LayerRow(NamedTuple):
    """One line of the table: leaves that share cotangents, their rule, operations, and bytes per
    example and pair.
    """

    leaves: tuple[str, ...]
    rule: str
    operations: float
    row_bytes: int
    pair_bytes: int


class Explanation(NamedTuple):
    """The strategy of one `empirical_ntk` call; `print` it.

    Attributes:
        method: the method that runs.
        layers: one `LayerRow` per group of leaves.
        operations: of every method.
        tile: rows and columns of a tile.
        result_bytes: of the kernel.
        peak_bytes: result, features, temporaries.
        unused: leaves that the network never reads.
    """

    method: str
    layers: tuple[LayerRow, ...]
    operations: dict[str, float]
    tile: tuple[int, int]
    result_bytes: int
    peak_bytes: int
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = sum(row.operations for row in self.layers) or 1.0
        lines = [f"{'rule':28} {'GFLOP':>10} {'share':>6} {'per row':>11} {'per pair':>11}  leaves"]
        for row in self.layers:
            sizes = f"{readable_size(row.row_bytes):>11} {readable_size(row.pair_bytes):>11}"
            share = f"{row.operations / total:6.0%}"
            lines.append(
                f"{row.rule:28} {row.operations / 1e9:10.3g} {share} {sizes}  "
                f"{', '.join(row.leaves)}"
            )
        lines += [f"never read: {', '.join(self.unused)}"] if self.unused else []
        totals = ", ".join(f"{name} {ops / 1e9:.3g}" for name, ops in self.operations.items())
        lines.append(f"method {self.method}; GFLOP with features: {totals}")
        size = f"result {readable_size(self.result_bytes)}, peak {readable_size(self.peak_bytes)}"
        lines.append(f"tiles of {self.tile[0]} x {self.tile[1]} rows; {size}")
        return "\n".join(lines)


def explain_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Num[ArrayLike, "n1 *d"],
    x2: Num[ArrayLike, "n2 *d"] | None = None,
    *,
    outputs: str = "mean",
    method: str = "auto",
    memory_limit: int | None = None,
) -> Explanation:
    """What `empirical_ntk` with the same arguments will do: the rule of every layer, operations,
    bytes, tiles.

    Operations of a layer are those of its contraction; the features (one forward pass, one backward
    pass per output) are in the totals per method.

    Args:
        apply_fn: see `empirical_ntk`, as are the further arguments.
        params: parameters.
        x1: examples in rows.
        x2: more examples, or None.
        outputs: "mean", "diagonal" or "full".
        method: as `empirical_ntk`.
        memory_limit: bytes.

    Returns:
        An `Explanation`; `print(explain_ntk(...))` shows a table.

    Raises:
        ValueError: as `empirical_ntk`.
    """
    check_option("method", method, METHODS)
    a1, a2 = check_inputs(apply_fn, params, x1, x2, outputs, "highest", memory_limit)
    strategy = make_strategy(apply_fn, params, a1, a2, outputs, method, memory_limit, "highest")
    size = tree_bytes(jax.ShapeDtypeStruct(strategy.shape, strategy.dtype))
    peak = size + peak_bytes(strategy.tiling, strategy.footprint)
    unused = tuple(strategy.plan.names[i] for i in strategy.plan.unused)
    tile = strategy.tiling.rows1, strategy.tiling.rows2
    return Explanation(
        strategy.method, _layers(strategy), strategy.operations, tile, size, peak, unused
    )


def _layers(strategy: Strategy) -> tuple[LayerRow, ...]:
    rows = []
    for block, form in zip(strategy.blocks, strategy.forms, strict=True):
        found = cost.block_cost(block, strategy.problem.outputs, form)
        operations = found.total(strategy.problem.rows, strategy.problem.pairs)
        rows.append(
            LayerRow(
                block.leaves, _rule(block, form), operations, found.row_bytes, found.pair_bytes
            )
        )
    return tuple(rows)


def _rule(block: Any, form: str) -> str:
    if not isinstance(block, FactoredBlock):
        return "own Jacobian block"
    _, B, T, _ = block.inputs[0].shape
    sizes = f" (B={B}, T={T})" if B * T > 1 else ""
    sizes += "" if block.scales is None else ", cotangents shared by all outputs"
    return ("Gram matrices" if form == "factors" else "explicit gradients") + sizes
