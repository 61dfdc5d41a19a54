"""Dropout in the limit of infinite width: its mean over masks, against the formula and against
networks with dropout.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntk_jax
from cases.architectures import Net, lenient, normal
from ntk_jax.initializers.stats import gaussian_initializer

X = np.random.default_rng(0).standard_normal((3, 6))
X[2] = X[0]  # equal rows, which draw masks of their own
KEEP = (0.6, 0.75)


def dropped(x, width, num_outputs):
    for keep in KEEP:
        h = nn.relu(nn.Dense(width, use_bias=False, dtype=x.dtype, param_dtype=x.dtype)(x))
        x = nn.Dropout(1 - keep, deterministic=False)(h)
    return nn.Dense(num_outputs, use_bias=False, dtype=x.dtype, param_dtype=x.dtype)(x)


def limit(model, x, **options):
    return lenient(ntk_jax.infinite_width(model, dropout="expectation", **options))(x)


def test_equals_the_recursion_with_the_diagonal_divided_by_the_rate():
    width = 8
    K = T = X @ X.T / 6
    T = 6 * K
    own = np.eye(3, dtype=bool)
    for keep in KEEP:
        q = np.diag(K)
        k, k_dot = (np.asarray(m) for m in ntk_jax.duals.relu(q[:, None], K, q[None]))
        T = np.where(own, 1 / keep, 1) * (k_dot * T)
        K = np.where(own, 1 / keep, 1) * k
        T = width * K + T
    found = limit(Net(dropped, width, 1), X, call={})
    np.testing.assert_allclose(found.nngp, K, rtol=1e-6)  # the rate of the model is in float32
    np.testing.assert_allclose(found.ntk, T, rtol=1e-6)
    np.testing.assert_array_equal(found.ntk, found.ntk.T)


class Switched(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(1)(nn.Dropout(0.5)(x, deterministic=not train))


class Twin(nnx.Module):
    def __init__(self, *, rngs):
        self.first, self.readout = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.dropout(nnx.relu(self.first(x))))


def test_linen_and_nnx_are_one_network_and_other_rows_are_those_without_dropout():
    x = X.astype(np.float32)
    linen, twin = limit(Switched(), x, call={"train": True}), limit(Twin, x)
    off = lenient(ntk_jax.infinite_width(Switched()))(x)
    for a, b, c in zip(linen, twin, off, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_allclose(a[~np.eye(3, dtype=bool)], c[~np.eye(3, dtype=bool)], rtol=1e-5)
        assert np.all(np.diag(a) > np.diag(c))
    assert "value after dropout" in lenient(ntk_jax.explain_limit)(
        Switched(), x, dropout="expectation", call={"train": True}
    )


DROP = partial(nn.Dropout, 0.5, deterministic=False)
REFUSED = {
    "not asked for": (
        lambda x, w, o: nn.Dense(o)(DROP()(nn.Dense(w)(x))),
        "error",
        r"dropout=.expectation",
    ),
    "before a nonlinearity": (
        lambda x, w, o: nn.Dense(o)(nn.relu(DROP()(nn.Dense(w)(x)))),
        "expectation",
        r"right after dropout",
    ),
    "of inputs": (
        lambda x, w, o: nn.Dense(o)(DROP()(x)),
        "expectation",
        r"other than as a mask of zeros",
    ),
    "shared by all units": (
        lambda x, w, o: nn.Dense(o)(DROP(broadcast_dims=(-1,))(nn.Dense(w)(x))),
        "expectation",
        r"share one dropout mask",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_masks_have_no_limit_is_refused(name):
    body, dropout, pattern = REFUSED[name]
    with pytest.raises(ntk_jax.NoLimitError, match=pattern):
        lenient(ntk_jax.infinite_width(Net(body, 8, 1), dropout=dropout))(X)


def transformed(x, width, num_outputs):
    """Residual, normalization with a trained scale, a split and a join after dropout."""
    x = nn.Dense(width, bias_init=normal(0.3))(x)
    x = nn.LayerNorm()(x + nn.Dropout(0.4, deterministic=False)(nn.Dense(width)(nn.relu(x))))
    x = nn.relu(nn.Dense(width)(x))
    a, b = jnp.split(nn.Dropout(0.2, deterministic=False)(x), 2, axis=-1)
    return nn.Dense(num_outputs)(jnp.concatenate([a, nn.relu(nn.Dense(width)(b))], -1))


@pytest.mark.slow
def test_is_within_four_standard_errors_of_networks_with_dropout():
    x, width, samples = X.astype(np.float32), 256, 96
    found = limit(Net(transformed, width, 1), x)
    for k, num_outputs in zip(found, (64, 1), strict=True):
        draws = _networks(Net(transformed, width, num_outputs), x, samples, num_outputs > 1)
        error = draws.std(axis=0, ddof=1) / samples**0.5
        assert np.max(np.abs(k - draws.mean(axis=0)) / error) < 4


def _networks(model, x, samples, forward):
    init = gaussian_initializer(
        lambda key: lenient(model.init)({"params": key, "dropout": key}, x)["params"]
    )

    def kernel(key):
        weights, masks = jax.random.split(key)
        f = lambda p: lenient(model.apply)({"params": p}, x, rngs={"dropout": masks})
        params = init(weights)
        if forward:
            return jnp.matmul(f(params), f(params).T, precision="highest") / f(params).shape[1]
        rows = [
            j.reshape(len(x), -1) for j in jax.tree.leaves(jax.jacrev(lambda p: f(p)[:, 0])(params))
        ]
        return sum(jnp.matmul(j, j.T, precision="highest") for j in rows)

    return np.asarray(
        jax.jit(lambda keys: jax.lax.map(kernel, keys))(
            jax.random.split(jax.random.key(2), samples)
        )
    )
