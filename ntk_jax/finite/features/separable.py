"""Cotangents that factorize, delta[n, o] = m[n] c[o]: a mask of the example times output weights.

Behind the last nonlinearity the network is linear, so the cotangent there is a weight that no
example changes, and the nonlinearity's derivative multiplies it entry by entry. Averaged over
outputs, such a layer then costs what one output costs:

    mean_o sum_d m_d m'_d c_od² = sum_d m_d m'_d s_d,  s_d = mean_o c_od²
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr
from jax.typing import ArrayLike

from ntk_jax.compat import CALLS, Literal, bind
from ntk_jax.examples import Examples
from ntk_jax.jaxprs import (
    Atom,
    Eqn,
    Jaxpr,
    Var,
    dtype_of,
    evaluate,
    inner_jaxpr,
    needed,
    shape_of,
)

# Linear in each operand that the output's cotangent enters, entry by entry.
LINEAR = ("mul", "div", "neg", "select_n", "add", "add_any", "sub", "convert_element_type", "copy")


@dataclass(frozen=True, eq=False)
class Separable:
    """A cotangent and the weight c that it is m times: variables of the traced program.

    `constant` are the axes along which c is constant.
    """

    cotangent: Var
    weight: Var
    constant: frozenset[int]


@dataclass(frozen=True, eq=False)
class Cotangents:
    """The program (example, cotangent of the outputs) -> cotangents at all taps.

    Attributes:
        closed: the program.
        found: which of its results factorize; None for the others.
    """

    closed: ClosedJaxpr
    found: tuple[Separable | None, ...]

    def mask(self, part: Separable, x: Examples) -> Array:
        """m of one example: the cotangent with ones in place of c."""
        ones = jnp.ones(shape_of(part.weight), dtype_of(part.weight))
        known = zip(self.closed.jaxpr.invars[:-1], jax.tree.leaves(x), strict=True)
        return self._evaluate(part.cotangent, {**dict(known), part.weight: ones})

    def weight(self, part: Separable, e: Array) -> Array:
        """c of one output, whose cotangent is e."""
        return self._evaluate(part.weight, {self.closed.jaxpr.invars[-1]: e})

    def _evaluate(self, variable: Var, known: dict[Var, Array]) -> Array:
        jaxpr, consts = self.closed.jaxpr, self.closed.consts
        equations = needed(jaxpr, [variable], {*jaxpr.constvars, *known})
        nothing = [None] * len(jaxpr.invars)
        (value,) = evaluate(
            jaxpr, consts, nothing, bind, equations=equations, wanted=[variable], known=known
        )
        return value


def separate(
    cotangents: Callable[[Examples, Array], list[Array]], x: Examples, e: Array
) -> Cotangents:
    """Which results of `cotangents(x, e)`, arrays that are linear in e, factorize."""
    closed = jax.make_jaxpr(cotangents)(x, e)
    # Traced again without calls: a multiple of c can be behind one.
    inlined = lambda *args: evaluate(closed.jaxpr, closed.consts, args, _bind_inlined)
    closed = jax.make_jaxpr(inlined)(*jax.tree.leaves(x), e)
    return Cotangents(closed, _analyse(closed.jaxpr))


def _bind_inlined(eqn: Eqn, values: list[ArrayLike]) -> list[ArrayLike]:
    """The results of an equation, without calls: what is behind one must be seen, too."""
    if eqn.primitive.name in CALLS:
        return evaluate(*inner_jaxpr(eqn), values, _bind_inlined)
    return bind(eqn, values)


@dataclass
class _Dependence:
    """What is known of the variables: which depend on x and e, are zeros, constant along axes.

    `weights`: the c that a variable is a multiple of.
    """

    from_x: set[Var]
    from_e: set[Var]
    zeros: set[Var] = field(default_factory=set)
    weights: dict[Var, Var] = field(default_factory=dict)
    constant: dict[Var, frozenset[int]] = field(default_factory=dict)

    def weight(self, a: Var) -> Var | None:
        """c of an operand; None if it has none."""
        return a if a in self.from_e and a not in self.from_x else self.weights.get(a)

    def add(self, eqn: Eqn) -> None:
        """Learn from one equation, which has results."""
        operands = {a for a in eqn.invars if not isinstance(a, Literal)}
        for reached in (self.from_x, self.from_e):
            reached |= set(eqn.outvars) if operands & reached else set()
        out = eqn.outvars[0]
        if eqn.primitive.name == "broadcast_in_dim":
            kept = set(map(int, eqn.params["broadcast_dimensions"]))
            self.constant[out] = frozenset(range(len(shape_of(out)))) - kept
            if isinstance(eqn.invars[0], Literal) and not eqn.invars[0].val:
                self.zeros.add(out)
        moving = [a for a in eqn.invars if not isinstance(a, Literal) and a in self.from_e]
        if moving and out in self.from_x and self._is_multiple(eqn, moving):
            behind = {self.weight(a) for a in moving}
            c = behind.pop() if len(behind) == 1 else None
            if c is not None:
                self.weights[out] = c

    def separable(self, cotangent: Atom) -> Separable | None:
        """How a result factorizes; None if it does not."""
        if isinstance(cotangent, Literal) or (c := self.weight(cotangent)) is None:
            return None
        return Separable(cotangent, c, self.constant.get(c, frozenset()))

    def _is_multiple(self, eqn: Eqn, moving: list[Var]) -> bool:
        """Whether the result is, entry by entry, linear in the operands that depend on e."""
        name, (out, *more) = eqn.primitive.name, eqn.outvars
        if name not in LINEAR or more or any(shape_of(a) != shape_of(out) for a in moving):
            return False
        if name == "mul":
            return len(moving) == 1
        if name == "div":
            return len(moving) == 1 and eqn.invars[0] is moving[0]
        if name == "select_n":
            predicate, *cases = eqn.invars
            cases = [a for a in cases if not isinstance(a, Literal)]
            linear = all(a in self.from_e or a in self.zeros for a in cases)
            return linear and predicate not in self.from_e
        return len(moving) == len(eqn.invars)


def _analyse(jaxpr: Jaxpr) -> tuple[Separable | None, ...]:
    *x, e = jaxpr.invars
    known = _Dependence(set(x), {e})
    for eqn in jaxpr.eqns:
        if eqn.outvars:
            known.add(eqn)
    return tuple(map(known.separable, jaxpr.outvars))
