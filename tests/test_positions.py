"""Kernels of all pairs of output positions, `infinite_width(positions="full")`: what they average
to, closed forms, wide networks.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.architectures import lenient
from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.infinite.flax.moments.duals import answered
from ntk_jax.infinite.flax.values.expression import ScalarFunction, variable

pytestmark = pytest.mark.usefixtures("unoptimized")

RNG = np.random.default_rng(0)
DRAWN = {
    "param_dtype": float,
    "kernel_init": nn.initializers.variance_scaling(1, "fan_in", "normal"),
}
TOKENS = RNG.standard_normal((3, 4, 5))
IMAGES = RNG.standard_normal((2, 4, 4, 2))


def limit(model, **options):
    return lenient(ntk_jax.infinite_width(model, **options))


class Pointwise(nn.Module):
    """The same fully connected network at every token."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, **DRAWN)(x)
        return nn.Dense(2, **DRAWN)(jax.lax.erf(x))


class Segmentation(nn.Module):
    """One output per pixel, of two groups of units."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3), **DRAWN)(x))
        return nn.Conv(2, (3, 3), **DRAWN)(x)


class Graph(nn.Module):
    """Two convolutions over the nodes of one graph per example, and a bias that all share."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(self.width, **DRAWN)(x["mixing"] @ x["features"]))
        return nn.Dense(2, **DRAWN)(x["mixing"] @ h)


@pytest.fixture(scope="module")
def tokens():
    return limit(Pointwise(), positions="full")(TOKENS)


def test_the_kernel_of_tokens_is_that_of_rows(tokens):
    rows = TOKENS.reshape(12, 5)
    as_rows = ntk_jax.mlp_kernels(
        rows, depth=1, activation="erf", parameterization="standard", width=8
    )
    for full, k in zip(tokens, as_rows, strict=True):
        assert full.shape == (3, 3, 4, 4)
        np.testing.assert_allclose(full.swapaxes(1, 2).reshape(12, 12), k, rtol=1e-10, atol=1e-13)
        # rows and columns swap, and positions with them, to the bit
        assert jnp.array_equal(full, full.transpose(1, 0, 3, 2))


def test_the_mean_over_equal_positions_is_the_kernel_without_them(tokens):
    for full, mean in zip(tokens, limit(Pointwise())(TOKENS), strict=True):
        np.testing.assert_allclose(jnp.einsum("ijpp->ij", full) / 4, mean, rtol=1e-13)


@pytest.mark.slow
def test_positions_of_other_examples_and_in_tiles(tokens):
    one = limit(Pointwise(), positions="full", kernels="ntk", memory_limit=2000)
    np.testing.assert_allclose(one(TOKENS), tokens.ntk, rtol=1e-13)
    assert jnp.array_equal(one(TOKENS), one(TOKENS).transpose(1, 0, 3, 2))
    np.testing.assert_allclose(one(TOKENS[:2], TOKENS), tokens.ntk[:2], rtol=1e-13)


@pytest.mark.slow
def test_outputs_without_positions_have_one():
    x = TOKENS[:, 0]
    for found, k in zip(
        limit(Pointwise(), positions="full")(x), limit(Pointwise())(x), strict=True
    ):
        np.testing.assert_array_equal(found, k[:, :, None, None])


