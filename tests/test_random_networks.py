"""Finite networks, drawn at random, against the analytic kernels: every activation, both kernels,
both parameterizations.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_jax import MLP, duals, empirical_nngp, empirical_ntk, from_linen, mlp_kernels
from ntk_jax.duals.catalogue import CATALOGUE

pytestmark = pytest.mark.slow

WIDTH, NUM_DRAWS, NUM_OUTPUTS, W_STD, B_STD = 512, 200, 64, 1.2, 0.3


def data(n, d, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((n, d)).astype(dtype)


def two_layer_draws(phi, z, a, b, k_first):
    """NNGP and NTK of networks W a(phi(z)) + b, (draws, n, n) each, by hand from their outputs and
    parameter gradients.
    """
    units, slopes = (
        np.asarray(f) for f in jax.jit(lambda z: jax.jvp(phi, (z,), (jnp.ones_like(z),)))(z)
    )
    scale = W_STD / WIDTH**0.5
    outputs = scale * units @ a + B_STD * b
    gram = lambda u: u @ np.swapaxes(u, 1, 2)
    ntk = scale**2 * gram(units) + B_STD**2 + scale**2 * gram(slopes * a[:, None, :, 0]) * k_first
    return gram(outputs) / NUM_OUTPUTS, ntk


def test_every_activation_agrees_within_four_standard_errors():
    """One hidden layer: 200 networks of width 512 with 64 outputs (the NTK is the first one's)."""
    assert set(CATALOGUE) == {*duals.CLOSED_FORM_NAMES, *duals.SERIES_NAMES}
    rng, x = np.random.default_rng(1), data(3, 6, np.float64)
    first, first_bias = (rng.standard_normal((NUM_DRAWS, k, WIDTH)) for k in (6, 1))
    a, b = (rng.standard_normal((NUM_DRAWS, k, NUM_OUTPUTS)) for k in (WIDTH, 1))
    z = W_STD / 6**0.5 * x @ first + B_STD * first_bias
    k_first = W_STD**2 * x @ x.T / 6 + B_STD**2
    i, j = np.triu_indices(3)
    for name, entry in CATALOGUE.items():
        phi = partial(entry.function, **entry.example)
        dual = jax.jit(duals.rule(name, **entry.example).__call__)(
            k_first[i, i], k_first[i, j], k_first[j, j]
        )
        nngp = W_STD**2 * np.asarray(dual.k) + B_STD**2
        exact = nngp, nngp + W_STD**2 * np.asarray(dual.k_dot) * k_first[i, j]
        for draws, k in zip(two_layer_draws(phi, z, a, b, k_first), exact, strict=True):
            draws = draws[:, i, j]
            error = np.std(draws, axis=0, ddof=1) / NUM_DRAWS**0.5
            assert np.all(np.abs(np.mean(draws, axis=0) - k) <= 4 * error + 1e-12), name


@pytest.mark.parametrize(
    "activation, parameterization", [("relu", "ntk"), ("gelu", "standard"), ("tanh", "ntk")]
)
def test_random_networks_agree_within_four_standard_errors(activation, parameterization):
    x, width, draws = data(3, 5), 512, 24
    model = MLP(
        (width, width),
        activation=activation,
        W_std=1.4,
        b_std=0.2,
        parameterization=parameterization,
    )

    def draw(key):
        apply_fn, params = from_linen(model, model.init(key, x))
        return empirical_nngp(apply_fn, params, x), empirical_ntk(apply_fn, params, x)

    extra = {"width": width} if parameterization == "standard" else {}
    exact = mlp_kernels(
        x,
        depth=2,
        activation=activation,
        W_std=1.4,
        b_std=0.2,
        parameterization=parameterization,
        **extra,
    )
    samples = jax.lax.map(jax.jit(draw), jax.random.split(jax.random.key(0), draws))
    ntk = samples[1]
    error = jnp.std(ntk, axis=0, ddof=1) / draws**0.5
    assert jnp.all(jnp.abs(jnp.mean(ntk, axis=0) - exact.ntk) <= 4 * error + 2 * exact.ntk / width)
