"""`infinite_width` compiles little at first, and nothing for models that equal one it has seen."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntk_jax
from cases.architectures import lenient
from cases.compilations import compilations
from ntk_jax.infinite.flax import traced_model
from ntk_jax.infinite.flax.moments.duals import answered

pytestmark = pytest.mark.usefixtures("unoptimized")

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4)), jnp.float32)
DENSE = {f"{layer}/{leaf}": (0.0, 0.5) for layer in ("a", "b") for leaf in ("kernel", "bias")}


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(8)(x)))


class Module(nnx.Module):
    def __init__(self, rngs, phi=nnx.relu):
        self.a, self.b = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
        self.phi = phi

    def __call__(self, x):
        return self.b(self.phi(self.a(x)))


def pair(scale):
    def draw(key, x):
        return {"W": jax.random.normal(key, (4, 6)), "V": jax.random.normal(key, (6, 1))}

    return draw, lambda p, x: scale * nn.relu(x @ p["W"]) @ p["V"]


def kernels(make, **options):
    return lambda: lenient(ntk_jax.infinite_width(make(), **options))(X)


DOORS = {
    "Linen": kernels(Dense),
    "MLP": kernels(lambda: ntk_jax.MLP((8,), 1, "tanh")),
    "NNX": kernels(lambda: Module(nnx.Rngs(0)), init_stats=dict(DENSE)),
    "NNX class": kernels(lambda: lambda rngs: Module(rngs)),
    "pair": kernels(lambda: pair(2.0), learning_rates=lambda path, stats: stats.variance),
    "table": lambda: lenient(ntk_jax.explain_limit)(Dense(), X),
}


@pytest.mark.parametrize("name", DOORS)
def test_equal_models_share_their_programs(name):
    Module(nnx.Rngs(0))  # drawn by Flax, parameter by parameter, as by what makes one
    with compilations() as first:
        DOORS[name]()
    with compilations() as second:
        DOORS[name]()
    assert (len(first) <= 3 or name == "NNX class") and not second


class Normalized(nn.Module):
    """Its constants are computed: the width, positions, a table of waves, a mask."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(8)(x[..., None]))
        positions = jnp.arange(x.shape[1]) / x.shape[1]
        x = x + jnp.sin(positions * jnp.exp(-positions))[:, None] * nn.Dense(8)(x)
        mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1])))
        x = jnp.einsum("ij,bjc->bic", mask / mask.sum(1, keepdims=True), x)
        return nn.Dense(1)(nn.relu(nn.Dense(8)(x)).reshape(len(x), -1))


@pytest.mark.parametrize("few", [0, 2**14])
def test_constants_of_a_model_take_no_program(monkeypatch, few):
    monkeypatch.setattr("ntk_jax.host.few.FEW", few)
    with compilations() as compiled:
        found = kernels(Normalized)()
    assert len(compiled) == (0 if few else 1)
    assert np.isfinite(found.ntk).all()


def test_what_differs_shares_nothing():
    def ntk(scale):
        return kernels(lambda: pair(scale))().ntk

    np.testing.assert_allclose(ntk(3.0), 2.25 * ntk(2.0), rtol=1e-5)
    module = Module(nnx.Rngs(0))
    before = kernels(lambda: module, init_stats=DENSE)().ntk
    module.phi = jnp.sin
    after = kernels(lambda: module, init_stats=DENSE)().ntk
    fresh = kernels(lambda: Module(nnx.Rngs(1), jnp.sin), init_stats=DENSE)().ntk
    assert np.max(np.abs(after - before)) > 0.1
    np.testing.assert_array_equal(after, fresh)


def test_an_array_in_a_closure_is_seen_and_let_go():
    scale = np.ones((), np.float32)
    model = pair(scale)
    first = kernels(lambda: model)().nngp
    scale += 1
    np.testing.assert_allclose(kernels(lambda: model)().nngp, 4 * first, rtol=1e-5)


def test_a_rule_of_the_users_own_is_another_program():
    phi = lambda h: jax.lax.igamma(jnp.ones_like(h), h * h)
    found = []
    for rate in (1.0, 2.0):
        ntk_jax.register_rule("igamma", lambda a, x, rate=rate: 1 - jnp.exp(-rate * x))
        found.append(kernels(lambda: ntk_jax.MLP((8,), 1, phi))().nngp)
    assert np.max(np.abs(found[0] - found[1])) > 1e-3


class Gelu(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        return nn.Dense(1)(x + nn.Dense(8)(nn.gelu(x)))


def test_a_model_is_interpreted_once_and_its_duals_are_filled_in(monkeypatch):
    """As if they had been answered at once, for as many terms as each variance needs."""
    traced, interpret = [], traced_model.traced_pair
    monkeypatch.setattr(
        traced_model, "traced_pair", lambda *args: traced.append(args) or interpret(*args)
    )
    kernel = ntk_jax.infinite_width(Gelu())
    program = kernel.model.program(X).program
    for scale in (0.1, 1.0):
        k = kernel(scale * X)
        duals = list(program.traces)[-1][1]
        at_once = partial(program.kernels, duals=answered(dict(duals)), sides=(0, 1))
        expected = jax.jit(lambda a, b, f=at_once: f((a, b)))([scale * X[0]], [scale * X[1]])
        for found, one in zip(k, expected, strict=True):
            np.testing.assert_allclose(found[0, 1], one, rtol=1e-6)
    assert len(traced) == 1 and len(program.traces) == 3
