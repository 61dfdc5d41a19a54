"""Maximum likelihood finds what the data were drawn from, and the same optimum as SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

import ntk_jax


@pytest.fixture(scope="module")
def data():
    """Three functions drawn from the prior of a network with two hidden layers, with noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    k = np.asarray(ntk_jax.mlp_kernels(x, depth=2, activation="erf", W_std=2.0, b_std=0.5).nngp)
    return x, np.linalg.cholesky(k + 1e-12 * np.eye(40)) @ rng.normal(
        size=(40, 3)
    ) + 0.1 * rng.normal(size=(40, 3))


def kernel(x, **options):
    return ntk_jax.mlp_kernels(x, activation="erf", **options)


@pytest.mark.slow
def test_fit_is_the_optimum_of_the_likelihood(data):
    x, y = data
    fit = ntk_jax.fit_hyperparameters(
        kernel, x, y, initial={"W_std": 1.0, "b_std": 0.2}, choices={"depth": (2,)}, noise=0.1
    )
    assert 0.002 < fit.noise < 0.03  # drawn with variance 0.01

    @jax.jit
    def evidence(v):
        k = kernel(jnp.asarray(x), depth=2, W_std=jnp.exp(v[0]), b_std=jnp.exp(v[1])).nngp
        return ntk_jax.log_marginal_likelihood(k, y, noise=jnp.exp(v[2]))

    at = np.log([fit.hyperparameters["W_std"], fit.hyperparameters["b_std"], fit.noise])
    np.testing.assert_allclose(evidence(at), fit.log_marginal_likelihood, rtol=1e-10)
    best = minimize(lambda v: -float(evidence(v)), np.log([1.0, 0.2, 0.1]), method="Nelder-Mead")
    assert abs(fit.log_marginal_likelihood + best.fun) < 1e-2


def test_any_optimizer_any_kernel_and_the_best_of_the_choices(data):
    x, y = data
    distance = lambda x: jnp.sum((x[:, None] - x[None]) ** 2, -1) ** 0.5
    kernel = lambda x, scale, power: jnp.exp(-((distance(x) / scale) ** power))
    options = {"initial": {"scale": 1.0}, "noise": 0.1}
    slow = ntk_jax.fit_hyperparameters(
        kernel, x, y, optimizer=optax.adam(0.1), num_steps=300, choices={"power": (1, 2)}, **options
    )
    fast = ntk_jax.fit_hyperparameters(kernel, x, y, choices={"power": (2,)}, **options)
    assert slow.hyperparameters["power"] == 2  # smooth functions
    assert [hyperparameters["power"] for hyperparameters, _ in slow.candidates] == [1, 2]
    assert slow.log_marginal_likelihood == slow.candidates[1][1] > slow.candidates[0][1]
    np.testing.assert_allclose(
        slow.hyperparameters["scale"], fast.hyperparameters["scale"], rtol=0.02
    )
    np.testing.assert_allclose(
        slow.log_marginal_likelihood, fast.log_marginal_likelihood, atol=0.05
    )
