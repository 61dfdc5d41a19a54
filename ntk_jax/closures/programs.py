"""Plans and compiled programs are remembered by what the user's function reads, and only as long as
it can be read.

A changed closure is another function. The arrays in it are arguments of the compiled program, so
that no program keeps them alive, and functions that differ in nothing else share one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from ntk_jax.closures.fingerprint import Reading, read
from ntk_jax.closures.memory import Memory
from ntk_jax.compat import abstract_value, is_concrete
from ntk_jax.jaxprs import same_jaxpr

T = TypeVar("T")

# Settings under which the same function has other outputs, or is traced to another program.
_SETTINGS = (
    "enable_x64",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "default_prng_impl",
    "threefry_partitionable",
)
_FOR_PROGRAMS = (*_SETTINGS, "default_matmul_precision", "debug_nans", "disable_jit")

_results, _programs, _runners = Memory(1024), Memory(1024), Memory(256)


def forget() -> None:
    """Forget all plans and programs, as after a change of the thresholds that they were made
    with.
    """
    for memory in (_results, _programs, _runners):
        memory.values.clear()


def remember(function: Any, rest: Any, make: Callable[[Reading], T]) -> T:
    """`make(function)`, remembered by what the function reads and by `rest`."""
    reading = read(function)
    if reading.key is None:
        return make(reading)
    key = reading.key, rest, _settings(_SETTINGS)
    found = _results.get(key)
    if found is None:
        found = (make(reading),)
        _results.put(key, found, reading.objects)
    return cast(T, found[0])


def remembered(make: Callable[..., T]) -> Callable[..., T]:
    """Decorate `make(function, *hashable)`: its results are remembered by what the function reads
    and by the rest.
    """

    @functools.wraps(make)
    def call(function: Any, *rest: Any) -> T:
        return remember(function, (make, rest), lambda reading: make(reading, *rest))

    return call


def compiled(make: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate `make(function, *arrays, **options)`: `jax.jit` with static function and options,
    but for closures.

    What the function reads is looked at anew in every call.
    """

    @functools.wraps(make)
    def call(function: Any, *args: Any, **options: Any) -> Any:
        program, consts, leaves = program_of(make, function, *args, **options)
        return program(consts, leaves)

    return call


def program_of(
    make: Any, function: Any, *args: Any, **options: Any
) -> tuple["Program", list[Any], list[Any]]:
    """The program of `compiled(make)`, the arrays that `function` reads now, and the flat
    arguments.
    """
    reading = read(function)
    leaves, structure = jax.tree.flatten(args)
    rest = (
        make,
        structure,
        tuple(map(abstract_value, leaves)),
        tuple(options.items()),
        _settings(_FOR_PROGRAMS),
    )
    program = None if reading.key is None else _programs.get((reading.key, rest))
    if program is None:
        program = _trace(make, reading, leaves, structure, options, rest)
        if reading.key is not None and all(map(is_concrete, program.consts)):
            _programs.put((reading.key, rest), program, reading.objects)
    return (
        program,
        [reading.objects[c] if isinstance(c, int) else c for c in program.consts],
        leaves,
    )


def _settings(names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(jax.config, f"jax_{name}") for name in names)


class Program(NamedTuple):
    """What runs, what it returns, and what is read: arrays, or their numbers among the objects of a
    reading.
    """

    run: Any
    structure: Any
    consts: list[Any]

    def __call__(self, consts: list[Any], leaves: list[Any]) -> Any:
        """The result for what is read and for the flat arguments."""
        return jax.tree.unflatten(self.structure, self.run(consts, leaves))


def _trace(
    make: Any, reading: Reading, leaves: Any, structure: Any, options: dict[str, Any], rest: Any
) -> Program:
    def flat(leaves: list[Any]) -> Any:
        return make(reading, *jax.tree.unflatten(structure, leaves), **options)

    closed, shapes = jax.make_jaxpr(flat, return_shape=True)(leaves)
    places = {
        id(value): i for i, value in enumerate(reading.objects)
    }  # those are not kept alive from here
    consts = [places[id(c)] if id(c) in places else _kept(c) for c in closed.consts]
    outline = None if reading.key is None else reading.key.outline, rest
    known = _runners.get(outline)
    if known is None or not same_jaxpr(known[0], closed.jaxpr):
        known = closed.jaxpr, _runner(make.__name__, closed.jaxpr)
        _runners.put(outline, known, [])
    return Program(known[1], jax.tree.structure(shapes), consts)


def _kept(const: Any) -> Any:
    """A constant that later changes of NumPy arrays do not reach."""
    return const if isinstance(const, jax.Array) else np.array(const)


def _runner(name: str, jaxpr: Any) -> Any:
    def evaluate(consts: list[Any], leaves: list[Any]) -> list[Any]:
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*leaves)

    evaluate.__name__ = evaluate.__qualname__ = name
    return jax.jit(evaluate)
