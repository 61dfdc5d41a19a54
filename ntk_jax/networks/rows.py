"""That rows do not depend on each other, read off the trace of a network: nothing is compiled.

Every value has the rows of x along one axis, or none of them. A trace with an operation that is not
known here proves nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import Literal
from ntk_jax.initializers.rules import ELEMENTWISE
from ntk_jax.jaxprs import INNER, Atom, Eqn, Jaxpr, evaluate, inner_jaxpr, open_jaxpr, shape_of
from ntk_jax.types import ApplyFn, Params

SIZES = (4, 5)  # numbers of rows that must make the same program


class Rows(NamedTuple):
    """One row of x for each entry of this axis."""

    axis: int


class Fixed(NamedTuple):
    """The same whatever x is, and along these axes everywhere."""

    uniform: frozenset[int] = frozenset()


Place: TypeAlias = Rows | Fixed
Rule: TypeAlias = Callable[[Eqn, Sequence[Place]], Place]

RULES: dict[str, Rule] = {}


class UnprovenError(Exception):
    """The trace does not tell."""


def are_independent(apply_fn: ApplyFn, params: Params, x: jax.ShapeDtypeStruct) -> bool:
    """Whether the trace shows that rows shaped like x do not depend on each other, their number, or
    their place; False says nothing.
    """
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), params)
    batches = [jax.ShapeDtypeStruct((n, *x.shape), x.dtype) for n in SIZES]
    one, other = (jax.make_jaxpr(apply_fn)(shapes, batch) for batch in batches)
    places: list[Place] = [Fixed()] * (len(one.jaxpr.invars) - 1) + [Rows(0)]
    same = _alike(one.jaxpr, other.jaxpr) and all(map(_equal, one.consts, other.consts))
    try:
        return same and _run(one.jaxpr, [Fixed() for _ in one.consts], places) == [Rows(0)]
    except UnprovenError:
        return False


def _run(jaxpr: Jaxpr, consts: Sequence[Place], args: Sequence[Place]) -> list[Place]:
    return evaluate(jaxpr, consts, args, _step, constant=lambda _: Fixed())


def _step(eqn: Eqn, places: list[Place]) -> Sequence[Place]:
    name = eqn.primitive.name
    if name in INNER:
        jaxpr, consts = inner_jaxpr(eqn)
        return _run(jaxpr, [Fixed() for _ in consts], places)
    if name in RULES:
        return [RULES[name](eqn, places)] * len(eqn.outvars)
    if any(isinstance(p, Rows) for p in places):
        raise UnprovenError
    return [Fixed()] * len(eqn.outvars)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of primitives of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _need(condition: bool) -> None:
    if not condition:
        raise UnprovenError


@rule(*(ELEMENTWISE - {"bitcast_convert_type"}), "copy", "copy_p", "stop_gradient", "reduce_precision")
def _elementwise(eqn: Eqn, places: Sequence[Place]) -> Place:
    return _together(eqn.invars, places)


def _together(atoms: Sequence[Atom], places: Sequence[Place]) -> Place:
    """Of operands that meet entry by entry; numbers meet everything."""
    alone = lambda a: {i for i, size in enumerate(shape_of(a)) if size == 1}
    rows = {p for p in places if isinstance(p, Rows)}
    fixed = [
        p.uniform | alone(a)
        for a, p in zip(atoms, places, strict=True)
        if isinstance(p, Fixed) and shape_of(a)
    ]
    if not rows:
        return Fixed(frozenset.intersection(*fixed)) if fixed else Fixed()
    (found, *others) = rows
    _need(not others and all(found.axis in uniform for uniform in fixed))
    return found


def _moved(place: Place, axes: dict[int, int]) -> Place:
    """The place where each axis goes to another; what has none is gone."""
    if isinstance(place, Fixed):
        return Fixed(frozenset(axes[a] for a in place.uniform if a in axes))
    _need(place.axis in axes)
    return Rows(axes[place.axis])


@rule("broadcast_in_dim")
def _broadcast(eqn: Eqn, places: Sequence[Place]) -> Place:
    old, new = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    to = eqn.params["broadcast_dimensions"]
    place = _moved(places[0], {i: a for i, a in enumerate(to) if old[i] == new[a]})
    repeated = set(range(len(new))) - {a for i, a in enumerate(to) if old[i] == new[a]}
    return place if isinstance(place, Rows) else Fixed(place.uniform | repeated)


@rule("reshape")
def _reshape(eqn: Eqn, places: Sequence[Place]) -> Place:
    _need(eqn.params["dimensions"] is None)
    old, new = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    # An axis stays where it has as many entries before it.
    starts = {(math.prod(new[:b]), new[b]): b for b in reversed(range(len(new)))}
    ends = {(math.prod(old[:a]), old[a]): a for a in range(len(old))}
    return _moved(places[0], {a: starts[at] for at, a in ends.items() if at in starts})


@rule("squeeze", "transpose", "rev", "split", "reduce_sum", "reduce_max", "reduce_min")
@rule("reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin")
@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _axes(eqn: Eqn, places: Sequence[Place]) -> Place:
    name, p, rank = eqn.primitive.name, eqn.params, len(shape_of(eqn.invars[0]))
    if name == "transpose":
        return _moved(places[0], {a: i for i, a in enumerate(p["permutation"])})
    gone = p.get("axes", p.get("dimensions", (p.get("axis"),)))
    kept = [a for a in range(rank) if a not in gone]
    stays = len(shape_of(eqn.outvars[0])) == rank
    return _moved(places[0], {a: a if stays else i for i, a in enumerate(kept)})


@rule("sort", "concatenate")
def _along(eqn: Eqn, places: Sequence[Place]) -> Place:
    kept = set(range(len(shape_of(eqn.invars[0])))) - {eqn.params["dimension"]}
    return _moved(_together(eqn.invars, places), {a: a for a in kept})


@rule("slice", "pad", "dynamic_slice", "reduce_window_sum", "reduce_window_max")
@rule("reduce_window_min")
def _windows(eqn: Eqn, places: Sequence[Place]) -> Place:
    """Along axes that keep their entries, each one in its place."""
    p, old, new = eqn.params, shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    _need(all(isinstance(place, Fixed) for place in places[1:]))
    padding, window = p.get("padding", ()), p.get("window_dimensions", (1,) * len(old))
    whole = lambda a: (
        old[a] == new[a]
        and window[a] == 1
        and not any(padding[a] if padding else ())
        and not any(p.get("padding_config", ((0,),) * len(old))[a])
    )
    return _moved(places[0], {a: a for a in range(len(old)) if whole(a)})


@rule("dot_general")
def _dot_general(eqn: Eqn, places: Sequence[Place]) -> Place:
    contracted, batch = eqn.params["dimension_numbers"]
    ranks = [len(shape_of(v)) for v in eqn.invars]
    free = [
        [a for a in range(rank) if a not in (*c, *b)]
        for rank, c, b in zip(ranks, contracted, batch, strict=True)
    ]
    starts = (len(batch[0]), len(batch[0]) + len(free[0]))
    sides = zip(batch, free, starts, strict=True)
    left, right = (
        _moved(
            place,
            dict(zip(b, range(len(b)), strict=True)) | {a: start + i for i, a in enumerate(f)},
        )
        for place, (b, f, start) in zip(places, sides, strict=True)
    )
    if isinstance(left, Rows) and isinstance(right, Rows):
        _need(left == right)
        return left
    rows, fixed = (left, right) if isinstance(left, Rows) else (right, left)
    if isinstance(rows, Rows) and isinstance(fixed, Fixed):
        _need(rows.axis >= len(batch[0]) or rows.axis in fixed.uniform)
        return rows
    return Fixed()


@rule("conv_general_dilated")
def _convolution(eqn: Eqn, places: Sequence[Place]) -> Place:
    left, right = places
    if isinstance(left, Fixed) and isinstance(right, Fixed):
        return Fixed()
    numbers = eqn.params["dimension_numbers"]
    _need(isinstance(right, Fixed) and eqn.params["batch_group_count"] == 1)
    return _moved(left, {numbers.lhs_spec[0]: numbers.out_spec[0]})


@rule("gather")
def _gather(eqn: Eqn, places: Sequence[Place]) -> Place:
    """Rows of indices into a table, or entries of each row at fixed places."""
    p, rank = eqn.params, len(shape_of(eqn.outvars[0]))
    numbers, operand, indices = p["dimension_numbers"], *places
    _need(not numbers.operand_batching_dims)
    if isinstance(operand, Fixed):
        batch = [a for a in range(rank) if a not in numbers.offset_dims]
        return Fixed() if isinstance(indices, Fixed) else _moved(indices, dict(enumerate(batch)))
    _need(isinstance(indices, Fixed))
    shape = shape_of(eqn.invars[0])
    kept = [a for a in range(len(shape)) if a not in numbers.collapsed_slice_dims]
    to = dict(zip(kept, numbers.offset_dims, strict=True))
    whole = {a: b for a, b in to.items() if p["slice_sizes"][a] == shape[a]}
    return _moved(operand, {a: b for a, b in whole.items() if a not in numbers.start_index_map})


@rule("iota")
def _iota(eqn: Eqn, places: Sequence[Place]) -> Place:
    _need(not places)
    return Fixed(frozenset(range(len(shape_of(eqn.outvars[0])))) - {eqn.params["dimension"]})


def _alike(one: Jaxpr, other: Jaxpr) -> bool:
    """Whether two traces are the same up to the number of rows."""
    same = dict(
        zip([*one.constvars, *one.invars], [*other.constvars, *other.invars], strict=False)
    )

    def alike(x: Atom, y: Atom) -> bool:
        if isinstance(x, Literal) or isinstance(y, Literal):
            return isinstance(x, Literal) and isinstance(y, Literal) and _equal(x.val, y.val)
        return same.get(x) is y

    for e, f in zip(one.eqns, other.eqns, strict=False):
        if not (e.primitive is f.primitive and all(map(alike, e.invars, f.invars))):
            return False
        # Of calls the program alone: derivative rules are functions.
        inner = INNER.get(e.primitive.name)
        if not _alike_params(*(g.params if inner is None else g.params[inner] for g in (e, f))):
            return False
        same |= zip(e.outvars, f.outvars, strict=True)
    return len(one.eqns) == len(other.eqns) and all(map(alike, one.outvars, other.outvars))


def _alike_params(x: Any, y: Any) -> bool:
    if hasattr(x, "eqns") and hasattr(y, "eqns"):
        (a, consts_a), (b, consts_b) = open_jaxpr(x), open_jaxpr(y)
        return _alike(a, b) and all(map(_equal, consts_a, consts_b))
    if isinstance(x, dict) and isinstance(y, dict):
        return all(_alike_params(x[name], y.get(name)) for name in x)
    if isinstance(x, tuple | list) and isinstance(y, tuple | list):
        return len(x) == len(y) and all(map(_alike_params, x, y))
    if isinstance(x, int) and isinstance(y, int):
        return x == y or (x, y) == SIZES
    return _equal(x, y)


def _equal(x: Any, y: Any) -> bool:
    if x is y:
        return True
    if isinstance(x, np.ndarray | np.generic) and isinstance(y, np.ndarray | np.generic):
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    arrays = (np.ndarray, jax.Array, jax.core.Tracer)
    return not isinstance(x, arrays) and not isinstance(y, arrays) and bool(x == y)
