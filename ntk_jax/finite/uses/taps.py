"""Re-evaluate a traced network with a zero "tap" added to every product with a weight.

The derivative with respect to a tap is the cotangent of that product; the other operand, the layer
input, is recorded on the way. Together they are the gradient of the weight (DESIGN.md section 5).
The user's function is not changed: its jaxpr is evaluated again. Parameter leaves enter as
`Reindexed`; a leaf that is used in any way the rules do not follow is reported in `unfit`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from jax import Array
from jax.typing import ArrayLike

from ntk_jax.compat import CALLS, bind
from ntk_jax.finite.uses.canonical import Path, Use
from ntk_jax.finite.uses.tracked import Product, Reindexed, Value, raw, reindex
from ntk_jax.jaxprs import Eqn, Jaxpr, evaluate, inner_jaxpr, readers


@dataclass(frozen=True)
class UseAtTap:
    """One use of a leaf; `scans`: what each enclosing scan is, "blocks" or "positions"."""

    leaf: int
    use: Use
    path: Path
    stacked: int
    scans: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tap:
    """A place where a zero is added: its shape (scan axes first), and the uses that end there."""

    shape: tuple[int, ...]
    dtype: Any
    uses: tuple[UseAtTap, ...]

    def inside(self, depth: int, length: int) -> "Tap":
        """The same tap seen from outside a scan at `depth`."""
        kind = lambda use: "blocks" if use.stacked == depth else "positions"
        uses = tuple(replace(use, scans=(kind(use), *use.scans)) for use in self.uses)
        return Tap((length, *self.shape), self.dtype, uses)


Inputs: TypeAlias = tuple[ArrayLike, ...]
"""The layer inputs recorded at one tap, one per use."""

Rule: TypeAlias = Callable[["TappedEvaluation", Eqn, list[Value]], list[Value] | None]
"""`rule(evaluation, equation, operands)` -> the results, or None where it does not apply."""


@dataclass
class TappedEvaluation:
    """One pass over a jaxpr. Without `values` nothing is added: it only finds where taps belong.

    Attributes:
        rules: what to do at each kind of equation that meets a tracked value.
        values: the taps to add, in order of visit; None in the pass that finds them.
        depth: how many scans enclose this evaluation.
        taps: the taps met.
        inputs: for each tap, one recorded layer input per use.
        unfit: leaves with a use that is not followed.
    """

    rules: Mapping[str, Rule]
    values: list[Array] | None = None
    depth: int = 0
    taps: list[Tap] = field(default_factory=list)
    inputs: list[Inputs] = field(default_factory=list)
    unfit: set[int] = field(default_factory=set)

    def run(self, jaxpr: Jaxpr, consts: list[Any], args: Sequence[Value]) -> list[Value]:
        """The results of `jaxpr`; a product whose only use is to be a result has no tap yet."""
        users = readers(jaxpr)

        def keep(value: Value, read_by: list[Eqn | None]) -> Value:
            if isinstance(value, Product) and not _can_wait(read_by):
                return self.tap(value)
            return value

        def step(eqn: Eqn, values: list[Value]) -> list[Value]:
            outs = zip(eqn.outvars, self._evaluate(eqn, values), strict=True)
            return [keep(out, users[var]) for var, out in outs]

        kept = [keep(a, users[var]) for var, a in zip(jaxpr.invars, args, strict=True)]
        return evaluate(jaxpr, consts, kept, step)

    def child(self, values: list[Array] | None = None, *, deeper: int = 0) -> "TappedEvaluation":
        """An evaluation of an inner jaxpr with its own taps."""
        return TappedEvaluation(self.rules, values, self.depth + deeper)

    def enter(self, found: "TappedEvaluation") -> list[Array] | None:
        """The taps of the inner evaluation that `found` explored, out of this one's own."""
        self.unfit |= found.unfit
        start = len(self.taps)
        return None if self.values is None else self.values[start : start + len(found.taps)]

    def leave(self, taps: list[Tap], inputs: list[Inputs]) -> None:
        """Account for the taps of an inner evaluation."""
        self.taps += taps
        self.inputs += inputs

    def settle(self, values: Sequence[Value]) -> list[Any]:
        """Plain arrays: products get their tap, and leaves that escape are unfit."""
        self.reject(values)
        return [self.tap(v) if isinstance(v, Product) else raw(v) for v in values]

    def reject(self, values: Sequence[Value]) -> None:
        """The leaves among `values` go to their own Jacobian block."""
        self.unfit |= {v.leaf for v in values if isinstance(v, Reindexed)}

    def tap(self, product: Product) -> Array:
        """Add the next tap to a product, and record its layer inputs."""
        uses = tuple(UseAtTap(p.leaf, p.use, p.path, p.stacked) for p in product.uses)
        array, number = product.array, len(self.taps)
        self.taps.append(Tap(array.shape, array.dtype, uses))
        self.inputs.append(tuple(p.scaled_input() for p in product.uses))
        return array if self.values is None else array + self.values[number]

    def _evaluate(self, eqn: Eqn, values: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if not any(isinstance(v, Reindexed | Product) for v in values):
            return bind(eqn, values)
        if name in CALLS:
            return self.run(*inner_jaxpr(eqn), values)
        found = self.rules[name](self, eqn, values) if name in self.rules else None
        if found is not None:
            return found
        if len(values) == 1 and isinstance(values[0], Reindexed):
            outs = bind(eqn, [values[0].array])
            leaf = reindex(values[0], eqn, outs[0])
            if leaf is not None:
                return [leaf]
            self.reject(values)
            return outs
        return bind(eqn, self.settle(values))


WAITING = ("add", "add_any", "mul", "div", "neg", "transpose", *CALLS)


def _can_wait(read_by: list[Eqn | None]) -> bool:
    """Whether a tap can come later: the one reader adds, scales, transposes, or is a call's result.

    A tap behind the bias serves the weight and the bias, so that they share their cotangents.
    """
    return len(read_by) == 1 and (read_by[0] is None or read_by[0].primitive.name in WAITING)
