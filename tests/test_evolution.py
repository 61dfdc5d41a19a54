"""The recorded evolution of a kernel against kernels computed one by one; what width and output
scale do to it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_jax
from cases.compilations import optimized
from cases.draws import drawn, normal


@pytest.fixture(scope="module")
def problem():
    x, y = (
        normal(0, (6, 3)),
        normal(1, (6, 2)),
    )
    model = ntk_jax.MLP((8,), 2, "tanh", 1.5, 0.1)
    return *drawn(model, x), x, y


@pytest.mark.slow
def test_history_is_that_of_the_kernels(problem):
    apply_fn, params, x, y = problem
    record = ntk_jax.kernel_evolution(apply_fn, params, x, y, keep_kernels=True)
    options = {"optimizer": optax.sgd(0.5), "num_steps": 6, "record_every": 3, "progress": False}
    history = ntk_jax.train(apply_fn, params, x, y, record=record, **options)
    seen = history.recorded
    k_0 = ntk_jax.empirical_ntk(apply_fn, params, x)
    by_output_0 = ntk_jax.empirical_ntk(apply_fn, params, x, outputs="diagonal")
    k, by_output = (
        ntk_jax.empirical_ntk(apply_fn, history.params, x, outputs=o) for o in ("mean", "diagonal")
    )
    np.testing.assert_allclose(seen.kernel[0], k_0, rtol=1e-12)
    np.testing.assert_allclose(seen.kernel[-1], k, rtol=1e-12)
    np.testing.assert_allclose(seen.change[[0, -1]], [0, ntk_jax.kernel_change(k, k_0)], rtol=1e-10)
    np.testing.assert_allclose(
        seen.alignment[-1], ntk_jax.alignment(k, y, centered=True), rtol=1e-12
    )
    for o in range(2):
        truth = ntk_jax.alignment(by_output[:, :, o], y[:, o], centered=True)
        np.testing.assert_allclose(seen.alignment_by_output[-1, o], truth, rtol=1e-12)
        own_change = ntk_jax.kernel_change(by_output[:, :, o], by_output_0[:, :, o])
        np.testing.assert_allclose(seen.change_by_output[[0, -1], o], [0, own_change], rtol=1e-10)
    np.testing.assert_allclose(
        seen.effective_rank[-1], ntk_jax.effective_rank(k, kind="participation"), rtol=1e-12
    )
    layers = ntk_jax.empirical_ntk_by_layer(apply_fn, history.params, x)
    assert set(seen.share_by_layer) == set(seen.change_by_layer) == set(layers)
    for name, part in layers.items():
        np.testing.assert_allclose(
            seen.share_by_layer[name][-1], np.trace(part) / np.trace(k), rtol=1e-12
        )
        start = ntk_jax.empirical_ntk_by_layer(apply_fn, params, x)[name]
        np.testing.assert_allclose(
            seen.change_by_layer[name][-1], ntk_jax.kernel_change(part, start), atol=1e-12
        )
    without = ntk_jax.kernel_evolution(apply_fn, params, x)(history.params)
    assert (
        without.alignment
        is without.velocity
        is without.alignment_by_output
        is without.kernel
        is None
    )
    np.testing.assert_allclose(without.change, seen.change[-1], rtol=1e-12)


def test_velocity_is_the_change_over_one_small_step(problem):
    apply_fn, params, x, y = problem
    dt = 1e-6
    grads = jax.jit(jax.grad(lambda p: jnp.mean((apply_fn(p, x) - y) ** 2) / 2))(params)
    ahead, behind = (
        jax.tree.map(lambda p, g, s=s: np.asarray(p) - s * dt * np.asarray(g), params, grads)
        for s in (1, -1)
    )
    k, k_plus, k_minus = (ntk_jax.empirical_ntk(apply_fn, p, x) for p in (params, ahead, behind))
    truth = np.linalg.norm(np.asarray(k_plus) - k_minus) / (2 * dt) / np.linalg.norm(k)
    np.testing.assert_allclose(ntk_jax.kernel_velocity(apply_fn, params, x, y), truth, rtol=1e-7)


def test_targets_that_would_broadcast_are_refused(problem, unchecked_shapes):
    apply_fn, params, x, y = problem
    for call in (ntk_jax.kernel_evolution, ntk_jax.kernel_velocity):
        with pytest.raises(
            ValueError, match=r"y: expected the shape that apply_fn returns, \(6, 2\); got \(6, 1\)"
        ):
            call(apply_fn, params, x, y[:, :1])


def wave():
    """Noisy samples of a sine, 50 points on a line, and 100 points at which the kernel is
    watched.
    """
    rng = np.random.RandomState(42)
    rng.randn(5, 3)  # the published demonstration drew these first
    x = rng.uniform(-3, 3, (50, 1))
    return x, np.sin(x) + 0.1 * rng.randn(50, 1), np.linspace(-4, 4, 100)[:, None]


def trained_kernel_change(width, x, y, grid, keys):
    """Relative change of the kernel on the grid after 500 steps of n / 2 s_max, a quarter of the
    critical rate, per key.
    """
    model = ntk_jax.MLP((width,), 1, W_std=(1.0, 2**0.5), b_std=(1.0, None))

    def one(key):
        params = model.init(key, x)["params"]
        apply_fn = lambda p, x: model.apply({"params": p}, x)
        learning_rate = (
            ntk_jax.max_learning_rate(
                ntk_jax.diagonalize(ntk_jax.empirical_ntk(apply_fn, params, x))
            )
            / 4
        )
        grad = jax.grad(lambda p: jnp.mean((apply_fn(p, x) - y) ** 2) / 2)
        step = lambda _, p: jax.tree.map(lambda a, g: a - learning_rate * g, p, grad(p))
        trained = jax.lax.fori_loop(0, 500, step, params)
        k, k_0 = (ntk_jax.empirical_ntk(apply_fn, p, grid) for p in (trained, params))
        return ntk_jax.kernel_change(k, k_0), params

    return jax.jit(jax.vmap(one))(keys)


def by_hand(params, x, y, grid):
    """The same in NumPy, with the kernel and the gradients written out."""
    W, b, a = (
        np.asarray(params[i][j])
        for i, j in [("Dense_0", "kernel"), ("Dense_0", "bias"), ("Dense_1", "kernel")]
    )
    weights, a = np.concatenate([W, b[None]]), a[:, 0]
    inputs, watched = (
        np.concatenate([points, np.ones_like(points)], axis=1) for points in (x, grid)
    )
    scale = (2 / a.size) ** 0.5

    def kernel(inputs, weights, a):
        z = inputs @ weights
        back = (z > 0) * a
        return scale**2 * (
            np.maximum(z, 0) @ np.maximum(z, 0).T + inputs @ inputs.T * (back @ back.T)
        )

    k_0 = kernel(watched, weights, a)
    rate = (
        len(x) / 2 / np.linalg.eigvalsh(kernel(inputs, weights, a))[-1]
    )  # a quarter of 2 n / s_max
    for _ in range(500):
        z = inputs @ weights
        residual = (scale * np.maximum(z, 0) @ a - y[:, 0]) / len(x)
        step_a = scale * np.maximum(z, 0).T @ residual
        weights = weights - rate * scale * inputs.T @ ((z > 0) * residual[:, None] * a)
        a = a - rate * step_a
    return np.linalg.norm(kernel(watched, weights, a) - k_0) / np.linalg.norm(k_0)


@pytest.mark.slow
def test_kernels_of_wide_networks_stay():
    data, means = wave(), []
    published = {50: 0.10, 200: 0.025, 1000: 0.011, 5000: 0.0040}  # means of five networks each
    for (width, five), num_networks in zip(published.items(), (40, 40, 16, 8), strict=True):
        x, y, grid = (jnp.asarray(a, jnp.float64 if width == 50 else jnp.float32) for a in data)
        keys = jax.random.split(jax.random.key(width), num_networks)
        with optimized(True):  # these networks train for longer than their programs compile
            changes, params = trained_kernel_change(width, x, y, grid, keys)
        if width == 50:
            first = jax.tree.map(lambda leaf: leaf[0], params)
            np.testing.assert_allclose(changes[0], by_hand(first, *data), rtol=1e-8)
        means.append(np.mean(changes))
        # 30 %, or where five networks scatter more (width 5,000), three standard errors of the
        # difference
        error = np.std(changes, ddof=1) * (1 / 5 + 1 / num_networks) ** 0.5
        assert abs(means[-1] - five) < max(0.3 * five, 3 * error)
    assert abs(np.polyfit(np.log([*published]), np.log(means), 1)[0] + 0.6) < 0.1


@pytest.mark.slow
def test_small_output_scales_learn_features():
    x = jax.random.normal(jax.random.key(3), (20, 4))
    y = jnp.sign(x[:, :1] * x[:, 1:2])
    model = ntk_jax.MLP((64,), 1, "tanh", 1.5, 0.1)
    apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(4), x))
    centered = ntk_jax.zero_output(apply_fn, params)
    changes, alignments = [], []
    for alpha in (0.1, 10.0, 100.0):
        scaled = ntk_jax.scale_output(centered, alpha)
        record = ntk_jax.kernel_evolution(scaled, params, x, y)
        history = ntk_jax.train(
            scaled, params, x, y, record=record, num_steps=200, record_every=200, progress=False,
            optimizer=optax.sgd(0.5), loss=lambda f, y, a=alpha: jnp.mean((f - y) ** 2) / 2 / a**2,
        )  # fmt: skip
        changes.append(history.recorded.change[-1])
        alignments.append(history.recorded.alignment[-1] - history.recorded.alignment[0])
    np.testing.assert_allclose(changes[1] / changes[2], 10, rtol=0.15)  # lazy: as 1 / alpha
    assert changes[0] > 20 * changes[1] and alignments[0] > 0.05 > 0.002 > abs(alignments[2])
