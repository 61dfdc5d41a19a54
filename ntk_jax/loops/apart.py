"""A program of two examples, taken apart: what it makes of neither, of one, of both of them.

What it makes of one example is the same in every pair that the example is in, and takes the same
steps for the first of a pair as for the second.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr

from ntk_jax.loops.loop import Loop
from ntk_jax.loops.rolled import Held, Rolled, program_of
from ntk_jax.loops.steps import Inner, Once, Operand, Step, Value, added_to, steps_of

OF_NEITHER, OF_FIRST, OF_SECOND, OF_BOTH = range(4)  # which examples a value depends on, added up
# Quickly done again, and what they make may be as large as for pairs.
REARRANGED = frozenset("broadcast_in_dim reshape squeeze transpose".split())


class Apart(NamedTuple):
    """Three programs, and what is held between them.

    Attributes:
        of_neither: of the arguments that belong to no example.
        of_one: of what that returned, and of one example.
        of_both: of what the first returned, of what the second did of each example, and of the
            arguments that belong to both; returns the results.
        bytes_of_one: of what the second returns.
    """

    of_neither: Rolled
    of_one: Rolled
    of_both: Rolled
    bytes_of_one: int


def apart(
    closed: ClosedJaxpr,
    wanted: Sequence[int],
    first: Sequence[int],
    marks: Sequence[int],
    *,
    on_cpu: bool,
    inner: Inner = lambda _: None,
) -> Apart:
    """`rolled` in three, given what each argument depends on: as many on the second example as on
    the first, in the same order.
    """
    arguments, steps, found = steps_of(closed, (*wanted, *first), on_cpu, inner)
    results, followed = found[: len(wanted)], found[len(wanted) :]
    mark = dict(zip(arguments, marks, strict=True))
    for step in steps:
        mark |= dict.fromkeys(
            step.results, reduce(or_, map(mark.__getitem__, step.read), OF_NEITHER)
        )
    given = lambda which: [a for a in arguments if mark[a] == which]
    sides = _Sides(given(OF_FIRST), given(OF_SECOND), on_cpu)
    for step in steps:
        sides.add(step, mark[step.results[0]])

    paired, read = _taken(steps, results, lambda v: mark[v] == OF_BOTH)
    held = list(dict.fromkeys(sides.one[v] for v in read if mark[v] in (OF_FIRST, OF_SECOND)))
    held = held or given(OF_FIRST)[:1]  # by which examples are counted
    own, read_by_one = _taken(sides.steps, held, lambda v: mark.get(v) != OF_NEITHER)
    shared = [v for v in dict.fromkeys([*read, *read_by_one]) if mark[v] == OF_NEITHER]

    of_neither = _returning(program_of(given(OF_NEITHER), steps, shared, on_cpu=on_cpu))
    common = of_neither.results
    of_one = _returning(program_of([*common, *given(OF_FIRST)], own, held, on_cpu=on_cpu))
    of_each = [*sides.held(OF_FIRST, of_one.results), *sides.held(OF_SECOND, of_one.results)]
    of_both = program_of(
        [*common, *of_each, *given(OF_BOTH)], paired, results, followed, on_cpu=on_cpu
    )
    bytes_of_one = sum(math.prod(a.shape) * a.dtype.itemsize for a in of_one.like)
    return Apart(of_neither, of_one, of_both, bytes_of_one)


def _taken(
    steps: Sequence[Step],
    wanted: Sequence[Operand],
    belongs: Callable[[Value], bool],
) -> tuple[list[Step], list[Value]]:
    """The steps to the `wanted` values of those that belong to a program, and what these read
    of others; rearrangements of others are done again.
    """
    read = dict.fromkeys(o for o in wanted if isinstance(o, Value))
    taken: list[Step] = []
    for step in reversed(steps):
        if read.keys().isdisjoint(step.results):
            continue
        if belongs(step.results[0]) or step.eqn.primitive.name in REARRANGED:
            taken.append(step)
            read |= dict.fromkeys(step.read)
    made = {r for step in taken for r in step.results}
    return taken[::-1], [v for v in read if v not in made]


def _returning(program: Rolled) -> Rolled:
    """The same, returning what loops keep for several results as they keep it."""
    loops = [part for part in program.parts if isinstance(part, Loop)]
    stacks: list[Held] = [
        tuple(values)
        for loop in loops
        for _, values in loop.kept
        if not set(values).isdisjoint(program.results)
    ]
    stacked = {v for stack in stacks for v in stack}
    return program._replace(results=[*stacks, *(r for r in program.results if r not in stacked)])


class _Sides:
    """The steps of one example alone, and of neither, in values that stand for those of the first
    example and for the same of the second.
    """

    def __init__(self, first: Sequence[Value], second: Sequence[Value], on_cpu: bool):
        pairs = list(zip(first, second, strict=True))
        self.one = {a: a for a in first} | {b: a for a, b in pairs}
        self.of = {OF_FIRST: {a: a for a in first}, OF_SECOND: {a: b for a, b in pairs}}
        self.steps: list[Step] = []
        self.once = Once(added_to(self.steps), on_cpu)

    def add(self, step: Step, which: int) -> None:
        """A step that depends on so many examples; that of the second is mostly met already."""
        if which == OF_NEITHER:
            self.steps.append(step)
        elif which != OF_BOTH:
            operands = [self.one.get(o, o) if isinstance(o, Value) else o for o in step.operands]
            for one, result in zip(self.once(step.eqn, operands), step.results, strict=True):
                self.one[result], self.of[which][one] = one, result

    def held(self, which: int, results: Iterable[Held]) -> list[Held]:
        """What results are of one of the two."""
        of = self.of[which]
        return [tuple(map(of.get, r)) if isinstance(r, tuple) else of.get(r) for r in results]