@pytest.mark.slow
@pytest.mark.parametrize("model", [Segmentation, Graph])
def test_positions_of_pixels_and_nodes(model):
    mixing = np.abs(RNG.standard_normal((2, 6, 6)))
    x = {
        "mixing": mixing / mixing.sum(2, keepdims=True),
        "features": RNG.standard_normal((2, 6, 3)),
    }
    x = IMAGES if model is Segmentation else x
    full, mean = limit(model(512), positions="full")(x), limit(model(512))(x)
    for a, b in zip(full, mean, strict=True):
        P = 16 if model is Segmentation else 6
        assert a.shape == (2, 2, P, P) and jnp.array_equal(a, a.transpose(1, 0, 3, 2))
        np.testing.assert_allclose(jnp.einsum("ijpp->ij", a) / P, b, rtol=1e-12)
    # wide networks: the first output unit of each position, with its own gradient
    wide, units, draws = model(512), 2, []
    apply_fn = lenient(lambda p, x: wide.apply({"params": p}, x))
    for seed in range(16):
        params = lenient(wide.init)(jax.random.key(seed), x)["params"]
        ntk = ntk_jax.empirical_ntk(apply_fn, params, x, outputs="full")
        ntk = ntk.reshape(2, 2, P, units, P, units)[:, :, :, 0, :, 0]
        out = apply_fn(params, x).reshape(2, P, units)
        draws.append((np.einsum("ipu,jqu->ijpq", out, out) / units, ntk))
    for found, k in zip(zip(*draws, strict=True), full, strict=True):
        error = np.std(found, axis=0, ddof=1) / len(found) ** 0.5
        distance = np.abs(np.mean(found, axis=0) - k)
        assert np.mean(distance <= 4 * error + 0.01 * np.max(k)) > 0.98, np.max(distance / error)


@pytest.mark.slow
def test_a_kernel_of_positions_is_one_of_many_outputs(tokens):
    y = RNG.standard_normal((3, 4))
    fit = ntk_jax.kernel_regression(tokens.ntk, y, tokens.ntk, diag_reg=1e-3)
    dense = np.asarray(tokens.ntk).swapaxes(1, 2).reshape(12, 12)
    expected = dense @ np.linalg.solve(dense + 1e-3 * np.eye(12), y.ravel())
    np.testing.assert_allclose(fit.test.ravel(), expected, rtol=1e-8)
    tiled = ntk_jax.tile(ntk_jax.infinite_width(Pointwise(), positions="full"))
    np.testing.assert_allclose(lenient(tiled)(TOKENS).ntk, tokens.ntk, rtol=1e-12)
    slope = jax.grad(lambda x: limit(Pointwise(), positions="full")(x).ntk[0, 1, 2, 3])
    numeric = [
        limit(Pointwise(), positions="full")(TOKENS + h * (np.arange(60) == 11).reshape(3, 4, 5))
        for h in (1e-5, -1e-5)
    ]
    difference = (numeric[0].ntk - numeric[1].ntk)[0, 1, 2, 3] / 2e-5
    np.testing.assert_allclose(slope(jnp.asarray(TOKENS))[0, 2, 1], difference, rtol=1e-6)


def test_what_is_asked_of_positions_is_checked():
    with pytest.raises(ValueError, match="positions: expected one of 'mean', 'full'"):
        ntk_jax.infinite_width(Pointwise(), positions="all")


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_duals_do_not_depend_on_how_positions_stand(activation):
    f = ScalarFunction(variable(0))  # stands for it
    ask = answered({f: dual_rule(activation)})
    mean, pair = lambda q: ask(f, "mean", q), lambda *moments: np.stack(ask(f, "pair", *moments))
    shape, draw = (1, 3, 2), np.random.default_rng(1).uniform
    q1, q2 = draw(1, 2, (2, *shape))
    q1[..., 1] = q1[..., 0]
    apart, met = draw(-1, 1, shape + shape), draw(-1, 1, shape)
    close = partial(np.testing.assert_allclose, rtol=1e-13)
    found, single = pair(q1, apart, q2), pair(q1, met, q2)
    for at in np.ndindex(apart.shape):
        close(found[:, *at], pair(q1[at[:3]], apart[at], q2[at[3:]]))
    for at in np.ndindex(shape):
        close(single[:, *at], pair(q1[at], met[at], q2[at]))
        close(mean(q1)[at], mean(q1[at]))
    close(pair(q1[..., :1], apart, q2), found)  # what positions share stands once
    close(pair(q1[..., :1], met, q2), single)
