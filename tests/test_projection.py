"""Features of different functions of the same parameters, exact and projected: signs belong to the
parameters.
"""

import math
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_features import close, dense_jacobian, dense_ntk

import ntk_jax
from cases.draws import normal
from cases.networks import CASES
from ntk_jax.finite import projection

KEY = jax.random.key(5)
K = 40


def signs(params, key=KEY):
    """S (P, K), read off a linear function of all parameters: its gradient at row p is the p-th
    unit vector.
    """
    linear = lambda p, x: (
        x @ jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(p)])[:, None]
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    features = ntk_jax.tangent_features(linear, params, np.eye(size), projection=K, key=key)
    rows = np.asarray(features.matrix()) * K**0.5
    np.testing.assert_allclose(np.abs(rows), 1.0, rtol=1e-12)
    return rows


@pytest.mark.parametrize("index", range(len(CASES)), ids=[c.name for c in CASES])
def test_matrix_is_the_jacobian_and_its_projection(index):
    apply_fn, params, x = CASES[index].build(index)
    jacobian = dense_jacobian(apply_fn, params, x)
    flat = jacobian.reshape(-1, jacobian.shape[2])
    close(ntk_jax.tangent_features(apply_fn, params, x).matrix(), flat, 1e-10)
    projected = ntk_jax.tangent_features(apply_fn, params, x, projection=K, key=KEY)
    z = jacobian @ signs(params) / K**0.5
    close(projected.matrix(), z.reshape(-1, K), 1e-10)
    close(ntk_jax.contract(projected, outputs="full"), dense_ntk(z, z, "full"), 1e-10)


def _network(p, x):
    return jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"] + p["b"][None]) @ p["v"]


FUNCTIONS = {
    "other outputs": lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]),
    "transposed weight": lambda p, x: jnp.sin(x @ p["w"].T) @ p["v"],
    "one leaf": lambda p, x: x @ p["v"],
    "own Jacobian block": lambda p, x: (x * p["b"][None]) @ (p["w"] * p["w"]) @ p["v"],
    "reshaped weight": lambda p, x: jnp.tanh(x[:, :2] @ p["w"].reshape(2, 8)),
    "scanned": lambda p, x: (
        jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]) + p["b"][None], None), x, None, 2)[0]
        @ p["v"]
    ),
    "no leaf": lambda p, x: x[:, :2],
}


