"""Plans and programs are remembered by what the user's function reads, while it can be read.

A changed closure is another function. The arrays in it are arguments of the compiled program, so
that no program keeps them alive, and functions that differ in nothing else share one.
"""

import functools
from collections.abc import Callable, Hashable
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import jax
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from ntk_jax.closures.cache import Cache
from ntk_jax.closures.fingerprint import Function, Reading, read
from ntk_jax.compat import abstract_value, ambient_mesh, is_concrete, without_consts
from ntk_jax.jaxprs import Jaxpr, most_entries, same_jaxpr
from ntk_jax.small_programs import LESS, jit_by_size

T = TypeVar("T")
Made = TypeVar("Made", "CompiledCall", "Traced")
Shapes: TypeAlias = Any  # a pytree of `ShapeDtypeStruct`s
Leaves: TypeAlias = list[Any]  # of arguments and results: arrays, and whatever JAX takes for one

# Settings under which the same function has other outputs, or is traced to another program.
_OF_OUTPUTS = (
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
_OF_PROGRAMS = (*_OF_OUTPUTS, "jax_default_matmul_precision", "jax_debug_nans", "jax_disable_jit")
_SETTINGS, _FOR_PROGRAMS = attrgetter(*_OF_OUTPUTS), attrgetter(*_OF_PROGRAMS)

_results, _programs, _runners = Cache(1024), Cache(1024), Cache(256)
limits = Cache(128)  # programs of models at infinite width


def forget() -> None:
    """Forget all plans and programs, as after a change of the thresholds they were made with."""
    for cache in (_results, _programs, _runners, limits):
        cache.values.clear()


def remember(
    function: Function, rest: Hashable, make: Callable[[Reading], T], cache: Cache = _results
) -> T:
    """`make(function)`, remembered by what the function reads and by `rest`."""
    reading = read(function)
    if reading.key is None:
        return make(reading)
    key = reading.key, rest, _settings(_SETTINGS)
    found = cache.get(key)
    if found is None:
        found = (make(reading),)
        cache.put(key, found, reading.objects)
    return cast(T, found[0])


def remembered(make: Callable[..., T]) -> Callable[..., T]:
    """Decorate `make(function, *hashable)`: results are remembered by what is read and the rest."""

    @functools.wraps(make)
    def call(function: Function, *rest: Hashable) -> T:
        return remember(function, (make, rest), lambda reading: make(reading, *rest))

    return call


def compiled(make: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate `make(function, *arrays, **options)`: `jax.jit` of a static function, for closures.

    The options are static, too. What the function reads is looked at anew in every call.
    """

    @functools.wraps(make)
    def call(function: Function, *args: Any, **options: Hashable) -> Any:
        program, consts, leaves = program_of(make, function, *args, **options)
        return program(consts, leaves)

    return call


def traced(
    make: Callable[..., Any], function: Function, *shapes: Shapes, **options: Hashable
) -> tuple[ClosedJaxpr, Shapes]:
    """`make(function, *shapes, **options)` as a traced program, and the shapes of its results.

    The arguments are pytrees of `ShapeDtypeStruct`s. It is traced once for all that reads the same.
    """
    reading = read(function)
    leaves, structure = jax.tree.flatten(shapes)
    sizes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    rest = make, structure, sizes, tuple(options.items()), _settings(_FOR_PROGRAMS)
    new = lambda: _jaxpr(make, reading, leaves, structure, options)
    found = _kept_by(_results, reading, rest, new)
    return ClosedJaxpr(found.jaxpr, _values(found.consts, reading)), found.shapes


def program_of(
    make: Callable[..., Any], function: Function, *args: Any, **options: Hashable
) -> tuple["CompiledCall", Leaves, Leaves]:
    """The program of `compiled(make)`, the arrays that `function` reads now, the flat arguments."""
    reading = read(function)
    leaves, structure = jax.tree.flatten(args)
    shapes, settings = tuple(map(abstract_value, leaves)), _settings(_FOR_PROGRAMS)
    rest = make, structure, shapes, tuple(options.items()), settings
    new = lambda: _trace(make, reading, leaves, structure, options, rest)
    program = _kept_by(_programs, reading, rest, new)
    return program, _values(program.consts, reading), leaves


def _kept_by(cache: Cache, reading: Reading, rest: Hashable, make: Callable[[], Made]) -> Made:
    """What the cache has for what is read and the rest, or else `make()`, which it then has: unless
    changes of the function cannot be told, or it took values from someone's trace.
    """
    if reading.key is None:
        return make()
    key = reading.key, rest
    found = cache.get(key)
    if found is None:
        found = make()
        if all(map(is_concrete, found.consts)):
            cache.put(key, found, reading.objects)
    return cast(Made, found)


def _values(consts: Leaves, reading: Reading) -> Leaves:
    """The arrays that a reading's objects, by number, and other constants are."""
    return [reading.objects[c] if isinstance(c, int) else c for c in consts]


def _settings(of: Callable[[object], tuple[Hashable, ...]]) -> tuple[Hashable, ...]:
    return ambient_mesh(), *of(jax.config)


class CompiledCall(NamedTuple):
    """What runs, what it returns, and what it reads: arrays, or numbers of a reading's objects."""

    run: Callable[[Leaves, Leaves], Leaves]
    structure: jax.tree_util.PyTreeDef
    consts: Leaves

    def __call__(self, consts: Leaves, leaves: Leaves) -> Any:
        """The result for what is read and for the flat arguments."""
        return jax.tree.unflatten(self.structure, self.run(consts, leaves))


class Traced(NamedTuple):
    """What is evaluated, what it reads, as in `CompiledCall`, and the shapes of its results."""

    jaxpr: Jaxpr
    consts: Leaves
    shapes: Shapes


def _jaxpr(
    make: Callable[..., Any],
    reading: Reading,
    leaves: Leaves,
    structure: jax.tree_util.PyTreeDef,
    options: dict[str, Hashable],
) -> Traced:
    def flat(leaves: Leaves) -> Any:
        return make(reading, *jax.tree.unflatten(structure, leaves), **options)

    closed, shapes = jax.make_jaxpr(flat, return_shape=True)(leaves)
    # Objects of the reading are known by their number: the program must not keep them alive.
    places = {id(value): i for i, value in enumerate(reading.objects)}
    consts = [places[id(c)] if id(c) in places else _kept(c) for c in closed.consts]
    return Traced(without_consts(closed), consts, shapes)


def _trace(
    make: Callable[..., Any],
    reading: Reading,
    leaves: Leaves,
    structure: jax.tree_util.PyTreeDef,
    options: dict[str, Hashable],
    rest: Hashable,
) -> CompiledCall:
    jaxpr, consts, shapes = _jaxpr(make, reading, leaves, structure, options)
    outline = None if reading.key is None else reading.key.outline, rest
    known = _runners.get(outline)
    if known is None or not same_jaxpr(known[0], jaxpr):
        known = jaxpr, _runner(make.__name__, jaxpr)
        _runners.put(outline, known, [])
    return CompiledCall(known[1], jax.tree.structure(shapes), consts)


def _kept(const: Array | np.ndarray) -> Array | np.ndarray:
    """A constant that later changes of NumPy arrays do not reach."""
    return const if isinstance(const, Array) else np.array(const)


def _runner(name: str, jaxpr: Jaxpr) -> Callable[[Leaves, Leaves], Leaves]:
    def evaluate(consts: Leaves, leaves: Leaves) -> Leaves:
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*leaves)

    evaluate.__name__ = evaluate.__qualname__ = name
    # Not of what products of matrices read: those are compiled already.
    most = most_entries(jaxpr)
    return jit_by_size(evaluate, options=LESS, entries=lambda *_: most)
