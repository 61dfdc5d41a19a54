"""A trace evaluated by NumPy, for which nothing is compiled."""

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ntk_jax.compat import is_concrete, scan_counts
from ntk_jax.host.arrangements import UnknownOperationError, Value, whole
from ntk_jax.host.operations import operation
from ntk_jax.jaxprs import (
    INNER,
    Eqn,
    Jaxpr,
    Var,
    closed_jaxpr,
    dtype_of,
    evaluate,
    inner_jaxpr,
    needed,
    open_jaxpr,
    readers,
    shape_of,
)

PER_STEP = 2**11
"""Entries that NumPy computes in the time that it takes to begin."""

FUNCTION = 16
"""Entries of sums and products that take as long as one of `FUNCTIONS`."""

FUNCTIONS = frozenset(
    """
    acos acosh asin asinh atan atan2 atanh cbrt cos cosh erf erfc exp exp2 expm1 log log1p log2
    logistic pow sin sinh tan tanh
    """.split()
)

QUICK = 2**14
"""Entries that NumPy computes a hundred times in the time in which XLA compiles a step."""


class Step(NamedTuple):
    """What is called, where its arguments are, where its results go; what nobody reads after it."""

    f: Callable[..., Value]
    operands: list[int]
    results: list[int]
    done: list[int]


class HostProgram:
    """A trace whose every equation is an operation of NumPy.

    Raises:
        UnknownOperationError: one is not.
    """

    def __init__(self, closed: Value, wanted: Collection[int] | None = None) -> None:
        """Of the results that are `wanted`; None: of all."""
        self.values: list[Value] = []  # of constants; None for variables
        self.steps: list[Step] = []
        self.known: dict[Hashable, list[int]] = {}  # of equations and literals: their results
        self.read: set[Var] = set()
        self.size = 0  # steps to compile
        self.work = 0  # entries to compute
        jaxpr = closed.jaxpr
        self.inputs = [self._new() for _ in jaxpr.invars]
        self.dtypes = [*map(dtype_of, jaxpr.invars)]
        atoms = [a for i, a in enumerate(jaxpr.outvars) if wanted is None or i in wanted]
        places = self._evaluated(jaxpr, closed.consts, self.inputs, atoms)
        self.outputs = [
            (place, shape_of(a), dtype_of(a)) for place, a in zip(places, atoms, strict=True)
        ]
        self._forget()

    def __call__(self, *args: Value) -> list[np.ndarray]:
        """The results of the trace."""
        given = zip(args, self.dtypes, strict=True)
        with np.errstate(all="ignore"):
            found = self.run([np.asarray(a, dtype) for a, dtype in given])
        return [
            np.asarray(whole(value, shape), dtype)
            for value, (_, shape, dtype) in zip(found, self.outputs, strict=True)
        ]

    def run(self, args: Sequence[Value]) -> list[Value]:
        """The same, some with axes of one entry for more."""
        values = self.values.copy()
        for place, value in zip(self.inputs, args, strict=True):
            values[place] = value
        for f, operands, results, done in self.steps:
            if len(operands) == 2:  # most of them
                out = f(values[operands[0]], values[operands[1]])
            else:
                out = f(*[values[i] for i in operands])
            if len(results) == 1:
                values[results[0]] = out
            else:
                for place, value in zip(results, out, strict=True):
                    values[place] = value
            for place in done:
                values[place] = None
        return [values[place] for place, _, _ in self.outputs]

    @property
    def entries(self) -> float:
        """That are computed for each step that XLA would compile."""
        return self.work / max(self.size, 1)

    def _new(self, value: Value = None) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _forget(self) -> None:
        """Let go of what is not read any more, whose memory is still in the caches."""
        kept = {place for place, value in enumerate(self.values) if value is not None}
        kept |= {place for place, _, _ in self.outputs}
        for step in reversed(self.steps):
            done = {*step.operands, *step.results} - kept
            step.done.extend(done)
            kept |= done

    def _evaluated(
        self,
        jaxpr: Jaxpr,
        consts: Sequence[Value],
        places: list[int],
        wanted: Sequence[Value] | None = None,
    ) -> list[int]:
        """Where the results of a trace are, given where its arguments are."""
        wanted = jaxpr.outvars if wanted is None else wanted
        equations = needed(jaxpr, wanted)
        self.read |= {*readers(jaxpr), *(a for a in wanted if isinstance(a, Var))}
        constants = [self._new(_array(c)) for c in consts]
        return evaluate(
            jaxpr,
            constants,
            places,
            self._results,
            constant=self._literal,
            equations=equations,
            wanted=wanted,
        )

    def _literal(self, value: Value) -> int:
        array = np.asarray(value, getattr(value, "dtype", None))
        key = "literal", array.dtype, array.tobytes(), array.shape
        if key not in self.known:
            self.known[key] = [self._new(array)]
        return self.known[key][0]

    def _results(self, eqn: Eqn, operands: list[int]) -> list[int]:
        """Where an equation's are: of equal ones the same."""
        name = eqn.primitive.name
        if name in INNER:
            return self._evaluated(*inner_jaxpr(eqn), operands)
        if name == "scan":
            return self._scanned(eqn, operands)
        if name == "cond":
            return self._branched(eqn, operands)
        key = name, _hashable(eqn.params), tuple(operands), tuple(map(shape_of, eqn.invars))
        if key not in self.known:
            self.known[key] = self._computed(eqn, operands)
        return self.known[key]

    def _computed(self, eqn: Eqn, operands: list[int]) -> list[int]:
        f, values = operation(eqn), [self.values[i] for i in operands]
        if f is None:
            return operands[: len(eqn.outvars)]
        if any(value is None for value in values):
            cost = FUNCTION if eqn.primitive.name in FUNCTIONS else 1
            return self._later(f, eqn.outvars, operands, cost)
        with np.errstate(all="ignore"):
            return [self._new(f(*values))]

    def _later(
        self, f: Callable[..., Value], of: Sequence[Value], operands: list[int], cost: int = 1
    ) -> list[int]:
        most = max(math.prod(shape_of(v)) for v in of)
        self.size += 1
        self.work += cost * most + PER_STEP
        results = [self._new() for _ in of]
        self.steps.append(Step(f, operands, results, []))
        return results

    def _branched(self, eqn: Eqn, operands: list[int]) -> list[int]:
        """By what an index says: the one branch, if that is known."""
        branches, (index, *args) = eqn.params["branches"], operands
        if (number := self.values[index]) is not None:
            branch = branches[int(np.clip(number, 0, len(branches) - 1))]
            return self._evaluated(*open_jaxpr(branch), args)
        programs = [HostProgram(closed_jaxpr(branch)) for branch in branches]
        self.size += sum(program.size for program in programs)
        self.work += min(program.work for program in programs)

        def run(number: Value, *args: Value) -> Value:
            out = programs[int(np.clip(number, 0, len(programs) - 1))].run(args)
            return out[0] if len(out) == 1 else out

        return self._later(run, eqn.outvars, operands)

    def _scanned(self, eqn: Eqn, operands: list[int]) -> list[int]:
        """By a loop of Python, of what anyone reads."""
        loop = Loop(eqn, self.read)
        found = dict.fromkeys(range(len(eqn.outvars)), -1)  # that nobody reads
        if (same := loop.same()) is not None:
            return [*(found | {i: operands[j] for i, j in same.items()}).values()]
        self.size += loop.body.size
        self.work += loop.body.work * eqn.params["length"]
        places = self._later(loop.run, [eqn.outvars[i] for i in loop.wanted], operands)
        return [*(found | dict(zip(loop.wanted, places, strict=True))).values()]


