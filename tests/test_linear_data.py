"""The published experiment on linear data: analytic corner, regression errors, convergence in
width, training.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_jax
from ntk_jax.data import linear_data

DATA = linear_data()
SCALES = {
    "W_std": (10.0, 2**0.5),
    "b_std": (1.0, None),
}  # weights and biases N(0, 1), readout sqrt(2 / width)


def analytic(x1, x2=None):
    return ntk_jax.mlp_kernels(x1, x2, depth=1, **SCALES).ntk


def network(width, key, dtype=jnp.float64):
    model = ntk_jax.MLP((width,), **SCALES)
    return ntk_jax.from_linen(model, model.init(key, jnp.zeros((1, 100), dtype)))


def test_analytic_corner():
    k = analytic(DATA.x_train)
    np.testing.assert_allclose(np.diag(k), 4, rtol=1e-12)
    np.testing.assert_allclose(k[0, 1], 1.7955584277575192, rtol=1e-12)
    np.testing.assert_allclose(k[0, 2], 1.6498005137154852, rtol=1e-12)
    np.testing.assert_allclose(k[0, 3], 1.6430830799669134, rtol=1e-12)
    eigenvalues = ntk_jax.diagonalize(k).eigenvalues
    np.testing.assert_allclose(eigenvalues[0], 62.47031647310751, rtol=1e-8)
    np.testing.assert_allclose(eigenvalues[-1], 0.9441958222920828, rtol=1e-7)
    single = analytic(DATA.x_train.astype(np.float32))
    np.testing.assert_allclose(single, k, rtol=2e-6)


def test_regression_with_the_analytic_kernel():
    out = ntk_jax.kernel_regression(
        analytic(DATA.x_train), DATA.y_train, analytic(DATA.x_test, DATA.x_train)
    )
    np.testing.assert_allclose(np.mean((out.test - DATA.y_test) ** 2), 0.48437464816, rtol=1e-10)
    printed = [-0.1682423, -0.0588165, 0.0239739, 0.1342176, -0.3408772]
    np.testing.assert_allclose(out.test[:5, 0], printed, atol=1e-7)
    np.testing.assert_allclose(out.train, DATA.y_train, atol=1e-12)


@pytest.mark.slow
def test_empirical_kernel_approaches_the_analytic_one_as_one_over_root_width():
    x = DATA.x_train.astype(np.float32)
    k = analytic(DATA.x_train)
    widths = [100, 400, 1600, 6400, 16_000]
    errors = []
    for width in widths:
        draw = jax.jit(
            lambda key, width=width: ntk_jax.empirical_ntk(*network(width, key, jnp.float32), x)
        )
        draws = [draw(jax.random.key(seed)) for seed in range(4)]
        errors.append(
            np.mean([ntk_jax.kernel_change(np.asarray(draw, float), k) for draw in draws])
        )
    assert errors[-1] < 0.03
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4


@pytest.fixture(scope="module")
def trained():
    """Networks of two widths and what their own initial kernel predicts, at the end of training and
    on the way.
    """
    out = {}
    for width in (512, 4096):
        apply_fn, params = network(width, jax.random.key(0))
        k = ntk_jax.empirical_ntk(apply_fn, params, DATA.x_train)
        k_test = ntk_jax.empirical_ntk(apply_fn, params, DATA.x_test, DATA.x_train)
        modes = ntk_jax.diagonalize(k)
        rate = 0.5 * float(ntk_jax.max_learning_rate(modes))
        history = ntk_jax.train(
            apply_fn,
            params,
            DATA.x_train,
            DATA.y_train,
            optimizer=optax.sgd(rate),
            num_steps=1000,
            record_every=[1, 10, 100],
            x_test=DATA.x_test,
            y_test=DATA.y_test,
            record_outputs=True,
            stop_loss=1e-10,
            progress=False,
        )
        start = {"fx_train_0": history.fx_train[0], "fx_test_0": history.fx_test[0]}
        prediction = ntk_jax.gradient_descent_mse(
            modes, DATA.y_train, history.steps, rate, k_test_train=k_test, **start
        )
        out[width] = history, prediction
    return out


@pytest.mark.slow
def test_trained_network_is_where_its_kernel_says(trained):
    error = {
        width: np.mean((h.fx_test - p.test) ** 2, axis=(1, 2)) for width, (h, p) in trained.items()
    }
    assert trained[4096][0].converged
    assert error[4096].max() < 1e-3  # at every recorded time, not only the last
    assert error[4096][-1] < error[512][-1] / 2


@pytest.mark.slow
def test_weights_of_wide_networks_move_less(trained):
    moved = {width: h.relative_change[-1] for width, (h, _) in trained.items()}
    slope = np.log(moved[4096] / moved[512]) / np.log(8)
    assert -0.6 < slope < -0.4
