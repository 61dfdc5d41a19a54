"""Predicted errors against kernel regression on many draws, and against cases that are solved
exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from ntk_jax.data import digits_data

NUM_POOL = 900


def ridge_errors(k, y, train, ridge):
    """Test and training error of regression on the rows `train` of a pool."""
    test = np.setdiff1d(np.arange(len(k)), train)
    alpha = np.linalg.solve(k[np.ix_(train, train)] + ridge * np.eye(len(train)), y[train])
    return np.mean((y[test] - k[np.ix_(test, train)] @ alpha) ** 2), np.mean((ridge * alpha) ** 2)


def test_learnabilities_are_shared_out():
    s = jnp.arange(1.0, 301.0) ** -1.5
    counts = np.array([1, 30, 290])
    curve = ntk_jax.eigenlearning(s, jnp.ones(300), counts)
    np.testing.assert_allclose(curve.learnabilities.sum(axis=1), counts, rtol=1e-12)
    np.testing.assert_array_equal(curve.train, 0)
    ridge = ntk_jax.eigenlearning(s, jnp.ones(300), counts, diag_reg=0.1)
    np.testing.assert_allclose(
        ridge.learnabilities.sum(axis=1) + 0.1 / ridge.kappa, counts, rtol=1e-12
    )
    single = ntk_jax.eigenlearning(s.astype(jnp.float32), jnp.ones(300, jnp.float32), counts)
    assert single.test.dtype == jnp.float32
    np.testing.assert_allclose(single.test, curve.test, rtol=1e-4)


def test_equal_eigenvalues_are_solved_by_hand():
    # s = 1 in M modes: n = M / (1 + κ), L = n / M, E_0 = 1 / (1 - n / M): linear regression in M
    # dimensions.
    curve = ntk_jax.eigenlearning(jnp.ones(50), jnp.full((50, 2), 0.3), 20, noise=0.7)
    np.testing.assert_allclose(curve.kappa, 1.5, rtol=1e-12)
    np.testing.assert_allclose(curve.overfitting, 1 / 0.6, rtol=1e-12)
    np.testing.assert_allclose(curve.test, (50 * 0.09 * 0.36 + 0.7) / 0.6, rtol=1e-12)


@pytest.mark.slow
def test_eigenlearning_against_draws_of_gaussian_features(getkey):
    modes, n, num_draws, noise = 120, 30, 400, 0.05
    s = jnp.arange(1.0, modes + 1) ** -1.2
    v = jax.random.normal(getkey(), (modes,)) * s**0.5
    for ridge in (0.0, 0.3):
        curve = ntk_jax.eigenlearning(s, v, n, diag_reg=ridge, noise=noise)
        rng, test, train = np.random.default_rng(0), [], []
        for _ in range(num_draws):
            phi = rng.standard_normal((n, modes))
            y = phi @ np.asarray(v) + noise**0.5 * rng.standard_normal(n)
            alpha = np.linalg.solve(phi * np.asarray(s) @ phi.T + ridge * np.eye(n), y)
            test.append(np.sum((np.asarray(s) * (phi.T @ alpha) - np.asarray(v)) ** 2) + noise)
            train.append(np.mean((ridge * alpha) ** 2))
        error = 4 * np.std(test) / num_draws**0.5
        assert (
            abs(np.mean(test) - curve.test) < error + 0.02 * curve.test
        )  # the theory is for large n
        assert (
            abs(np.mean(train) - curve.train)
            <= 4 * np.std(train) / num_draws**0.5 + 0.02 * curve.train
        )


def test_a_pool_of_unrelated_examples_is_exact(getkey):
    # A diagonal kernel predicts 0 for every row held out, and shrinks each training row by itself.
    scale, y = jnp.linspace(0.1, 5.0, 30), jax.random.normal(getkey(), (30, 2))
    for ridge in (0.0, 0.5):
        curve = ntk_jax.learning_curve(jnp.diag(scale), y, [3, 20], diag_reg=ridge)
        np.testing.assert_allclose(curve.test, np.mean(y**2), rtol=1e-10)
        np.testing.assert_allclose(
            curve.train, np.mean((ridge / (scale + ridge))[:, None] ** 2 * y**2), rtol=1e-10
        )


@pytest.mark.slow
def test_a_pool_of_equal_modes_agrees_with_eigenlearning(getkey):
    # Rows of equal leverage (a circulant kernel) have one κ; then the pool's curve is
    # eigenlearning's over rows held out.
    distance = jnp.abs(jnp.arange(24)[:, None] - jnp.arange(24)[None])
    k = jnp.exp(-jnp.minimum(distance, 24 - distance).astype(float) / 3.0)
    y = jax.random.normal(getkey(), (24,))
    modes = ntk_jax.diagonalize(k)
    whole = ntk_jax.eigenlearning(
        modes.eigenvalues / 24, modes.eigenvectors.T @ y / 24**0.5, [6, 12]
    )
    curve = ntk_jax.learning_curve(k, y, [6, 12])
    np.testing.assert_allclose(
        curve.kappa, 24 * np.broadcast_to(whole.kappa[:, None], (2, 24)), rtol=1e-9
    )
    g = np.linalg.inv(k + np.diag(curve.kappa[0]))
    np.testing.assert_allclose(curve.kappa[0], 0.75 / np.diag(g), rtol=1e-9)
    np.testing.assert_allclose(curve.test, whole.test * np.array([24 / 18, 24 / 12]), rtol=1e-9)


@pytest.mark.slow
def test_digits_are_predicted_within_ten_per_cent():
    data = digits_data(NUM_POOL, 1).astype(np.float32)
    x, y = data.x_train, data.y_train
    k = ntk_jax.mlp_kernels(x, depth=2, W_std=2**0.5, b_std=0.1).ntk
    counts = [50, 100, 200, 400, 800]
    predicted = ntk_jax.learning_curve(k, y, counts).test
    rng, pool = np.random.default_rng(0), np.asarray(k)
    measured = [
        np.mean(
            [
                ridge_errors(pool, y, rng.permutation(NUM_POOL)[:n], np.float32(0))[0]
                for _ in range(20)
            ]
        )
        for n in counts
    ]
    np.testing.assert_allclose(predicted, measured, rtol=0.1)
    ridge = ntk_jax.learning_curve(k, y, [100], diag_reg=1.0)
    draws = np.array(
        [ridge_errors(pool, y, rng.permutation(NUM_POOL)[:100], np.float32(1)) for _ in range(20)]
    )
    np.testing.assert_allclose([ridge.test[0], ridge.train[0]], draws.mean(axis=0), rtol=0.1)


@pytest.mark.slow
def test_cross_validation_is_the_formula_and_estimates_the_test_error():
    rng = np.random.default_rng(1)
    z = rng.standard_normal((300, 60)) * np.arange(1, 61) ** -0.8
    y = z @ rng.standard_normal((60, 2)) + 0.3 * rng.standard_normal((300, 2))
    k, train, n = z @ z.T, np.arange(100), 100
    ridges = np.array([0.3, 3.0])
    estimate = ntk_jax.generalized_cross_validation(k[:n, :n], y[:n], diag_reg=ridges)
    for ridge, value in zip(ridges, estimate, strict=True):
        inverse = np.linalg.inv(k[:n, :n] + ridge * np.eye(n))
        truth = np.mean((inverse @ y[:n]) ** 2) / (np.trace(inverse) / n) ** 2
        np.testing.assert_allclose(value, truth, rtol=1e-10)
        scaled = np.linalg.inv(
            k[:n, :n] / n + ridge / n * np.eye(n)
        )  # KARE, as Jacot et al. write it, λ = ridge / n
        kare = np.trace(y[:n].T @ scaled @ scaled @ y[:n]) / (n * 2) / (np.trace(scaled) / n) ** 2
        np.testing.assert_allclose(value, kare, rtol=1e-10)
        np.testing.assert_allclose(value, ridge_errors(k, y, train, ridge)[0], rtol=0.15)
    assert ntk_jax.generalized_cross_validation(k[:n, :n], y[:n], diag_reg=1.0).shape == ()
