"""The flow of any loss: against closed forms for squared loss, SciPy's solver, and steps of the
real recursion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ntk_jax
from ntk_jax import losses, progress

N, N_TEST, O = 6, 4, 3
TIMES = [7.0, 0.0, 0.5, 7.0]  # out of order and repeated


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    phi, phi_test = rng.normal(size=(N, 9)), rng.normal(size=(N_TEST, 9))
    start = {"fx_train_0": rng.normal(size=(N, O)), "fx_test_0": rng.normal(size=(N_TEST, O))}
    return phi @ phi.T, rng.normal(size=(N, O)), start | {"k_test_train": phi_test @ phi.T}


def probabilities(y):
    return np.asarray(jax.nn.softmax(y))


@pytest.mark.slow
def test_squared_loss_equals_the_closed_form(problem):
    k, y, start = problem
    closed = ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), y, TIMES, **start)
    flow = ntk_jax.gradient_flow("mse", k, y, TIMES, **start)
    np.testing.assert_allclose(flow.train, closed.train, atol=1e-6)
    np.testing.assert_allclose(flow.test, closed.test, atol=1e-6)
    tight = ntk_jax.gradient_flow(
        "mse", k, y, TIMES, **start, solver="dopri8", rtol=1e-10, atol=1e-10
    )
    np.testing.assert_allclose(tight.train, closed.train, atol=1e-8)
    np.testing.assert_allclose(tight.test, closed.test, atol=1e-8)
    assert (
        tight.stats["num_steps"]
        == tight.stats["num_accepted_steps"] + tight.stats["num_rejected_steps"]
        > 0
    )
    assert tight.at is None


@pytest.mark.parametrize(
    "loss",
    [
        "cross_entropy",
        *(
            pytest.param(loss, marks=pytest.mark.slow)
            for loss in ("logistic", "huber", lambda f, y: jnp.mean((f - y) ** 4))
        ),
    ],
)
def test_other_losses_equal_scipy(problem, loss):
    k, y, start = problem
    y = {"cross_entropy": probabilities(y), "logistic": np.sign(y)}.get(loss, y)
    slope = jax.jit(jax.grad(losses.LOSSES[loss] if isinstance(loss, str) else loss))
    both = np.concatenate([k, start["k_test_train"]])

    def rhs(_, f):
        return -(both @ slope(f.reshape(-1, O)[:N], y)).ravel()

    f_0 = np.concatenate([start["fx_train_0"], start["fx_test_0"]]).ravel()
    exact = solve_ivp(
        rhs, (0, 7), f_0, t_eval=[0, 0.5, 7], method="DOP853", rtol=1e-10, atol=1e-10
    ).y.T
    flow = ntk_jax.gradient_flow(loss, k, y, TIMES, **start)
    kink = loss == "huber"  # steps across it lose orders
    for f, i in zip(np.concatenate([flow.train, flow.test], 1), [2, 0, 1, 2], strict=True):
        np.testing.assert_allclose(f.ravel(), exact[i], atol=1e-5 if kink else 1e-6)


@pytest.mark.slow
def test_kernels_of_every_shape_agree(problem):
    k, y, start = problem
    outs = []
    for tail in (None, np.ones(O), np.eye(O)):
        lift = lambda m, tail=tail: m if tail is None else m[(..., *(None,) * tail.ndim)] * tail
        lifted = start | {"k_test_train": lift(start["k_test_train"])}
        outs.append(ntk_jax.gradient_flow("mse", lift(k), y, TIMES, **lifted).test)
    np.testing.assert_allclose(outs[1], outs[0], atol=1e-12)
    np.testing.assert_allclose(outs[2], outs[0], atol=1e-12)


@pytest.mark.slow
def test_stiff_problems_take_few_implicit_steps():
    rng = np.random.default_rng(1)
    vectors = np.linalg.qr(rng.normal(size=(N, N)))[0]
    k = (vectors * np.geomspace(1, 1e-5, N)) @ vectors.T
    y = rng.normal(size=N)
    closed = ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), y, [1e4, 1e6]).train
    stiff = ntk_jax.gradient_flow("mse", k, y, [1e4, 1e6], solver="kvaerno5", rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(stiff.train, closed, atol=1e-6)
    assert stiff.stats["num_steps"] < 500
    with pytest.raises(ValueError, match=r"stopped after 500 steps.*max_steps.*kvaerno5"):
        ntk_jax.gradient_flow("mse", k, y, 1e6, max_steps=500)


def test_dense_output_is_the_solution_between_times(problem):
    k, y, start = problem
    flow = ntk_jax.gradient_flow("mse", k, y, 7.0, **start, dense=True)
    inside = ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), y, [0.3, 2.0], **start)
    np.testing.assert_allclose(flow.at([0.3, 2.0]).test, inside.test, atol=1e-5)
    assert flow.at(2.0).train.shape == (N, O)
    with pytest.raises(ValueError, match="up to the last one solved for, 7; got 8"):
        flow.at(8.0)


@pytest.mark.slow
def test_momentum_follows_heavy_ball_to_second_order(problem):
    k, y, start = problem
    modes = ntk_jax.diagonalize(k)
    gaps = []
    for rate in (0.04, 0.02):
        steps = round(2.0 / rate)
        descent = ntk_jax.gradient_descent_mse(modes, y, steps, rate, momentum=0.6, **start)
        flow = ntk_jax.gradient_flow("mse", k, y, 2.0, momentum=0.6, learning_rate=rate, **start)
        gaps.append(np.abs(flow.test - descent.test).max())
    plain = ntk_jax.gradient_flow_mse(modes, y, 2.0 / 0.4, **start)
    assert gaps[1] < 1e-3 < np.abs(plain.test - descent.test).max()
    assert 3 < gaps[0] / gaps[1] < 5


def test_zero_time_alone_and_progress_of_long_solves(problem, capsys, monkeypatch):
    k, y, start = problem
    flow = ntk_jax.gradient_flow("mse", k, y, 0.0, **start)
    np.testing.assert_array_equal(flow.test, start["fx_test_0"])
    for delay, shown in ((0.0, True), (1000.0, False)):
        monkeypatch.setattr(progress, "SOLVER_DELAY", delay)
        monkeypatch.setattr(progress, "SOLVER_STEPS", 1)
        ntk_jax.gradient_flow("mse", k[:2, :2], y[:2], 7.0)
        captured = capsys.readouterr()
        assert ("gradient flow" in captured.err) == shown and captured.out == ""
    monkeypatch.setattr(progress, "SOLVER_DELAY", 0.0)
    ntk_jax.gradient_flow("mse", k[:2, :2], y[:2], 7.0, progress=False)
    assert capsys.readouterr().err == ""


def test_what_has_no_solution_is_named(problem):
    k, y, _ = problem
    cases = (
        (
            lambda f, y: jnp.sum(jnp.sqrt(f)),
            k,
            r"loss: expected a finite gradient at the initial outputs",
        ),
        (
            lambda f, y: (f - y) ** 2,
            k,
            r"loss: expected a function of \(f, y\) that returns a scalar; got shape \(6, 3\)",
        ),
        ("mse", k - 5 * np.eye(N), r"k_train_train: expected a positive semi-definite kernel"),
    )
    for loss, kernel, message in cases:
        with pytest.raises(ValueError, match=message):
            ntk_jax.gradient_flow(loss, kernel, y, 1e5, fx_train_0=-np.ones((N, O)))


@pytest.mark.slow
def test_float32_in_float32_out(problem):
    k, y, _ = problem
    flow = ntk_jax.gradient_flow("mse", k.astype(np.float32), y, 5.0)
    moving = ntk_jax.gradient_flow(
        "mse", k.astype(np.float32), y, 5.0, momentum=0.5, learning_rate=0.1
    )
    assert flow.train.dtype == moving.train.dtype == jnp.float32
    np.testing.assert_allclose(
        flow.train, ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), y, 5.0).train, atol=1e-4
    )


def test_missing_diffrax_names_the_extra(problem, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"pip install 'ntk-jax\[ode\]"):
        ntk_jax.gradient_flow("mse", problem[0], problem[1], 1.0)
