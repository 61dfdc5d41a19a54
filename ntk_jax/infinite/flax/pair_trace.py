"""One pair of examples as a traced program: interpreted once, and evaluated for all of them."""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr

from ntk_jax.compat import Literal, abstract_value, bind
from ntk_jax.infinite.flax.moments.factors import Function, Observed
from ntk_jax.infinite.flax.traced_model import Duals, Program
from ntk_jax.jaxprs import (
    INNER,
    Atom,
    Eqn,
    Jaxpr,
    Var,
    dtype_of,
    evaluate,
    needed,
    open_jaxpr,
    shape_of,
)
from ntk_jax.types import Kernels

LEAST_BYTES = 8
FIRST, SECOND = 1, 2  # what a value depends on, added up


class PairTrace(NamedTuple):
    """(a, b, same, *key) -> nngp, ntk, the variances of the functions met, the tails of series.

    Attributes:
        closed: the program. `same`: whether a and b are the same row, known without rounding.
        functions: the scalar functions whose largest variances it returns.
        names: of the functions whose tails it returns.
        meeting: what depends on a alone, and on b alone, and meets the other.
        bytes: the largest array that depends on both examples.
    """

    closed: ClosedJaxpr
    functions: list[Function]
    names: list[str]
    meeting: tuple[list[Var], list[Var]]
    bytes: int

    @property
    def row_bytes(self) -> int:
        """What one example needs to meet others."""
        return sum(map(_bytes, self.meeting[0] + self.meeting[1]))

    def own(self, x: Array, key: Array | None) -> tuple[list[Array], list[Array]]:
        """What an example needs to meet others, as the first of a pair and as the second: the same,
        or most of it, which XLA finds.
        """
        both = [*self.meeting[0], *self.meeting[1]]
        found = self._evaluated(both, [x, x, _known(False)], key)
        return found[: len(self.meeting[0])], found[len(self.meeting[0]) :]

    def kernels(
        self, first: Sequence[Array], second: Sequence[Array], same: Any, key: Array | None
    ) -> Kernels:
        """Of a pair of examples, from what they need to meet."""
        known = dict(zip(self.meeting[0] + self.meeting[1], [*first, *second], strict=True))
        # All of the examples that is needed is known.
        args = [None, None, _known(same)]
        return Kernels(*self._evaluated(self.closed.jaxpr.outvars[:2], args, key, known))

    def observed(self, x: Array, key: Array | None) -> tuple[list[Array], list[Array]]:
        """(largest variances, tails) of one example."""
        found = self._evaluated(self.closed.jaxpr.outvars[2:], [x, x, _known(True)], key)
        return found[: len(self.functions)], found[len(self.functions) :]

    def _evaluated(
        self,
        wanted: Sequence[Atom],
        args: list[Any],
        key: Array | None,
        known: Mapping[Var, Array] = MappingProxyType({}),
    ) -> list[Any]:
        jaxpr, args = self.closed.jaxpr, args if key is None else [*args, key]
        equations = needed(jaxpr, wanted, known)
        return evaluate(
            jaxpr, self.closed.consts, args, bind, equations=equations, wanted=wanted, known=known
        )


def trace_of(program: Program, duals: Duals, key: Array | None) -> PairTrace:
    """The program's interpretation with these duals; remembered by it."""
    kind = None if key is None else abstract_value(key)
    question = program.num_samples, duals, kind
    if question not in program.traces:
        program.traces[question] = _traced(program, duals, key)
    return program.traces[question]


def _traced(program: Program, duals: Duals, key: Array | None) -> PairTrace:
    met: list[Any] = []

    def pair(a: Array, b: Array, same: Array, *key: Array) -> tuple[Kernels, list[Array]]:
        observed = Observed([], [])
        kernels = program.kernels(
            (a, b), dict(duals), (0, 1), same=same, observed=observed, key=key[0] if key else None
        )
        functions = list(dict.fromkeys(f for f, _ in observed.functions))
        largest = [
            reduce(jnp.maximum, [jnp.max(q) for f, q in observed.functions if f == g])
            for g in functions
        ]
        # Names cannot leave a trace as its results do.
        met.extend((functions, [name for name, _ in observed.tails]))
        return kernels, [*largest, *(jnp.max(tail) for _, tail in observed.tails)]

    example = program.jaxpr.in_avals[-1]
    same = jax.ShapeDtypeStruct((), bool)
    closed = jax.make_jaxpr(pair)(example, example, same, *([] if key is None else [key]))
    marks = [FIRST, SECOND, FIRST | SECOND, *([] if key is None else [0])]
    largest, found = _marked(closed.jaxpr, marks)
    return PairTrace(closed, *met, _meeting(closed.jaxpr, found), max(largest, LEAST_BYTES))


def _known(same: Any) -> Any:
    return np.asarray(same) if isinstance(same, bool) else same


def _meeting(jaxpr: Jaxpr, marks: Mapping[Var, int]) -> tuple[list[Var], list[Var]]:
    """What depends on the first example alone, or on the second, and is used with the other."""
    kernels = jaxpr.outvars[:2]
    both = [e for e in needed(jaxpr, kernels) if any(marks[v] == 3 for v in e.outvars)]
    used = [a for atoms in (*(e.invars for e in both), kernels) for a in atoms]
    found = dict.fromkeys(a for a in used if not isinstance(a, Literal))
    return [v for v in found if marks[v] == FIRST], [v for v in found if marks[v] == SECOND]


def _marked(jaxpr: Jaxpr, marks: Sequence[int]) -> tuple[int, dict[Var, int]]:
    """Bytes of the largest array that depends on both examples, and what every value depends on,
    given what the arguments do.
    """
    found = dict(zip(jaxpr.invars, marks, strict=True)) | dict.fromkeys(jaxpr.constvars, 0)
    largest = 0
    for eqn in jaxpr.eqns:
        operands = [0 if isinstance(a, Literal) else found[a] for a in eqn.invars]
        most = reduce(or_, operands, 0)
        found |= dict.fromkeys(eqn.outvars, most)
        for inner in _programs_in(eqn):
            # In loops, what comes out goes in again.
            alike = len(inner.invars) == len(operands) and eqn.primitive.name in INNER
            inside = operands if alike else [most] * len(inner.invars)
            largest = max(largest, _marked(inner, inside)[0])
        if most == FIRST | SECOND:
            largest = max(largest, *map(_bytes, eqn.outvars))
    return largest, found


def _bytes(v: Var) -> int:
    is_array = hasattr(v.aval, "shape") and hasattr(dtype_of(v), "itemsize")
    return math.prod(shape_of(v)) * dtype_of(v).itemsize if is_array else 0


def _programs_in(eqn: Eqn) -> list[Jaxpr]:
    found = [p for v in eqn.params.values() for p in (v if isinstance(v, tuple | list) else (v,))]
    return [open_jaxpr(p)[0] for p in found if hasattr(p, "eqns")]
