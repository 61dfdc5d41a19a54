"""One pair of examples as a traced program: interpreted once, and evaluated for all of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr

from ntk_jax.examples import Examples
from ntk_jax.infinite.flax.moments.factors import Function, Observed
from ntk_jax.jaxprs import Eqn, Jaxpr, dtype_of, evaluate, open_jaxpr, shape_of
from ntk_jax.loops.rolled import Rolled, rolled
from ntk_jax.types import BOTH, Kernels, Which

LEAST_BYTES = 8
FIRST, SECOND = 1, 2  # what a value depends on, added up


@dataclass(frozen=True, eq=False)
class PairTrace:
    """(a, b, same, *key) -> nngp, ntk, the variances of the functions met, the tails of series.

    Attributes:
        closed: the program. `same`: whether a and b are the same row, known without rounding.
        functions: the scalar functions whose largest variances it returns.
        names: of the functions whose tails it returns.
        bytes: the largest array that depends on both examples.
        programs: of some of the results, with loops for equal layers.
    """

    closed: ClosedJaxpr
    functions: list[Function]
    names: list[str]
    bytes: int
    programs: dict[Sequence[int], Rolled] = field(default_factory=dict)

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
        if wanted not in self.programs:  # the NTK follows the NNGP
            self.programs[wanted] = rolled(self.closed, wanted, first=BOTH[:1])
        return self.programs[wanted](*args, on_cpu=on_cpu)


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
    return PairTrace(closed, functions, names, max(_of_both(closed.jaxpr, marks)[0], LEAST_BYTES))


def _of_both(jaxpr: Jaxpr, marks: Sequence[int]) -> tuple[int, list[int]]:
    """Bytes of the largest array that depends on both examples, and what the results depend on,
    given what the arguments do.
    """
    largest = 0

    def step(eqn: Eqn, marks: list[int]) -> Sequence[int]:
        nonlocal largest
        most = reduce(or_, marks, 0)
        outs = [most] * len(eqn.outvars)
        for inner in _programs_in(eqn):
            alike = len(inner.invars) == len(marks) and eqn.primitive.name != "scan"
            bytes_inside, found = _of_both(inner, marks if alike else [most] * len(inner.invars))
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
