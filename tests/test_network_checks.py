"""Networks, vectors and numbers that are no such thing: refused in words, before anything is
computed.
"""

import copy
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cases.draws import normal
from ntk_jax import (
    MLP,
    empirical_nngp,
    empirical_ntk,
    from_linen,
    kernel_velocity,
    laziness,
    linearize,
    min_norm_displacement,
    monte_carlo_kernels,
    ntk_operator,
    scale_output,
    single_step_influence,
    taylor_expand,
    train,
    train_ensemble,
    zero_output,
)

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

x, w = jax.device_put((normal(0, (3, 4)), normal(1, (4, 2))))
y = np.ones((3, 2))
IMAGINARY = np.asarray(y) * 1j
OPTIONS = {"optimizer": optax.sgd(0.1), "num_steps": 1, "progress": False}


def f(w, x):
    return jnp.tanh(x @ w)


@jax.custom_vjp
def reverse_only(u):
    return jnp.tanh(u)


reverse_only.defvjp(lambda u: (jnp.tanh(u), u), lambda u, g: (g * (1 - jnp.tanh(u) ** 2),))


def of_reverse_only(w, x):
    return reverse_only(x @ w)


CALLS = {
    "empirical_ntk": lambda f: empirical_ntk(f, w, x),
    "linearize": lambda f: linearize(f, w),
    "ntk_operator": lambda f: ntk_operator(f, w, x),
    "train": lambda f: train(f, w, x, y, **OPTIONS),
    "single_step_influence": lambda f: single_step_influence(f, w, x, x, y),
    "kernel_velocity": lambda f: kernel_velocity(f, w, x, y),
    "train_ensemble": lambda f: train_ensemble(
        lambda key: w, f, x, y, key=jax.random.key(0), num_networks=1, **OPTIONS
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_models_are_no_functions(name):
    with pytest.raises(
        ValueError, match=r"apply_fn: expected a function.*Linen model, MLP.*from_linen"
    ):
        CALLS[name](MLP((2,)))
    with pytest.raises(
        ValueError, match=r"apply_fn: expected a function.*NNX module, Linear.*from_nnx"
    ):
        CALLS[name](nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"apply_fn: expected a function.*got ArrayImpl"):
        CALLS[name](w)


def test_swapped_function_and_parameters():
    for call in (
        lambda: empirical_ntk(w, f, x),
        lambda: ntk_operator(w, f, x),
        lambda: linearize(w, f),
    ):
        with pytest.raises(ValueError, match="swapped: the function comes first"):
            call()


def test_equinox_modules():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(4, 2, 3, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"Equinox module, MLP.*eqx.partition"):
        empirical_ntk(module, w, x)
    with pytest.raises(ValueError, match=r"eqx.partition"):
        empirical_ntk(lambda m, x: jax.vmap(m)(x), module, x)
    params, rest = eqx.partition(module, eqx.is_inexact_array)
    k = empirical_ntk(lambda p, x: jax.vmap(eqx.combine(p, rest))(x), params, x)
    assert k.shape == (3, 3)


def test_models_in_training_mode():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
            return nn.Dropout(0.5, deterministic=not train)(x)

    model = Model()
    x = jnp.ones((3, 4), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    with pytest.raises(
        ValueError, match=r"Model in training mode.*from_linen\(model, variables, train=False\)"
    ):
        empirical_ntk(*from_linen(model, variables), x)
    with pytest.raises(ValueError, match="in training mode"):
        dropout = nn.Dropout(0.5, deterministic=False)
        empirical_ntk(
            *from_linen(
                nn.Sequential([nn.Dense(2), dropout]),
                {
                    "params": {
                        "layers_0": {"bias": jnp.zeros(2, x.dtype), "kernel": w.astype(x.dtype)}
                    }
                },
            ),
            x,
        )
    assert empirical_ntk(*from_linen(model, variables, train=False), x).shape == (3, 3)


def test_forward_mode_is_asked_for_in_words():
    expected = "custom_vjp function.*jax.custom_jvp"
    for call in (
        lambda: ntk_operator(of_reverse_only, w, x) @ y,
        lambda: linearize(of_reverse_only, w)(w, x),
        lambda: laziness(of_reverse_only, w, x, y),
        lambda: min_norm_displacement(of_reverse_only, w, x, y),
        lambda: empirical_ntk(of_reverse_only, w, x, method="vector_products"),
    ):
        with pytest.raises(ValueError, match=expected):
            call()
    np.testing.assert_allclose(
        empirical_ntk(of_reverse_only, w, x, method="layerwise"), empirical_ntk(f, w, x), rtol=1e-10
    )
    assert np.isfinite(train(of_reverse_only, w, x, y, **OPTIONS).loss).all()


def test_imaginary_parts_are_not_dropped():
    with pytest.raises(ValueError, match="v: expected real values; got complex"):
        ntk_operator(f, w, x) @ IMAGINARY
    with pytest.raises(ValueError, match="y: expected real values; got complex"):
        train(f, w, x, IMAGINARY, **OPTIONS)
    with pytest.raises(ValueError, match="y: expected real values; got complex"):
        single_step_influence(f, w, x, x, IMAGINARY)
    with pytest.raises(ValueError, match="y: expected real values; got complex"):
        kernel_velocity(f, w, x, IMAGINARY)
    model = MLP((2,))
    with pytest.raises(ValueError, match=r"x: expected real values; got complex.*as features"):
        model.init(jax.random.key(0), np.asarray(x) * 1j)
    with pytest.raises(
        ValueError, match=r"expected real outputs; got complex128.*f\.real, f\.imag"
    ):
        ntk_operator(lambda w, x: jnp.fft.fft(f(w, x)), w, x)


def test_columns_in_range():
    operator = ntk_operator(f, w, x)
    k = empirical_ntk(f, w, x, outputs="full").transpose(0, 2, 1, 3).reshape(6, 6)
    np.testing.assert_allclose(
        operator.columns([5, -1, -6]), k[:, np.array([5, -1, -6])], rtol=1e-10
    )
    for wrong in ([6], [-7], [0.0], [[1]], 7):
        with pytest.raises(ValueError, match="indices: expected"):
            operator.columns(wrong)


def test_parameters_are_not_broadcast():
    for other in (w[:1], w[0], {"w": w}, jnp.ones(())):
        with pytest.raises(
            ValueError, match="params: expected the structure and shapes of the point of expansion"
        ):
            linearize(f, w)(other, x)
    with pytest.raises(ValueError, match="params: expected a floating-point array"):
        linearize(f, jnp.arange(4))


def test_degrees_that_never_end():
    with pytest.raises(ValueError, match="degree: expected at most 10; got 50"):
        taylor_expand(f, w, 50)


def test_outputs_that_are_not_finite():
    log = lambda w, x: jnp.log(x @ w)
    root = lambda w, x: jnp.sqrt(-1 - jnp.abs(x @ w))
    for call in (
        lambda: train(log, w, x, y, **OPTIONS),
        lambda: linearize(log, w)(w, x),
        lambda: empirical_nngp(log, w, x),
        lambda: empirical_ntk(root, w, x),
        lambda: ntk_operator(root, w, x) @ y,
        lambda: ntk_operator(root, w, x).diagonal(),
        lambda: laziness(log, w, x, y),
        lambda: single_step_influence(log, w, x, x, y),
        lambda: min_norm_displacement(log, w, x, y),
        lambda: monte_carlo_kernels(lambda key: w, log, x, key=jax.random.key(0), num_samples=2),
    ):
        with pytest.raises(ValueError, match=r"apply_fn: expected (a )?finite"):
            call()


@pytest.mark.parametrize(
    "optimizer", [optax.adam(0.1), optax.adamw(optax.cosine_decay_schedule(0.1, 10))]
)
def test_optax_under_strict_promotion(optimizer):
    assert jax.config.jax_numpy_dtype_promotion == "strict"
    single = [a.astype(jnp.float32) for a in (w, x, y)]
    history = train(f, *single, optimizer=optimizer, num_steps=3, progress=False)
    assert history.params.dtype == jnp.float32 and history.loss[-1] < history.loss[0]


def test_operators_are_copied_and_pickled():
    model = MLP((3,), 2)
    apply_fn, params = from_linen(model, model.init(jax.random.key(0), x))
    for net in (apply_fn, scale_output(apply_fn, 2.0), zero_output(apply_fn, params)):
        operator = ntk_operator(net, params, x)
        for twin in (pickle.loads(pickle.dumps(operator)), copy.deepcopy(operator)):
            np.testing.assert_allclose(twin @ y, operator @ y, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_networks_have_kernels_in_single(dtype):
    half_w, half_x = w.astype(dtype), x.astype(dtype)
    operator = ntk_operator(f, half_w, half_x)
    k = empirical_ntk(f, half_w, half_x, outputs="full").transpose(0, 2, 1, 3).reshape(6, 6)
    assert k.dtype == operator.dtype == (operator @ y).dtype == jnp.float32
    np.testing.assert_allclose(
        operator @ y.reshape(-1), k @ y.reshape(-1).astype(k.dtype), rtol=0.05, atol=0.05
    )
    assert linearize(f, half_w)(half_w, half_x).dtype == dtype
    assert np.isfinite(train(f, half_w, half_x, y, **OPTIONS).loss).all()


def test_foreign_numbers():
    wide = np.asarray(x, np.longdouble)
    np.testing.assert_allclose(empirical_ntk(f, w, wide), empirical_ntk(f, w, x), rtol=1e-12)
    swapped = np.asarray(x).astype(">f8")
    np.testing.assert_allclose(empirical_ntk(f, w, swapped), empirical_ntk(f, w, x), rtol=1e-12)
    deleted = jnp.ones((4, 2))
    deleted.delete()
    for call, name in (
        (lambda: empirical_ntk(f, deleted, x), "params"),
        (lambda: ntk_operator(f, w, x) @ np.full((3, 2), "a"), "v"),
        (lambda: ntk_operator(f, w, x) @ np.full((3, 2), jnp.nan), "v"),
        (lambda: train(f, w, x, np.full((3, 2), None), **OPTIONS), "y"),
        (lambda: train(f, w, np.full((3, 4), "a"), y, **OPTIONS), "x"),
        (lambda: linearize(f, deleted), "params"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            call()
