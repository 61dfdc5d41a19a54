"""Scales of layers as tuples, lists, NumPy and JAX arrays: the same kernels, networks and
derivatives.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.draws import drawn

X = jax.device_put(np.random.default_rng(0).standard_normal((4, 3)))
W, B, WIDTH = (1.0, 2.0, 3.0), (0.5, 0.0, 0.25), (5, 7)  # exact in every dtype
FORMS = {
    "list": list,
    "NumPy": np.array,
    "JAX": jnp.array,
    "float32": lambda v: jnp.array(v, jnp.float32),
    "integers": lambda v: np.array(v, int) if v != B else np.array(v),
    "tuple of arrays": lambda v: tuple(jnp.array(v_l) for v_l in v),
    "column of a table": lambda v: np.stack([v, v], 1)[:, 0],
}
FUNCTIONS = (ntk_jax.mlp_kernels, ntk_jax.kernel_diagonal, ntk_jax.mlp_kernels_by_layer)


def test_the_diagonal_of_scales_in_an_array():
    for scales in (np.array([1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 3.0])):
        np.testing.assert_array_equal(
            ntk_jax.kernel_diagonal(jnp.eye(3), depth=2, W_std=scales).nngp, [3, 3, 3]
        )


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_the_tuple(form):
    make = FORMS[form]
    for options in ({}, {"parameterization": "standard", "width": WIDTH}):
        given = {name: make(value) for name, value in options.items() if name == "width"}
        for f in FUNCTIONS:
            truth = f(X, depth=2, W_std=W, b_std=B, **options)
            found = f(X, depth=2, W_std=make(W), b_std=make(B), **{**options, **given})
            jax.tree.map(np.testing.assert_array_equal, found, truth)
    model, truth = (ntk_jax.MLP(WIDTH, W_std=v(W), b_std=v(B)) for v in (make, tuple))
    params = jax.jit(truth.init)(jax.random.key(0), X)
    if form != "tuple of arrays":  # which have no hash
        assert model == truth and hash(model) == hash(truth)
    assert model.apply(params, X).shape == (4, 1)
    np.testing.assert_array_equal(model.apply(params, X), truth.apply(params, X))


@pytest.mark.parametrize("f", FUNCTIONS)
def test_derivatives_by_a_vector_of_scales(f):
    @jax.jit
    def total(W, b):
        return sum(jnp.sum(jnp.sin(k)) for k in f(X, depth=2, activation="erf", W_std=W, b_std=b))

    point = np.array(W), np.array([0.5, 0.3, 0.25])
    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(*point)
    step = 1e-5
    for argument in (0, 1):
        for i in range(3):
            shifted = [list(point), list(point)]
            for sign, at in zip((1, -1), shifted, strict=True):
                at[argument] = point[argument] + sign * step * np.eye(3)[i]
            high, low = (float(total(*at)) for at in shifted)
            np.testing.assert_allclose(
                slopes[argument][i], (high - low) / (2 * step), rtol=1e-6, atol=1e-8
            )


def test_derivatives_of_a_network_by_a_vector_of_scales():
    _, params = drawn(ntk_jax.MLP((5, 7)), X)
    f = lambda W, b: jnp.sum(ntk_jax.MLP((5, 7), W_std=W, b_std=b).apply({"params": params}, X))
    value, slope = jax.jit(jax.value_and_grad(f))(np.array(W), np.zeros(3))
    np.testing.assert_allclose(value, f(W, (0, 0, 0)), rtol=1e-12)
    np.testing.assert_allclose(
        np.asarray(slope) * W, [value] * 3, rtol=1e-10
    )  # ReLU without biases: degree 1 in each
    np.testing.assert_allclose(jax.jit(f)(np.array(W), np.array(B)), f(W, B), rtol=1e-12)


def test_scales_do_not_decide_the_dtype():
    x = X.astype(jnp.float32)
    apply = jax.jit(
        lambda W: ntk_jax.MLP((5,), W_std=W, b_std=W).init_with_output(jax.random.key(0), x)[0]
    )
    assert apply(jnp.ones(2, jnp.float64)).dtype == jnp.float32
    kernels = jax.jit(lambda W: ntk_jax.mlp_kernels(x, depth=1, W_std=W, b_std=W))(
        jnp.ones(2, jnp.float64)
    )
    assert kernels.ntk.dtype == jnp.float32


def test_one_scale_in_an_array_is_that_scale():
    truth = ntk_jax.mlp_kernels(X, depth=1, W_std=2.0)
    for scale in (np.array(2.0), jnp.array(2.0), np.float32(2), jnp.float32(2)):
        jax.tree.map(
            np.testing.assert_array_equal, ntk_jax.mlp_kernels(X, depth=1, W_std=scale), truth
        )
        assert hash(ntk_jax.MLP((3,), W_std=scale)) == hash(ntk_jax.MLP((3,), W_std=2.0))
        assert hash(ntk_jax.Dense(3, scale)) == hash(ntk_jax.networks.mlp.Dense(3, 2.0))
    root = ntk_jax.mlp_kernels(X, depth=0, W_std=jnp.array(2.0) ** 0.5)
    np.testing.assert_allclose(root.nngp, 2 * X @ X.T / 3, rtol=1e-12)


BAD = {
    "too few": (
        lambda: ntk_jax.mlp_kernels(X, depth=2, W_std=np.ones(2)),
        r"W_std: .*one per Dense layer \(3.*got 2",
    ),
    "matrix": (
        lambda: ntk_jax.mlp_kernels(X, depth=2, W_std=np.ones((3, 3))),
        r"W_std: expected a number; got shape \(3,\)",
    ),
    "diagonal": (
        lambda: ntk_jax.kernel_diagonal(X, depth=2, b_std=np.ones(4)),
        r"b_std: .*\(3: .*got 4",
    ),
    "negative": (
        lambda: ntk_jax.mlp_kernels(X, depth=2, W_std=np.array([1.0, -1, 1])),
        r"W_std: expected finite and above 0",
    ),
    "width": (
        lambda: ntk_jax.mlp_kernels(
            X, depth=2, parameterization="standard", width=np.array([5, 6, 7])
        ),
        r"width: .*got 3",
    ),
    "MLP": (
        lambda: ntk_jax.MLP((3, 3), W_std=np.ones(2)).init(jax.random.key(0), X),
        r"W_std: .*\(3: .*got 2",
    ),
    "Dense": (
        lambda: ntk_jax.Dense(3, np.ones(3)).init(jax.random.key(0), X),
        r"W_std: expected a number",
    ),
    "in jit": (
        lambda: jax.jit(lambda W: ntk_jax.mlp_kernels(X, depth=2, W_std=W))(np.ones(4)),
        r"W_std: .*got 4",
    ),
    "phase": (
        lambda: ntk_jax.phase("tanh", np.ones(3), 0.1),
        r"W_std: expected a number; got shape \(3,\)",
    ),
    "critical": (
        lambda: ntk_jax.critical_W_std("tanh", np.ones(3)),
        r"b_std: expected a number; got shape \(3,\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_scales_that_do_not_fit(case, unchecked_shapes):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_fit_of_one_scale_per_feature():
    x = np.random.default_rng(1).standard_normal((12, 2))
    y = np.sin(x[:, 0])  # the other feature does not matter
    kernel = lambda x, scale: jnp.exp(-jnp.sum(jnp.square((x[:, None] - x[None]) * scale), 2))
    kernel_fn = lambda x, scale: kernel(x, scale[None, None])
    fit = ntk_jax.fit_hyperparameters(
        kernel_fn, x, y, initial={"scale": np.array([1.0, 1.0])}, num_steps=20
    )
    scales = fit.hyperparameters["scale"]
    assert isinstance(scales, tuple) and len(scales) == 2 and scales[0] > 5 * scales[1] > 0


@pytest.mark.slow
def test_fit_of_one_scale_per_layer():
    x = np.random.default_rng(1).standard_normal((12, 2))
    y = np.sin(x[:, 0])
    kernel = lambda x, **scales: ntk_jax.mlp_kernels(x, depth=1, activation="erf", **scales)
    fit = ntk_jax.fit_hyperparameters(
        kernel, x, y, initial={"W_std": np.array([1.5, 1.0]), "b_std": 0.2}, num_steps=20
    )
    scales = fit.hyperparameters["W_std"]
    assert isinstance(scales, tuple) and len(scales) == 2 and scales[0] != scales[1]
    k = kernel(x, **fit.hyperparameters).nngp
    evidence = ntk_jax.log_marginal_likelihood(k, y, noise=fit.noise)
    np.testing.assert_allclose(evidence, fit.log_marginal_likelihood, rtol=1e-8)
    start = ntk_jax.log_marginal_likelihood(
        kernel(x, W_std=(1.5, 1.0), b_std=0.2).nngp, y, noise=0.1
    )
    assert evidence > start + 1
