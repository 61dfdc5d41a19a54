"""Expressions under construction: which Gaussians are the variables, which arrays the operands."""

from collections.abc import Sequence

from ntk_jax.infinite.flax.errors import SAMPLES, NoLimitError
from ntk_jax.infinite.flax.values.expression import (
    Expression,
    apply,
    constant,
    operand,
    substitute,
    variable,
)
from ntk_jax.infinite.flax.values.fields import Combination, Field
from ntk_jax.infinite.flax.values.primitives import ADD, MUL
from ntk_jax.infinite.flax.values.values import Det, Term


def chain(g: Field) -> list[tuple[Field, Det | None]]:
    """g, and what it is a multiple of: (base, factor) with g = factor · base, from g down."""
    found: list[tuple[Field, Det | None]] = [(g, None)]
    while isinstance(g, Combination) and len(g.parts) == 1:
        by, inner = g.parts[0]
        if by is not None and (by.factor is None or inner.shape != g.shape):
            break
        total = found[-1][1]
        if by is not None:
            total = by.factor if total is None else total.times(by.factor)
        g = inner
        found.append((g, total))
    return found


class Slots:
    """The variables and operands of an expression under construction: multiples of one Gaussian
    become one variable.
    """

    def __init__(self):
        self.bases: dict[Field, int] = {}
        self.operands: list[Det] = []
        self.resolved: dict[Field, tuple[Field, Det | None]] = {}

    @property
    def gaussians(self) -> tuple[Field, ...]:
        """The variables."""
        return tuple(self.bases)

    def roots(self, terms: Sequence[Term]) -> set[Field]:
        """The variables that the terms need."""
        return {self.resolved[g][0] for t in terms for f in t.factors for g in f.gaussians}

    def resolve(self, fields: Sequence[Field]) -> None:
        """Choose for each Gaussian the deepest common base with those that it shares one with."""
        chains = {g: chain(g) for g in fields}
        for g, links in chains.items():
            relatives = [other for other in chains.values() if other[-1][0] is links[-1][0]]
            for base, factor in links:
                if all(any(b is base for b, _ in other) for other in relatives):
                    self.resolved[g] = (base, factor)
                    break

    def variable(self, g: Field) -> Expression:
        """g in terms of its base."""
        if g not in self.resolved:
            self.resolve([*self.resolved, g])
        base, factor = self.resolved[g]
        node = variable(self.bases.setdefault(base, len(self.bases)))
        return node if factor is None else apply(MUL[0], MUL[1], [node, self.deterministic(factor)])

    def deterministic(self, d: Det) -> Expression:
        """A number, or an operand."""
        if d.literal is not None:
            return constant(d.literal)
        for i, known in enumerate(self.operands):
            if known is d:
                return operand(i)
        self.operands.append(d)
        return operand(len(self.operands) - 1)

    def term(self, t: Term) -> Expression:
        """One term."""
        if t.masked:
            raise NoLimitError(
                "a nonlinearity acts on a value right after dropout, which is not Gaussian: that "
                "has no closed form,",
                "Apply dropout after the nonlinearity, or put a linear layer between.",
            )
        if t.map is not None and t.map.factor is None:
            raise NoLimitError(
                "a nonlinearity acts on a sum of finitely many random entries that is not "
                "Gaussian, as after pooling a "
                "nonlinearity: that has no closed form,",
                f"Put a linear layer between, or {SAMPLES}",
            )
        if any(f.sampled is not None for f in t.factors):
            raise NoLimitError("a nonlinearity acts on what is known by samples only,")
        nodes = []
        for f in t.factors:
            variables = [self.variable(g) for g in f.gaussians]
            inner = variable(0) if f.node is None else f.node
            nodes.append(substitute(inner, variables, [self.deterministic(d) for d in f.operands]))
        if t.map is not None:
            nodes.append(self.deterministic(t.map.factor))
        product = nodes[0]
        for n in nodes[1:]:
            product = apply(MUL[0], MUL[1], [product, n])
        return product

    def sum(self, terms: Sequence[Term], offset: Det | None) -> Expression:
        """All terms and the offset."""
        self.resolve(
            list(
                dict.fromkeys(
                    [*self.resolved, *(g for t in terms for f in t.factors for g in f.gaussians)]
                )
            )
        )
        nodes = [self.term(t) for t in terms]
        if offset is not None:
            nodes.append(self.deterministic(offset))
        total = nodes[0]
        for n in nodes[1:]:
            total = apply(ADD[0], ADD[1], [total, n])
        return total
