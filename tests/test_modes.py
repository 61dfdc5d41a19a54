"""Closed-form training against brute force: an ODE solver, the recursion, and Optax on the
linearized network.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp

import ntk_jax
from cases.draws import drawn

N, N_TEST, O = 6, 4, 2


def features(rank=9, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, rank)), rng.normal(size=(N_TEST, rank)), rng


def problem(rank=9):
    phi, phi_test, rng = features(rank)
    y, f_0, f_test_0 = (rng.normal(size=(n, O)) for n in (N, N, N_TEST))
    return phi @ phi.T, phi_test @ phi.T, y, f_0, f_test_0


def flow_by_ode(k, k_test, y, f_0, f_test_0, t, diag_reg=0.0):
    """The flow of train and test outputs together; with a pull r, of the coefficients alpha."""

    def rhs(_, alpha):
        f = f_0 + k @ alpha.reshape(y.shape)
        return ((y - f) / y.size - diag_reg * alpha.reshape(y.shape) / y.size).ravel()

    solution = solve_ivp(
        rhs, (0, max(t)), np.zeros(y.size), t_eval=t, method="DOP853", rtol=1e-12, atol=1e-13
    )
    alpha = [a.reshape(y.shape) for a in solution.y.T]
    return np.stack([f_0 + k @ a for a in alpha]), np.stack([f_test_0 + k_test @ a for a in alpha])


@pytest.mark.parametrize("rank", [9, 3])
@pytest.mark.parametrize("diag_reg", [0.0, 0.7])
def test_flow_equals_ode(rank, diag_reg):
    k, k_test, y, f_0, f_test_0 = problem(rank)
    t = [0.0, 0.1, 1.0, 10.0, 40.0]
    options = {
        "fx_train_0": f_0,
        "k_test_train": k_test,
        "fx_test_0": f_test_0,
        "diag_reg": diag_reg,
    }
    out = ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), y, t, **options)
    train, test = flow_by_ode(k, k_test, y, f_0, f_test_0, t, diag_reg)
    np.testing.assert_allclose(out.train, train, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(out.test, test, rtol=1e-8, atol=1e-8)
    one = ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), y, t[2], **options)
    np.testing.assert_allclose(one.test, test[2], rtol=1e-8, atol=1e-8)


def test_flow_at_infinity_is_regression_and_huge_times_reach_it():
    k, k_test, y, f_0, f_test_0 = problem()
    modes = ntk_jax.diagonalize(k)
    options = {"fx_train_0": f_0, "k_test_train": k_test, "fx_test_0": f_test_0}
    for diag_reg in (0.0, 0.5):
        limit = ntk_jax.gradient_flow_mse(modes, y, np.inf, **options, diag_reg=diag_reg)
        alpha = np.linalg.solve(k + diag_reg * np.eye(N), y - f_0)
        np.testing.assert_allclose(limit.train, f_0 + k @ alpha, rtol=1e-10)
        np.testing.assert_allclose(limit.test, f_test_0 + k_test @ alpha, rtol=1e-9)
        late = ntk_jax.gradient_flow_mse(modes, y, [1e12, 1e300], **options, diag_reg=diag_reg)
        np.testing.assert_allclose(late.test, np.stack([limit.test] * 2), rtol=1e-12)


def test_singular_kernel_leaves_its_null_space_alone():
    k, k_test, y, f_0, f_test_0 = problem(rank=3)
    modes = ntk_jax.diagonalize(k)
    assert (modes.eigenvalues[3:] == 0).all() and (modes.eigenvalues[:3] > 0).all()
    out = ntk_jax.gradient_flow_mse(
        modes, y, np.inf, fx_train_0=f_0, k_test_train=k_test, fx_test_0=f_test_0
    )
    pinv = np.linalg.pinv(k, rcond=1e-10)
    np.testing.assert_allclose(out.train, f_0 + k @ pinv @ (y - f_0), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(out.test, f_test_0 + k_test @ pinv @ (y - f_0), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("diag_reg", [0.0, 0.3])
def test_descent_equals_recursion(momentum, nesterov, diag_reg):
    k, k_test, y, f_0, f_test_0 = problem()
    modes = ntk_jax.diagonalize(k)
    rate = 0.6 * float(ntk_jax.max_learning_rate(modes, O, momentum, nesterov=nesterov))
    alpha, v = np.zeros_like(y), np.zeros_like(y)
    steps = [0, 1, 2, 37, 1000, 10_000]
    train, test = [], []
    for step in range(steps[-1] + 1):
        if step in steps:
            train.append(f_0 + k @ alpha)
            test.append(f_test_0 + k_test @ alpha)
        g = (y - f_0 - k @ alpha - diag_reg * alpha) / y.size
        v = momentum * v + g
        alpha = alpha + rate * (momentum * v + g if nesterov else v)
    options = {"momentum": momentum, "nesterov": nesterov, "diag_reg": diag_reg}
    options |= {"fx_train_0": f_0, "k_test_train": k_test}
    out = ntk_jax.gradient_descent_mse(modes, y, steps, rate, fx_test_0=f_test_0, **options)
    np.testing.assert_allclose(out.train, np.stack(train), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(out.test, np.stack(test), rtol=1e-10, atol=1e-10)
    traced = jax.jit(
        lambda s: (
            ntk_jax.gradient_descent_mse(modes, y, s, rate, fx_test_0=f_test_0, **options).test
        )
    )
    np.testing.assert_allclose(traced(jnp.asarray(steps)), out.test, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_descent_in_float32_keeps_slow_modes():
    k = np.diag([1.0, 1e-3, 1e-6])
    y = np.ones(3)
    exact = ntk_jax.gradient_descent_mse(ntk_jax.diagonalize(k), y, 300_000, 3.0)
    single = ntk_jax.gradient_descent_mse(
        ntk_jax.diagonalize(k.astype(np.float32)), y, 300_000, 3.0
    )
    assert single.train.dtype == jnp.float32
    # each of the 19 squarings rounds once: some tens of ulps of float32
    np.testing.assert_allclose(single.train, exact.train, rtol=30 * 2**-23)


@pytest.fixture
def single_precision():
    """JAX's default: integers have 32 bits."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


