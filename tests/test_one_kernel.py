"""One kernel alone, `kernels="ntk"` or `"nngp"`: the same entries, in half the memory, through
every door.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.architectures import lenient
from cases.compilations import compilations, optimized
from ntk_jax.infinite.mlp import recursion
from ntk_jax.infinite.mlp.kernels import _network
from ntk_jax.infinite.mlp.tiles import in_blocks
from ntk_jax.types import BOTH, WHICH

pytestmark = pytest.mark.usefixtures("unoptimized")

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((5, 4)), RNG.standard_normal((3, 4))
X[1], X[2] = 2 * X[0], -X[0]  # parallel rows take paths of their own
OPTIONS = {"depth": 1, "activation": "erf", "W_std": 1.3, "b_std": 0.2}
NAMES = ["nngp", "ntk"]


def nearly_equal(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)


class Conv(nn.Module):
    """Interpreted: not a network that `mlp_kernels` knows."""

    @nn.compact
    def __call__(self, x):
        x = jax.lax.erf(nn.Conv(8, (3,), param_dtype=float)(x[..., None]))
        return nn.Dense(1, param_dtype=float)(x.reshape(len(x), -1))


@pytest.mark.parametrize("activation", ["erf", pytest.param("relu", marks=pytest.mark.slow)])
def test_one_kernel_is_that_of_both(activation):
    for args in ((X,), (X, Y)) if activation == "relu" else ((X,),):
        options = {**OPTIONS, "activation": activation}
        both = ntk_jax.mlp_kernels(*args, **options)
        for name in NAMES:
            with optimized(True):  # symmetric to the bit, as all entries go through the same code
                one = ntk_jax.mlp_kernels(*args, **options, kernels=name)
            nearly_equal(one, getattr(both, name))
            assert len(args) == 2 or jnp.array_equal(one, one.T)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.slow
def test_one_kernel_is_that_of_both_in_tiles_and_blocks(activation, name):
    x = np.random.default_rng(1).standard_normal((700, 4))
    options = {"activation": activation, "residual": True, "depth": 9}
    both = ntk_jax.mlp_kernels(x, **options)
    one = ntk_jax.mlp_kernels(x, kernels=name, **options)
    nearly_equal(one, getattr(both, name))
    assert jnp.array_equal(one, one.T)
    network, known, _ = _network(x, None, 9, activation, 1.0, 0.0, "ntk", None, True, False)
    compiled = jax.jit(in_blocks, static_argnums=(3, 5, 6))
    (block,) = compiled(*network[:4], known, WHICH[name], 8192)
    np.testing.assert_allclose(block[:700, :700], one, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_one_kernel_are_those_of_both(name):
    weights = RNG.standard_normal((5, 5))
    both = lambda x, W: jnp.sum(
        weights * getattr(ntk_jax.mlp_kernels(x, **{**OPTIONS, "W_std": W}), name)
    )
    one = lambda x, W: jnp.sum(
        weights * ntk_jax.mlp_kernels(x, **{**OPTIONS, "W_std": W}, kernels=name)
    )
    for a, b in zip(*(jax.jit(jax.grad(f, (0, 1)))(X, 1.3) for f in (one, both)), strict=True):
        nearly_equal(a, b)


def test_one_kernel_compiles_no_more_and_takes_half_the_memory():
    x = np.random.default_rng(2).standard_normal((600, 3))
    counts = {}
    for name in ("both", "ntk"):
        with compilations() as programs:
            jax.block_until_ready(ntk_jax.mlp_kernels(x, kernels=name, **OPTIONS))
        counts[name] = len(programs)
        with compilations() as again:
            ntk_jax.mlp_kernels(x, kernels=name, **OPTIONS)
        assert not again
    assert counts == {"both": 1, "ntk": 1}
    network, known, _ = _network(x, None, 1, "erf", 1.3, 0.2, "ntk", None, False, False)
    compiled = lambda which: recursion._compiled_tiles.large.lower(
        *network[:4], known, which
    ).compile()
    one, both = (compiled(which).memory_analysis() for which in (WHICH["ntk"], BOTH))
    assert one.output_size_in_bytes <= 0.51 * both.output_size_in_bytes
    assert one.temp_size_in_bytes <= both.temp_size_in_bytes


def test_one_kernel_of_a_flax_model_is_that_of_both():
    both, one = (lenient(ntk_jax.infinite_width(Conv(), kernels=k)) for k in ("both", "ntk"))
    nearly_equal(one(X), both(X).ntk)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_kernel_of_flax_models_with_other_examples_and_in_tiles(name):
    for model in (Conv(), ntk_jax.MLP((8,), 1, "erf", 1.3, 0.2)):
        both, one = (lenient(ntk_jax.infinite_width(model, kernels=k)) for k in ("both", name))
        nearly_equal(one(X, Y), getattr(both(X, Y), name))
    tiled = lenient(ntk_jax.infinite_width(Conv(), kernels=name, memory_limit=2000))
    nearly_equal(tiled(X), lenient(ntk_jax.infinite_width(Conv(), kernels=name))(X))


@pytest.mark.slow
def test_one_kernel_has_derivatives_and_standard_errors():
    class Pooled(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3,), param_dtype=float)(x[..., None]))
            x = nn.max_pool(x, (2,), (2,))
            return nn.Dense(1, param_dtype=float)(x.reshape(len(x), -1))

    options = {"num_samples": 64, "key": jax.random.key(0)}
    both = ntk_jax.infinite_width(Pooled(), **options)
    for name in NAMES:
        one = ntk_jax.infinite_width(Pooled(), kernels=name, **options)
        found, truth = (lenient(k.standard_error)(X) for k in (one, both))
        nearly_equal(found, getattr(truth, name))
        conv, of_both = (ntk_jax.infinite_width(Conv(), kernels=k) for k in (name, "both"))
        one = lambda x, conv=conv: jnp.sum(lenient(conv)(x))
        its = lambda x, of_both=of_both, name=name: jnp.sum(getattr(lenient(of_both)(x), name))
        nearly_equal(*(jax.grad(f)(jnp.asarray(Y)) for f in (one, its)))


@pytest.mark.slow
def test_one_kernel_goes_through_tiles_and_operators():
    ntk = partial(ntk_jax.mlp_kernels, kernels="ntk", **OPTIONS)
    truth = ntk_jax.mlp_kernels(X, **OPTIONS).ntk
    np.testing.assert_allclose(ntk_jax.tile(ntk)(X), truth, rtol=1e-7)
    v = RNG.standard_normal(5)
    np.testing.assert_allclose(ntk_jax.kernel_operator(ntk, X) @ v, truth @ v, rtol=1e-7)
    both = partial(ntk_jax.mlp_kernels, **OPTIONS)
    op = ntk_jax.kernel_operator(both, X, kernel="ntk", storage="recompute")
    np.testing.assert_allclose(op @ v, truth @ v, rtol=1e-7)


@pytest.mark.slow
def test_frozen_layers_are_those_that_learn_at_rate_zero():
    model, x = ntk_jax.MLP((8,), 1, "erf", 1.3, 0.2), jnp.asarray(Y)
    rate = lambda path, stats: float(not path.startswith("Dense_0"))
    program = ntk_jax.infinite_width(model, learning_rates=rate).model.program(x)
    (interpreted,) = program.interpreted(x, None, None, [None], None, WHICH["ntk"])
    options = {**OPTIONS, "kernels": "ntk"}
    nearly_equal(interpreted, ntk_jax.mlp_kernels(Y, **options, trainable_from=1))
    assert np.all(np.diagonal(ntk_jax.mlp_kernels(Y, **options) - interpreted) > 0.1)


@pytest.mark.slow
def test_frozen_layers_of_a_wide_network():
    model, draws = ntk_jax.MLP((512, 512), 1, "erf", 1.3, 0.2), []
    for seed in range(12):
        params = model.init(jax.random.key(seed), jnp.asarray(X))["params"]
        first, *trained = sorted(params)
        frozen = {first: params[first]}
        apply_fn = lambda p, x, frozen=frozen: model.apply({"params": {**frozen, **p}}, x)
        draws.append(ntk_jax.empirical_ntk(apply_fn, {k: params[k] for k in trained}, X))
    k = ntk_jax.mlp_kernels(X, **{**OPTIONS, "depth": 2}, trainable_from=1, kernels="ntk")
    error = np.std(draws, axis=0, ddof=1) / len(draws) ** 0.5
    assert np.all(np.abs(np.mean(draws, axis=0) - k) <= 4 * error + 0.01 * np.max(k))


def test_what_is_asked_for_is_checked():
    for call in (
        lambda: ntk_jax.mlp_kernels(X, depth=1, kernels="NTK"),
        lambda: ntk_jax.infinite_width(Conv(), kernels="theta"),
    ):
        with pytest.raises(ValueError, match="kernels: expected one of 'both', 'nngp', 'ntk'"):
            call()
