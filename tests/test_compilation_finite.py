"""Front doors of finite width and of training compile few programs, and none again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import ntk_jax
from cases.compilations import compilations
from ntk_jax.closures.programs import forget
from ntk_jax.networks.rows import FEW, MORE, rows_are_apart
from ntk_jax.training.rates import lift_rates, with_rates

pytestmark = pytest.mark.usefixtures("unoptimized")

rng = np.random.default_rng(0)
x = jax.device_put(rng.normal(size=(6, 4)))
y = jax.device_put(rng.normal(size=(6, 1)))
two = jax.device_put(rng.normal(size=(2, 4)))


class Model(nn.Module):
    width: int = 5

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, param_dtype=x.dtype)(
            nn.tanh(nn.Dense(self.width, param_dtype=x.dtype)(x))
        )


shapes = jax.eval_shape(Model().init, jax.random.key(0), x)["params"]
params = jax.tree.map(lambda s: jax.device_put(rng.normal(size=s.shape)), shapes)
moved = jax.tree.map(lambda p: jax.device_put(1.1 * np.asarray(p)), params)
key = jax.random.key(1)


def network():
    """Adapters made anew: equal, and not the same."""
    return ntk_jax.from_linen(Model(), {"params": params})


def trained(optimizer):
    options = {"num_steps": 2, "progress": False}
    return ntk_jax.train(*network(), x, y, optimizer=optimizer, **options)


CALLS = {
    "empirical_ntk": lambda: ntk_jax.empirical_ntk(*network(), x),
    "of two sets": lambda: ntk_jax.empirical_ntk(*network(), x, two),
    "of a lambda": lambda: ntk_jax.empirical_ntk(
        lambda p, x: Model().apply({"params": p}, x), params, x, outputs="full"
    ),
    "jacobian": lambda: ntk_jax.empirical_ntk(*network(), x, method="jacobian"),
    "vector_products": lambda: ntk_jax.empirical_ntk(*network(), x, method="vector_products"),
    "empirical_nngp": lambda: ntk_jax.empirical_nngp(*network(), x),
    "empirical_ntk_by_layer": lambda: ntk_jax.empirical_ntk_by_layer(*network(), x),
    "contract": lambda: ntk_jax.contract(ntk_jax.tangent_features(*network(), x)),
    "explain_ntk": lambda: ntk_jax.explain_ntk(*network(), x),
    "ntk_operator": lambda: ntk_jax.ntk_operator(*network(), x) @ y,
    "diagonal": lambda: ntk_jax.ntk_operator(*network(), x).diagonal(),
    "columns": lambda: ntk_jax.ntk_operator(*network(), x).columns(np.array([0, -1])),
    "taylor_expand": lambda: ntk_jax.taylor_expand(*network(), 2)(moved, x),
    "relative_change": lambda: ntk_jax.relative_change(moved, params).total,
    "monte_carlo_kernels": lambda: ntk_jax.monte_carlo_kernels(
        lambda key: Model().init(key, x)["params"], network()[0], x, key=key, num_samples=2
    ),
    "train": lambda: trained(optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))).loss,
    "a schedule": lambda: trained(optax.adam(optax.cosine_decay_schedule(0.1, 9))).loss,
}


@pytest.mark.parametrize("name", CALLS)
def test_few_programs_and_none_again(name):
    jax.clear_caches()
    forget()
    with compilations() as first:
        CALLS[name]()
    with compilations() as second:
        CALLS[name]()
    assert len(first) <= 3 and not second


def test_nnx_modules_built_anew():
    built = lambda: ntk_jax.from_nnx(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    apply_fn, parameters = built()
    ntk_jax.empirical_ntk(apply_fn, parameters, x.astype(jnp.float32))
    with compilations() as second:
        ntk_jax.empirical_ntk(built()[0], parameters, x.astype(jnp.float32))
    assert not second


@pytest.mark.parametrize("make", [optax.sgd, optax.adam])
def test_another_learning_rate_compiles_nothing_and_counts(make):
    losses = [trained(make(0.1)).loss]
    with compilations() as found:
        losses += [trained(make(rate)).loss for rate in (0.05, 0.1)]
    assert not found
    np.testing.assert_array_equal(losses[0], losses[2])
    assert losses[0][-1] != losses[1][-1]


def test_rates_are_those_that_only_multiply():
    optimizer = optax.chain(optax.scale(0.5), optax.sgd(0.1, momentum=0.9), optax.adam(1e-3))
    lifted, rates = lift_rates(optimizer)
    assert rates == (0.5, -0.1, -1e-3)
    g = jnp.array([1.0, -2.0])
    with jax.numpy_dtype_promotion("standard"):
        updates = [o.update(g, o.init(g), g)[0] for o in (optimizer, with_rates(lifted, rates))]
    np.testing.assert_array_equal(*updates)
    schedule = optax.sgd(lambda step: 0.1 / (1 + step))
    assert lift_rates(schedule) == (schedule, ())


w = jnp.ones((4, 2))
APART = {
    "pooled": lambda w, x: jax.lax.reduce_window(
        x @ w, -jnp.inf, jax.lax.max, (1, 2), (1, 1), "VALID"
    ),
    "looked up": lambda w, x: w[jnp.argsort(x, axis=1)].sum((1, 2))[:, None],
    "along": lambda w, x: jnp.take_along_axis(x @ w, jnp.argsort(x @ w, axis=1), axis=1),
    "scanned": lambda w, x: jax.lax.scan(
        lambda h, c: (jnp.tanh(h + c @ w), c), jnp.zeros((len(x), 2)), jnp.stack([x, x])
    )[0],
    "folded": lambda w, x: jnp.cumsum(x.reshape(len(x), 2, 2), axis=2).reshape(-1, 4)[:, ::-1] @ w,
    "variance": lambda w, x: x @ w / jnp.var(x, axis=1, keepdims=True),
}
NOT_PROVED = {
    "number of rows": lambda w, x: x @ w * len(x),
    "its square": lambda w, x: (x @ w) ** len(x),
    "an array of it": lambda w, x: x @ w + np.full(2, len(x)),
    "place": lambda w, x: x @ w + jnp.arange(len(x))[:, None],
    "table by place": lambda w, x: x @ w + jnp.arange(20.0).reshape(10, 2)[: len(x)],
    "mixed by a reshape": lambda w, x: x.reshape(4, -1).T @ w,
    "shifted": lambda w, x: jnp.pad(x, ((1, 0), (0, 0)))[:-1] @ w,
    "padding moves": lambda w, x: jax.lax.pad(x, 0.0, ((1, -1, 0), (0, 0, 0))) @ w,
    "over time": lambda w, x: jax.lax.scan(lambda h, c: (h + c, h + c), jnp.zeros(4), x)[1] @ w,
    "windows of rows": lambda w, x: jax.lax.reduce_window(
        x @ w, 0.0, jax.lax.add, (3, 1), (1, 1), "SAME"
    ),
    "convolved rows": lambda w, x: jnp.apply_along_axis(
        lambda c: jnp.convolve(c, jnp.ones(3), mode="same"), 0, x @ w
    ),
    "all together": lambda w, x: jnp.tanh(x @ w) * jnp.sum(x),
    "Gram matrix": lambda w, x: x @ x.T @ jnp.ones((len(x), 2)),
    "reversed": lambda w, x: x[::-1] @ w,
    "one row for all": lambda w, x: jnp.broadcast_to(x[:1] @ w, (len(x), 2)),
}


@pytest.mark.parametrize("name", [*APART, *NOT_PROVED])
def test_what_is_proved_of_rows(name):
    network = (APART | NOT_PROVED)[name]
    rows = (jax.ShapeDtypeStruct((n, 4), w.dtype) for n in (FEW, MORE))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        traces = [jax.make_jaxpr(network)(w, batch) for batch in rows]
    assert rows_are_apart(*traces) == (name in APART)
