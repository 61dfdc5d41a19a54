"""Real networks beside their predictions: digits at width 2,048, the rate in width, and 300
networks at once.
"""

import jax
import numpy as np
import optax
import pytest

import ntk_jax
from ntk_jax.data import digits_data, linear_data

pytestmark = pytest.mark.slow

SCALES = {"W_std": 2**0.5, "b_std": 0.1}


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_wide_network_on_digits_is_where_its_kernel_says(loss):
    data = digits_data(24, 16).astype(np.float32)
    y, y_test = (
        y + np.float32(0.1 if loss == "cross_entropy" else 0) for y in (data.y_train, data.y_test)
    )
    model = ntk_jax.MLP((2048, 2048), 10, **SCALES)
    apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(0), data.x_train))
    k = ntk_jax.empirical_ntk(apply_fn, params, data.x_train, outputs="full")
    k_test = ntk_jax.empirical_ntk(apply_fn, params, data.x_test, data.x_train, outputs="full")
    modes = ntk_jax.diagonalize(k)
    critical = ntk_jax.max_learning_rate(modes)
    # cross-entropy averages over examples, not over entries: its Hessian is at most half of 10
    # times that of "mse"
    rate = float(critical) * (0.5 if loss == "mse" else 0.02)
    history = ntk_jax.train(
        apply_fn,
        params,
        data.x_train,
        y,
        optimizer=optax.sgd(rate),
        num_steps=80,
        loss=loss,
        record_every=10,
        x_test=data.x_test,
        record_outputs=True,
        progress=False,
    )
    start = {
        "fx_train_0": history.fx_train[0],
        "fx_test_0": history.fx_test[0],
        "k_test_train": k_test,
    }
    if loss == "mse":
        prediction = ntk_jax.gradient_descent_mse(modes, y, history.steps, rate, **start)
    else:
        prediction = ntk_jax.gradient_flow(loss, k, y, rate * history.steps, **start)
    out = ntk_jax.compare(
        history,
        prediction,
        y,
        y_test=y_test,
        learning_rate=rate,
        loss=loss,
        critical_learning_rate=critical,
    )
    moved = np.abs(history.fx_test[-1] - history.fx_test[0]).max()
    assert moved > 2  # sup-norm gap of any output at any record: 4 % of how far outputs move
    assert out.train.gap.max() < 0.04 * moved and out.test.gap.max() < 0.04 * moved
    np.testing.assert_allclose(
        out.train.loss[1], out.train.loss[0], atol=0.02 * out.train.loss[0, 0]
    )


def test_gap_to_the_infinitely_wide_network_falls_like_one_over_root_width():
    data = digits_data(16, 16).astype(np.float32)
    options = {"depth": 1, **SCALES}
    modes = ntk_jax.diagonalize(ntk_jax.mlp_kernels(data.x_train, **options).ntk)
    k_test = ntk_jax.mlp_kernels(data.x_test, data.x_train, **options).ntk
    rate = 0.25 * float(ntk_jax.max_learning_rate(modes, 10))
    widths, gaps = (128, 2048), []
    for width in widths:
        model = ntk_jax.MLP((width,), 10, **SCALES)
        history = ntk_jax.train_ensemble(
            lambda key, model=model: model.init(key, data.x_train)["params"],
            lambda params, x, model=model: model.apply({"params": params}, x),
            data.x_train,
            data.y_train,
            key=jax.random.key(0),
            num_networks=6,
            optimizer=optax.sgd(rate),
            num_steps=60,
            record_every=60,
            x_test=data.x_test,
            progress=False,
        )
        predicted = [
            ntk_jax.gradient_descent_mse(
                modes,
                data.y_train,
                60,
                rate,
                fx_train_0=train[0],
                fx_test_0=test[0],
                k_test_train=k_test,
            ).test
            for train, test in zip(history.fx_train, history.fx_test, strict=True)
        ]
        gaps.append(np.sqrt(np.mean((history.fx_test[:, -1] - np.stack(predicted)) ** 2)))
    slope = np.polyfit(np.log(widths), np.log(gaps), 1)[0]
    assert -0.65 < slope < -0.35


def test_three_hundred_trained_networks_are_the_predicted_ensemble():
    data = linear_data()
    scales = {"W_std": (10.0, 2**0.5), "b_std": (1.0, None)}
    kernels = [
        ntk_jax.mlp_kernels(*pair, depth=1, **scales)
        for pair in ((data.x_train,), (data.x_test, data.x_train), (data.x_test,))
    ]
    rate = 0.25 * float(ntk_jax.max_learning_rate(ntk_jax.diagonalize(kernels[0].ntk)))
    steps, num_networks = 80, 300
    single = data.astype(np.float32)
    model = ntk_jax.MLP((256,), **scales)
    history = ntk_jax.train_ensemble(
        lambda key: model.init(key, single.x_train)["params"],
        lambda params, x: model.apply({"params": params}, x),
        single.x_train,
        single.y_train,
        key=jax.random.key(0),
        num_networks=num_networks,
        optimizer=optax.sgd(rate),
        num_steps=steps,
        record_every=steps,
        x_test=single.x_test,
        progress=False,
    )
    theory = ntk_jax.ensemble_mse(
        *kernels[:2], np.diag(kernels[2].nngp), data.y_train, rate * np.array([0, steps])
    )
    for outputs, mean, variance in zip(
        history.fx_test.swapaxes(0, 1), *map(np.asarray, theory), strict=True
    ):
        z = (np.mean(outputs, 0) - mean)[:, 0] / np.sqrt(variance / num_networks)
        spread = np.mean((outputs - mean[None]) ** 2, axis=(1, 2))
        loss = np.mean((outputs - data.y_test[None]) ** 2, axis=(1, 2))
        expected = np.mean(variance) + np.mean((mean - data.y_test) ** 2)
        assert np.abs(z).max() < 4
        assert abs(np.mean(spread) - np.mean(variance)) < 4 * np.std(spread) / num_networks**0.5
        assert abs(np.mean(loss) - expected) < 4 * np.std(loss) / num_networks**0.5
    assert history.loss[:, -1].mean() < 0.1 * history.loss[:, 0].mean()
