import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_jax
from ntk_jax.losses import mse


@pytest.fixture
def problem(getkey):
    x, y = jax.random.normal(getkey(), (6, 3)), jax.random.normal(getkey(), (6, 2))
    model = ntk_jax.MLP((8,), 2, b_std=0.1)
    return *ntk_jax.from_linen(model, model.init(getkey(), x)), x, y


def test_history_is_that_of_a_plain_loop(problem, getkey):
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam promotes its step count
        check_history(problem, getkey)


def check_history(problem, getkey):
    apply_fn, params, x, y = problem
    x_test, y_test = jax.random.normal(getkey(), (4, 3)), jax.random.normal(getkey(), (4, 2))
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
    p, opt_state, row = params, optimizer.init(params), 0
    for step in range(8):
        if step in history.steps:
            np.testing.assert_allclose(history.loss[row], np.mean((apply_fn(p, x) - y) ** 2) / 2, rtol=1e-10)
            np.testing.assert_allclose(history.test_loss[row], mse(apply_fn(p, x_test), y_test), rtol=1e-10)
            np.testing.assert_allclose(history.fx_train[row], apply_fn(p, x), rtol=1e-10)
            np.testing.assert_allclose(history.fx_test[row], apply_fn(p, x_test), rtol=1e-10)
            np.testing.assert_allclose(
                history.relative_change[row], ntk_jax.relative_change(p, params).total, rtol=1e-9, atol=1e-14
            )
            change = ntk_jax.kernel_change(ntk_jax.empirical_ntk(apply_fn, p, x[:4]), k_0)
            np.testing.assert_allclose(history.kernel_change[row], change, rtol=1e-8, atol=1e-14)
            row += 1
        grads = jax.grad(lambda q: mse(apply_fn(q, x), y))(p)
        updates, opt_state = optimizer.update(grads, opt_state, p)
        if step < 7:
            p = optax.apply_updates(p, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), history.params, p)
    assert set(history.relative_change_by_layer) == {"Dense_0", "Dense_1"}
    assert not history.converged


def test_stops_at_the_first_step_below_the_threshold(problem):
    apply_fn, params, x, y = problem
    options = {"optimizer": optax.sgd(0.1), "record_every": 1000, "progress": False}
    history = ntk_jax.train(apply_fn, params, x, y, num_steps=100_000, stop_loss=0.1, **options)
    assert history.converged and history.loss[-1] < 0.1
    before = ntk_jax.train(apply_fn, params, x, y, num_steps=int(history.steps[-1]) - 1, **options)
    assert before.loss[-1] >= 0.1


def test_divergence_names_the_critical_learning_rate(problem):
    apply_fn, params, x, y = problem
    modes = ntk_jax.diagonalize(ntk_jax.empirical_ntk(apply_fn, params, x, outputs="full"))
    critical = float(ntk_jax.max_learning_rate(modes))
    with pytest.raises(FloatingPointError, match="critical learning rate") as error:
        ntk_jax.train(apply_fn, params, x, y, optimizer=optax.sgd(100 * critical), num_steps=1000, progress=False)
    stated = float(str(error.value).split("lambda_max = ")[1].split(";")[0])
    np.testing.assert_allclose(stated, critical, rtol=0.05)


def test_own_loss_and_zero_steps(problem):
    apply_fn, params, x, _ = problem
    labels = jnp.array([0, 1, 0, 1, 1, 0])
    one_hot = jax.nn.one_hot(labels, 2)
    cross_entropy = lambda f, y: -jnp.mean(jnp.sum(y * jax.nn.log_softmax(f), axis=1))  # noqa: E731
    options = {"loss": cross_entropy, "optimizer": optax.sgd(0.5), "progress": False}
    history = ntk_jax.train(apply_fn, params, x, one_hot, num_steps=50, **options)
    assert history.loss[-1] < history.loss[0]
    np.testing.assert_allclose(history.loss[0], cross_entropy(apply_fn(params, x), one_hot), rtol=1e-12)
    start = ntk_jax.train(apply_fn, params, x, one_hot, num_steps=0, **options)
    np.testing.assert_array_equal(start.steps, [0])


def test_relative_change_by_layer():
    start = {"a": {"w": jnp.array([3.0, 4.0]), "b": jnp.zeros(1)}, "c": {"w": jnp.zeros(2)}, "d": {"w": jnp.ones(4)}}
    moved = {"a": {"w": jnp.array([3.0, 7.0]), "b": jnp.array([4.0])}, "c": {"w": jnp.ones(2)}, "d": {"w": jnp.ones(4)}}
    change = ntk_jax.relative_change(moved, start)
    assert change.by_layer["a"] == 1.0  # |(0, 3, 4)| / |(3, 4, 0)|
    assert change.by_layer["c"] == jnp.inf
    assert change.by_layer["d"] == 0.0
    np.testing.assert_allclose(change.total, (27 / 29) ** 0.5, rtol=1e-14)


def test_kernel_change_is_relative_frobenius(getkey):
    k, k_0 = jax.random.normal(getkey(), (3, 4)), jax.random.normal(getkey(), (3, 4))
    np.testing.assert_allclose(ntk_jax.kernel_change(k, k_0), np.linalg.norm(k - k_0) / np.linalg.norm(k_0), rtol=1e-14)
    assert ntk_jax.kernel_change(k, k) == 0


def test_progress_goes_to_stderr_and_can_be_silenced(problem, capsys):
    apply_fn, params, x, y = problem
    for progress in (True, False):
        ntk_jax.train(apply_fn, params, x, y, optimizer=optax.sgd(0.1), num_steps=5, progress=progress)
        captured = capsys.readouterr()
        assert captured.out == "" and ("training" in captured.err) == progress


def test_any_function_of_the_parameters_can_be_recorded():
    x, y = jnp.ones((3, 2)), jnp.ones((3, 1))
    model = ntk_jax.MLP((8,))
    apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(0), x))
    history = ntk_jax.train(
        apply_fn, params, x, y, optimizer=optax.sgd(0.1), num_steps=6, record_every=2,
        record=lambda p: {"out": apply_fn(p, x), "norm": optax.global_norm(p)}, record_outputs=True,
    )  # fmt: skip
    np.testing.assert_array_equal(history.recorded["out"], history.fx_train)
    assert history.recorded["norm"].shape == (4,)
