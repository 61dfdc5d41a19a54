"""Gradient flow under an operator, by Krylov spaces, against the modes of its array."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_solve import OnlyMultiplied, WithColumns

import ntk_jax
from ntk_jax.operators.krylov import apply_functions

N, M = 60, 7
TIMES = np.array([0.0, 1e-3, 1.0, 30.0, 1e4, np.inf])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, x_test = rng.standard_normal((N, 6)), rng.standard_normal((M, 6))
    kernel_fn = lambda *xs: ntk_jax.mlp_kernels(*xs, activation="relu", depth=2).ntk
    return np.asarray(kernel_fn(x)), np.asarray(kernel_fn(x_test, x)), rng.standard_normal((N, 2))


@pytest.mark.parametrize("diag_reg", [0.0, 0.3])
def test_all_times_are_those_of_the_modes(diag_reg, data):
    k, k_test, y = data
    options = {"diag_reg": diag_reg, "fx_train_0": y[::-1], "fx_test_0": 0.5}
    exact = ntk_jax.gradient_flow_mse(
        ntk_jax.diagonalize(k), y, TIMES, k_test_train=k_test, **options
    )
    tight = {"tol": 1e-12, "progress": False}
    for test in (k_test, OnlyMultiplied(k_test)):
        found = ntk_jax.gradient_flow_mse(
            WithColumns(k), y, TIMES, k_test_train=test, krylov_options=tight, **options
        )
        for one, other in zip(found, exact, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_one_time_of_one_output_and_test_outputs_alone(data):
    k, k_test, y = data
    modes, operator = ntk_jax.diagonalize(k), OnlyMultiplied(k)
    exact = ntk_jax.gradient_flow_mse(modes, y[:, 0], 5.0, k_test_train=k_test)
    found = ntk_jax.gradient_flow_mse(operator, y[:, 0], 5.0, k_test_train=k_test)
    np.testing.assert_allclose(found.train, exact.train, rtol=1e-6, atol=1e-8)
    alone = ntk_jax.gradient_flow_mse(
        operator, y[:, 0], 5.0, k_test_train=k_test, predict_train=False
    )
    assert alone.train is None
    np.testing.assert_allclose(alone.test, exact.test, rtol=1e-6, atol=1e-8)


def test_early_times_need_few_products_and_the_error_is_told(data):
    k, _, y = data
    f = lambda s: np.exp(-s / s.max())[None]
    applied = apply_functions(
        WithColumns(k), jnp.asarray(y), f, tol=1e-10, max_steps=60, progress=False
    )
    s, U = np.linalg.eigh(k)
    top = s[-1]
    exact = U @ (np.exp(-s / top)[:, None] * (U.T @ y))
    # The largest node is the largest eigenvalue to much less than the tolerance.
    np.testing.assert_allclose(applied.value[:, 0], exact, atol=1e-8)
    assert applied.steps <= 30 and applied.error.max() < 1e-10


def test_a_space_that_is_too_small_is_told(data):
    k, _, y = data
    with pytest.warns(UserWarning, match="a Krylov space of 12 steps"):
        ntk_jax.gradient_flow_mse(
            WithColumns(k), y, np.inf, krylov_options={"max_steps": 12, "tol": 1e-10}
        )


def test_float32_is_as_good_as_its_tolerance(data):
    k, _, y = data
    exact = ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), y, TIMES[:4]).train
    found = ntk_jax.gradient_flow_mse(WithColumns(k.astype(np.float32)), y, TIMES[:4]).train
    assert found.dtype == np.float32
    # 1e-4 is the tolerance in float32, of the change of the outputs.
    np.testing.assert_allclose(found, exact, atol=3e-4 * np.abs(y).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": 0.1}, "weight_decay: expected 0 with an operator"),
        ({"predict_train": False}, "k_test_train: expected the test kernel"),
        ({"krylov_options": {"steps": 3}}, "krylov_options: expected some of tol"),
        ({"t": -1.0}, "t: expected at least 0"),
        ({"y_train": np.ones(3)}, "y_train: expected one row per row of modes"),
        ({"modes": OnlyMultiplied(-np.eye(N))}, "modes: expected a positive semi-definite"),
    ],
)
def test_bad_arguments_are_told(change, message, data, unchecked_shapes):
    k, _, y = data
    arguments = {"modes": OnlyMultiplied(k), "y_train": y, "t": 1.0} | change
    with pytest.raises(ValueError, match=message):
        ntk_jax.gradient_flow_mse(**arguments)
