"""What `empirical_ntk` will do, and at what cost: before anything is computed."""

from typing import NamedTuple

from ntk_jax.checks import check_option
from ntk_jax.examples import Examples
from ntk_jax.finite.features.features import Block, FactoredBlock
from ntk_jax.finite.inputs import check_inputs
from ntk_jax.finite.strategy import cost
from ntk_jax.finite.strategy.choose import METHODS, Options, Strategy, choose_strategy
from ntk_jax.finite.strategy.tiles import peak_bytes
from ntk_jax.memory import readable_size, tree_bytes
from ntk_jax.types import ApplyFn, Params


class LayerRow(NamedTuple):
    """One line of the table: leaves that share cotangents, their rule, operations, and bytes."""

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
        reversed: leaves that have no factors because derivatives by x in reverse mode, such as
            `jax.grad` of `jax.grad`, use their transposes; with `jax.jvp` they have.
    """

    method: str
    layers: tuple[LayerRow, ...]
    operations: dict[str, float]
    tile: tuple[int, int]
    result_bytes: int
    peak_bytes: int
    unused: tuple[str, ...]
    reversed: tuple[str, ...] = ()

    def __str__(self) -> str:
        total = sum(row.operations for row in self.layers) or 1.0  # networks without parameters
        lines = [f"{'rule':28} {'GFLOP':>10} {'share':>6} {'per row':>11} {'per pair':>11}  leaves"]
        for row in self.layers:
            sizes = f"{readable_size(row.row_bytes):>11} {readable_size(row.pair_bytes):>11}"
            work = f"{row.operations / 1e9:10.3g} {row.operations / total:6.0%}"
            lines.append(f"{row.rule:28} {work} {sizes}  {', '.join(row.leaves)}")
        lines += [f"never read: {', '.join(self.unused)}"] if self.unused else []
        if self.reversed:
            lines.append(
                f"no factors: {', '.join(self.reversed)}, as reverse-mode derivatives by x use "
                "their transposes. Faster: jax.jvp, lambda x, v: jax.jvp(u, (x,), (v,))[1]."
            )
        totals = ", ".join(f"{name} {ops / 1e9:.3g}" for name, ops in self.operations.items())
        lines.append(f"method {self.method}; GFLOP with features: {totals}")
        size = f"result {readable_size(self.result_bytes)}, peak {readable_size(self.peak_bytes)}"
        lines.append(f"tiles of {self.tile[0]} x {self.tile[1]} rows; {size}")
        return "\n".join(lines)


def explain_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None = None,
    *,
    outputs: str = "mean",
    method: str = "auto",
    memory_limit: int | None = None,
) -> Explanation:
    """What `empirical_ntk` with the same arguments will do: rules, operations, bytes, tiles.

    Operations of a layer are those of its contraction; the features (one forward pass, one backward
    pass per output) are in the totals per method.

    Example:
        >>> apply_fn = lambda p, x: jnp.tanh(x @ p["W"]) @ p["V"]
        >>> params = {"V": jnp.ones((4, 2)), "W": jnp.eye(3, 4)}
        >>> plan = ntk_jax.explain_ntk(apply_fn, params, jnp.eye(3))
        >>> plan.method, [row.leaves[0] for row in plan.layers]
        ('layerwise', ["['W']", "['V']"])
        >>> print(plan)
        rule    GFLOP ...
        ...
        method layerwise; GFLOP with features: ...
        tiles of 3 x 3 rows; result ...

    Args:
        apply_fn: `apply_fn(params, x)` -> outputs (n, O); further arguments as of `empirical_ntk`.
        params: parameters.
        x1: examples in rows.
        x2: more examples, or None.
        outputs: "mean" (n1, n2), "diagonal" (n1, n2, O), or "full" (n1, n2, O, O).
        method: as `empirical_ntk`.
        memory_limit: bytes.

    Returns:
        An `Explanation`; `print(explain_ntk(...))` shows a table.

    Raises:
        ValueError: as `empirical_ntk`.

    Reference: Novak, Sohl-Dickstein, Schoenholz 2022, section 3.
    """
    check_option("method", method, METHODS)
    a1, a2 = check_inputs(apply_fn, params, x1, x2, outputs, "highest", memory_limit)
    s = choose_strategy(apply_fn, params, a1, a2, Options(outputs, method, memory_limit))
    return Explanation(
        method=s.method,
        layers=_layers(s),
        operations=s.operations,
        tile=(s.tiling.rows1, s.tiling.rows2),
        result_bytes=tree_bytes(s.result),
        peak_bytes=tree_bytes(s.result) + peak_bytes(s.tiling, s.footprint),
        unused=tuple(s.plan.names[i] for i in s.plan.unused),
        reversed=tuple(s.plan.names[i] for i in s.plan.reversed),
    )


def _layers(s: Strategy) -> tuple[LayerRow, ...]:
    rows = []
    for block, form in zip(s.blocks, s.forms, strict=True):
        found = cost.block_cost(block, s.request.outputs, form)
        operations = found.total(s.request.rows, s.request.pairs)
        sizes = found.row_bytes, found.pair_bytes
        rows.append(LayerRow(block.leaves, _rule(block, form), operations, *sizes))
    return tuple(rows)


def _rule(block: Block, form: str) -> str:
    if not isinstance(block, FactoredBlock):
        return "own Jacobian block"
    _, B, T, _ = block.inputs[0].shape
    sizes = f" (B={B}, T={T})" if B * T > 1 else ""
    sizes += "" if block.scales is None else ", cotangents shared by all outputs"
    return ("Gram matrices" if form == "factors" else "explicit gradients") + sizes
