"""A program with loops in place of its equal layers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr

from ntk_jax.compat import bind
from ntk_jax.jaxprs import dtype_of, shape_of
from ntk_jax.loops.loop import Loop, loop_of
from ntk_jax.loops.order import by_layer
from ntk_jax.loops.repeats import kinds, repeats
from ntk_jax.loops.steps import Inner, Operand, Step, Value, steps_of
from ntk_jax.platforms import held_by_a_loop

Part: TypeAlias = Step | Loop
Held: TypeAlias = Operand | tuple[Value | None, ...]
"""A value, or those that a loop makes in its turns, on one axis; None for one that nobody reads."""

# Turns that an accelerator takes at once: it launches less, and holds less between launches.
UNROLLED = 8


class Rolled(NamedTuple):
    """A program with loops; the attributes are its arguments, its parts, its results, and how many
    turns of a loop are taken at once.
    """

    arguments: Sequence[Held]
    parts: list[Part]
    results: Sequence[Held]
    turns_at_once: int

    @property
    def like(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the results."""
        return [_like(result) for result in self.results]

    def __call__(self, *args: Array) -> list[Array]:
        """The results."""
        values = _Values({}, self.turns_at_once)
        for held, array in zip(self.arguments, args, strict=True):
            values.give(held, array)
        values.run(self.parts)
        return [values.held(r) for r in self.results]


def _like(held: Held) -> jax.ShapeDtypeStruct:
    turns = (len(held),) if isinstance(held, tuple) else ()
    one = next(v for v in held if v is not None).like if isinstance(held, tuple) else held.like
    return jax.ShapeDtypeStruct((*turns, *shape_of(one)), dtype_of(one))


def rolled(
    closed: ClosedJaxpr,
    wanted: Sequence[int],
    first: Sequence[int] = (),
    *,
    on_cpu: bool,
    inner: Inner = lambda _: None,
    same: Sequence[int] | None = None,
) -> Rolled:
    """The program of the results of these numbers of a jaxpr, by the schedule of a CPU or of an
    accelerator; equal operations are done once.

    `first` are the numbers of results that others follow layer by layer; of arguments with the
    `same` number one is given for all.
    """
    arguments, steps, found = steps_of(closed, (*wanted, *first), on_cpu, inner, same)
    results = found[: len(wanted)]
    return program_of(arguments, steps, results, found[len(wanted) :], on_cpu=on_cpu)


def program_of(
    arguments: Sequence[Held],
    steps: Sequence[Step],
    results: Sequence[Operand],
    first: Sequence[Operand] | None = None,
    *,
    on_cpu: bool,
) -> Rolled:
    """The program of these steps; `first` as in `by_layer`."""
    ordered = by_layer(steps, results, first)
    parts = list(_Layers(ordered, results).parts(0, len(ordered)))
    return Rolled(arguments, parts, results, 1 if on_cpu else UNROLLED)


class _Layers:
    """A list of steps, of which loops are made."""

    def __init__(self, steps: list[Step], results: Sequence[Operand]):
        self.steps, self.kinds = steps, kinds(steps)
        self.read_at = {v: i for i, step in enumerate(steps) for v in step.read}
        self.read_at |= {r: len(steps) for r in results if isinstance(r, Value)}
        change = np.zeros(len(steps) + 2, int)
        for i, step in enumerate(steps):
            for r in step.results:
                change[i + 1] += r.size
                change[self.read_at.get(r, i) + 1] -= r.size
        self.waiting = np.cumsum(change)  # numbers that are made before a step, and read from it on

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """Those between two steps."""
        for repeat in repeats(self.kinds[start:stop]):
            period = repeat.period
            begin = start + repeat.start
            # Turns begin where they leave least to each other.
            begin += int(np.argmin(self.waiting[begin + period :][: repeat.slack + 1]))
            end = begin + period * repeat.turns
            turns = [self.steps[i : i + period] for i in range(begin, end, period)]
            if (loop := loop_of(turns, end, self.read_at)) is not None:
                yield from self.parts(start, begin)
                yield loop
                yield from self.parts(end, stop)
                return
        yield from self.steps[start:stop]


class _Values:
    """What the values of a program are, as far as it has run."""

    def __init__(self, known: dict[Value, Array], turns_at_once: int):
        self.known, self.turns_at_once = known, turns_at_once
        self.rows: dict[Value, tuple[Array, int]] = {}  # of what loops kept

    def give(self, held: Held, array: Array) -> None:
        """What is known from outside."""
        if isinstance(held, tuple):
            self.rows |= {v: (array, k) for k, v in enumerate(held) if v is not None}
        elif held is not None:
            self.known[held] = array

    def held(self, held: Held) -> Array:
        """The reverse of `give`."""
        if isinstance(held, tuple):
            return next(self.rows[v][0] for v in held if v is not None)
        return jnp.asarray(self.read(held))

    def read(self, operand: Operand) -> Operand:
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
        outside = {v: self.read(v) for v in loop.outside}
        names = [*(v for v, _, _ in loop.carried), *(v for v, _ in loop.each)]
        carried = dict.fromkeys([*(r for _, _, r in loop.carried), *(r for r, _ in loop.last)])

        def turn(carry: list[Array], each: list[Array]) -> tuple[list[Array], list[Array]]:
            each = held_by_a_loop(each) if self.turns_at_once == 1 else each
            read = [*carry[: len(loop.carried)], *each]
            values = _Values(outside | dict(zip(names, read, strict=True)), self.turns_at_once)
            values.run(loop.turn)
            return [*map(values.read, carried)], [values.read(r) for r, _ in loop.kept]

        first = [self.read(o) for _, o, _ in loop.carried]
        first += [jnp.zeros(shape_of(r.like), dtype_of(r.like)) for r in [*carried][len(first) :]]
        each = [self._stacked(operands) for _, operands in loop.each]
        after, kept = lax.scan(turn, first, each, loop.turns, unroll=self.turns_at_once)
        final = dict(zip(carried, after, strict=True))
        self.known |= {v: final[r] for r, v in loop.last}
        for (_, values), stack in zip(loop.kept, kept, strict=True):
            self.rows |= {v: (stack, k) for k, v in enumerate(values)}

    def _stacked(self, operands: list[Operand]) -> Array:
        """What one loop kept for another is not taken apart."""
        pieces: list[Array] = []
        rows = [self.rows.get(o) if isinstance(o, Value) else None for o in operands]
        at = 0
        while at < len(operands):
            stop = at + _run(rows[at:])
            if (row := rows[at]) is None:
                pieces.append(jnp.asarray(self.read(operands[at]))[None])
            else:
                pieces.append(lax.slice_in_dim(row[0], row[1], row[1] + stop - at))
            at = stop
        return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces)


def _run(rows: Sequence[tuple[Array, int] | None]) -> int:
    """How many stand one after another in one stack, from the first on; 1 for what is in none."""
    if (first := rows[0]) is None:
        return 1
    stack, k = first
    same = (row is not None and row[0] is stack and row[1] == k + i for i, row in enumerate(rows))
    return next((i for i, as_before in enumerate(same) if not as_before), len(rows))
