"""Re-evaluate a traced network with a zero "tap" added to the output of every product with a
weight.

The derivative with respect to a tap is the cotangent of that output; the other operand is recorded
on the way. Together they are the gradient of the weight (DESIGN.md section 5). The user's function
is not changed: its jaxpr is walked. Parameter leaves enter as `View`s; a leaf that is used in any
way the walk does not follow is reported in `unfit`.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from ntk_jax.compat import CALLS, Literal, bind
from ntk_jax.finite.uses.rules import RULES
from ntk_jax.finite.uses.sites import Use
from ntk_jax.finite.uses.views import Product, View, raw, reindex
from ntk_jax.jaxprs import open_jaxpr


@dataclass(frozen=True)
class Record:
    """One use of a leaf at a tap; `scans` are the enclosing scans, outermost first: "blocks" or
    "positions".
    """

    leaf: int
    use: Use
    path: tuple[Any, ...]
    stacked: int
    scans: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tap:
    """A place where a zero is added: the shape of one tap (scan axes first), and the uses that end
    there.
    """

    shape: tuple[int, ...]
    dtype: Any
    records: tuple[Record, ...]

    def inside(self, depth: int, length: int) -> "Tap":
        """The same tap seen from outside a scan at `depth`."""
        records = []
        for r in self.records:
            kind = "blocks" if r.stacked == depth else "positions"
            records.append(replace(r, scans=(kind, *r.scans)))
        return Tap((length, *self.shape), self.dtype, tuple(records))


@dataclass
class Walk:
    """One pass over a jaxpr. Without `values` nothing is added: the pass only finds where taps
    belong.

    Attributes:
        values: the taps to add, in order of visit; None in the pass that finds them.
        depth: how many scans enclose this walk.
        taps: the taps met.
        inputs: for each tap, one recorded layer input per use.
        unfit: leaves with a use that is not followed.
    """

    values: list[Any] | None = None
    depth: int = 0
    taps: list[Tap] = field(default_factory=list)
    inputs: list[tuple[Any, ...]] = field(default_factory=list)
    unfit: set[int] = field(default_factory=set)

    def run(self, jaxpr: Any, consts: list[Any], args: list[Any]) -> list[Any]:
        """Evaluate `jaxpr`; the results may be views, or products whose only use is to be a
        result.
        """
        users = _users(jaxpr)
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        for var, value in zip(jaxpr.invars, args, strict=True):
            env[var] = self._keep(value, users[var])
        for eqn in jaxpr.eqns:
            values = [a.val if isinstance(a, Literal) else env[a] for a in eqn.invars]
            for var, out in zip(eqn.outvars, self._evaluate(eqn, values), strict=True):
                env[var] = self._keep(out, users[var])
        return [a.val if isinstance(a, Literal) else env[a] for a in jaxpr.outvars]

    def child(self, values: list[Any] | None = None, *, deeper: int = 0) -> "Walk":
        """A walk over an inner jaxpr with its own taps."""
        return Walk(values, self.depth + deeper)

    def enter(self, found: "Walk") -> list[Any] | None:
        """The taps of an inner walk that `found` explored, out of this walk's own."""
        self.unfit |= found.unfit
        start = len(self.taps)
        return None if self.values is None else self.values[start : start + len(found.taps)]

    def leave(self, taps: list[Tap], inputs: list[tuple[Any, ...]]) -> None:
        """Account for the taps of an inner walk."""
        self.taps += taps
        self.inputs += inputs

    def settle(self, values: list[Any]) -> list[Any]:
        """Plain arrays: products get their tap, and views that escape make their leaf unfit."""
        self.reject(values)
        return [self.tap(v) if isinstance(v, Product) else raw(v) for v in values]

    def reject(self, values: list[Any]) -> None:
        """Leaves of the views among `values` go to their own Jacobian block."""
        self.unfit |= {v.leaf for v in values if isinstance(v, View)}

    def tap(self, product: Product) -> Any:
        """Add the next tap to a product, and record its layer inputs."""
        records = tuple(Record(e.leaf, e.use, e.path, e.stacked) for e in product.entries)
        self.taps.append(Tap(product.array.shape, product.array.dtype, records))
        self.inputs.append(tuple(e.record() for e in product.entries))
        return (
            product.array
            if self.values is None
            else product.array + self.values[len(self.taps) - 1]
        )

    def _keep(self, value: Any, users: list[Any]) -> Any:
        return self.tap(value) if isinstance(value, Product) and not _can_wait(users) else value

    def _evaluate(self, eqn: Any, values: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if not any(isinstance(v, View | Product) for v in values):
            return bind(eqn, values)
        if name in CALLS:
            return self.run(*open_jaxpr(eqn.params[CALLS[name]]), values)
        if name in RULES:
            found = RULES[name](self, eqn, values)
            if found is not None:
                return found
        if len(values) == 1 and isinstance(values[0], View):
            outs = bind(eqn, [values[0].array])
            view = reindex(values[0], name, eqn.params, outs[0])
            if view is not None:
                return [view]
            self.reject(values)
            return outs
        return bind(eqn, self.settle(values))


def _users(jaxpr: Any) -> dict[Any, list[Any]]:
    """The equations that read each variable; "result" stands for the jaxpr's own result."""
    users = defaultdict(list)
    for eqn in jaxpr.eqns:
        for a in eqn.invars:
            if not isinstance(a, Literal):
                users[a].append(eqn)
    for a in jaxpr.outvars:
        if not isinstance(a, Literal):
            users[a].append("result")
    return users


def _can_wait(users: list[Any]) -> bool:
    """Whether a tap can come later: the only reader adds, scales, transposes, or hands the product
    out of a call.
    """
    if len(users) != 1:
        return False
    if users[0] == "result":
        return True
    return users[0].primitive.name in ("add", "add_any", "mul", "div", "neg", "transpose", *CALLS)
