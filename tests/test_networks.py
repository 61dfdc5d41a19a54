"""Networks of this library against their formulas, and adapters of functions."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.draws import drawn, normal
from ntk_jax.duals.catalogue import ACTIVATIONS


def test_dense_is_its_formula(draw, getkey):
    x = draw((5, 3))
    for parameterization, W_scale, b_scale in [("ntk", 1.5 / 3**0.5, 0.3), ("standard", 1.0, 1.0)]:
        layer = ntk_jax.Dense(4, W_std=1.5, b_std=0.3, parameterization=parameterization)
        params = jax.jit(layer.init)(getkey(), x)["params"]
        expected = (
            np.asarray(x) @ np.asarray(params["kernel"]) * W_scale
            + b_scale * np.asarray(params["bias"])[None]
        )
        np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-12)


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_initial_scales_are_those_of_the_table(parameterization, getkey):
    layer = ntk_jax.Dense(2000, W_std=1.5, b_std=0.3, parameterization=parameterization)
    params = jax.jit(layer.init)(getkey(), np.ones((1, 50)))["params"]
    params = jax.tree.map(np.asarray, params)
    W_std, b_std = (1.0, 1.0) if parameterization == "ntk" else (1.5 / 50**0.5, 0.3)
    # the standard deviation of N normal draws has relative error 1 / sqrt(2 N)
    assert abs(params["kernel"].std() / W_std - 1) < 5 / (2 * 100_000) ** 0.5
    assert abs(params["bias"].std() / b_std - 1) < 5 / (2 * 2000) ** 0.5


def test_mlp_has_the_layers_asked_for(draw, getkey):
    model = ntk_jax.MLP(
        (7, 5), 2, activation=jnp.tanh, W_std=(1.0, 2.0, 3.0), b_std=(0.1, None, 0.0)
    )
    x = draw((4, 3))
    params = jax.tree.map(np.asarray, jax.jit(model.init)(getkey(), x)["params"])
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "Dense_0": (3, 7),
        "Dense_1": (7, 5),
        "Dense_2": (5, 2),
    }
    assert [name for name, layer in params.items() if "bias" in layer] == ["Dense_0", "Dense_2"]
    h = np.tanh(x @ params["Dense_0"]["kernel"] / 3**0.5 + 0.1 * params["Dense_0"]["bias"][None])
    h = np.tanh(2 * h @ params["Dense_1"]["kernel"] / 7**0.5)
    np.testing.assert_allclose(
        jax.jit(model.apply)({"params": params}, x),
        3 * h @ params["Dense_2"]["kernel"] / 5**0.5,
        rtol=1e-12,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_follows_the_input(dtype, getkey):
    model = ntk_jax.MLP((3,))
    x = np.ones((2, 4), dtype)
    variables = jax.jit(model.init)(getkey(), x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {dtype}
    assert jax.jit(model.apply)(variables, x).dtype == dtype


@pytest.fixture(scope="module")
def outputs():
    """Of a network with each activation, in one program."""
    x = normal(0, (3, 2))
    networks = {name: drawn(ntk_jax.MLP((4,), activation=name), x) for name in ACTIVATIONS}
    return jax.jit(lambda: {name: f(params, x) for name, (f, params) in networks.items()})()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_names_are_functions_of_scalars(name, outputs):
    assert outputs[name].shape == (3, 1) and np.isfinite(outputs[name]).all()


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


def test_from_linen_holds_everything_but_params(draw, getkey):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        x = draw((6, 3))
        variables = jax.jit(partial(Normalized().init, train=False))(getkey(), x)
        apply_fn, params = ntk_jax.from_linen(Normalized(), variables, train=False)
        assert set(params) == {"Dense_0", "BatchNorm_0", "Dense_1"}
        # The state is a constant of both programs: XLA folds constants with other roundings than
        # it computes arguments with.
        np.testing.assert_array_equal(
            jax.jit(apply_fn)(params, x),
            jax.jit(lambda p: Normalized().apply(variables | {"params": p}, x, train=False))(
                params
            ),
        )
        k = ntk_jax.empirical_ntk(apply_fn, params, x)
        assert k.shape == (6, 6)


def test_zero_output_is_zero_and_keeps_the_kernel(draw):
    x = draw((4, 3))
    model = ntk_jax.MLP((8,), 2)
    apply_fn, params = drawn(model, x)
    centered = ntk_jax.zero_output(apply_fn, params)
    assert (centered(params, x) == 0).all()
    np.testing.assert_allclose(
        ntk_jax.empirical_ntk(centered, params, x),
        ntk_jax.empirical_ntk(apply_fn, params, x),
        rtol=1e-13,
    )


def test_scale_output_squares_in_the_kernel(draw):
    x = draw((4, 3))
    model = ntk_jax.MLP((8,), 2)
    apply_fn, params = drawn(model, x)
    scaled = ntk_jax.scale_output(apply_fn, 3.0)
    np.testing.assert_allclose(
        ntk_jax.empirical_ntk(scaled, params, x),
        9 * ntk_jax.empirical_ntk(apply_fn, params, x),
        rtol=1e-13,
    )


def test_every_activation_name_has_an_infinite_width_kernel():
    assert set(ACTIVATIONS) <= {*ntk_jax.duals.CLOSED_FORM_NAMES, *ntk_jax.duals.SERIES_NAMES}


def test_torch_init_is_uniform_with_bound_one_over_root_fan_in(getkey):
    params = {
        "Conv_0": {"kernel": np.zeros((3, 3, 4, 50)), "bias": np.ones(50)},
        "LayerNorm_0": {"scale": np.ones(50), "bias": np.ones(50)},
        "block": {"Dense_0": {"kernel": np.zeros((100, 200), "float32")}},
    }
    drawn = ntk_jax.torch_init(params, getkey())
    for layer, fan_in in ((drawn["Conv_0"], 36), (drawn["block"]["Dense_0"], 100)):
        for leaf in layer.values():
            assert 0.9 * fan_in**-0.5 < np.max(np.abs(leaf)) <= fan_in**-0.5
        # the variance of N uniform draws has relative error sqrt(0.8 / N)
        kernel = layer["kernel"]
        assert (
            abs(3 * fan_in * np.mean(np.asarray(kernel) ** 2) - 1) < 5 * (0.8 / kernel.size) ** 0.5
        )
    assert drawn["block"]["Dense_0"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(drawn["LayerNorm_0"]["bias"], params["LayerNorm_0"]["bias"])
