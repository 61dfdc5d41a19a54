"""Ordinary differential equations by the adaptive solvers of diffrax (extra `ode`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from ntk_jax.checks import (
    Number,
    as_number,
    check_integer,
    check_number,
    check_option,
    check_vector,
)
from ntk_jax.compat import is_concrete
from ntk_jax.extras import missing
from ntk_jax.progress import solver_meter
from ntk_jax.small_programs import LESS, jit_by_size

State: TypeAlias = Any
"""What moves: a pytree of floating-point arrays."""

Diffrax: TypeAlias = Any
"""An object of diffrax, which need not be installed."""

Times: TypeAlias = ArrayLike | Sequence[float]


class OdeSolution(NamedTuple):
    """The states at the requested times, and what the solver did.

    Attributes:
        states: every leaf with the times in front, if these are a vector.
        stats: `num_steps`, `num_accepted_steps` and `num_rejected_steps`.
        failure: why the solver stopped early; None if it did not, or if that is not known yet.
        at: the state at any times up to the last one, if dense output was asked for.
    """

    states: State
    stats: dict[str, int | Array]
    failure: str | None
    at: Callable[[Times], State] | None


def solve_ode(
    velocity: Callable[[Any, State, Any], State],
    start: State,
    t: Times,
    args: Any = None,
    *,
    caller: str,
    solver: Any = "tsit5",
    rtol: float | None = None,
    atol: float | None = None,
    dense: bool = False,
    max_steps: int | None = None,
    progress: bool = False,
) -> OdeSolution:
    """Solve dy/dt = velocity(t, y, args) from y(0) = start to the times t.

    It is compiled once for a `velocity` that stays the same function; what changes goes into
    `args`. Options and their defaults are those of `gradient_flow`.
    """
    try:
        import diffrax
        import equinox
    except ImportError as error:
        raise missing(caller, "diffrax", "ode") from error
    times, dtype = _as_times(t), jax.tree.leaves(start)[0].dtype
    unique, inverse = np.unique(times.astype(dtype), return_inverse=True)
    known = all(map(is_concrete, jax.tree.leaves((start, args))))
    problem = _Problem(
        velocity, _solver(diffrax, solver), start, args, unique, inverse.reshape(times.shape),
        _tolerances(rtol, atol, dtype), dense, _step_limit(max_steps, dense),
    )  # fmt: skip
    with (
        _default_promotion(),
        solver_meter(diffrax, caller.replace("_", " "), enabled=progress and known) as meter,
    ):
        # Inside jit nobody can look at the result.
        solve = jit_by_size(_solve, options=LESS, jit=equinox.filter_jit)
        found = solve(diffrax, problem, meter, not known)
    stats, failure = found.stats, None
    if known:
        stats = {name: int(value) for name, value in stats.items()}
        if found.at_limit:
            failure = "max_steps"
        elif not found.successful:
            failure = str(found.solution.result)
    at = _interpolation(equinox, found.solution, times) if dense else None
    return OdeSolution(found.states, stats, failure, at)


class _Problem(NamedTuple):
    """What a solve depends on; times are sorted ones, and where the requested are among them."""

    velocity: Callable[[Any, State, Any], State]
    solver: Diffrax
    start: State
    args: State
    times: np.ndarray | Array
    places: np.ndarray | Array
    tolerances: tuple[Number, Number]
    dense: bool
    max_steps: int


class _Found(NamedTuple):
    """States at the requested times, what the solver did, and all that diffrax says of it."""

    states: State
    stats: dict[str, int | Array]
    successful: Array
    at_limit: Array
    solution: Diffrax


def _solve(diffrax: ModuleType, problem: _Problem, meter: Diffrax, throw: bool) -> _Found:
    times, (rtol, atol) = jnp.asarray(problem.times), problem.tolerances
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(problem.velocity),
        problem.solver,
        t0=jnp.zeros_like(times[-1]),
        t1=times[-1],
        dt0=None,
        y0=problem.start,
        args=problem.args,
        saveat=diffrax.SaveAt(ts=times, dense=problem.dense),
        # After NaN steps shrink without end: no step of a solution is as short as dtmin.
        stepsize_controller=diffrax.PIDController(
            rtol=rtol, atol=atol, dtmin=1e-25 * times[-1], force_dtmin=False
        ),
        max_steps=problem.max_steps,
        throw=throw,
        progress_meter=meter,
    )
    names = ("num_steps", "num_accepted_steps", "num_rejected_steps")
    return _Found(
        jax.tree.map(lambda leaf: leaf[problem.places], solution.ys),
        {name: solution.stats[name] for name in names},
        solution.result == diffrax.RESULTS.successful,
        solution.result == diffrax.RESULTS.max_steps_reached,
        solution,
    )


@contextmanager
def _default_promotion() -> Iterator[None]:
    """The promotion of ranks and dtypes that diffrax is written for."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _as_times(t: Times) -> np.ndarray:
    if not is_concrete(t):
        raise ValueError(
            "t: expected times whose values are known; got a traced array. Close over them inside "
            "jit."
        )
    check_number("t", t)
    times = np.asarray(t, float)
    check_vector("t", times)
    return times


def _solver(diffrax: ModuleType, solver: Any) -> Any:
    if isinstance(solver, diffrax.AbstractSolver):
        return solver
    names = {"tsit5": diffrax.Tsit5, "dopri8": diffrax.Dopri8, "kvaerno5": diffrax.Kvaerno5}
    check_option("solver", solver, names)
    return names[solver]()


def _tolerances(rtol: float | None, atol: float | None, dtype: DTypeLike) -> tuple[Number, Number]:
    default = 1e-8 if dtype == jnp.float64 else 1e-5
    rtol, atol = (default if tolerance is None else tolerance for tolerance in (rtol, atol))
    return as_number("rtol", rtol, dtype, strict=True), as_number("atol", atol, dtype, strict=True)


def _step_limit(max_steps: int | None, dense: bool) -> int:
    if max_steps is None:
        return 4_096 if dense else 100_000  # dense output allocates memory for all of them
    check_integer("max_steps", max_steps, minimum=1)
    return max_steps


def _interpolation(
    equinox: ModuleType, solution: Diffrax, solved: np.ndarray
) -> Callable[[Times], State]:
    """Dense output as a function of time."""

    def at(t: Times) -> State:
        times = _as_times(t)
        if times.max() > solved.max():
            raise ValueError(
                f"t: expected times up to the last one solved for, {solved.max():g}; got "
                f"{times.max():g}."
            )
        with _default_promotion():
            return equinox.filter_jit(_evaluate)(solution, times)

    return at


def _evaluate(solution: Diffrax, times: Array) -> State:
    states = jax.vmap(solution.evaluate)(times.reshape(-1))
    return jax.tree.map(lambda leaf: leaf.reshape(*times.shape, *leaf.shape[1:]), states)
