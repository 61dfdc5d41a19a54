"""Averages over initializations, and random projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from ntk_jax.memory import free_bytes


@pytest.fixture(scope="module")
def wide():
    """A network, its initializer, and five examples."""
    model = ntk_jax.MLP((64,), 8, "relu", 1.4, 0.3)
    x = jax.random.normal(jax.random.key(0), (5, 3))
    apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(1), x))
    return lambda key: model.init(key, x)["params"], apply_fn, params, x


def test_mean_and_error_are_those_of_the_samples(wide):
    init_fn, apply_fn, _, x = wide
    key = jax.random.key(3)
    draws = [init_fn(k) for k in jax.random.split(key, 5)]
    ntk = np.stack([ntk_jax.empirical_ntk(apply_fn, p, x, x[:2]) for p in draws])
    nngp = np.stack([ntk_jax.empirical_nngp(apply_fn, p, x, x[:2]) for p in draws])
    for limit in (None, 1):  # all initializations at once, and one at a time
        mean, error = ntk_jax.monte_carlo_kernels(
            init_fn, apply_fn, x, x[:2], key=key, num_samples=5, memory_limit=limit
        )
        for kernel, m, e in zip((nngp, ntk), mean, error, strict=True):
            np.testing.assert_allclose(m, kernel.mean(0), rtol=1e-10)
            np.testing.assert_allclose(e, kernel.std(0, ddof=1) / 5**0.5, rtol=1e-8)


def test_estimates_run_towards_the_infinite_width_kernel(wide):
    init_fn, apply_fn, _, x = wide
    limit = ntk_jax.mlp_kernels(x, depth=1, W_std=1.4, b_std=0.3)
    steps = list(
        ntk_jax.monte_carlo_estimates(
            init_fn, apply_fn, x, key=jax.random.key(0), num_samples=192, memory_limit=free_bytes()
        )
    )
    assert [n for n, _ in steps] == [64, 128, 192]
    mean, error = steps[-1][1]
    for kernel, m, e in zip(limit, mean, error, strict=True):
        # 15 distinct, correlated entries: five standard errors fail by chance once in 10^5.
        assert np.all(np.abs(m - kernel) < 5 * e)
        assert np.all(e < 0.1 * np.abs(kernel).max())


def test_one_sample_has_no_error(wide, unchecked_shapes):
    init_fn, apply_fn, _, x = wide
    with pytest.raises(ValueError, match="num_samples"):
        ntk_jax.monte_carlo_kernels(init_fn, apply_fn, x, key=jax.random.key(0), num_samples=1)


@pytest.mark.slow
def test_projection_is_unbiased_and_its_error_falls(wide):
    _, apply_fn, params, x = wide
    exact = np.asarray(ntk_jax.empirical_ntk(apply_fn, params, x))

    def estimates(dimensions, num_keys):
        @jax.jit
        def estimate(key):
            return ntk_jax.contract(
                ntk_jax.tangent_features(apply_fn, params, x, projection=dimensions, key=key)
            )

        return np.stack([estimate(key) for key in jax.random.split(jax.random.key(7), num_keys)])

    few = estimates(64, 24)
    error = few.std(0, ddof=1) / 24**0.5
    assert np.all(np.abs(few.mean(0) - exact) < 5 * error)
    many = estimates(1024, 24)
    ratio = np.sqrt(np.mean((few - exact) ** 2) / np.mean((many - exact) ** 2))
    assert 2.5 < ratio < 6  # 4 = sqrt(1024 / 64)


@pytest.mark.slow
def test_projection_of_shared_weights_and_plain_gradients():
    def apply_fn(p, x):  # one weight at two positions; a scale with its own Jacobian block
        return jnp.tanh(jnp.einsum("ntd,do->nto", x, p["w"])).sum(1) * jnp.broadcast_to(
            p["s"], (len(x), 3)
        )

    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (4, 3)), "s": jnp.arange(1.0, 4.0)}
    x = jax.random.normal(jax.random.key(1), (3, 2, 4))
    exact = np.asarray(ntk_jax.empirical_ntk(apply_fn, params, x))
    features = ntk_jax.tangent_features(apply_fn, params, x, projection=20_000, key=key)
    assert features.blocks[0].jacobians[0].shape == (3, 3, 20_000)
    np.testing.assert_allclose(ntk_jax.contract(features), exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.slow
def test_projection_errors(wide, unchecked_shapes):
    _, apply_fn, params, x = wide
    with pytest.raises(ValueError, match="key: expected a random key"):
        ntk_jax.tangent_features(apply_fn, params, x, projection=8)
    f1, f2 = (
        ntk_jax.tangent_features(apply_fn, params, x, projection=8, key=jax.random.key(i))
        for i in range(2)
    )
    with pytest.raises(ValueError, match="same network"):
        ntk_jax.contract(f1, f2)
