"""The explanation of a kernel, and the choices that it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.draws import drawn
from ntk_jax.finite.features.features import FactoredBlock
from ntk_jax.finite.strategy import cost
from ntk_jax.finite.strategy.tiles import Footprint, choose_tiling, peak_bytes


def block(T, I, D, O=1):
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    return FactoredBlock((shape(1, 1, T, I),), shape(1, O, 1, T, D), ("w",))


def problem(n=512, outputs="mean"):
    return cost.Request(n, n, True, outputs, 2**30)


def test_dense_layers_use_gram_matrices_and_large_feature_maps_gradients():
    assert cost.choose_form(block(1, 512, 512), problem()) == "factors"
    assert cost.choose_form(block(1024, 27, 16), problem()) == "gradients"
    assert cost.choose_form(block(4, 2048, 2048), problem()) == "factors"


def test_auto_takes_vector_products_where_gradients_are_mostly_zeros():
    """A large embedding table of which each example reads one row."""
    apply_fn = lambda p, x: jnp.tanh(p["table"][x[:, 0]]) @ p["w"]
    params = {"table": jnp.ones((2000, 4)), "w": jnp.ones((4, 2))}
    tokens = jnp.arange(6)[:, None]
    explanation = ntk_jax.explain_ntk(apply_fn, params, tokens)
    assert explanation.method in explanation.operations
    k = ntk_jax.empirical_ntk(apply_fn, params, tokens)
    np.testing.assert_allclose(
        k, ntk_jax.empirical_ntk(apply_fn, params, tokens, method="jacobian"), rtol=1e-12
    )


def test_explanation_names_every_leaf_once():
    model = ntk_jax.MLP((16, 16), 3, b_std=0.1)
    x = jnp.ones((10, 4)) * jnp.arange(10.0)[:, None]
    apply_fn, params = drawn(model, x)
    params = {**params, "dead": jnp.ones(3)}
    explanation = ntk_jax.explain_ntk(
        lambda p, x: apply_fn({k: p[k] for k in p if k != "dead"}, x), params, x
    )
    assert explanation.method == "layerwise"
    assert sorted(name for row in explanation.layers for name in row.leaves) == sorted(
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        if "dead" not in str(path)
    )
    assert explanation.unused == ("['dead']",)
    assert explanation.result_bytes == 10 * 10 * 8
    text = str(explanation)
    assert "Gram matrices" in text and "['Dense_1']['kernel']" in text
    assert "tiles of 10 x 10 rows" in text


def test_derivatives_without_factors_are_told_their_fast_form():
    rng = np.random.default_rng(0)
    shapes = {"W": (2, 128), "V": (128, 128), "heads": (128, 8)}
    params = {name: jax.device_put(rng.standard_normal(s)) for name, s in shapes.items()}
    heads = lambda p, x: jnp.tanh(jnp.tanh(x @ p["W"]) @ p["V"]) @ p["heads"]

    def backward(p, x):
        return jax.jacrev(jax.jacrev(heads, 1), 1)(p, x)[:, 0, 0]

    def forward(p, x):
        along = lambda f: lambda z: jax.jvp(f, (z,), (jnp.array([1.0, 0.0]),))[1]
        return along(along(lambda z: heads(p, z)))(x)

    slow, fast = (
        ntk_jax.explain_ntk(jax.vmap(f, (None, 0)), params, np.ones((3, 2)))
        for f in (backward, forward)
    )
    assert slow.reversed and "jax.jvp" in str(slow)
    assert "own Jacobian block" in str(slow)
    assert not fast.reversed and "own Jacobian block" not in str(fast)
    assert fast.operations["layerwise"] < slow.operations["layerwise"]


@pytest.mark.parametrize("limit", [2**20, 2**26, 2**32])
@pytest.mark.parametrize("n", [(1, 1), (100, 60_000), (20_000, 20_000)])
def test_tiles_stay_within_the_budget(limit, n):
    footprint = Footprint(row=2_000, work=8_000, pair=64)
    tiling = choose_tiling(*n, footprint, limit)
    assert peak_bytes(tiling, footprint) <= limit
    assert tiling.rows1 >= 1 and tiling.held1 * tiling.rows1 <= n[0] + tiling.rows1