def test_more_steps_than_32_bits_hold(single_precision):
    k, _, y, f_0, _ = problem()
    modes, steps = ntk_jax.diagonalize(k.astype(np.float32)), [3 * 10**9, 10**10]
    slow = 1e-9 * float(ntk_jax.max_learning_rate(modes, O))
    values, vectors = np.linalg.eigh(k)
    left = vectors @ (
        np.exp(-values * slow * np.array(steps)[:, None] / y.size)[..., None]
        * (vectors.T @ (f_0 - y))
    )
    for num_steps in (steps, np.array(steps)):
        out = ntk_jax.gradient_descent_mse(modes, y, num_steps, slow, fx_train_0=f_0)
        np.testing.assert_allclose(out.train, y + left, atol=1e-4)
    assert ntk_jax.gradient_descent_mse(modes, y, steps[1], slow).train.shape == (N, O)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_descent_equals_optax_on_the_linearized_network(momentum, draw):
    x, x_test = draw((N, 3)), draw((N_TEST, 3))
    y = draw((N, O))
    model = ntk_jax.MLP((16,), O, W_std=1.5, b_std=0.1)
    apply_fn, params = drawn(model, x)
    linear = ntk_jax.linearize(apply_fn, params)
    modes = ntk_jax.diagonalize(ntk_jax.empirical_ntk(apply_fn, params, x, outputs="full"))
    k_test = ntk_jax.empirical_ntk(apply_fn, params, x_test, x, outputs="full")
    rate = 0.5 * float(ntk_jax.max_learning_rate(modes, momentum=momentum))
    history = ntk_jax.train(
        linear,
        params,
        x,
        y,
        optimizer=optax.sgd(rate, momentum=momentum),
        num_steps=500,
        x_test=x_test,
        record_every=50,
        record_outputs=True,
        progress=False,
    )
    out = ntk_jax.gradient_descent_mse(
        modes,
        y,
        history.steps,
        rate,
        momentum=momentum,
        fx_train_0=apply_fn(params, x),
        k_test_train=k_test,
        fx_test_0=apply_fn(params, x_test),
    )
    np.testing.assert_allclose(history.fx_train, out.train, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(history.fx_test, out.test, rtol=1e-8, atol=1e-8)


def test_small_steps_are_the_flow():
    k, _, y, f_0, _ = problem()
    modes = ntk_jax.diagonalize(k)
    flow = ntk_jax.gradient_flow_mse(modes, y, 5.0, fx_train_0=f_0).train
    gaps = [
        np.abs(
            ntk_jax.gradient_descent_mse(modes, y, steps, 5.0 / steps, fx_train_0=f_0).train - flow
        ).max()
        for steps in (1000, 10_000)
    ]
    assert gaps[1] < 1e-4 and 8 < gaps[0] / gaps[1] < 12  # first order in the step


@pytest.mark.slow
def test_time_is_learning_rate_times_steps(draw):
    # Twice the rate and half the steps is the same flow; a trained network differs from it by the
    # order of its step.
    x, y = draw((N, 3)), draw((N, O))
    model = ntk_jax.MLP((16,), O, W_std=1.5, b_std=0.1)
    apply_fn, params = drawn(model, x)
    k = ntk_jax.empirical_ntk(apply_fn, params, x, outputs="full")
    modes, f_0, rate = ntk_jax.diagonalize(k), apply_fn(params, x), 0.05
    flow, gaps = ntk_jax.gradient_flow_mse(modes, y, rate * 256, fx_train_0=f_0).train, []
    np.testing.assert_allclose(
        ntk_jax.gradient_flow("mse", k, y, rate * 256, fx_train_0=f_0).train, flow, atol=1e-6
    )
    for factor in (1, 2):
        history = ntk_jax.train(
            ntk_jax.linearize(apply_fn, params), params, x, y, optimizer=optax.sgd(factor * rate),
            num_steps=256 // factor, record_outputs=True, progress=False,
        )  # fmt: skip
        gaps.append(np.abs(history.fx_train[-1] - flow).max())
    assert gaps[0] < 0.01 and 1.8 < gaps[1] / gaps[0] < 2.2


@pytest.mark.slow
def test_residuals_stay_below_the_bound_of_the_slowest_mode():
    # |f_t - y| <= exp(-s_min t / nO) |f_0 - y|, and for steps the power of 1 - η s_min / nO, below
    # the critical rate
    k, _, y, f_0, _ = problem()
    modes, t = ntk_jax.diagonalize(k), np.geomspace(0.1, 1000, 20)
    left = lambda out: np.linalg.norm(np.asarray(out.train) - y, axis=(1, 2))
    start, slowest = np.linalg.norm(f_0 - y), float(modes.eigenvalues[-1]) / y.size
    norms = left(ntk_jax.gradient_flow_mse(modes, y, t, fx_train_0=f_0))
    assert (norms <= np.exp(-slowest * t) * start).all() and norms[0] < 0.999 * np.exp(
        -slowest * t[0]
    ) * start
    alone = y + np.asarray(
        modes.eigenvectors[:, -1:]
    )  # a residual in the slowest mode alone reaches the bound
    norms = left(ntk_jax.gradient_flow_mse(modes, y, t, fx_train_0=alone))
    np.testing.assert_allclose(norms, np.exp(-slowest * t) * 2**0.5, rtol=1e-8, atol=1e-14)
    rate, steps = 0.5 * float(ntk_jax.max_learning_rate(modes, O)), np.array([1, 10, 100])
    norms = left(ntk_jax.gradient_descent_mse(modes, y, steps, rate, fx_train_0=f_0))
    assert (norms <= (1 - rate * slowest) ** steps * start).all()


def test_test_outputs_alone_are_the_same():
    k, k_test, y, f_0, f_test_0 = problem()
    modes = ntk_jax.diagonalize(k)
    options = {"fx_train_0": f_0, "k_test_train": k_test, "fx_test_0": f_test_0}
    for fn, when in (
        (ntk_jax.gradient_flow_mse, ([0.0, 2.0],)),
        (ntk_jax.gradient_descent_mse, ([0, 9], 0.1)),
    ):
        both, alone = (
            fn(modes, y, *when, **options),
            fn(modes, y, *when, **options, predict_train=False),
        )
        assert alone.train is None
        np.testing.assert_array_equal(alone.test, both.test)
    with pytest.raises(
        ValueError, match=r"k_test_train: expected the test kernel with predict_train=False"
    ):
        ntk_jax.gradient_flow_mse(modes, y, 1.0, predict_train=False)


def test_full_kernel_of_independent_outputs_is_the_shared_one():
    k, k_test, y, f_0, f_test_0 = problem()
    eye = np.eye(O)
    full, full_test = (m[:, :, None, None] * eye for m in (k, k_test))
    options = {"fx_train_0": f_0, "fx_test_0": f_test_0}
    shared = ntk_jax.gradient_flow_mse(
        ntk_jax.diagonalize(k), y, [1.0, 7.0], k_test_train=k_test, **options
    )
    joint = ntk_jax.gradient_flow_mse(
        ntk_jax.diagonalize(full), y, [1.0, 7.0], k_test_train=full_test, **options
    )
    np.testing.assert_allclose(joint.train, shared.train, rtol=1e-10)
    np.testing.assert_allclose(joint.test, shared.test, rtol=1e-10)
    limits = [
        ntk_jax.max_learning_rate(ntk_jax.diagonalize(full)),
        ntk_jax.max_learning_rate(ntk_jax.diagonalize(k), O),
    ]
    np.testing.assert_allclose(*limits, rtol=1e-12)


def test_one_kernel_per_output_is_as_many_problems():
    k, k_test, y, f_0, f_test_0 = problem()
    k, k_test = (np.stack([m, 2 * m], -1) for m in (k, k_test))
    modes = ntk_jax.diagonalize(k)
    assert modes.eigenvalues.shape == (O, N) and modes.rank.tolist() == [N, N]
    assert ntk_jax.max_learning_rate(modes) == ntk_jax.max_learning_rate(
        ntk_jax.diagonalize(k[:, :, 1]), O
    )
    start = {"k_test_train": k_test, "fx_train_0": f_0, "fx_test_0": f_test_0}
    flow = ntk_jax.gradient_flow_mse(modes, y, [1.0, 7.0], **start)
    steps = ntk_jax.gradient_descent_mse(modes, y, [3, 9], 0.1, **start)
    assert flow.test.shape == steps.test.shape == (2, N_TEST, O)
    for o in range(O):
        one = ntk_jax.diagonalize(k[:, :, o])
        start = {
            "k_test_train": k_test[:, :, o],
            "fx_train_0": f_0[:, o],
            "fx_test_0": f_test_0[:, o],
        }
        # alone, an output is the whole loss instead of one part in O: time runs O times faster
        alone = ntk_jax.gradient_flow_mse(one, y[:, o], [1.0 / O, 7.0 / O], **start)
        np.testing.assert_allclose(flow.train[..., o], alone.train, rtol=1e-10)
        np.testing.assert_allclose(flow.test[..., o], alone.test, rtol=1e-9)
        alone = ntk_jax.gradient_descent_mse(one, y[:, o], [3, 9], 0.1 / O, **start)
        np.testing.assert_allclose(steps.test[..., o], alone.test, rtol=1e-9)


def test_a_flattened_kernel_is_the_full_one():
    _, _, y, f_0, f_test_0 = problem()
    rng = np.random.default_rng(3)
    phi, phi_test = rng.normal(size=(N * O, 20)), rng.normal(size=(N_TEST * O, 20))
    flat, flat_test = phi @ phi.T, phi_test @ phi.T
    full = flat.reshape(N, O, N, O).swapaxes(1, 2)
    full_test = flat_test.reshape(N_TEST, O, N, O).swapaxes(1, 2)
    start = {"fx_train_0": f_0, "fx_test_0": f_test_0}
    a = ntk_jax.gradient_flow_mse(
        ntk_jax.diagonalize(full), y, [1.0, 7.0], k_test_train=full_test, **start
    )
    start = {name: f.ravel() for name, f in start.items()}
    b = ntk_jax.gradient_flow_mse(
        ntk_jax.diagonalize(flat), y.ravel(), [1.0, 7.0], k_test_train=flat_test, **start
    )
    np.testing.assert_array_equal(a.train, b.train.reshape(a.train.shape))
    np.testing.assert_array_equal(a.test, b.test.reshape(a.test.shape))
    train, test = flow_by_ode(flat, flat_test, y.ravel(), f_0.ravel(), f_test_0.ravel(), [1.0, 7.0])
    np.testing.assert_allclose(a.train, train.reshape(2, N, O), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(a.test, test.reshape(2, N_TEST, O), rtol=1e-8, atol=1e-8)


def test_modes_report_their_rank_and_float32_warns_of_what_it_cannot_see():
    k, _, y, _, _ = problem(rank=3)
    modes = ntk_jax.diagonalize(k)
    assert modes.rank == 3 and modes.condition_number == np.inf
    regular, *_ = problem()
    values = np.linalg.eigvalsh(regular)
    np.testing.assert_allclose(
        ntk_jax.diagonalize(regular).condition_number, values[-1] / values[0], rtol=1e-8
    )
    single = ntk_jax.diagonalize(k.astype(np.float32))
    ntk_jax.gradient_flow_mse(single, y, 1.0)
    with pytest.warns(UserWarning, match="3 of 6 modes of this float32 kernel.*Trust times up to"):
        out = ntk_jax.gradient_flow_mse(single, y, np.inf)
    assert np.isfinite(out.train).all()
    ntk_jax.gradient_descent_mse(single, y, 10, 0.1)
    with pytest.warns(UserWarning, match=r"3 of 6 modes of this float32 kernel.*at t = 1e\+09"):
        ntk_jax.gradient_descent_mse(single, y, 10**9, 0.1, momentum=0.9)


def test_targets_without_output_axis_give_results_without_it():
    k, k_test, y, _, _ = problem()
    column = ntk_jax.gradient_flow_mse(
        ntk_jax.diagonalize(k), y[:, :1], [1.0, 2.0], k_test_train=k_test
    )
    flat = ntk_jax.gradient_flow_mse(
        ntk_jax.diagonalize(k), y[:, 0], [1.0, 2.0], k_test_train=k_test
    )
    assert flat.train.shape == (2, N) and flat.test.shape == (2, N_TEST)
    np.testing.assert_array_equal(flat.test, column.test[:, :, 0])


@pytest.mark.slow
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.5, True)])
def test_max_learning_rate_separates_stable_from_unstable(momentum, nesterov):
    k, _, y, _, _ = problem()
    modes = ntk_jax.diagonalize(k)
    options = {"momentum": momentum, "nesterov": nesterov}
    limit = float(ntk_jax.max_learning_rate(modes, O, **options))
    stable = ntk_jax.gradient_descent_mse(modes, y, 20_000, 0.99 * limit, **options)
    assert np.abs(stable.train - y).max() < 1e-3
    unstable = ntk_jax.gradient_descent_mse(modes, y, 2000, 1.01 * limit, **options)
    assert np.abs(unstable.train - y).max() > 1e3


def test_modes_rebuild_the_kernel():
    k, *_ = problem()
    modes = ntk_jax.diagonalize(k)
    assert (np.diff(modes.eigenvalues) <= 0).all()
    np.testing.assert_allclose(
        (modes.eigenvectors * modes.eigenvalues[None]) @ modes.eigenvectors.T, k, rtol=1e-11
    )
