"""Recorded training against plain loops of Optax, one step after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_jax
from cases.draws import drawn, normal
from ntk_jax.losses import mse

SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def problem():
    """One network for all tests: with the same optimizer, too, they share compiled programs."""
    x, y = (jax.device_put(normal(seed, (6, d))) for seed, d in enumerate((3, 2)))
    model = ntk_jax.MLP((8,), 2, b_std=0.1)
    return *drawn(model, x), x, y


def test_history_is_that_of_a_plain_loop(problem, draw):
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam promotes its step count
        check_history(problem, draw)


def check_history(problem, draw):
    apply_fn, params, x, y = problem
    x_test, y_test = draw((4, 3)), draw((4, 2))
    optimizer = optax.adam(0.01)
    history = ntk_jax.train(
        apply_fn,
        params,
        x,
        y,
        optimizer=optimizer,
        num_steps=7,
        record_every=3,
        x_test=x_test,
        y_test=y_test,
        x_kernel=x[:4],
        record_outputs=True,
        progress=False,
    )
    np.testing.assert_array_equal(history.steps, [0, 3, 6, 7])
    k_0 = ntk_jax.empirical_ntk(apply_fn, params, x[:4])
    forward = jax.jit(lambda q: (apply_fn(q, x), apply_fn(q, x_test)))

    @jax.jit
    def one_step(p, opt_state):
        gradient = jax.grad(lambda q: mse(apply_fn(q, x), y))(p)
        updates, opt_state = optimizer.update(gradient, opt_state, p)
        return optax.apply_updates(p, updates), opt_state

    p, opt_state, row = params, jax.jit(optimizer.init)(params), 0
    for step in range(8):
        if step in history.steps:
            train, test = map(np.asarray, forward(p))
            for loss, f, target in ((history.loss, train, y), (history.test_loss, test, y_test)):
                np.testing.assert_allclose(loss[row], np.mean((f - target) ** 2) / 2, rtol=1e-10)
            np.testing.assert_allclose(history.fx_train[row], train, rtol=1e-10)
            np.testing.assert_allclose(history.fx_test[row], test, rtol=1e-10)
            np.testing.assert_allclose(
                history.relative_change[row],
                ntk_jax.relative_change(p, params).total,
                rtol=1e-9,
                atol=1e-14,
            )
            change = ntk_jax.kernel_change(ntk_jax.empirical_ntk(apply_fn, p, x[:4]), k_0)
            np.testing.assert_allclose(history.kernel_change[row], change, rtol=1e-8, atol=1e-14)
            row += 1
        if step < 7:
            p, opt_state = one_step(p, opt_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), history.params, p)
    assert set(history.relative_change_by_layer) == {"Dense_0", "Dense_1"}
    assert not history.converged


def test_stops_at_the_first_step_below_the_threshold(problem):
    apply_fn, params, x, y = problem
    options = {"optimizer": SGD, "record_every": 1000, "progress": False}
    history = ntk_jax.train(apply_fn, params, x, y, num_steps=100_000, stop_loss=0.1, **options)
    assert history.converged and history.loss[-1] < 0.1
    before = ntk_jax.train(apply_fn, params, x, y, num_steps=int(history.steps[-1]) - 1, **options)
    assert before.loss[-1] >= 0.1


def test_divergence_names_the_critical_learning_rate(problem):
    apply_fn, params, x, y = problem
    modes = ntk_jax.diagonalize(ntk_jax.empirical_ntk(apply_fn, params, x, outputs="full"))
    critical = float(ntk_jax.max_learning_rate(modes))
    with pytest.raises(FloatingPointError, match="critical learning rate") as error:
        ntk_jax.train(
            apply_fn,
            params,
            x,
            y,
            optimizer=optax.sgd(100 * critical),
            num_steps=1000,
            progress=False,
        )
    stated = float(str(error.value).split("lambda_max = ")[1].split(";")[0])
    np.testing.assert_allclose(stated, critical, rtol=0.05)


def test_own_loss_and_zero_steps(problem):
    apply_fn, params, x, _ = problem
    one_hot = np.eye(2)[[0, 1, 0, 1, 1, 0]]
    cross_entropy = lambda f, y: -jnp.mean(jnp.sum(y * jax.nn.log_softmax(f), axis=1))
    options = {"loss": cross_entropy, "optimizer": optax.sgd(0.5), "progress": False}
    history = ntk_jax.train(apply_fn, params, x, one_hot, num_steps=50, **options)
    assert history.loss[-1] < history.loss[0]
    np.testing.assert_allclose(
        history.loss[0],
        jax.jit(lambda p: cross_entropy(apply_fn(p, x), one_hot))(params),
        rtol=1e-12,
    )
    start = ntk_jax.train(apply_fn, params, x, one_hot, num_steps=0, **options)
    np.testing.assert_array_equal(start.steps, [0])


def test_relative_change_by_layer():
    start = {
        "a": {"w": jnp.array([3.0, 4.0]), "b": jnp.zeros(1)},
        "c": {"w": jnp.zeros(2)},
        "d": {"w": jnp.ones(4)},
    }
    moved = {
        "a": {"w": jnp.array([3.0, 7.0]), "b": jnp.array([4.0])},
        "c": {"w": jnp.ones(2)},
        "d": {"w": jnp.ones(4)},
    }
    change = ntk_jax.relative_change(moved, start)
    assert change.by_layer["a"] == 1.0  # |(0, 3, 4)| / |(3, 4, 0)|
    assert change.by_layer["c"] == jnp.inf
    assert change.by_layer["d"] == 0.0
    np.testing.assert_allclose(change.total, (27 / 29) ** 0.5, rtol=1e-14)


def test_kernel_change_is_relative_frobenius(draw):
    k, k_0 = draw((3, 4)), draw((3, 4))
    np.testing.assert_allclose(
        ntk_jax.kernel_change(k, k_0), np.linalg.norm(k - k_0) / np.linalg.norm(k_0), rtol=1e-14
    )
    assert ntk_jax.kernel_change(k, k) == 0


def test_progress_goes_to_stderr_and_can_be_silenced(problem, capsys):
    apply_fn, params, x, y = problem
    for progress in (True, False):
        ntk_jax.train(apply_fn, params, x, y, optimizer=SGD, num_steps=5, progress=progress)
        captured = capsys.readouterr()
        assert captured.out == "" and ("training" in captured.err) == progress


def test_any_function_of_the_parameters_can_be_recorded():
    x, y = jnp.ones((3, 2)), jnp.ones((3, 1))
    model = ntk_jax.MLP((8,))
    apply_fn, params = drawn(model, x)
    history = ntk_jax.train(
        apply_fn,
        params,
        x,
        y,
        optimizer=SGD,
        num_steps=6,
        record_every=2,
        record=lambda p: {"out": apply_fn(p, x), "norm": jnp.linalg.norm(p["Dense_0"]["kernel"])},
        record_outputs=True,
    )
    np.testing.assert_array_equal(history.recorded["out"], history.fx_train)
    assert history.recorded["norm"].shape == (4,)


def test_batches_are_those_of_the_key_and_losses_are_over_all_examples(problem):
    apply_fn, params, x, y = problem
    key = jax.random.key(5)
    history = ntk_jax.train(
        apply_fn,
        params,
        x,
        y,
        optimizer=SGD,
        num_steps=5,
        batch_size=2,
        key=key,
        record_every=1,
        progress=False,
    )

    @jax.jit
    def one_step(p, step):
        rows = jax.random.permutation(jax.random.fold_in(key, step), 6)[:2]
        gradient = jax.grad(lambda q: mse(apply_fn(q, x[rows]), y[rows]))(p)
        return mse(apply_fn(p, x), y), jax.tree.map(lambda a, g: a - 0.1 * g, p, gradient)

    p = params
    for step in range(6):
        loss, p = one_step(p, step)
        np.testing.assert_allclose(history.loss[step], loss, rtol=1e-10)


@pytest.mark.slow
def test_closed_form_is_the_mean_of_mini_batch_training(problem):
    apply_fn, params, x, y = problem
    linear = ntk_jax.linearize(apply_fn, params)
    modes = ntk_jax.diagonalize(ntk_jax.empirical_ntk(apply_fn, params, x, outputs="full"))
    rate = 0.2 * float(ntk_jax.max_learning_rate(modes))
    history = ntk_jax.train_ensemble(
        lambda key: params,
        linear,
        x,
        y,
        key=jax.random.key(0),
        num_networks=500,
        optimizer=optax.sgd(rate, momentum=0.5),
        num_steps=8,
        batch_size=2,
        record_every=2,
        progress=False,
    )
    mean = ntk_jax.gradient_descent_mse(
        modes, y, history.steps, rate, momentum=0.5, fx_train_0=apply_fn(params, x)
    ).train
    error = np.std(history.fx_train, axis=0) / 500**0.5
    assert error[1:].min() > 0
    assert (np.abs(np.mean(history.fx_train, axis=0) - mean)[1:] < 5 * error[1:]).all()


def test_line_search_optimizers_get_what_they_need(problem):
    apply_fn, params, x, y = problem
    with jax.numpy_dtype_promotion("standard"):
        history = ntk_jax.train(
            apply_fn, params, x, y, optimizer=optax.lbfgs(), num_steps=30, progress=False
        )
    assert history.loss[-1] < 1e-3 * history.loss[0]


@pytest.fixture(scope="module")
def ensemble(problem):
    """A call of `train_ensemble` with five networks, and the options that it shares with
    `train`.
    """
    apply_fn, params, x, y = problem
    init_fn = lambda key: jax.tree.map(lambda p: jax.random.normal(key, p.shape, p.dtype), params)
    options = {
        "optimizer": SGD,
        "num_steps": 6,
        "record_every": 3,
        "x_test": x[:2],
        "progress": False,
    }

    def call(**more):
        return ntk_jax.train_ensemble(
            init_fn,
            apply_fn,
            x,
            y,
            key=jax.random.key(1),
            num_networks=5,
            keep_params=True,
            **options | more,
        )

    return call, call(), init_fn, options


def test_ensemble_members_are_single_trainings(problem, ensemble):
    apply_fn, _, x, y = problem
    _, history, init_fn, options = ensemble
    assert history.fx_train.shape == (5, 3, 6, 2) and history.fx_test.shape == (5, 3, 2, 2)
    for i, own in enumerate(jax.random.split(jax.random.key(1), 5)[:2]):
        alone = ntk_jax.train(apply_fn, init_fn(own), x, y, record_outputs=True, **options)
        np.testing.assert_array_equal(history.steps, alone.steps)
        np.testing.assert_allclose(history.loss[i], alone.loss, rtol=1e-10)
        np.testing.assert_allclose(history.fx_test[i], alone.fx_test, rtol=1e-9)


@pytest.mark.slow
def test_ensembles_are_the_same_whatever_the_memory_and_say_when_they_diverge(problem, ensemble):
    call, history, *_ = ensemble
    small = call(memory_limit=2 * 8 * 3 * sum(p.size for p in jax.tree.leaves(problem[1])) + 6000)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), history, small
    )
    with pytest.raises(
        FloatingPointError, match=r"5 of 5 networks: training diverged.*critical learning rate"
    ):
        call(optimizer=optax.sgd(1e3), num_steps=100)


def test_comparison_of_a_linear_network_with_its_kernel_has_no_gap(problem):
    apply_fn, params, x, y = problem
    linear = ntk_jax.linearize(apply_fn, params)
    modes = ntk_jax.diagonalize(ntk_jax.empirical_ntk(apply_fn, params, x, outputs="full"))
    k_test = ntk_jax.empirical_ntk(apply_fn, params, -x[:3], x, outputs="full")
    critical = ntk_jax.max_learning_rate(modes)
    rate = 0.5 * float(critical)
    history = ntk_jax.train(
        linear,
        params,
        x,
        y,
        optimizer=optax.sgd(rate),
        num_steps=20,
        record_every=2,
        x_test=-x[:3],
        record_outputs=True,
        progress=False,
    )
    prediction = ntk_jax.gradient_descent_mse(
        modes,
        y,
        history.steps,
        rate,
        fx_train_0=history.fx_train[0],
        fx_test_0=history.fx_test[0],
        k_test_train=k_test,
    )
    out = ntk_jax.compare(
        history, prediction, y, learning_rate=rate, y_test=y[:3], critical_learning_rate=critical
    )
    assert (
        out.train.gap.shape == (11,) and out.train.gap.max() < 1e-10 and out.test.gap.max() < 1e-10
    )
    np.testing.assert_allclose(out.train.loss[0], history.loss, rtol=1e-12)
    np.testing.assert_allclose(out.train.loss[1], history.loss, rtol=1e-9)
    np.testing.assert_allclose(
        out.test.accuracy[0], np.mean(history.fx_test.argmax(2) == np.argmax(y[:3], 1)[None], 1)
    )
    np.testing.assert_allclose(out.t, rate * history.steps)
    text = str(out)
    assert len(text.splitlines()) == 13 and "0.5 × critical" in text and "stable" in text
    wrong = prediction._replace(train=prediction.train + np.eye(6, 2)[None])
    np.testing.assert_allclose(
        ntk_jax.compare(history, wrong, y, learning_rate=rate).train.gap, 1.0, atol=1e-9
    )
    assert "unstable" in str(out._replace(critical_learning_rate=rate / 2))
