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
from ntk_jax.jaxprs import Eqn, Jaxpr, dtype_of, evaluate, programs_in, shape_of
from ntk_jax.loops.apart import OF_BOTH, OF_FIRST, OF_NEITHER, OF_SECOND, Apart, apart
from ntk_jax.loops.rolled import Rolled, rolled
from ntk_jax.loops.steps import Inner
from ntk_jax.types import BOTH, Kernels, Which

LEAST_BYTES = 8


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
        observing: of the variances and tails of one example, likewise.
    """

    closed: ClosedJaxpr
    functions: list[Function]
    names: list[str]
    marks: list[int]
    inner: Inner = field(default_factory=lambda: Filled({}))
    programs: dict[tuple[Which, bool], Apart] = field(default_factory=dict)
    observing: dict[bool, Rolled] = field(default_factory=dict)

    @cached_property
    def bytes(self) -> int:
        """The largest array that depends on both examples."""
        return max(self._largest[OF_BOTH], LEAST_BYTES)

    @cached_property
    def bytes_of_one(self) -> int:
        """The largest array that depends on one example."""
        return max(self._largest[OF_FIRST], self._largest[OF_SECOND], LEAST_BYTES)

    @cached_property
    def _largest(self) -> list[int]:
        return _largest(self.closed.jaxpr, self.marks, self.inner)[0]

    def kernels(self, which: Which, *, on_cpu: bool) -> Apart:
        """NNGP, NTK or both: of the key, if any; of the leaves of an example; of `same`."""
        if (which, on_cpu) not in self.programs:  # the NTK follows the NNGP
            self.programs[which, on_cpu] = apart(
                self.closed, which, BOTH[:1], self.marks, on_cpu=on_cpu, inner=self.inner
            )
        return self.programs[which, on_cpu]

    def observed(
        self, a: Examples, key: Array | None, *, on_cpu: bool
    ) -> tuple[list[Array], list[Array]]:
        """(largest variances, tails) of one example."""
        if on_cpu not in self.observing:
            wanted = range(len(BOTH), len(self.closed.jaxpr.outvars))
            one = [i for i, mark in enumerate(self.marks) if mark == OF_FIRST]
            same = [*one, *one, *range(2 * len(one), len(self.marks))]
            self.observing[on_cpu] = rolled(
                self.closed, wanted, on_cpu=on_cpu, inner=self.inner, same=same
            )
        leaves = jax.tree.leaves(a)
        found = self.observing[on_cpu](
            *leaves, *leaves, jnp.asarray(True), *([] if key is None else [key])
        )
        return found[: len(self.functions)], found[len(self.functions) :]


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
    marks = [
        *[OF_FIRST] * size,
        *[OF_SECOND] * size,
        OF_BOTH,
        *([] if key is None else [OF_NEITHER]),
    ]
    (functions, names) = met[-1]
    return PairTrace(closed, functions, names, marks)


def _largest(jaxpr: Jaxpr, marks: Sequence[int], inner: Inner) -> tuple[list[int], list[int]]:
    """Bytes of the largest array that depends on neither example, one, the other, or both, and what
    the results depend on, given what the arguments do; `inner` as in `rolled`.
    """
    largest = [0] * (OF_BOTH + 1)

    def step(eqn: Eqn, marks: list[int]) -> Sequence[int]:
        most = reduce(or_, marks, OF_NEITHER)
        outs = [most] * len(eqn.outvars)
        filled_in = inner(eqn)
        for program in programs_in(eqn) if filled_in is None else [filled_in.jaxpr]:
            alike = len(program.invars) == len(marks) and eqn.primitive.name != "scan"
            given = marks if alike else [most] * len(program.invars)
            inside, found = _largest(program, given, inner)
            largest[:] = map(max, largest, inside)
            outs = found if alike and len(found) == len(outs) else outs
        for v, mark in zip(eqn.outvars, outs, strict=True):
            if hasattr(v.aval, "shape"):
                largest[mark] = max(largest[mark], math.prod(shape_of(v)) * dtype_of(v).itemsize)
        return outs

    constants = [OF_NEITHER] * len(jaxpr.constvars)
    found = evaluate(jaxpr, constants, marks, step, constant=lambda _: OF_NEITHER)
    return largest, found
