"""Gradient flow of any loss under a fixed kernel, in function space, by an ODE solver."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, Num

from ntk_jax.checks import Look, as_number, as_square_kernel, check_looks, looks
from ntk_jax.closures.fingerprint import read
from ntk_jax.compat import is_concrete
from ntk_jax.dynamics.any_loss_inputs import check_scalar, inputs_of
from ntk_jax.dynamics.kinked_flow import kinked_flow
from ntk_jax.linalg import ascending_eigenvalues, check_psd
from ntk_jax.losses import Kinks, LossFn, kinks_of, loss_function
from ntk_jax.modes.kind import (
    apply_kernel,
    as_matrices,
)
from ntk_jax.modes.modes import Prediction, as_momentum
from ntk_jax.ode import OdeSolution, State, Times, solve_ode
from ntk_jax.small_programs import jit_by_size

Outputs: TypeAlias = tuple[Array, ...]
"""Train outputs, and test outputs if there are any."""


class Flow(NamedTuple):
    """A solved flow: outputs at the requested times, and what the solver did.

    `stats` holds `num_steps`, `num_accepted_steps` and `num_rejected_steps`; `at(t)` is a
    Prediction at any times between 0 and the last one, or None.
    """

    train: Float[Array, "..."]
    test: Float[Array, "..."] | None
    stats: dict[str, int | Array]
    at: Callable[[Times], Prediction] | None


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
            entries, threshold 1), "expectile(0.9)", or a function of (f, y) that returns a scalar,
            in jax.numpy. "hinge", "l1" and "quantile(0.9)", whose derivatives jump, are followed
            exactly from kink to kink, without a solver and its options: outputs slide along kinks.
            Other functions with kinks are for `gradient_descent`.
        k_train_train: training kernel, (n, n), (n, n, O) or (n, n, O, O).
        y_train: targets, (n,) or (n, O), or class labels (n,) for cross-entropy.
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

    Example:
        >>> k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -1.0])
        >>> flow = ntk_jax.gradient_flow("logistic", k, y, [0.0, 4.0])
        >>> flow.train.shape, bool(flow.train[1, 0] > 0 > flow.train[1, 1])
        ((2, 2), True)
    """
    k = as_square_kernel("k_train_train", k_train_train, factored=False)
    inputs = inputs_of(loss, k, y_train, fx_train_0, k_test_train, fx_test_0)
    s, seen, f_0 = _prepared(inputs)
    check_looks(seen, inputs)
    if is_concrete(k):  # a negative eigenvalue would grow without bound
        check_psd("k_train_train", s)
    y = inputs["y_train"]
    function = loss_function(loss, y)
    if (kinks := kinks_of(function, y)) is not None:
        return _along_kinks(inputs, kinks, t, momentum, dense, max_steps)
    kernels = tuple(inputs[name] for name in ("k_train_train", "k_test_train") if name in inputs)
    loss_fn = _static(function)
    check_scalar(loss_fn, f_0[0], y)
    equation = _Equation(loss_fn, kernels, y, _coefficients(momentum, learning_rate, k.dtype))
    start: State = f_0
    # Heavy ball starts at rest: this velocity keeps the second order from the first step on.
    if momentum is not None:
        start = f_0, _first_velocity(equation, f_0, as_momentum(momentum, k.dtype))
    solution = solve_ode(
        _velocity if momentum is None else _acceleration,
        start,
        t,
        equation,
        caller="gradient_flow",
        solver=solver,
        rtol=rtol,
        atol=atol,
        dense=dense,
        max_steps=max_steps,
        progress=progress,
    )
    if solution.failure is not None:
        _raise_failure(solution, equation, f_0)

    def outputs(state: State) -> tuple[Array, Array | None]:
        train, *test = state if momentum is None else state[0]
        return train, test[0] if test else None

    train, test = outputs(solution.states)
    if (at := solution.at) is None:
        return Flow(train, test, solution.stats, None)
    return Flow(train, test, solution.stats, lambda t: Prediction(*outputs(at(t))))


def _static(loss: LossFn) -> LossFn:
    """As a `Partial` it is static, and compared by what it reads: the solve is compiled once."""
    reading = read(loss)
    return jax.tree_util.Partial(reading.function if reading.key is None else reading)