def host_program(closed: Value, most: float = math.inf) -> HostProgram | None:
    """That of a trace; None where it has values of someone else's trace, NumPy does not know an
    operation, or it computes more than so many entries for each step to compile.
    """
    if not all(map(is_concrete, closed.consts)):
        return None
    try:
        program = HostProgram(closed)
    except UnknownOperationError:
        return None
    return program if program.entries <= most else None


class Loop:
    """A scan: of its results, those that anyone reads, and what they need of the step before."""

    def __init__(self, eqn: Eqn, read: Collection[Var]) -> None:
        self.params, self.shapes = eqn.params, [shape_of(a) for a in eqn.invars]
        if not self.params["length"]:
            raise UnknownOperationError("a scan of nothing")
        self.num_consts, self.num_carry = scan_counts(self.params)
        closed = closed_jaxpr(self.params["jaxpr"])
        self.wanted = self._wanted(
            closed.jaxpr, {i for i, v in enumerate(eqn.outvars) if v in read}
        )
        self.body = HostProgram(closed, self.wanted)

    def _wanted(self, body: Jaxpr, found: set[int]) -> list[int]:
        carried = body.invars[self.num_consts :][: self.num_carry]
        while True:
            results = [body.outvars[i] for i in found]
            atoms = [*results, *(a for eqn in needed(body, results) for a in eqn.invars)]
            read = {a for a in atoms if isinstance(a, Var)}
            more = {i for i, v in enumerate(carried) if v in read} - found
            if not more:
                return sorted(found)
            found |= more

    def same(self) -> dict[int, int] | None:
        """Of a loop that holds its arguments: which of them each result is."""
        places = [place for place, _, _ in self.body.outputs]
        if self.body.steps or not {*places} <= {*self.body.inputs}:
            return None
        same = {
            i: self.body.inputs.index(place) for i, place in zip(self.wanted, places, strict=True)
        }
        held = all(j < self.num_consts or j == self.num_consts + i for i, j in same.items())
        return same if held else None

    def run(self, *operands: Value) -> Value:
        """The results that are wanted."""
        first = self.num_consts + self.num_carry
        consts, carry = operands[: self.num_consts], list(operands[self.num_consts : first])
        xs = list(map(whole, operands[first:], self.shapes[first:]))
        carried = [i for i in self.wanted if i < self.num_carry]
        rows: list[list[Value]] = []
        order = range(self.params["length"])[:: -1 if self.params["reverse"] else 1]
        for m in order:
            out = self.body.run([*consts, *carry, *(x[m] for x in xs)])
            for i, value in zip(carried, out, strict=False):
                carry[i] = value
            of = zip(out[len(carried) :], self.body.outputs[len(carried) :], strict=True)
            rows.append([whole(value, shape) for value, (_, shape, _) in of])
        columns = [np.array(column) for column in zip(*rows[:: order.step], strict=True)]
        found = [*(carry[i] for i in carried), *columns]
        return found[0] if len(found) == 1 else found


def _array(constant: Value) -> np.ndarray:
    """A constant as NumPy's."""
    if not isinstance(getattr(constant, "dtype", np.dtype(float)), np.dtype):
        raise UnknownOperationError("a random key")
    return np.asarray(constant)


def _hashable(params: Mapping[str, Value]) -> Hashable:
    known = tuple(params.items())
    try:
        hash(known)
    except TypeError:
        return str(params)
    return known
