"""Gradient flow of any loss under a fixed kernel, in function space, by an adaptive ODE solver
(extra `ode`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import (
    as_kernel,
    as_outputs,
    as_targets,
    check_integer,
    check_number,
    check_option,
    check_symmetric,
)
from ntk_jax.compat import is_concrete
from ntk_jax.linalg import check_psd
from ntk_jax.losses import LossFn, loss_function
from ntk_jax.modes.kind import (
    apply_kernel,
    as_matrices,
    as_test_kernel,
    check_outputs,
    initial_test_outputs,
)
from ntk_jax.modes.modes import Prediction, check_momentum
from ntk_jax.progress import solver_meter


class Flow(NamedTuple):
    """A solved flow: outputs at the requested times, the solver's statistics, and dense output if
    it was asked for.

    `stats` holds `num_steps`, `num_accepted_steps` and `num_rejected_steps`; `at(t)` is a
    Prediction at any times between 0 and the last one, or None.
    """

    train: Float[Array, "..."]
    test: Float[Array, "..."] | None
    stats: dict[str, Any]
    at: Callable[[Any], Prediction] | None


def gradient_flow(
    loss: str | LossFn,
    k_train_train: Float[ArrayLike, "n n *outputs"],
    y_train: Num[ArrayLike, "n *O"],
    t: Num[ArrayLike, "*T"] | Sequence[float],
    *,
    fx_train_0: ArrayLike = 0.0,
    k_test_train: ArrayLike | None = None,
    fx_test_0: ArrayLike | None = None,
    momentum: float | None = None,
    learning_rate: float | None = None,
    solver: Any = "tsit5",
    rtol: float | None = None,
    atol: float | None = None,
    dense: bool = False,
    max_steps: int | None = None,
    progress: bool = True,
) -> Flow:
    """The outputs at time t of gradient flow on any loss L(f, y), train and test together.

        df_train/dt = -K ∂L/∂f,    df_test/dt = -K_test ∂L/∂f

    With momentum μ the equation is of second order, and depends on the learning rate h, whose steps
    t counts:

        h (1 + μ)/2 d²f/dt² + (1 - μ) df/dt = -K ∂L/∂f,    df/dt(0) = -K ∂L/∂f / (1 + μ)

    The two coefficients are those with which it follows heavy-ball descent to second order in h; as
    h goes to 0 it is the flow without momentum, 1 / (1 - μ) times faster.

    Args:
        loss: "mse" (half the mean over all n·O entries of (f - y)²), "cross_entropy" (mean over
            examples, softmax), "logistic" (mean over entries, targets -1 and 1), "huber" (mean over
            entries, threshold 1), or a function of (f, y) that returns a scalar, in jax.numpy.
        k_train_train: training kernel, (n, n), (n, n, O) or (n, n, O, O).
        y_train: targets, (n,) or (n, O).
        t: time = learning rate x steps: a scalar or an array (T,), finite.
        fx_train_0: outputs at initialization, 0 or shaped like y_train.
        k_test_train: kernel of test rows and training columns, to predict test outputs too.
        fx_test_0: outputs on the test examples at initialization; needed with k_test_train if
            fx_train_0 is given.
        momentum: heavy-ball coefficient in [0, 1), or None.
        learning_rate: with momentum, h.
        solver: "tsit5", "dopri8" (for tight tolerances), "kvaerno5" (implicit, for stiff problems:
            late times of badly conditioned kernels; each step solves a dense system of all
            outputs), or a diffrax solver.
        rtol: relative tolerance of a step; default 1e-8 for float64 and 1e-5 for float32.
        atol: absolute tolerance of a step, in units of the outputs; default as rtol.
        dense: keep what `Flow.at` needs, memory for all steps.
        max_steps: error beyond; default 100,000, or 4,096 with `dense`.
        progress: show the solver's progress (where tqdm is installed), after a second.

    Returns:
        Flow(train, test, stats, at); train and test as in `gradient_flow_mse`.

    Raises:
        ImportError: diffrax is missing.
        ValueError: shapes, targets, options, negative or infinite t; a loss that is not a scalar or
            has no finite gradient; a solve that needs more than `max_steps`.

    Reference: Lee et al. 2019, eq. 7 and section 2.4.2; momentum: Kovachki, Stuart 2021.
    """
    diffrax = _import_diffrax()
    k = as_kernel("k_train_train", k_train_train)
    for matrix in as_matrices(k):
        check_symmetric("k_train_train", matrix)
        if is_concrete(matrix):  # a negative eigenvalue would grow without bound
            check_psd("k_train_train", jnp.linalg.eigvalsh(matrix)[::-1])
    y = as_targets("y_train", y_train, k.shape[0], k.dtype)
    check_outputs("y_train", y, k)
    kernels, f_0 = _sides(k, y, fx_train_0, k_test_train, fx_test_0)
    times, shape = _times(t)
    loss_fn = jax.tree_util.Partial(
        loss_function(loss, y)
    )  # static and compared by identity: compiled once
    _check_scalar(loss_fn, f_0[0], y)
    problem = _Problem(loss_fn, kernels, y, *_coefficients(momentum, learning_rate, k.dtype))
    exact = is_concrete(f_0[0]) and is_concrete(k) and is_concrete(y)
    unique, inverse = np.unique(times, return_inverse=True)
    # diffrax is written for JAX's default promotion
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        solver_meter(diffrax, "gradient flow", enabled=progress and exact) as meter,
    ):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(_velocity if momentum is None else _acceleration),
            _solver(diffrax, solver),
            t0=jnp.zeros((), k.dtype),
            t1=jnp.asarray(times.max(), k.dtype),
            dt0=None,
            y0=f_0
            if momentum is None
            else (f_0, tuple(f / (1 + momentum) for f in _force(problem, f_0))),
            args=problem,
            saveat=diffrax.SaveAt(ts=jnp.asarray(unique, k.dtype), dense=dense),
            stepsize_controller=_tolerances(diffrax, rtol, atol, k.dtype, times.max()),
            max_steps=_step_limit(max_steps, dense),
            throw=not exact,
            progress_meter=meter,
        )
    if exact:
        _check_success(diffrax, solution, problem, f_0)
    outputs = solution.ys if momentum is None else solution.ys[0]
    train, *test = (f[inverse].reshape(*shape, *f.shape[1:]) for f in outputs)
    stats = {
        name: solution.stats[name]
        for name in ("num_steps", "num_accepted_steps", "num_rejected_steps")
    }
    if exact:
        stats = {name: int(value) for name, value in stats.items()}
    return Flow(
        train,
        test[0] if test else None,
        stats,
        _interpolation(solution, times.max(), momentum) if dense else None,
    )


Outputs: TypeAlias = tuple[Array, ...]
"""Train outputs, and test outputs if there are any."""


class _Problem(NamedTuple):
    """What the equations depend on."""

    loss: LossFn
    kernels: tuple[Array, ...]
    y: Array
    friction: Any
    mass: Any


def _force(problem: _Problem, f: Outputs) -> Outputs:
    """-K ∂L/∂f on every side."""
    gradient = jax.grad(problem.loss)(f[0], problem.y)
    return tuple(-apply_kernel(k, gradient) for k in problem.kernels)


def _velocity(t: Any, f: Outputs, problem: _Problem) -> Outputs:
    return _force(problem, f)


def _acceleration(
    t: Any, state: tuple[Outputs, Outputs], problem: _Problem
) -> tuple[Outputs, Outputs]:
    f, v = state
    change = tuple(
        (a - problem.friction * b) / problem.mass
        for a, b in zip(_force(problem, f), v, strict=True)
    )
    return v, change


def _sides(
    k: Array, y: Array, fx_train_0: Any, k_test_train: Any, fx_test_0: Any
) -> tuple[Outputs, Outputs]:
    """Kernels and initial outputs, train and test."""
    f_0 = as_outputs("fx_train_0", fx_train_0, y.shape, k.dtype)
    if k_test_train is None:
        if fx_test_0 is not None and jnp.ndim(fx_test_0):
            raise ValueError(
                "k_test_train: expected the test kernel together with fx_test_0; got None."
            )
        return (k,), (f_0,)
    k_test = as_test_kernel(k_test_train, k)
    f_test_0 = initial_test_outputs(fx_train_0, fx_test_0, (k_test.shape[0], *y.shape[1:]), k.dtype)
    return (k, k_test), (f_0, f_test_0)


def _times(t: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    if not is_concrete(t):
        raise ValueError(
            "t: expected times whose values are known; got a traced array. Close over them inside "
            "jit."
        )
    check_number("t", t)
    times = np.asarray(t, float)
    if times.ndim > 1 or not times.size:
        raise ValueError(f"t: expected a scalar or a non-empty vector; got shape {times.shape}.")
    return times.reshape(-1), times.shape


def _coefficients(momentum: Any, learning_rate: Any, dtype: Any) -> tuple[Any, Any]:
    """Of the first and the second derivative: friction and mass."""
    if (momentum is None) != (learning_rate is None):
        raise ValueError(
            "learning_rate: expected together with momentum, and only then: without momentum the "
            "flow is the same for "
            f"all; got momentum = {momentum!r}, learning_rate = {learning_rate!r}."
        )
    if momentum is None:
        return None, None
    check_momentum(momentum)
    check_number("learning_rate", learning_rate, strict=True)
    return jnp.asarray(1 - momentum, dtype), jnp.asarray(learning_rate * (1 + momentum) / 2, dtype)


def _import_diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("gradient_flow needs diffrax: pip install 'ntk-jax[ode]'.") from error
    return diffrax


def _solver(diffrax: Any, solver: Any) -> Any:
    if isinstance(solver, diffrax.AbstractSolver):
        return solver
    names = {"tsit5": diffrax.Tsit5, "dopri8": diffrax.Dopri8, "kvaerno5": diffrax.Kvaerno5}
    check_option("solver", solver, names)
    return names[solver]()


def _tolerances(
    diffrax: Any, rtol: float | None, atol: float | None, dtype: Any, end: float
) -> Any:
    """Step control; steps that shrink to nothing, as they do after NaN, end the solve."""
    default = 1e-8 if dtype == jnp.float64 else 1e-5
    rtol, atol = (default if tolerance is None else tolerance for tolerance in (rtol, atol))
    check_number("rtol", rtol, strict=True)
    check_number("atol", atol, strict=True)
    return diffrax.PIDController(
        rtol=rtol, atol=atol, dtmin=jnp.asarray(1e-25 * end, dtype), force_dtmin=False
    )


def _step_limit(max_steps: int | None, dense: bool) -> int:
    if max_steps is None:
        return 4_096 if dense else 100_000
    check_integer("max_steps", max_steps, minimum=1)
    return max_steps


def _check_scalar(loss_fn: LossFn, f: Array, y: Array) -> None:
    shape = jnp.shape(jax.eval_shape(loss_fn, f, y))
    if shape:
        raise ValueError(
            f"loss: expected a function of (f, y) that returns a scalar; got shape {shape}. Take "
            "its mean."
        )


def _check_success(diffrax: Any, solution: Any, problem: _Problem, f_0: Outputs) -> None:
    """Raise for a solve that did not reach the end, with the cause if it can be seen."""
    if solution.result == diffrax.RESULTS.successful:
        return
    if not bool(jnp.all(jnp.isfinite(jax.grad(problem.loss)(f_0[0], problem.y)))):
        raise ValueError(
            "loss: expected a finite gradient at the initial outputs; got NaN or infinity. Start "
            "elsewhere."
        )
    steps = int(solution.stats["num_steps"])
    reason = (
        "max_steps"
        if solution.result == diffrax.RESULTS.max_steps_reached
        else str(solution.result)
    )
    raise ValueError(
        f"gradient_flow: the solver stopped after {steps} steps before the last time ({reason}). "
        "Raise max_steps, ask "
        "for earlier times, or use solver='kvaerno5' where late times of a badly conditioned "
        "kernel make it stiff."
    )


def _interpolation(solution: Any, end: float, momentum: Any) -> Callable[[Any], Prediction]:
    """Dense output as a function of time."""

    def at(t: Any) -> Prediction:
        times, shape = _times(t)
        if times.max() > end:
            raise ValueError(
                f"t: expected times up to the last one solved for, {end:g}; got {times.max():g}."
            )
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            state = jax.vmap(solution.evaluate)(jnp.asarray(times))
        outputs = state if momentum is None else state[0]
        train, *test = (f.reshape(*shape, *f.shape[1:]) for f in outputs)
        return Prediction(train, test[0] if test else None)

    return at
