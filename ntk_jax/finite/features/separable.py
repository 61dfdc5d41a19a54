"""Cotangents that factorize, delta[n, o] = m[n] c[o]: a mask of the example times weights of the
output.

Behind the last nonlinearity the network is linear, so the cotangent there is a weight that no
example changes, and the nonlinearity's derivative multiplies it entry by entry. Averaged over
outputs, such a layer then costs what one output costs: mean_o sum_d m_d m'_d c_od² = sum_d m_d m'_d
s_d with s_d = mean_o c_od².
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.compat import CALLS, Literal, bind
from ntk_jax.jaxprs import open_jaxpr

# Linear in each operand that the output's cotangent enters, entry by entry.
LINEAR = ("mul", "div", "neg", "select_n", "add", "add_any", "sub", "convert_element_type", "copy")


@dataclass(frozen=True, eq=False)
class Separable:
    """A cotangent (a variable of the traced program) and the variable c that it is m times; axes
    along which c is constant.
    """

    cotangent: Any
    weight: Any
    constant: frozenset[int]


@dataclass(frozen=True, eq=False)
class Cotangents:
    """The program (example, output's cotangent) -> cotangents at all taps, and which of them
    factorize (None: not found).
    """

    closed: Any
    found: tuple[Separable | None, ...]

    def mask(self, tap: int, x: Array) -> Array:
        """m of one example: the cotangent with ones in place of c."""
        part = self._part(tap)
        return self._evaluate(
            part.cotangent,
            {part.weight: jnp.ones(part.weight.aval.shape, part.weight.aval.dtype)},
            x,
        )

    def weight(self, tap: int, e: Array) -> Array:
        """c of one output, whose cotangent is e."""
        return self._evaluate(self._part(tap).weight, {self.closed.jaxpr.invars[1]: e})

    def _part(self, tap: int) -> Separable:
        part = self.found[tap]
        assert part is not None
        return part

    def _evaluate(self, var: Any, known: dict[Any, Any], *x: Array) -> Any:
        jaxpr = self.closed.jaxpr
        env = (
            dict(zip(jaxpr.constvars, self.closed.consts, strict=True))
            | dict(zip(jaxpr.invars, x, strict=False))
            | known
        )
        for eqn in _needed(jaxpr, var, set(env)):
            values = [a.val if isinstance(a, Literal) else env[a] for a in eqn.invars]
            for out, value in zip(eqn.outvars, bind(eqn, values), strict=True):
                env.setdefault(out, value)
        return env[var]


def separate(cotangents: Any, x: Any, e: Any) -> Cotangents:
    """Which results of `cotangents(x, e)`, a list of arrays linear in e, factorize."""
    closed = jax.make_jaxpr(cotangents)(x, e)
    closed = jax.make_jaxpr(lambda *args: _run(closed.jaxpr, closed.consts, args))(
        x, e
    )  # without inner calls
    return Cotangents(closed, _analyse(closed.jaxpr))


def _run(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda a: a.val if isinstance(a, Literal) else env[a]
    for eqn in jaxpr.eqns:
        values, name = [read(a) for a in eqn.invars], eqn.primitive.name
        outs = (
            _run(*open_jaxpr(eqn.params[CALLS[name]]), values)
            if name in CALLS
            else bind(eqn, values)
        )
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(a) for a in jaxpr.outvars]


def _analyse(jaxpr: Any) -> tuple[Separable | None, ...]:
    from_x, from_e = ({jaxpr.invars[i]} for i in (0, 1))
    zeros: set[Any] = set()
    weights: dict[Any, Any] = {}  # variable: the c that it is a multiple of
    constant: dict[Any, frozenset[int]] = {}

    def weight(a: Any) -> Any:
        """c of an operand; None if it has none."""
        return a if a in from_e and a not in from_x else weights.get(a)

    for eqn in jaxpr.eqns:
        operands = [a for a in eqn.invars if not isinstance(a, Literal)]
        moving = [a for a in operands if a in from_e]
        for out in eqn.outvars:
            if moving:
                from_e.add(out)
            if any(a in from_x for a in operands):
                from_x.add(out)
        if eqn.primitive.name == "broadcast_in_dim":
            (out,) = eqn.outvars
            constant[out] = frozenset(range(len(out.aval.shape))) - set(
                map(int, eqn.params["broadcast_dimensions"])
            )
            if isinstance(eqn.invars[0], Literal) and not eqn.invars[0].val:
                zeros.add(out)
        if moving and eqn.outvars[0] in from_x and _is_multiple(eqn, moving, from_e, zeros):
            behind = {weight(a) for a in moving}
            if len(behind) == 1 and None not in behind:
                weights[eqn.outvars[0]] = behind.pop()
    return tuple(_separable(a, weight, constant) for a in jaxpr.outvars)


def _separable(
    cotangent: Any, weight: Any, constant: dict[Any, frozenset[int]]
) -> Separable | None:
    c = None if isinstance(cotangent, Literal) else weight(cotangent)
    return None if c is None else Separable(cotangent, c, constant.get(c, frozenset()))


def _is_multiple(eqn: Any, moving: list[Any], from_e: set[Any], zeros: set[Any]) -> bool:
    """Whether the result is, entry by entry, a linear function of the operands that depend on e."""
    name, (out, *more) = eqn.primitive.name, eqn.outvars
    if name not in LINEAR or more or any(a.aval.shape != out.aval.shape for a in moving):
        return False
    if name == "mul":
        return len(moving) == 1
    if name == "div":
        return len(moving) == 1 and eqn.invars[0] is moving[0]
    if name == "select_n":
        predicate, *cases = eqn.invars
        return predicate not in from_e and all(
            a in from_e or a in zeros for a in cases if not isinstance(a, Literal)
        )
    return len(moving) == len(eqn.invars)


def _needed(jaxpr: Any, var: Any, known: set[Any]) -> list[Any]:
    """The equations behind a variable, in order."""
    wanted, needed = {var} - known, []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            needed.append(eqn)
            wanted |= {a for a in eqn.invars if not isinstance(a, Literal) and a not in known}
    return needed[::-1]
