"""Expressions under construction: which fields are the variables, which arrays the operands."""

from collections.abc import Sequence
from functools import reduce

from ntk_jax.infinite.flax.errors import SAMPLES, NoLimitError
from ntk_jax.infinite.flax.values.deterministic import Det
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
from ntk_jax.infinite.flax.values.values import Term, fields_of_terms


def multiple_of(g: Field) -> list[tuple[Field, Det | None]]:
    """All (base, factor) with g = factor · base (None: 1), from g itself down to its root."""
    found: list[tuple[Field, Det | None]] = [(g, None)]
    while isinstance(g, Combination) and len(g.parts) == 1:
        by, inner = g.parts[0]
        if by is not None and (by.factor is None or inner.shape != g.shape):
            break
        total = found[-1][1]
        if by is not None and by.factor is not None:
            total = by.factor if total is None else total.times(by.factor)
        g = inner
        found.append((g, total))
    return found


def root(g: Field) -> Field:
    """The last field that g is a multiple of."""
    return multiple_of(g)[-1][0]


class ExpressionBuilder:
    """The variables and operands of an expression under construction: multiples of one field become
    one variable.
    """

    def __init__(self, fields: Sequence[Field] = ()):
        self.bases: dict[Field, int] = {}
        self.operands: list[Det] = []
        self.resolved: dict[Field, tuple[Field, Det | None]] = {}
        self.resolve(fields)

    @property
    def variables(self) -> tuple[Field, ...]:
        """The fields that are variables."""
        return tuple(self.bases)

    @property
    def random(self) -> list[Field]:
        """The variables that are random at initialization."""
        return [g for g in self.bases if not g.degenerate]

    def resolve(self, fields: Sequence[Field]) -> None:
        """Choose for each field the first base that is also one of those that share its root: a
        function of h and 2 h is one of h, and not of what h is a multiple of.
        """
        multiples = {g: multiple_of(g) for g in fields}
        for g, bases in multiples.items():
            relatives = [other for other in multiples.values() if other[-1][0] is bases[-1][0]]
            self.resolved[g] = next(
                (base, factor)
                for base, factor in bases
                if all(any(b is base for b, _ in other) for other in relatives)
            )

    def variable(self, g: Field) -> Expression:
        """g in terms of its base."""
        if g not in self.resolved:
            self.resolve([*self.resolved, g])
        base, factor = self.resolved[g]
        node = variable(self.bases.setdefault(base, len(self.bases)))
        return node if factor is None else apply(*MUL, [node, self.deterministic(factor)])

    def deterministic(self, d: Det) -> Expression:
        """A number, or an operand."""
        if d.literal is not None:
            return constant(d.literal)
        if d not in self.operands:
            self.operands.append(d)
        return operand(self.operands.index(d))

    def term(self, t: Term) -> Expression:
        """One term, as the product of its factors."""
        _check_scalar(t)
        nodes = []
        for f in t.factors:
            variables = [self.variable(g) for g in f.gaussians]
            inner = variable(0) if f.node is None else f.node
            nodes.append(substitute(inner, variables, [self.deterministic(d) for d in f.operands]))
        if t.map is not None and t.map.factor is not None:
            nodes.append(self.deterministic(t.map.factor))
        return reduce(lambda a, b: apply(*MUL, [a, b]), nodes)

    def sum(self, terms: Sequence[Term], offset: Det | None) -> Expression:
        """All terms and the offset."""
        self.resolve(list(dict.fromkeys([*self.resolved, *fields_of_terms(terms)])))
        nodes = [self.term(t) for t in terms]
        if offset is not None:
            nodes.append(self.deterministic(offset))
        return reduce(lambda a, b: apply(*ADD, [a, b]), nodes)


def _check_scalar(t: Term) -> None:
    """Raise unless a term is a function of fields, entry by entry."""
    if t.masked:
        raise NoLimitError(
            "a nonlinearity acts on a value right after dropout, which is not Gaussian: that "
            "has no closed form,",
            "Apply dropout after the nonlinearity, or put a linear layer between.",
        )
    if t.map is not None and t.map.factor is None:
        raise NoLimitError(
            "a nonlinearity acts on a sum of finitely many random entries that is not Gaussian, "
            "as after pooling a nonlinearity, after a depthwise convolution (Novak et al. 2019, "
            "arXiv:1810.05148, need sums over many channels), or in the variance of a batch: that "
            "has no closed form,",
            f"Put a linear layer between, or {SAMPLES}",
        )
    if any(f.sampled is not None for f in t.factors):
        raise NoLimitError("a nonlinearity acts on what is known by samples only,")
