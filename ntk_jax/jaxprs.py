"""Reading traced programs: what every interpreter of a jaxpr stands on.

A jaxpr is a list of equations `outvars = primitive[params](invars)`; a literal operand carries its
value.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from jax.extend import core as jex_core

from ntk_jax.compat import CALLS, CUSTOM_CALLS, REMATS, Literal

Eqn: TypeAlias = jex_core.JaxprEqn
Jaxpr: TypeAlias = jex_core.Jaxpr
Var: TypeAlias = jex_core.Var
Atom: TypeAlias = Var | Literal

# Every equation that stands for a program of its own -> the parameter that holds it.
INNER = {**CALLS, **CUSTOM_CALLS, **dict.fromkeys(REMATS, "jaxpr")}

# What computes every entry of its result from the same entries of its operands.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type
    cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p
    log2 logistic lt max min mul ne neg nextafter not one_minus_square or polynomial pow rem round
    rsqrt select_n sign sin sinh sqrt square sub tan tanh xor
    """.split()
)


def open_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """`(jaxpr, consts)` of a jaxpr, closed or not."""
    return (jaxpr.jaxpr, list(jaxpr.consts)) if hasattr(jaxpr, "consts") else (jaxpr, [])


def closed_jaxpr(jaxpr: Any) -> Any:
    """`jaxpr` as a closed one."""
    return jaxpr if hasattr(jaxpr, "consts") else jex_core.ClosedJaxpr(jaxpr, [])


def inner_jaxpr(eqn: Eqn) -> tuple[Jaxpr, list[Any]]:
    """`(jaxpr, consts)` of an equation whose name is in `INNER`."""
    return open_jaxpr(eqn.params[INNER[eqn.primitive.name]])


def programs_in(eqn: Eqn) -> list[Jaxpr]:
    """Every program that an equation holds: bodies of loops, branches."""
    found = [p for v in eqn.params.values() for p in (v if isinstance(v, tuple | list) else (v,))]
    return [open_jaxpr(p)[0] for p in found if hasattr(p, "eqns")]


def all_equations(jaxpr: Jaxpr) -> Iterator[Eqn]:
    """Those of a program, and of the programs in them."""
    for eqn in jaxpr.eqns:
        yield eqn
        for program in programs_in(eqn):
            yield from all_equations(program)


def most_entries(jaxpr: Jaxpr) -> int:
    """Of the largest array that is computed entry by entry."""
    computed = (eqn for eqn in all_equations(jaxpr) if eqn.primitive.name in ELEMENTWISE)
    return max((math.prod(shape_of(eqn.outvars[0])) for eqn in computed), default=0)


def shape_of(atom: Atom) -> tuple[int, ...]:
    """The shape of an operand or a result of an equation."""
    return tuple(cast(jax.core.ShapedArray, atom.aval).shape)


def dtype_of(atom: Atom) -> Any:
    """The dtype of an operand or a result: one of NumPy, or of random keys."""
    return cast(jax.core.ShapedArray, atom.aval).dtype


def new_variables(shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any]) -> list[Var]:
    """Variables of no other program."""
    avals = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)]
    return list(jax.make_jaxpr(lambda *args: args)(*avals).jaxpr.invars)


def evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    step: Callable[[Eqn, list[Any]], Sequence[Any]],
    *,
    constant: Callable[[Any], Any] = lambda value: value,
    equations: Iterable[Eqn] | None = None,
    wanted: Sequence[Atom] | None = None,
    known: Mapping[Var, Any] | None = None,
) -> list[Any]:
    """The results of `jaxpr`; `step(eqn, values)` says what each equation makes of its operands.

    `constant` is applied to the values of literals; `equations` are those to visit (default: all).
    `wanted` are the results (default: those of `jaxpr`), `known` values that need not be computed.
    """
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    env |= known or {}
    read = lambda a: constant(a.val) if isinstance(a, Literal) else env[a]
    for eqn in jaxpr.eqns if equations is None else equations:
        env.update(zip(eqn.outvars, step(eqn, [read(a) for a in eqn.invars]), strict=True))
    return [read(a) for a in (jaxpr.outvars if wanted is None else wanted)]


