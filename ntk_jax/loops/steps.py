"""A traced program as a list of steps, each operation once."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jax.extend.core import ClosedJaxpr

from ntk_jax.compat import CALLS
from ntk_jax.jaxprs import (
    Atom,
    Eqn,
    branch_of_platform,
    evaluate,
    inner_jaxpr,
    needed,
    open_jaxpr,
    same_value,
    shape_of,
)


class Value:
    """An argument of a program, or a result of one of its steps; like the variable of a jaxpr."""

    __slots__ = ("like",)

    def __init__(self, like: Atom):
        self.like = like

    @property
    def size(self) -> int:
        """Its entries."""
        return math.prod(shape_of(self.like))


Operand: TypeAlias = Any
"""A value, or a constant."""
Inner: TypeAlias = Callable[[Eqn], ClosedJaxpr | None]
"""The program that an equation stands for, if it is one that has no parameter of it."""


class Step(NamedTuple):
    """One equation, with what it reads and what it makes."""

    eqn: Eqn
    operands: list[Operand]
    results: list[Value]

    @property
    def read(self) -> list[Value]:
        """The values among the operands, each once, in their order."""
        return list(dict.fromkeys(o for o in self.operands if isinstance(o, Value)))


def steps_of(
    closed: ClosedJaxpr,
    wanted: Sequence[int],
    on_cpu: bool,
    inner: Inner,
    same: Sequence[int] | None = None,
) -> tuple[list[Value], list[Step], list[Operand]]:
    """(arguments, steps, results) of a jaxpr, for the results of these numbers; equal operations
    are one step, and branches of other platforms are left out. Arguments with the `same` number are
    one value.
    """
    steps: list[Step] = []
    jaxpr, one_each = closed.jaxpr, [Value(v) for v in closed.jaxpr.invars]
    arguments = one_each if same is None else [one_each[i] for i in same]
    atoms = [jaxpr.outvars[i] for i in wanted]
    equations, once = needed(jaxpr, atoms), Once(added_to(steps), on_cpu, inner)
    found = evaluate(jaxpr, closed.consts, arguments, once, equations=equations, wanted=atoms)
    return arguments, steps, found


def added_to(steps: list[Step]) -> Callable[[Eqn, list[Operand]], list[Value]]:
    """What puts every equation there as a step of its own, and returns its results."""

    def step(eqn: Eqn, operands: list[Operand]) -> list[Value]:
        steps.append(Step(eqn, operands, [Value(v) for v in eqn.outvars]))
        return steps[-1].results

    return step


class Once:
    """A step of `evaluate`: equal operations on the same operands are computed once, also inside
    jits, the branches of a known platform and `inner` programs, which are opened.

    Branches and layers that are alike ask equal questions, and each answer that is traced again is
    compiled again.
    """

    def __init__(
        self,
        step: Callable[[Eqn, list[Operand]], Sequence[Operand]],
        on_cpu: bool,
        inner: Inner = lambda _: None,
    ):
        self.step, self.on_cpu, self.inner = step, on_cpu, inner
        # Parameters, operands (which are kept, as their identity tells them apart), results.
        self.met: dict[Hashable, list[tuple[object, list[Operand], Sequence[Operand]]]]
        self.met, self.arrays = defaultdict(list), dict[Hashable, np.ndarray]()

    def __call__(self, eqn: Eqn, operands: list[Operand]) -> Sequence[Operand]:
        """What the equation makes of these."""
        operands = [self._one(o) if isinstance(o, np.ndarray) else o for o in operands]
        known = self.met[eqn.primitive, *map(identity, operands)]
        for params, _, results in known:
            if same_value(params, eqn.params):
                return results
        found = self._opened(eqn, operands)
        known.append((eqn.params, operands, found))
        return found

    def _opened(self, eqn: Eqn, operands: list[Operand]) -> Sequence[Operand]:
        match eqn.primitive.name:
            case name if name in CALLS:
                return evaluate(*inner_jaxpr(eqn), operands, self)
            case "platform_index":
                number = branch_of_platform(eqn.params["platforms"], self.on_cpu)
                return self.step(eqn, operands) if number is None else [np.int32(number)]
            case "clamp" if isinstance(operands[1], np.int32):  # of a branch's number, in JAX 0.6
                low, number, high = operands
                if not any(isinstance(o, Value) for o in operands):
                    return [np.int32(np.clip(number, low, high))]
            case "cond" if isinstance(operands[0], np.int32):
                branch = eqn.params["branches"][operands[0]]
                return evaluate(*open_jaxpr(branch), operands[1:], self)
        if (inner := self.inner(eqn)) is not None:
            return evaluate(inner.jaxpr, inner.consts, operands, self)
        return self.step(eqn, operands)

    def _one(self, array: np.ndarray) -> np.ndarray:
        """The same array for equal constants."""
        return self.arrays.setdefault((array.dtype, array.shape, array.tobytes()), array)


def identity(operand: Operand) -> Hashable:
    """Equal for the same object, and for numbers that are equal."""
    if isinstance(operand, np.ndarray | np.generic) and operand.size == 1:
        return operand.dtype, operand.shape, operand.tobytes()
    number = isinstance(operand, bool | int | float)
    return (type(operand), operand) if number else id(operand)
