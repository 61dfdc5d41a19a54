"""A kernel between examples needs outputs of an example that depend on it alone: tried in several
places and batches.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.draws import normal
from ntk_jax import (
    empirical_nngp,
    empirical_ntk,
    empirical_ntk_by_layer,
    explain_ntk,
    jacobian_change,
    kernel_velocity,
    laziness,
    min_norm_displacement,
    monte_carlo_kernels,
    ntk_operator,
    single_step_influence,
    tangent_features,
    taylor_gap,
)

x = normal(0, (3, 4))
w = normal(1, (4, 2))
y = jnp.ones((3, 2))


def before(f):
    return jnp.concatenate([jnp.zeros((1, 2)), f[:-1]])


DEPENDENT = {
    "mean": lambda f: f - jnp.mean(f, 0, keepdims=True),
    "cumsum": lambda f: jnp.cumsum(f, axis=0),
    "previous row": lambda f: f + before(f),
    "row before in a circle": lambda f: f + jnp.roll(f, 1, axis=0),
    "next row": lambda f: f + before(f[::-1])[::-1],
    "row index": lambda f: f + jnp.arange(f.shape[0], dtype=f.dtype)[:, None],
    "dropout with a fixed key": lambda f: (
        f * jax.random.bernoulli(jax.random.key(0), 0.5, f.shape).astype(f.dtype)
    ),
    "reversed": lambda f: f[::-1],
    "number of rows": lambda f: f / f.shape[0],
    "sorted": lambda f: jnp.sort(f, axis=0),
    "a readout of zeros": lambda f: f - jnp.mean(f, 0, keepdims=True),
}


def network(name):
    if name == "a readout of zeros":
        return (lambda p, x: DEPENDENT[name](jnp.tanh(x @ p[0])) @ p[1]), (w, jnp.zeros((2, 2)))
    return (lambda w, x: DEPENDENT[name](jnp.tanh(x @ w))), w


@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_rows_are_refused(name, rows):
    net, params = network(name)
    with pytest.raises(ValueError, match="row i of the output to depend on row i of x alone"):
        empirical_ntk(net, params, x[:rows])


@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_rows_are_refused_inside_jit(name):
    net, params = network(name)
    with pytest.raises(ValueError, match="row i of the output"):
        jax.jit(lambda p: empirical_ntk(net, p, x))(params)


def test_batch_normalization_inside_jit_vmap_and_grad():
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=False), nn.Dense(1)])
    x = normal(0, (3, 4)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(2), x)

    def net(params, x):
        return model.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

    def kernel(scale, params, x):
        return jnp.sum(empirical_ntk(lambda p, x: scale * net(p, x), params, x))

    params, one = variables["params"], jnp.ones((), jnp.float32)
    calls = [
        lambda: kernel(one, params, x),
        lambda: jax.jit(kernel)(one, params, x),
        lambda: jax.grad(kernel)(one, params, x),
        lambda: jax.vmap(kernel, in_axes=(0, None, None))(jnp.ones(2, jnp.float32), params, x),
        lambda: jax.jit(lambda x: empirical_ntk(net, params, x))(x),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="row i of the output"):
            call()


def test_independent_rows_pass_inside_jit():
    net = lambda w, x: jnp.log1p(jnp.exp(x @ w))
    np.testing.assert_allclose(
        jax.jit(lambda w, x: empirical_ntk(net, w, x))(w, x), empirical_ntk(net, w, x), rtol=1e-12
    )
    tokens = lambda w, x: w[x[:, 0]] + w[x[:, 1]]
    ids = jnp.array([[0, 1], [3, 2]])
    np.testing.assert_allclose(
        jax.jit(lambda x: empirical_ntk(tokens, w, x))(ids),
        empirical_ntk(tokens, w, ids),
        rtol=1e-12,
    )


@pytest.mark.parametrize("shape", [(3, 4), (1, 1)])
def test_equal_rows_hide_nothing(shape):
    net = lambda w, x: jnp.tanh(x @ w) - jnp.mean(jnp.tanh(x @ w), 0, keepdims=True)
    with pytest.raises(ValueError, match="row i of the output"):
        empirical_ntk(net, w[: shape[1]], jnp.ones(shape))


CALLS = {
    "empirical_nngp": lambda f: empirical_nngp(f, w, x),
    "empirical_ntk_by_layer": lambda f: empirical_ntk_by_layer(f, w, x),
    "explain_ntk": lambda f: explain_ntk(f, w, x),
    "jacobian_change": lambda f: jacobian_change(f, 1.1 * w, w, x),
    "kernel_velocity": lambda f: kernel_velocity(f, w, x, y),
    "laziness": lambda f: laziness(f, w, x, y),
    "min_norm_displacement": lambda f: min_norm_displacement(f, w, x, y),
    "monte_carlo_kernels": lambda f: monte_carlo_kernels(
        lambda key: w, f, x, key=jax.random.key(0), num_samples=2
    ),
    "ntk_operator": lambda f: ntk_operator(f, w, x),
    "single_step_influence": lambda f: single_step_influence(f, w, x, x, y),
    "tangent_features": lambda f: tangent_features(f, w, x),
    "taylor_gap": lambda f: taylor_gap(f, 1.1 * w, w, x),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_function_refuses_dependent_rows(name):
    net = lambda w, x: jnp.cumsum(jnp.tanh(x @ w), axis=0)
    with pytest.raises(ValueError, match="row i of the output"):
        CALLS[name](net)