def needed(jaxpr: Jaxpr, wanted: Iterable[Atom], known: Container[Var] = ()) -> list[Eqn]:
    """The equations that `wanted` depends on, in order, given the values of `known`."""
    variables = lambda atoms: {a for a in atoms if not isinstance(a, Literal) and a not in known}
    missing, found = variables(wanted), []
    for eqn in reversed(jaxpr.eqns):
        if missing.intersection(eqn.outvars):
            found.append(eqn)
            missing |= variables(eqn.invars)
    return found[::-1]


def readers(jaxpr: Jaxpr) -> dict[Var, list[Eqn | None]]:
    """The equations that read each variable; None stands for the jaxpr's own result."""
    found: dict[Var, list[Eqn | None]] = defaultdict(list)
    for eqn, atoms in [*((eqn, eqn.invars) for eqn in jaxpr.eqns), (None, jaxpr.outvars)]:
        for a in atoms:
            if not isinstance(a, Literal):
                found[a].append(eqn)
    return found


def branch_of_platform(platforms: Sequence[Sequence[str] | None], on_cpu: bool) -> int | None:
    """Which branch of `lax.platform_dependent` is taken; None if the accelerator decides it."""
    names = [*platforms, None]  # None: all others, which JAX 0.6 does not list
    if not on_cpu and any(n and "cpu" not in n for n in names):
        return None
    return next(i for i, n in enumerate(names) if not n or ("cpu" in n) == on_cpu)


# Where the frames are that a user did not write: ours that trace, JAX's, Flax's.
_NOT_THE_MODEL = (
    *(Path(__file__).parent / room for room in ("infinite", "initializers", "duals")),
    *(Path(str(p.origin)).parent for p in map(find_spec, ("jax", "flax", "numpy")) if p),
)


def source_line(eqn: Any) -> str | None:
    """The line of the model that an equation was traced from, as `file:line (function)`; None if
    all are JAX's, Flax's, ours.
    """
    trace = eqn.source_info.traceback
    for frame in () if trace is None else trace.frames:
        if not any(Path(frame.file_name).is_relative_to(root) for root in _NOT_THE_MODEL):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return None


def same_jaxpr(a: Any, b: Any) -> bool:
    """Whether the jaxprs `a` and `b` are equal up to names; in doubt (functions in their
    parameters), not.
    """
    numbers: dict[Any, int] = {}

    def same_atoms(xs: Any, ys: Any) -> bool:
        return len(xs) == len(ys) and all(map(same_atom, xs, ys))

    def same_atom(x: Any, y: Any) -> bool:
        if isinstance(x, Literal) or isinstance(y, Literal):
            return (
                isinstance(x, Literal)
                and isinstance(y, Literal)
                and x.aval == y.aval
                and same_value(x.val, y.val)
            )
        return numbers.get(x, -1) == numbers.get(y, -2)

    def bind(xs: Any, ys: Any) -> bool:
        for x, y in zip(xs, ys, strict=False):
            numbers[x] = numbers[y] = len(numbers)
        return len(xs) == len(ys) and all(x.aval == y.aval for x, y in zip(xs, ys, strict=True))

    if a is b:
        return True
    if len(a.eqns) != len(b.eqns) or not bind([*a.constvars, *a.invars], [*b.constvars, *b.invars]):
        return False
    for e, f in zip(a.eqns, b.eqns, strict=True):
        if (
            e.primitive is not f.primitive
            or not same_atoms(e.invars, f.invars)
            or not same_value(e.params, f.params)
        ):
            return False
        if not bind(e.outvars, f.outvars):
            return False
    return same_atoms(a.outvars, b.outvars)


def same_value(x: Any, y: Any) -> bool:
    """Whether two parameters of an equation, or literals, are equal; in doubt, not."""
    if x is y:
        return True
    if type(x) is not type(y):
        return False
    if hasattr(x, "eqns"):
        (a, consts_a), (b, consts_b) = open_jaxpr(x), open_jaxpr(y)
        return _all_same(consts_a, consts_b) and same_jaxpr(a, b)
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same_value(x[k], y[k]) for k in x)
    if isinstance(x, tuple | list) and not hasattr(x, "_fields"):
        return _all_same(x, y)
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    both_nan = isinstance(x, float) and x != x and y != y
    return False if isinstance(x, jax.Array) else both_nan or bool(x == y)


def _all_same(xs: Any, ys: Any) -> bool:
    return len(xs) == len(ys) and all(map(same_value, xs, ys))