@pytest.fixture(scope="module")
def parameters():
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 4), "b": (4,), "v": (4, 2)}
    return {name: jax.device_put(rng.standard_normal(s)) for name, s in shapes.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_same_parameters(parameters, name):
    """The last layer reads a square weight as x W or x Wᵀ, some leaves, one leaf, in products and
    otherwise.
    """
    x = np.random.default_rng(1).standard_normal((5, 4))
    pairs = (_network, x[:3]), (FUNCTIONS[name], x)
    j1, j2 = (dense_jacobian(f, parameters, rows) for f, rows in pairs)
    f1, f2 = (ntk_jax.tangent_features(f, parameters, rows) for f, rows in pairs)
    exact = np.einsum("iap,jbp->ijab", j1, j2)
    np.testing.assert_allclose(ntk_jax.contract(f1, f2, outputs="full"), exact, atol=1e-10)
    np.testing.assert_allclose(
        ntk_jax.contract(f2, f1, outputs="full"), exact.transpose(1, 0, 3, 2), atol=1e-10
    )
    if j1.shape[1] == j2.shape[1]:
        for outputs in ("mean", "diagonal"):
            close_to = dense_ntk(j1, j2, outputs)
            np.testing.assert_allclose(
                ntk_jax.contract(f1, f2, outputs=outputs), close_to, atol=1e-10
            )
    z1, z2 = (
        ntk_jax.tangent_features(f, parameters, rows, projection=4096, key=KEY) for f, rows in pairs
    )
    found = np.asarray(ntk_jax.contract(z1, z2, outputs="full"))
    np.testing.assert_allclose(
        found.transpose(0, 2, 1, 3).reshape(len(j1) * 2, -1),
        np.asarray(z1.matrix()) @ np.asarray(z2.matrix()).T,
        atol=1e-10,
    )
    norms = np.einsum("ia,jb->ijab", *(np.linalg.norm(j, axis=2) for j in (j1, j2)))
    assert np.all(np.abs(found - exact) <= 5 * (2 / 4096) ** 0.5 * norms + 1e-12)


def test_projection_inside_jit_contracts_with_one_outside(parameters):
    x = jnp.ones((2, 4))
    outside = ntk_jax.tangent_features(_network, parameters, x, projection=K, key=KEY)
    inside = jax.jit(
        lambda p, key: ntk_jax.tangent_features(_network, p, x, projection=K, key=key)
    )(parameters, KEY)
    close(ntk_jax.contract(outside, inside), np.asarray(ntk_jax.contract(outside)), 1e-12)


def test_what_cannot_be_contracted_is_refused(parameters, unchecked_shapes):
    x = jnp.ones((2, 4))
    features = lambda f, p, **options: ntk_jax.tangent_features(f, p, x, **options)
    network = features(_network, parameters)
    smaller = {"w": jnp.ones((4, 3)), "u": jnp.ones((3, 2))}
    for options in ({}, {"projection": K, "key": KEY}):
        other = features(lambda p, x: x @ p["w"] @ p["u"], smaller, **options)
        with pytest.raises(
            ValueError,
            match=r"\"\['b'\]\", \"\['v'\]\" only in features1; \"\['u'\]\" only in features2",
        ):
            ntk_jax.contract(features(_network, parameters, **options), other)
    with pytest.raises(ValueError, match=r"got '' of shape \(4, 2\) and \(4, 3\)"):
        ntk_jax.contract(*(features(lambda p, x: x @ p, jnp.ones((4, o))) for o in (2, 3)))
    projected = features(_network, parameters, projection=K, key=KEY)
    with pytest.raises(ValueError, match=r"40 dimensions.*got exact"):
        ntk_jax.contract(projected, network)
    for options in ({"projection": 41, "key": KEY}, {"projection": K, "key": jax.random.key(6)}):
        with pytest.raises(
            ValueError, match=r"projected alike, 40 dimensions.*same projection and key"
        ):
            ntk_jax.contract(projected, features(_network, parameters, **options))
    with pytest.raises(
        ValueError, match=r"expected 2 outputs, like features1; got 4.*outputs='full'"
    ):
        ntk_jax.contract(network, features(FUNCTIONS["other outputs"], parameters))
    with pytest.raises(ValueError, match="memory_limit: expected an integer of at least 1; got 0"):
        features(_network, parameters, projection=K, key=KEY, memory_limit=0)


def test_signs_do_not_depend_on_how_the_work_is_divided():
    """Weights of more entries than a chunk has, with and without something left over, in tiles of
    one row and of all.
    """
    rng = np.random.default_rng(2)
    shapes = {"b": (projection.CHUNK + 3,), "w": (71, 41), "v": (3, projection.CHUNK + 3)}
    params = {name: rng.standard_normal(s) / 50 for name, s in shapes.items()}

    def apply_fn(p, x):
        return jnp.sum(
            jnp.sin(jnp.tanh(x @ p["w"])[:, :3] @ p["v"] + p["b"][None]), axis=1, keepdims=True
        )

    x = rng.standard_normal((3, 71))
    matrix = ntk_jax.tangent_features(apply_fn, params, x, projection=K, key=KEY).matrix()
    rows = ntk_jax.tangent_features(
        apply_fn, params, x, projection=K, key=KEY, memory_limit=1
    ).matrix()
    close(rows, np.asarray(matrix), 1e-12)
    single = jax.tree.map(lambda a: a.astype(np.float32), params)
    half_as_exact = ntk_jax.tangent_features(
        apply_fn, single, x.astype(np.float32), projection=K, key=KEY
    ).matrix()
    close(half_as_exact, np.asarray(matrix), 1e-5)  # the same signs in either precision
    named = tuple((f"['{name}']", params[name].shape) for name in sorted(params))
    flat = ntk_jax.tangent_features(apply_fn, params, x).matrix()
    close(matrix, np.asarray(flat) @ np.concatenate(drawn(KEY, named, K)) / K**0.5, 1e-10)


@partial(jax.jit, static_argnums=(1, 2))
def drawn(key, leaves, k):
    """The signs of leaves, of which names and shapes are given."""
    root = jax.random.bits(key, (2,), jnp.uint32)
    seeds = [projection._mixed(root ^ projection._name_in_words(*leaf)) for leaf in leaves]
    sizes = [math.prod(shape) for _, shape in leaves]
    return [
        projection._signs(seed, jnp.arange(size), k, jnp.float64)
        for seed, size in zip(seeds, sizes, strict=True)
    ]


def test_signs_are_independent():
    """Products of signs of two entries, dimensions, leaves or keys have mean 0 and square sums of
    their count.
    """
    leaves = ("['a']", (600,)), ("['b']", (600,))
    draws = [np.asarray(s) for i in (0, 1) for s in drawn(jax.random.key(i), leaves, 500)]
    for s in draws:
        assert abs(s.mean()) < 5 / s.size**0.5
        for gram in (s @ s.T / 500**0.5, s.T @ s / 600**0.5):
            off = gram[~np.eye(len(gram), dtype=bool)]
            assert (
                abs(off.mean()) < 5 / off.size**0.5
                and abs(np.mean(off**2) - 1) < 0.02
                and abs(off).max() < 6
            )
    for i, s in enumerate(draws):
        for t in draws[:i]:
            cross = s @ t.T / 500**0.5
            assert abs(np.mean(cross**2) - 1) < 0.02 and abs(cross).max() < 6


def test_error_is_that_of_plain_signs():
    """Mean square (|g|² |g'|² + (g·g')² - 2 sum g_p² g'_p²) / dimensions: products of signs of the
    factors have more.
    """
    model = nn.Sequential(
        [nn.Conv(3, (3,), param_dtype=jnp.float64), jnp.tanh, lambda h: h.mean(1)]
    )
    x = normal(0, (6, 8, 2))
    apply_fn, params = ntk_jax.from_linen(model, jax.jit(model.init)(jax.random.key(1), x))
    g = dense_jacobian(apply_fn, params, x)[:, 0]
    apply_one = lambda p, x: apply_fn(p, x)[:, :1]

    @jax.jit
    @jax.vmap
    def estimate(key):
        return ntk_jax.contract(
            ntk_jax.tangent_features(apply_one, params, x, projection=32, key=key)
        )

    found = np.asarray(estimate(jax.random.split(jax.random.key(2), 200)))
    square = np.mean((found - g @ g.T) ** 2)
    norms = np.sum(g**2, axis=1)
    expected = np.mean(np.outer(norms, norms) + (g @ g.T) ** 2 - 2 * (g**2) @ (g**2).T) / 32
    assert 0.7 < square / expected < 1.4


PEAK = """
import jax, numpy as np, flax.linen as nn, ntk_jax
class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))
x = np.random.default_rng(0).standard_normal((LENGTH, 8, 8, 1), np.float32)
apply_fn, params = ntk_jax.from_linen(CNN(), jax.jit(CNN().init)(jax.random.key(1), x[:1]))
features = ntk_jax.tangent_features(
    apply_fn, params, x, projection=512, key=jax.random.key(2), memory_limit=2**26
)
features.matrix().block_until_ready()
print(next(int(line.split()[1]) // 1024 for line in open(
    "/proc/self/status") if line.startswith("VmHWM"
)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_does_not_grow_with_the_rows():
    peaks = []
    for length in (64, 1024):
        code = PEAK.replace("LENGTH", str(length))
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        peaks.append(int(out.stdout))
    result = (1024 - 64) * 10 * 512 * 4 / 2**20
    assert peaks[1] - peaks[0] < result + 150  # MiB; the dense Jacobians of these rows have 360
