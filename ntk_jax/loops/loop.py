"""Repeated steps as a loop: what its turns read, leave to each other, and leave behind."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ntk_jax.jaxprs import Atom, dtype_of
from ntk_jax.loops.steps import Operand, Step, Value, identity


class Loop(NamedTuple):
    """Steps that are taken several times.

    Attributes:
        turns: how often.
        turn: the steps, as the first turn takes them.
        carried: a value that the turn reads, what it is at first, and the result that it is next.
        each: a value that the turn reads, and what it is in every turn.
        kept: a result of the turn, and the values that it is in every turn, if one of them before
            the last is read later.
        last: a result of the turn, and the value that it is in the last, if that alone is.
    """

    turns: int
    turn: list[Step]
    carried: list[tuple[Value, Operand, Value]]
    each: list[tuple[Value, list[Operand]]]
    kept: list[tuple[Value, list[Value]]]
    last: list[tuple[Value, Value]]

    @property
    def outside(self) -> list[Value]:
        """What a turn reads that no turn changes, in the order in which it is read."""
        inside = {v for v, _, _ in self.carried} | {v for v, _ in self.each}
        inside |= {r for step in self.turn for r in step.results}
        read = dict.fromkeys(v for step in self.turn for v in step.read)
        return [v for v in read if v not in inside]


def loop_of(turns: Sequence[Sequence[Step]], end: int, read_at: Mapping[Value, int]) -> Loop | None:
    """The loop of these turns, whose last ends before step `end`; None if there is none.

    `read_at` says which step reads a value last.
    """
    reading = _Reading(turns)
    turn = [step for steps in zip(*turns, strict=True) if (step := reading.step(steps))]
    if len(turn) < len(turns[0]):
        return None
    kept, last = [], []
    for steps in zip(*turns, strict=True):
        for values in zip(*(step.results for step in steps), strict=True):
            later = [read_at.get(v, -1) >= end for v in values]
            if any(later[:-1]):
                kept.append((values[0], list(values)))
            elif later[-1]:
                last.append((values[0], values[-1]))
    if not all(isinstance(dtype_of(v.like), np.dtype) for v, _ in last):
        return None  # keys, which cannot be 0 before the first turn
    carried, each = [*reading.carried.values()], [*reading.each.values()]
    return Loop(len(turns), turn, carried, each, kept, last)


class _Reading:
    """What the operands of all turns are to one of them: the same, carried, or one for each."""

    def __init__(self, turns: Sequence[Sequence[Step]]):
        self.first = turns[0]
        self.carried: dict[Hashable, tuple[Value, Operand, Value]] = {}
        self.each: dict[Hashable, tuple[Value, list[Operand]]] = {}
        # Where a value is made: in which turn, by which of its steps, as which of the results.
        self.made = {
            r: (k, i, j)
            for k, turn in enumerate(turns)
            for i, step in enumerate(turn)
            for j, r in enumerate(step.results)
        }

    def step(self, steps: Sequence[Step]) -> Step | None:
        """One step of every turn as the loop takes it, if it can."""
        choices = zip(*(s.operands for s in steps), strict=True)
        operands = [self._operand(*o) for o in zip(steps[0].eqn.invars, choices, strict=True)]
        if any(o is None for o in operands):
            return None
        return steps[0]._replace(operands=operands)

    def _operand(self, like: Atom, choices: Sequence[Operand]) -> Operand | None:
        made = [self.made.get(o) if isinstance(o, Value) else None for o in choices]
        key = tuple(map(identity, choices))
        if made == [None] * len(made):
            one = Value(like), list(choices)
            return choices[0] if len(set(key)) == 1 else self.each.setdefault(key, one)[0]
        if made[-1] is None:
            return None
        _, i, j = made[-1]
        if made == [(k, i, j) for k in range(len(made))]:
            return choices[0]
        if made != [None, *((k, i, j) for k in range(len(made) - 1))]:
            return None
        result = self.first[i].results[j]
        return self.carried.setdefault(key, (Value(like), choices[0], result))[0]
