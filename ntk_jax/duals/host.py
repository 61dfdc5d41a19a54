"""Functions of few values on the host: their traces evaluated by NumPy, which compiles nothing.

What is looked at before a program is compiled, such as how many terms a series needs, and what each
example has with itself, are some thousand values: XLA would take longer to compile their program
than NumPy to compute them.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import is_concrete, scan_counts
from ntk_jax.duals.host_operations import UnknownOperationError, Value, operation, whole
from ntk_jax.jaxprs import (
    INNER,
    Eqn,
    closed_jaxpr,
    dtype_of,
    evaluate,
    inner_jaxpr,
    shape_of,
)


def host_values(f: Callable[..., Value], *args: np.ndarray) -> Value:
    """The arrays that `f` returns, as NumPy's, in the dtypes of JAX.

    By XLA in one program where NumPy does not know an operation.
    """
    dtype = jnp.result_type(float)
    values = [np.asarray(a, dtype) for a in args]
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*values)
    if all(map(is_concrete, closed.consts)):
        try:
            return jax.tree.unflatten(jax.tree.structure(shapes), HostProgram(closed)(*values))
        except UnknownOperationError:
            pass
    found = jax.jit(f)(*values)
    if not all(map(is_concrete, jax.tree.leaves(found))):  # under someone's jit
        with jax.ensure_compile_time_eval():
            found = jax.jit(f)(*values)
    return jax.tree.map(np.asarray, found)


def on_host(f: Callable[..., Value], static: Hashable, *args: Value) -> Value:
    """`f(static, *args)` of pytrees of concrete arrays on the host, as NumPy's; None where NumPy
    does not know an operation, or XLA is much faster: on arrays larger than those given.

    `f` is a function of a module: programs are remembered by it, `static`, shapes and dtypes.
    """
    leaves, structure = jax.tree.flatten(args)
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    x64: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    found = _program(f, static, structure, kinds, x64)
    if found is None:
        return None
    program, results = found
    return jax.tree.unflatten(results, program(*map(np.asarray, leaves)))


@lru_cache(maxsize=256)
def _program(
    f: Callable[..., Value], static: Hashable, structure: Value, kinds: tuple[Value, ...], x64: bool
) -> tuple["HostProgram", Value] | None:
    args = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
    closed, shapes = jax.make_jaxpr(f, static_argnums=0, return_shape=True)(static, *args)
    try:
        program = HostProgram(closed)
    except UnknownOperationError:
        return None
    given = max(math.prod(shape) for shape, _ in kinds)
    return (program, jax.tree.structure(shapes)) if program.largest <= _GROWTH * given else None


_GROWTH = 16  # a mixture has ten scales


class HostProgram:
    """A trace whose every equation is an operation of NumPy.

    Raises:
        UnknownOperationError: one is not.
    """

    def __init__(self, closed: Value) -> None:
        self.values: list[Value] = []  # of constants; None for variables
        self.steps: list[tuple[Callable[..., Value], list[int], list[int]]] = []
        self.known: dict[Hashable, list[int]] = {}  # of equations and literals: their results
        self.largest = 0  # entries of a result
        jaxpr = closed.jaxpr
        self.inputs = [self._new() for _ in jaxpr.invars]
        places = self._evaluated(jaxpr, closed.consts, self.inputs)
        of = zip(places, jaxpr.outvars, strict=True)
        self.outputs = [(place, shape_of(a), dtype_of(a)) for place, a in of]

    def __call__(self, *args: Value) -> list[np.ndarray]:
        """The results of the trace."""
        with np.errstate(all="ignore"):
            found = self.run(args)
        return [
            np.asarray(whole(value, shape), dtype)
            for value, (_, shape, dtype) in zip(found, self.outputs, strict=True)
        ]

    def run(self, args: Sequence[Value]) -> list[Value]:
        """The same, some with axes of one entry for more."""
        values = self.values.copy()
        for place, value in zip(self.inputs, args, strict=True):
            values[place] = value
        for f, operands, results in self.steps:
            if len(operands) == 2:  # most of them
                out = f(values[operands[0]], values[operands[1]])
            else:
                out = f(*[values[i] for i in operands])
            if len(results) == 1:
                values[results[0]] = out
            else:
                for place, value in zip(results, out, strict=True):
                    values[place] = value
        return [values[place] for place, _, _ in self.outputs]

    def _new(self, value: Value = None) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _evaluated(self, jaxpr: Value, consts: Sequence[Value], places: list[int]) -> list[int]:
        """Where the results of a trace are, given where its arguments are."""
        constants = [self._new(np.asarray(c)) for c in consts]
        return evaluate(jaxpr, constants, places, self._results, constant=self._literal)

    def _literal(self, value: Value) -> int:
        array = np.asarray(value, getattr(value, "dtype", None))
        key = "literal", array.dtype, array.tobytes()
        if key not in self.known:
            self.known[key] = [self._new(array)]
        return self.known[key][0]

    def _results(self, eqn: Eqn, operands: list[int]) -> list[int]:
        """Where an equation's are: of equal ones the same."""
        if eqn.primitive.name in INNER:
            return self._evaluated(*inner_jaxpr(eqn), operands)
        if eqn.primitive.name == "scan":
            body = HostProgram(closed_jaxpr(eqn.params["jaxpr"]))
            self.largest = max(self.largest, body.largest)
            return self._later(_scan(eqn, body), eqn, operands)
        key = eqn.primitive.name, str(eqn.params), tuple(operands)
        if key not in self.known:
            self.known[key] = self._computed(eqn, operands)
        return self.known[key]

    def _computed(self, eqn: Eqn, operands: list[int]) -> list[int]:
        f, values = operation(eqn), [self.values[i] for i in operands]
        if f is None:
            return operands[: len(eqn.outvars)]
        if any(value is None for value in values):
            return self._later(f, eqn, operands)
        with np.errstate(all="ignore"):
            return [self._new(f(*values))]

    def _later(self, f: Callable[..., Value], eqn: Eqn, operands: list[int]) -> list[int]:
        self.largest = max(self.largest, *(math.prod(shape_of(v)) for v in eqn.outvars))
        results = [self._new() for _ in eqn.outvars]
        self.steps.append((f, operands, results))
        return results


def _scan(eqn: Eqn, body: HostProgram) -> Callable[..., Value]:
    """A loop of Python over a program."""
    params = eqn.params
    num_consts, num_carry = scan_counts(params)
    shapes = [shape_of(a) for a in eqn.invars]
    shapes_of_rows = [shape_of(a)[1:] for a in eqn.outvars[num_carry:]]
    order = range(params["length"])[:: -1 if params["reverse"] else 1]

    def run(*operands: Value) -> Value:
        operands = tuple(map(whole, operands, shapes))
        consts, xs = operands[:num_consts], operands[num_consts + num_carry :]
        carry, rows = list(operands[num_consts : num_consts + num_carry]), []
        for m in order:
            out = body.run([*consts, *carry, *(x[m] for x in xs)])
            carry = out[:num_carry]
            rows.append(list(map(whole, out[num_carry:], shapes_of_rows)))
        columns = [np.array(column) for column in zip(*rows[:: order.step], strict=True)]
        out = [*carry, *columns]
        return out[0] if len(out) == 1 else out

    if not params["length"]:
        raise UnknownOperationError("a scan of nothing")
    return run
