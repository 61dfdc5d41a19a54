"""Equal layers of a traced program as one loop, which is traced and compiled once for all of them.

A program is here a list of steps: equations with their operands, which are results of earlier
steps, arguments or constants. Where the same steps follow each other several times, each time on
what the turn before them left, or on what was known before, they are the turns of a loop.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr

from ntk_jax.compat import bind
from ntk_jax.jaxprs import Eqn, Once, evaluate, identity, needed, same_value

LEAST_TURNS = 3
LEAST_SAVED = 100  # steps
MOST_ALIKE = 8  # in one turn, of the steps that are rarest in it


class Value:
    """An argument of a program, or a result of one of its steps."""

    __slots__ = ("aval",)

    def __init__(self, aval: Any):
        self.aval = aval


class Step(NamedTuple):
    """One equation; its operands are values and constants."""

    eqn: Eqn
    operands: list[Any]
    results: list[Value]


class Loop(NamedTuple):
    """Steps that are taken several times.

    Attributes:
        turns: how often.
        turn: the steps, as the first turn takes them.
        carried: a value that the turn reads, what it is at first, and the result that it is next.
        each: a value that the turn reads, and what it is in every turn.
        kept: a result of the turn, and the values that it is in every turn, if any but the last is
            read later.
        last: a result of the turn, and the value that it is in the last one, if only that is.
    """

    turns: int
    turn: list[Step]
    carried: list[tuple[Value, Any, Value]]
    each: list[tuple[Value, list[Any]]]
    kept: list[tuple[Value, list[Value]]]
    last: list[tuple[Value, Value]]


Part: TypeAlias = Step | Loop


class Rolled(NamedTuple):
    """A program with loops; the attributes are its arguments, its parts, its results."""

    arguments: list[Value]
    parts: list[Part]
    results: list[Any]

    def __call__(self, *args: Any) -> list[Any]:
        """The results."""
        values = _Values(dict(zip(self.arguments, args, strict=True)))
        values.run(self.parts)
        return [values.read(r) for r in self.results]


def rolled(closed: ClosedJaxpr, wanted: Sequence[int], first: Sequence[int] = ()) -> Rolled:
    """The program of some results of a jaxpr, by their numbers; equal operations are done once.

    `first` are results that others follow from, layer by layer.
    """
    steps: list[Step] = []

    def step(eqn: Eqn, operands: list[Any]) -> list[Value]:
        steps.append(Step(eqn, operands, [Value(v.aval) for v in eqn.outvars]))
        return steps[-1].results

    arguments = [Value(v.aval) for v in closed.jaxpr.invars]
    atoms = [closed.jaxpr.outvars[i] for i in (*wanted, *first)]
    found = evaluate(
        closed.jaxpr,
        closed.consts,
        arguments,
        Once(step),
        equations=needed(closed.jaxpr, atoms),
        wanted=atoms,
    )
    results = found[: len(wanted)]
    ordered = _by_layer(steps, results, found[len(wanted) :])
    return Rolled(arguments, list(_Finder(ordered, results).parts()), results)


class _Values:
    """What the values of a program are."""

    def __init__(self, known: dict[Value, Any]):
        self.known = known
        self.rows: dict[Value, tuple[Array, int]] = {}  # of what loops kept

    def read(self, operand: Any) -> Any:
        """What a value is; a constant itself."""
        if not isinstance(operand, Value):
            return operand
        if operand not in self.known:
            stack, turn = self.rows[operand]
            self.known[operand] = stack[turn]
        return self.known[operand]

    def run(self, parts: Sequence[Part]) -> None:
        """All parts in order."""
        for part in parts:
            if isinstance(part, Loop):
                self._run_loop(part)
            else:
                found = bind(part.eqn, [self.read(o) for o in part.operands])
                self.known.update(zip(part.results, found, strict=True))

    def _run_loop(self, loop: Loop) -> None:
        following = {r: v for v, _, r in loop.carried}
        read = [*following.values()]
        carried = [*following, *(r for r, _ in loop.last if r not in following)]
        outside = {o: self.read(o) for o in _outside(loop)}

        def turn(carry: list[Any], each: list[Any]) -> tuple[list[Any], list[Any]]:
            names = zip([*read, *(v for v, _ in loop.each)], [*carry[: len(read)], *each], strict=True)
            values = _Values(outside | dict(names))
            values.run(loop.turn)
            return [values.read(r) for r in carried], [values.read(r) for r, _ in loop.kept]

        first = [self.read(o) for _, o, _ in loop.carried]
        first += [jnp.zeros(r.aval.shape, r.aval.dtype) for r in carried[len(first) :]]
        each = [self._stacked(values) for _, values in loop.each]
        after, kept = lax.scan(turn, first, each, loop.turns)
        final = dict(zip(carried, after, strict=True))
        self.known |= {v: final[r] for r, v in loop.last}
        for (_, values), stack in zip(loop.kept, kept, strict=True):
            self.rows |= {v: (stack, k) for k, v in enumerate(values)}

    def _stacked(self, values: list[Any]) -> Array:
        """What one loop kept for another is not taken apart."""
        rows = [self.rows.get(v, (None, -1)) if isinstance(v, Value) else (None, -1) for v in values]
        stack = rows[0][0]
        if stack is not None and len(stack) == len(values):
            if all(row[0] is stack and row[1] == k for k, row in enumerate(rows)):
                return stack
        return jnp.stack([jnp.asarray(self.read(v)) for v in values])


def _outside(loop: Loop) -> set[Value]:
    """What a turn reads that no turn changes."""
    inside = {v for v, *_ in loop.carried} | {v for v, _ in loop.each}
    inside |= {r for step in loop.turn for r in step.results}
    read = {o for step in loop.turn for o in step.operands if isinstance(o, Value)}
    return read - inside


def _by_layer(steps: list[Step], results: list[Any], first: list[Any]) -> list[Step]:
    """The steps in the order in which the results ask for them, so that all that a layer takes
    stands together.

    Of the operands of a step, that goes first which takes most steps that `first` does without: a
    tangent kernel asks for that of the layer below before it asks for a covariance.
    """
    makers = {r: step for step in steps for r in step.results}
    shared = _ancestors(makers, first)
    depth: dict[Value, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for step in steps:
        met = [depth[o] for o in step.operands if isinstance(o, Value)] or [(0, 0)]
        own, every = map(max, zip(*met, strict=True))
        depth |= dict.fromkeys(step.results, (own + (id(step) not in shared), every + 1))

    def asked(values: list[Any]) -> Iterator[Step]:
        made = [v for v in values if isinstance(v, Value) and v in makers]
        return iter([makers[v] for v in sorted(made, key=depth.__getitem__, reverse=True)])

    found: dict[int, Step] = {}
    waiting: list[tuple[Step | None, Iterator[Step]]] = [(None, asked(results))]
    while waiting:
        step, operands = waiting[-1]
        missing = next((maker for maker in operands if id(maker) not in found), None)
        if missing is not None:
            waiting.append((missing, asked(missing.operands)))
            continue
        waiting.pop()
        if step is not None:
            found[id(step)] = step
    return list(found.values())


def _ancestors(makers: dict[Value, Step], values: list[Any]) -> set[int]:
    """The steps that make these, by identity."""
    found: set[int] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        step = makers.get(value) if isinstance(value, Value) else None
        if step is not None and id(step) not in found:
            found.add(id(step))
            stack += step.operands
    return found


class _Finder:
    """The loops of a list of steps."""

    def __init__(self, steps: list[Step], results: list[Any]):
        self.steps, self.kinds = steps, _kinds(steps)
        self.read: dict[Value, int] = {}  # last
        for i, step in enumerate(steps):
            self.read |= {o: i for o in step.operands if isinstance(o, Value)}
        self.read |= {r: len(steps) for r in results if isinstance(r, Value)}
        change = np.zeros(len(steps) + 2, int)
        for i, step in enumerate(steps):
            for r in step.results:
                change[i + 1] += math.prod(r.aval.shape)
                change[self.read.get(r, i) + 1] -= math.prod(r.aval.shape)
        self.waiting = np.cumsum(change)  # numbers that are made before a step, and read from it on

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[Part]:
        """Those between two steps."""
        stop = len(self.steps) if stop is None else stop
        for at, slack, period, turns in _repeats(self.kinds[start:stop]):
            at += start
            # Turns begin where they leave least to each other.
            at += int(np.argmin(self.waiting[at + period : at + period + slack + 1]))
            loop = self._loop(at, period, turns)
            if loop is not None:
                yield from self.parts(start, at)
                yield loop
                yield from self.parts(at + period * turns, stop)
                return
        yield from self.steps[start:stop]

    def _loop(self, start: int, period: int, turns: int) -> Loop | None:
        """The loop of these steps, if there is one."""
        starts = range(start, start + period * turns, period)
        at = [self.steps[i : i + period] for i in starts]
        reading = _Reading(at)
        turn = [reading.step(steps) for steps in zip(*at, strict=True)]
        if any(step is None for step in turn):
            return None
        kept, last = [], []
        for steps in zip(*at, strict=True):
            for values in zip(*(step.results for step in steps), strict=True):
                later = [self.read.get(v, -1) >= start + period * turns for v in values]
                if any(later[:-1]):
                    kept.append((values[0], list(values)))
                elif later[-1]:
                    last.append((values[0], values[-1]))
        return Loop(turns, turn, [*reading.carried.values()], [*reading.each.values()], kept, last)


class _Reading:
    """What the operands of all turns are to the first: the same, carried, or one for each."""

    def __init__(self, turns: list[list[Step]]):
        self.first = turns[0]
        self.carried: dict[Hashable, tuple[Value, Any, Value]] = {}
        self.each: dict[Hashable, tuple[Value, list[Any]]] = {}
        # Where a value is made: in which turn, by which of its steps, as which of its results.
        self.place = {
            r: (k, (i, j))
            for k, turn in enumerate(turns)
            for i, step in enumerate(turn)
            for j, r in enumerate(step.results)
        }

    def step(self, steps: Sequence[Step]) -> Step | None:
        """The first of these, one of every turn, as the loop takes it; None if it cannot."""
        operands = [self._operand(c) for c in zip(*(s.operands for s in steps), strict=True)]
        return None if any(o is None for o in operands) else steps[0]._replace(operands=operands)

    def _operand(self, choices: Sequence[Any]) -> Any:
        place = [self.place.get(o) if isinstance(o, Value) else None for o in choices]
        key = tuple(map(identity, choices))
        if all(p is None for p in place):
            if len(set(key)) == 1:
                return choices[0]
            return self.each.setdefault(key, (Value(None), list(choices)))[0]
        within = place[-1][1] if place[-1] is not None else None
        if place == [(k, within) for k in range(len(place))]:
            return choices[0]
        if place != [None, *((k, within) for k in range(len(place) - 1))]:
            return None
        i, j = within
        result = self.first[i].results[j]
        return self.carried.setdefault(key, (Value(result.aval), choices[0], result))[0]


def _kinds(steps: list[Step]) -> np.ndarray:
    """A number for each step, the same for steps that differ in the values of operands alone."""
    known: dict[Hashable, list[tuple[Any, int]]] = defaultdict(list)
    found = []
    for step in steps:
        alike = known[step.eqn.primitive, *map(_kind, step.operands)]
        number = next((n for params, n in alike if same_value(params, step.eqn.params)), None)
        if number is None:
            number = len(found)
            alike.append((step.eqn.params, number))
        found.append(number)
    return np.array(found)


def _kind(operand: Any) -> Hashable:
    if isinstance(operand, Value):
        return operand.aval
    if isinstance(operand, np.ndarray | jax.Array) and operand.size > 1:
        return operand.shape, operand.dtype
    return identity(operand)


def _repeats(kinds: np.ndarray) -> list[tuple[int, int, int, int]]:
    """(first step, by how many it may be later, period, turns) of what may be a loop, those that
    save most steps first.
    """
    before: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=MOST_ALIKE))
    periods: Counter[int] = Counter()
    for i, kind in enumerate(kinds.tolist()):
        periods.update(i - j for j in before[kind])
        before[kind].append(i)
    found = []
    for period, count in periods.items():
        if count < LEAST_SAVED // MOST_ALIKE:
            continue
        same = np.concatenate([[False], kinds[:-period] == kinds[period:], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            turns = (b - a) // period + 1
            saved = (turns - 1) * period
            if turns >= LEAST_TURNS and saved >= LEAST_SAVED:
                found.append((-saved, period, a, b - a - saved, turns))
    return [(at, slack, period, turns) for _, period, at, slack, turns in sorted(found)]
