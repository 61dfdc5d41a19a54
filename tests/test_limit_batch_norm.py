"""Batch normalization in training mode, in the limit at a fixed batch: closed forms, quadrature,
the published rate of exploding gradients, wide networks.
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.integrate import quad

import ntk_jax
from cases.architectures import Net, lenient
from cases.wide_networks import estimate

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 6))
X[1] = 0.6 * X[0] + 0.8 * X[1]
CENTERING = np.eye(5) - 1 / 5
LINEAR = {
    "use_bias": False,
    "param_dtype": float,
    "kernel_init": nn.initializers.variance_scaling(1, "fan_in", "normal"),
}
NUM_KEYS = 16


def normalize(**options):
    return nn.BatchNorm(use_running_average=False, param_dtype=float, **options)


def centered(x, width, num_outputs):
    h = nn.Dense(width, **LINEAR)(x)
    return nn.Dense(num_outputs, **LINEAR)(nn.relu(h - h.mean(axis=0, keepdims=True)))


def linear(x, width, num_outputs):
    return nn.Dense(num_outputs, **LINEAR)(normalize(epsilon=0.1)(nn.Dense(width, **LINEAR)(x)))


def rectified(x, width, num_outputs):
    h = normalize(epsilon=0.0, use_scale=False, use_bias=False)(nn.Dense(width, **LINEAR)(x))
    return nn.Dense(num_outputs, **LINEAR)(nn.relu(h))


def limit(body, width=8, num_samples=None, **options):
    key = None if num_samples is None else jax.random.key(0)
    options = {"batch_coupled": True, "num_samples": num_samples, "key": key, **options}
    return ntk_jax.infinite_width(Net(body, width, 1), **options)


def estimates(kernel, x):
    """Mean over independent keys, and its standard error."""
    found = [lenient(replace(kernel, key=jax.random.key(seed)))(x) for seed in range(NUM_KEYS)]
    each = list(map(np.stack, zip(*found, strict=True)))
    return [k.mean(axis=0) for k in each], [k.std(axis=0, ddof=1) / NUM_KEYS**0.5 for k in each]


def arc_cosine(k):
    """E[relu u relu v] and E[relu' u relu' v] (Cho and Saul 2009), rows with themselves exactly."""
    scale = np.sqrt(np.outer(np.diag(k), np.diag(k)))
    cosine = np.clip(k / scale, -1, 1)
    np.fill_diagonal(cosine, 1)
    angle = np.pi - np.arccos(cosine)
    return scale * (np.sqrt(1 - cosine**2) + angle * cosine) / (2 * np.pi), angle / (2 * np.pi)


def test_a_batch_that_is_only_centered_needs_no_samples():
    kernel = limit(centered, learning_rates="variance")
    found = lenient(kernel)(X)
    k = CENTERING @ X @ X.T @ CENTERING / 6
    nngp, slope = arc_cosine(k)
    np.testing.assert_allclose(found.nngp, nngp, rtol=1e-10)
    np.testing.assert_allclose(found.ntk, nngp + slope * k, rtol=1e-10)
    order = np.array([3, 0, 4, 1, 2])
    for k, moved in zip(found, lenient(kernel)(X[order]), strict=True):
        np.testing.assert_allclose(moved, k[np.ix_(order, order)], rtol=1e-12)


def normalized_second_moments(k, epsilon):
    """E[y y'] of y = h / sqrt(mean h² + epsilon), h ~ N(0, k) of mean 0 over rows: with
    1 / a = integral of exp(-a s), one integral for each eigenvector of k.
    """
    n, (values, vectors) = len(k), np.linalg.eigh(k)

    def along(value):
        joint = lambda s: np.exp(-n * epsilon * s) / np.prod(np.sqrt(1 + 2 * values * s))
        return quad(lambda s: n * value * joint(s) / (1 + 2 * value * s), 0, np.inf)[0]

    return vectors * [along(max(value, 0.0)) for value in values] @ vectors.T


def slopes_of_normalization(k, theta, epsilon, num_samples):
    """E[D Theta Dᵀ] with D = dy / dh, plainly sampled, and its standard error."""
    values, vectors = np.linalg.eigh(k)
    z = np.random.default_rng(1).standard_normal((num_samples, len(k)))
    c = z * np.sqrt(np.maximum(values, 0)) @ vectors.T
    spread = np.sqrt(np.mean(c**2, axis=1) + epsilon)[:, None, None]
    y = c[:, :, None] / spread
    d = (CENTERING - y * y.swapaxes(1, 2) / len(k)) / spread
    samples = d @ theta @ d.swapaxes(1, 2)
    return samples.mean(axis=0), samples.std(axis=0) / num_samples**0.5


def test_normalization_alone_follows_its_integrals():
    """Trained weights W, V, scale and shift: w E[y y'] + E[D x x' Dᵀ] + E[y y'] + 1."""
    means, errors = estimates(limit(linear, num_samples=1024), X)
    k = CENTERING @ X @ X.T @ CENTERING / 6
    nngp = normalized_second_moments(k, 0.1)
    slopes, spread = slopes_of_normalization(k, X @ X.T, 0.1, 100_000)
    assert np.all(np.abs(means[0] - nngp) <= 4 * errors[0])
    error = np.hypot(errors[1], spread)
    assert np.all(np.abs(means[1] - (9 * nngp + slopes + 1)) <= 4 * error)
    assert all(np.max(e) < 0.01 * np.max(k) for e, k in zip(errors, means, strict=True))


def test_the_scale_of_a_batch_does_not_matter():
    kernel = lenient(limit(rectified, num_samples=64, learning_rates="variance"))
    found = kernel(X)
    for k, scaled in zip(found, kernel(3 * X), strict=True):
        np.testing.assert_allclose(scaled, k, rtol=1e-10)
        np.testing.assert_array_equal(k, k.T)
        assert np.linalg.eigvalsh(k).min() > -1e-12 * np.max(k)


@pytest.mark.slow
def test_rows_in_another_order_are_another_estimate_of_the_same():
    kernel = limit(rectified, num_samples=512, learning_rates="variance")
    order = np.array([3, 0, 4, 1, 2])
    (here, errors), (there, more) = estimates(kernel, X), estimates(kernel, X[order])
    for a, b, e, f in zip(here, there, errors, more, strict=True):
        at = np.ix_(order, order)
        assert np.all(np.abs(a[at] - b) <= 4 * np.hypot(e[at], f))
    reported = lenient(limit(rectified, num_samples=512).standard_error)(X).nngp
    ratio = np.mean(np.square(reported)) / (NUM_KEYS * np.mean(np.square(errors[0])))
    assert 0.4 < ratio < 2.5


def separate(x, width, num_outputs):
    """Pixels of rows that do not interact."""
    x = nn.relu(nn.Conv(width, (3,), **LINEAR)(x))
    return nn.Conv(num_outputs, (1,), **LINEAR)(x)


@pytest.mark.parametrize("positions", ["full", pytest.param("mean", marks=pytest.mark.slow)])
def test_rows_that_do_not_interact_have_the_kernel_that_they_have(positions):
    x = RNG.standard_normal((3, 4, 2))
    coupled, apart = (
        lenient(limit(separate, positions=positions, batch_coupled=b))(x) for b in (True, False)
    )
    for k, expected in zip(coupled, apart, strict=True):
        assert k.shape == ((3, 3, 4, 4) if positions == "full" else (3, 3))
        np.testing.assert_allclose(k, expected, rtol=1e-10, atol=1e-13)


class Switched(nn.Module):
    """Batch normalization by the batch, or by averages of earlier ones."""

    @nn.compact
    def __call__(self, x, train):
        h = nn.BatchNorm(use_running_average=not train, param_dtype=float)(nn.Dense(8, **LINEAR)(x))
        return nn.Dense(1, **LINEAR)(nn.relu(h))


@pytest.mark.slow
def test_running_averages_do_not_couple_rows():
    averages = {"call": {"train": False}}
    apart = lenient(ntk_jax.infinite_width(Switched(), **averages))(X)
    coupled = lenient(ntk_jax.infinite_width(Switched(), batch_coupled=True, **averages))(X)
    for k, expected in zip(coupled, apart, strict=True):
        np.testing.assert_allclose(k, expected, rtol=1e-10)


class OfNNX(nnx.Module):
    """`Switched` of the other API."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 1, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


@pytest.mark.slow
def test_both_apis_of_flax():
    options = {"batch_coupled": True, "num_samples": 64, "key": jax.random.key(0)}
    linen = ntk_jax.infinite_width(Switched(), call={"train": True}, **options)
    of_nnx = ntk_jax.infinite_width(OfNNX, **options)
    x = X.astype(np.float32)
    found = lenient(of_nnx)(x)
    for a, b in zip(lenient(linen)(x), found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    module = OfNNX(nnx.Rngs(0))
    module.train()
    laws = {"first/kernel": (0, 1 / 6), "last/kernel": (0, 1 / 8)}
    laws |= {"norm/scale": (1, 0), "norm/bias": (0, 0)}
    dropped = ntk_jax.infinite_width(module, init_stats=laws, dropout="expectation", **options)
    # A row meets its own mask, of second moment 2.
    np.testing.assert_allclose(lenient(dropped)(x).nngp / found.nngp, 1 + np.eye(5), rtol=1e-5)


@pytest.mark.slow
def test_compiled_and_differentiated():
    kernel = lenient(limit(rectified, num_samples=64, kernels="nngp"))
    value_and_slope = jax.jit(jax.value_and_grad(lambda x: jnp.sum(kernel(x) ** 2)))
    value, slope = value_and_slope(jnp.asarray(X))
    np.testing.assert_allclose(value, np.sum(np.square(kernel(X))), rtol=1e-12)
    step = 1e-6 * RNG.standard_normal(X.shape)
    (up, _), (down, _) = value_and_slope(X + step), value_and_slope(X - step)
    np.testing.assert_allclose(up - down, 2 * np.vdot(slope, step), rtol=1e-4)


def deep(depth):
    def body(x, width, num_outputs):
        for _ in range(depth):
            x = nn.Dense(width, **LINEAR)(x)
            x = nn.relu(normalize(epsilon=0.0, use_scale=False, use_bias=False)(x))
        return nn.Dense(num_outputs, **LINEAR)(x)

    return body


def rate_of_gradients(batch):
    """By what gradients grow in each layer of a deep rectified network: pi / (pi - 1) in the limit
    of large batches (Yang et al. 2019, arXiv:1902.08129).
    """
    c = -1 / (batch - 1)
    slope = (np.pi - np.arccos(c)) / np.pi
    value = (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / np.pi
    return ((batch - 1 + slope) / (1 - value) - 1) / (batch - 3)


@pytest.mark.slow
def test_gradients_explode_at_the_published_rate():
    np.testing.assert_allclose(rate_of_gradients(1e9), np.pi / (np.pi - 1), rtol=1e-6)
    x = RNG.standard_normal((8, 64))
    options = {"num_samples": 8192, "learning_rates": "variance", "kernels": "ntk"}
    shallow, deeper = (np.trace(lenient(limit(deep(d), **options))(x)) for d in (6, 10))
    np.testing.assert_allclose((deeper / shallow) ** (1 / 4), rate_of_gradients(8), rtol=0.015)


def trained(x, width, num_outputs):
    x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(width)(x)))
    return nn.Dense(num_outputs)(x)


def mixed(x, width, num_outputs):
    x = nn.Dense(width)(x)
    x = nn.tanh(nn.BatchNorm(use_running_average=False, use_fast_variance=False)(x))
    x = nn.Dense(width)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=False, use_scale=False)(x))
    return nn.Dense(num_outputs)(x)


def residual(x, width, num_outputs):
    x = nn.Dense(width)(x)
    for _ in range(2):
        x = x + nn.Dense(width)(nn.relu(nn.BatchNorm(use_running_average=False)(x)))
    x = nn.BatchNorm(use_running_average=False, use_scale=False)(x)
    return nn.Dense(num_outputs)(x)


def convolutional(x, width, num_outputs):
    for strides in (1, 2):
        x = nn.Conv(width, (3, 3), strides=strides)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
    return nn.Dense(num_outputs)(x.reshape(len(x), -1))


def in_training(body, width, num_outputs, x):
    """(init_fn, apply_fn) of networks whose updated statistics are dropped."""
    model = Net(body, width, num_outputs)
    stats = lenient(jax.jit(model.init))(jax.random.key(0), x)["batch_stats"]
    apply = lambda params, x: model.apply(
        {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
    )[0]
    return lenient(lambda key: model.init(key, x)["params"]), lenient(apply)


@pytest.mark.slow
@pytest.mark.parametrize(
    "body, shape, width",
    [
        (trained, (6, 5), 512),
        (mixed, (6, 5), 512),
        (residual, (6, 5), 512),
        (convolutional, (3, 4, 4, 2), 256),
    ],
)
def test_is_within_four_standard_errors_of_wide_networks(body, shape, width):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[1] = 0.6 * x[0] + 0.8 * x[1]
    networks = estimate(lambda *sizes: in_training(body, *sizes, x), x, width, 48, seed=2)
    means, errors = estimates(limit(body, width, num_samples=1024), x)
    for k, truth, e, f in zip(means, networks[:2], errors, networks[2:], strict=True):
        assert np.max(np.abs(k - truth) / np.hypot(e, f)) < 4
        assert np.max(f) < 0.05 * np.max(truth) and np.max(e) < 0.05 * np.max(truth)


def test_what_a_batch_does_not_give_is_refused():
    with pytest.raises(ntk_jax.NoLimitError, match=r"variance of a batch.*num_samples=, key="):
        lenient(limit(rectified))(X)
    kernel = lenient(limit(centered))
    with pytest.raises(ValueError, match=r"x2: expected None.*kernel_fn\(x\)"):
        kernel(X, X[:2])
    with pytest.raises(ValueError, match=r"x2: expected None.*tile, shard, kernel_operator"):
        lenient(ntk_jax.kernel_operator)(lambda *x: kernel(*x).ntk, X) @ np.ones(5)


@pytest.mark.slow
def test_the_table_is_that_of_the_batch():
    options = {"batch_coupled": True, "num_samples": 8, "key": jax.random.key(0)}
    table = lenient(ntk_jax.explain_limit)(Net(rectified, 8, 1), X, **options)
    assert "(5, ∞)" in table and "sampled: 8 draws" in table