def _along_kinks(
    inputs: dict[str, Array],
    kinks: Kinks,
    t: Times,
    momentum: float | None,
    dense: bool,
    max_steps: int | None,
) -> Flow:
    """The flow of a loss that is made of lines, exactly."""
    if momentum is not None or not all(map(is_concrete, jax.tree.leaves((inputs, t)))):
        raise ValueError(
            "loss: expected one with a continuous derivative where there is momentum, and inside "
            "jit; got one with kinks. Take the discrete steps of gradient_descent."
        )
    outputs, stats = kinked_flow(inputs, kinks, t, max_steps)
    train, test = outputs(t)
    assert train is not None
    return Flow(train, test, stats, outputs if dense else None)


class _Equation(NamedTuple):
    """What the equations of motion depend on."""

    loss: LossFn
    kernels: tuple[Array, ...]
    y: Array
    friction_and_mass: tuple[Array, ...]  # () without momentum


def _force(equation: _Equation, f: Outputs) -> Outputs:
    """-K ∂L/∂f on every side."""
    gradient = jax.grad(equation.loss)(f[0], equation.y)
    return tuple(-apply_kernel(k, gradient) for k in equation.kernels)


@jit_by_size
def _first_velocity(equation: _Equation, f_0: Outputs, momentum: Array) -> Outputs:
    return tuple(f / (1 + momentum) for f in _force(equation, f_0))


def _velocity(t: Array, f: Outputs, equation: _Equation) -> Outputs:
    return _force(equation, f)


def _acceleration(
    t: Array, state: tuple[Outputs, Outputs], equation: _Equation
) -> tuple[Outputs, Outputs]:
    f, v = state
    friction, mass = equation.friction_and_mass
    force = _force(equation, f)
    return v, tuple((a - friction * b) / mass for a, b in zip(force, v, strict=True))


@jit_by_size
def _prepared(
    inputs: dict[str, Array],
) -> tuple[Float[Array, "B N"], dict[str, Look | None], Outputs]:
    """The eigenvalues, what checks see of the inputs, and the initial outputs, train and test."""
    k, y, f_0 = (inputs[name] for name in ("k_train_train", "y_train", "fx_train_0"))
    s = ascending_eigenvalues(jax.lax.stop_gradient(as_matrices(k)))[:, ::-1]
    outputs: Outputs = (jnp.broadcast_to(f_0, y.shape),)
    if "k_test_train" in inputs:
        shape = (inputs["k_test_train"].shape[0], *y.shape[1:])
        outputs += (jnp.broadcast_to(inputs["fx_test_0"], shape),)
    return s, looks(inputs, symmetric=("k_train_train",)), outputs


def _coefficients(
    momentum: float | None, learning_rate: float | None, dtype: DTypeLike
) -> tuple[Array, ...]:
    """Of the first and the second derivative: friction and mass."""
    if momentum is None and learning_rate is None:
        return ()
    if momentum is None or learning_rate is None:
        raise ValueError(
            "learning_rate: expected together with momentum, and only then: without momentum the "
            f"flow is the same for all; got momentum = {momentum!r}, learning_rate = "
            f"{learning_rate!r}."
        )
    mass = as_momentum(momentum, dtype)
    rate = as_number("learning_rate", learning_rate, dtype, max_ndim=None, strict=True)
    return jnp.asarray(1 - mass, dtype), jnp.asarray(rate * (1 + mass) / 2, dtype)


def _raise_failure(solution: OdeSolution, equation: _Equation, f_0: Outputs) -> NoReturn:
    """Raise for a solve that did not reach the end, with the cause if it can be seen."""
    if not bool(jnp.all(jnp.isfinite(jax.grad(equation.loss)(f_0[0], equation.y)))):
        raise ValueError(
            "loss: expected a finite gradient at the initial outputs; got NaN or infinity. Start "
            "elsewhere."
        )
    raise ValueError(
        f"gradient_flow: the solver stopped after {solution.stats['num_steps']} steps before the "
        f"last time ({solution.failure}). Raise max_steps, ask for earlier times, or use "
        "solver='kvaerno5' where late times of a badly conditioned kernel make it stiff."
    )
