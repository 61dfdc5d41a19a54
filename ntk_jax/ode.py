"""Ordinary differential equations by the adaptive solvers of diffrax (extra `ode`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ntk_jax.checks import check_integer, check_number, check_option, check_vector
from ntk_jax.compat import is_concrete
from ntk_jax.progress import solver_meter

State: TypeAlias = Any
"""What moves: a pytree of floating-point arrays."""

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
    except ImportError as error:
        raise ImportError(f"{caller} needs diffrax: pip install 'ntk-jax[ode]'.") from error
    times, dtype = _as_times(t), jax.tree.leaves(start)[0].dtype
    unique, inverse = np.unique(times.astype(dtype), return_inverse=True)
    known = all(map(is_concrete, jax.tree.leaves((start, args))))
    with (
        _default_promotion(),
        solver_meter(diffrax, caller.replace("_", " "), enabled=progress and known) as meter,
    ):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            _solver(diffrax, solver),
            t0=np.zeros((), dtype),
            t1=np.asarray(unique[-1]),
            dt0=None,
            y0=start,
            args=args,
            saveat=diffrax.SaveAt(ts=jax.device_put(unique), dense=dense),
            stepsize_controller=_step_control(diffrax, rtol, atol, unique[-1]),
            max_steps=_step_limit(max_steps, dense),
            throw=not known,  # inside jit nobody can look at the result
            progress_meter=meter,
        )
    names = ("num_steps", "num_accepted_steps", "num_rejected_steps")
    stats = {name: solution.stats[name] for name in names}
    failure = None
    if known:
        stats = {name: int(value) for name, value in stats.items()}
        if solution.result == diffrax.RESULTS.max_steps_reached:
            failure = "max_steps"
        elif solution.result != diffrax.RESULTS.successful:
            failure = str(solution.result)
    states = solution.ys
    if times.ndim == 0 or not np.array_equal(inverse, np.arange(times.size)):
        states = _taken(states, inverse.reshape(times.shape))
    return OdeSolution(states, stats, failure, _interpolation(solution, times) if dense else None)


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


@jax.jit
def _taken(states: State, numbers: np.ndarray | Array) -> State:
    return jax.tree.map(lambda leaf: leaf[numbers], states)


def _in_shape(states: State, times: np.ndarray) -> State:
    return jax.tree.map(lambda leaf: leaf.reshape(*times.shape, *leaf.shape[1:]), states)


def _solver(diffrax: Any, solver: Any) -> Any:
    if isinstance(solver, diffrax.AbstractSolver):
        return solver
    names = {"tsit5": diffrax.Tsit5, "dopri8": diffrax.Dopri8, "kvaerno5": diffrax.Kvaerno5}
    check_option("solver", solver, names)
    return names[solver]()


def _step_control(diffrax: Any, rtol: float | None, atol: float | None, end: np.floating) -> Any:
    default = 1e-8 if end.dtype == np.float64 else 1e-5
    rtol, atol = (default if tolerance is None else tolerance for tolerance in (rtol, atol))
    check_number("rtol", rtol, strict=True)
    check_number("atol", atol, strict=True)
    # After NaN steps shrink without end: no step of a solution is as short as this, so stop there.
    dtmin = np.asarray(1e-25 * float(end), end.dtype)
    return diffrax.PIDController(rtol=rtol, atol=atol, dtmin=dtmin, force_dtmin=False)


def _step_limit(max_steps: int | None, dense: bool) -> int:
    if max_steps is None:
        return 4_096 if dense else 100_000  # dense output allocates memory for all of them
    check_integer("max_steps", max_steps, minimum=1)
    return max_steps


def _interpolation(solution: Any, solved: np.ndarray) -> Callable[[Times], State]:
    """Dense output as a function of time."""

    def at(t: Times) -> State:
        times = _as_times(t)
        if times.max() > solved.max():
            raise ValueError(
                f"t: expected times up to the last one solved for, {solved.max():g}; got "
                f"{times.max():g}."
            )
        with _default_promotion():
            return _in_shape(jax.vmap(solution.evaluate)(jnp.asarray(times.reshape(-1))), times)

    return at
