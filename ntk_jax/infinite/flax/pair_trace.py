"""One pair of examples as a traced program: interpreted once, and evaluated for all of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import or_

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr

from ntk_jax.examples import Examples
from ntk_jax.infinite.flax.moments.duals import Filled
from ntk_jax.infinite.flax.moments.factors import Observed
from ntk_jax.infinite.flax.values.expression import Function
from ntk_jax.jaxprs import Eqn, Jaxpr, dtype_of, evaluate, open_jaxpr, shape_of
from ntk_jax.loops.rolled import Rolled, rolled
from ntk_jax.loops.steps import Inner
from ntk_jax.types import BOTH, Kernels, Which

LEAST_BYTES = 8
FIRST, SECOND = 1, 2  # what a value depends on, added up


@dataclass(frozen=True, eq=False)
class PairTrace:
    """(a, b, same, *key) -> nngp, ntk, the variances of the functions met, the tails of series.

    Attributes:
        closed: the program, its duals left open. `same`: whether a and b are the same row, known
            without rounding.
        functions: the scalar functions whose largest variances it returns.
        names: of the functions whose tails it returns.
        marks: which examples its arguments depend on.
        inner: what is filled in.
        programs: of some of the results on a CPU or not, with loops for equal layers.
    """

    closed: ClosedJaxpr
    functions: list[Function]
    names: list[str]
    marks: list[int]
    inner: Inner = field(default_factory=lambda: Filled({}))
    programs: dict[tuple[Sequence[int], bool], Rolled] = field(default_factory=dict)

    @cached_property
    def bytes(self) -> int:
        """The largest array that depends on both examples."""
        return max(_of_both(self.closed.jaxpr, self.marks, self.inner)[0], LEAST_BYTES)

    def kernels(
        self,
        a: Examples,
        b: Examples,
        same: Array | bool,
        key: Array | None,
        which: Which,
        *,
        on_cpu: bool,
    ) -> list[Array]:
        """Of one pair of examples."""
        return self._results(which, a, b, same, key, on_cpu)

    def observed(
        self, a: Examples, key: Array | None, *, on_cpu: bool
    ) -> tuple[list[Array], list[Array]]:
        """(largest variances, tails) of one example."""
        wanted = range(len(BOTH), len(self.closed.jaxpr.outvars))
        found = self._results(wanted, a, a, True, key, on_cpu)
        return found[: len(self.functions)], found[len(self.functions) :]

    def _results(
        self,
        wanted: Sequence[int],
        a: Examples,
        b: Examples,
        same: Array | bool,
        key: Array | None,
        on_cpu: bool,
    ) -> list[Array]:
        args = [*jax.tree.leaves((a, b)), jnp.asarray(same), *([] if key is None else [key])]
        kind = wanted, on_cpu
        if kind not in self.programs:  # the NTK follows the NNGP
            self.programs[kind] = rolled(
                self.closed, wanted, first=BOTH[:1], on_cpu=on_cpu, inner=self.inner
            )
        return self.programs[kind](*args)


def traced_pair(
    kernels: Callable[..., Kernels], example: list[jax.core.ShapedArray], key: Array | None
) -> PairTrace:
    """The trace of `kernels(examples, same, observed, key)`, examples given by their leaves."""
    met: list[tuple[list[Function], list[str]]] = []

    def pair(
        a: list[Array], b: list[Array], same: Array, *key: Array
    ) -> tuple[Kernels, list[Array]]:
        observed = Observed([], [])
        found = kernels((a, b), same, observed, key[0] if key else None)
        functions = list(dict.fromkeys(f for f, _ in observed.functions))
        largest = [
            reduce(jnp.maximum, [jnp.max(q) for f, q in observed.functions if f == g])
            for g in functions
        ]
        # Names cannot leave a trace as its results do.
        met.append((functions, [name for name, _ in observed.tails]))
        return found, [*largest, *(jnp.max(tail) for _, tail in observed.tails)]

    same = jax.ShapeDtypeStruct((), bool)
    closed = jax.make_jaxpr(pair)(example, example, same, *([] if key is None else [key]))
    size = len(example)
    marks = [*[FIRST] * size, *[SECOND] * size, FIRST | SECOND, *([] if key is None else [0])]
    (functions, names) = met[-1]
    return PairTrace(closed, functions, names, marks)


def _of_both(jaxpr: Jaxpr, marks: Sequence[int], inner: Inner) -> tuple[int, list[int]]:
    """Bytes of the largest array that depends on both examples, and what the results depend on,
    given what the arguments do; `inner` as in `rolled`.
    """
    largest = 0

    def step(eqn: Eqn, marks: list[int]) -> Sequence[int]:
        nonlocal largest
        most = reduce(or_, marks, 0)
        outs = [most] * len(eqn.outvars)
        filled_in = inner(eqn)
        for program in _programs_in(eqn) if filled_in is None else [filled_in.jaxpr]:
            alike = len(program.invars) == len(marks) and eqn.primitive.name != "scan"
            given = marks if alike else [most] * len(program.invars)
            bytes_inside, found = _of_both(program, given, inner)
            largest = max(largest, bytes_inside)
            outs = found if alike and len(found) == len(outs) else outs
        for v, mark in zip(eqn.outvars, outs, strict=True):
            if mark == FIRST | SECOND and hasattr(v.aval, "shape"):
                largest = max(largest, math.prod(shape_of(v)) * dtype_of(v).itemsize)
        return outs

    found = evaluate(jaxpr, [0] * len(jaxpr.constvars), marks, step, constant=lambda _: 0)
    return largest, found


def _programs_in(eqn: Eqn) -> list[Jaxpr]:
    found = [p for v in eqn.params.values() for p in (v if isinstance(v, tuple | list) else (v,))]
    return [open_jaxpr(p)[0] for p in found if hasattr(p, "eqns")]
