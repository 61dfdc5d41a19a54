"""Losses by name, and descent on any of them, against training a linear network by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_jax
from cases.compilations import compilations
from ntk_jax import losses

pytestmark = pytest.mark.usefixtures("unoptimized")
RNG = np.random.default_rng(0)
N, D, O = 7, 4, 3
X, X_TEST = RNG.standard_normal((N, D)), RNG.standard_normal((2, D))
W = RNG.standard_normal((D, O))
Y = RNG.standard_normal((N, O))
LABELS = RNG.integers(0, O, N)
TARGETS = {"hinge": np.sign(Y), "logistic": np.sign(Y), "cross_entropy": np.eye(O)[LABELS]}
K, K_TEST = X @ X.T, X_TEST @ X.T


def linear(w, x):
    return x @ w


def by_numpy(loss, f, y):
    """Every loss, entry by entry."""
    margin, r = y * f, y - f
    if loss == "hinge":
        return np.mean(np.maximum(0, 1 - margin))
    if loss == "l1":
        return np.mean(np.abs(r))
    if loss.startswith("quantile"):
        return np.mean(np.where(r > 0, 0.8 * r, -0.2 * r))
    return np.mean(np.where(r > 0, 0.8, 0.2) * r**2)


@pytest.mark.parametrize("loss", ["hinge", "l1", "quantile(0.8)", "expectile(0.8)"])
def test_losses_are_their_formulas(loss):
    y = TARGETS.get(loss, Y)
    found = losses.loss_function(loss, jnp.asarray(y))(jnp.asarray(X @ W), jnp.asarray(y))
    np.testing.assert_allclose(found, by_numpy(loss, X @ W, y), rtol=1e-12)


def test_least_losses_are_quantiles_and_expectiles():
    y = np.sort(RNG.standard_normal(99))
    at = lambda loss: [float(loss(jnp.full(99, q), jnp.asarray(y))) for q in y]
    assert np.argmin(at(losses.quantile(0.2))) == 19 and np.argmin(at(losses.l1)) == 49
    f = jnp.asarray(RNG.standard_normal(99))
    half = losses.expectile(0.5)(f, jnp.asarray(y))
    np.testing.assert_allclose(half, losses.mse(f, jnp.asarray(y)), rtol=1e-12)


def by_hand(loss, y, steps, optimizer):
    """Outputs on train and test examples after training x @ w."""
    y, w = jnp.asarray(y), jnp.asarray(W)
    loss_fn = losses.loss_function(loss, y)
    slope = jax.jit(jax.grad(lambda w: loss_fn(X @ w, y)))
    state, found = optimizer.init(w), {}
    for step in range(max(steps) + 1):
        found[step] = np.asarray(X @ w), np.asarray(X_TEST @ w)
        updates, state = optimizer.update(slope(w), state)
        w = w + updates
    return [np.stack([found[s][side] for s in steps]) for side in (0, 1)]


LOSSES = [
    "hinge",
    *(
        pytest.param(loss, marks=pytest.mark.slow)
        for loss in ("mse", "huber", "logistic", "cross_entropy", "l1", "expectile(0.1)")
    ),
    "quantile(0.9)",
    lambda f, y: jnp.mean((f - y) ** 4) / 10,
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), pytest.param(0.8, True, marks=pytest.mark.slow)]
)
def test_descent_is_training_of_the_linearized_network(loss, momentum, nesterov):
    y, steps = TARGETS.get(loss, Y), [0, 12, 5, 5]
    optimizer = optax.sgd(0.05, momentum or None, nesterov)
    train, test = by_hand(loss, y, steps, optimizer)
    out = ntk_jax.gradient_descent(
        loss, K, y, steps, 0.05, momentum=momentum, nesterov=nesterov,
        fx_train_0=X @ W, k_test_train=K_TEST, fx_test_0=X_TEST @ W,
    )  # fmt: skip
    np.testing.assert_allclose(out.train, train, atol=1e-10)
    np.testing.assert_allclose(out.test, test, atol=1e-10)


def test_kernels_with_output_axes_are_the_same_linear_maps():
    want = ntk_jax.gradient_descent("l1", K, Y, 9, 0.1).train
    diagonal = np.repeat(K[..., None], O, axis=2)
    full = K[..., None, None] * np.eye(O)
    for k in (diagonal, full):
        np.testing.assert_allclose(
            ntk_jax.gradient_descent("l1", k, Y, 9, 0.1).train, want, atol=1e-12
        )


def test_the_squared_loss_is_its_closed_form():
    found = ntk_jax.gradient_descent("mse", K, Y, [3, 40], 0.3, momentum=0.5, k_test_train=K_TEST)
    modes = ntk_jax.diagonalize(K)
    closed = ntk_jax.gradient_descent_mse(modes, Y, [3, 40], 0.3, momentum=0.5, k_test_train=K_TEST)
    np.testing.assert_allclose(found.train, closed.train, atol=1e-10)
    np.testing.assert_allclose(found.test, closed.test, atol=1e-10)


def test_labels_of_classes_are_probabilities():
    labels = {"y_train": LABELS}
    want = ntk_jax.gradient_descent("cross_entropy", K, TARGETS["cross_entropy"], 4, 0.1).train
    assert LABELS.max() == O - 1
    found = ntk_jax.gradient_descent("cross_entropy", K, **labels, num_steps=4, learning_rate=0.1)
    np.testing.assert_array_equal(found.train, want)
    four = ntk_jax.gradient_descent("cross_entropy", K, LABELS, 4, 0.1, fx_train_0=np.zeros((N, 4)))
    assert four.train.shape == (N, 4)
    options = {"optimizer": optax.sgd(0.1), "num_steps": 4, "progress": False}
    options |= {"loss": "cross_entropy", "x_test": X_TEST, "record_outputs": True}
    history = ntk_jax.train(linear, np.zeros((D, O)), X, LABELS, y_test=LABELS[:2], **options)
    np.testing.assert_allclose(history.fx_train[-1], want, atol=1e-10)
    out = ntk_jax.gradient_descent(
        "cross_entropy", K, LABELS, history.steps, 0.1, k_test_train=K_TEST
    )
    table = ntk_jax.compare(
        history, out, LABELS, learning_rate=0.1, y_test=LABELS[:2], loss="cross_entropy"
    )
    assert np.max(table.train.gap) < 1e-8 and np.max(table.test.gap) < 1e-8
    np.testing.assert_allclose(
        ntk_jax.gradient_flow("cross_entropy", K, LABELS, 0.5, progress=False).train,
        ntk_jax.gradient_descent("cross_entropy", K, LABELS, 2000, 0.5 / 2000).train,
        atol=1e-3,
    )


def test_one_program_serves_other_numbers_of_steps_and_rates():
    run = lambda steps, rate: ntk_jax.gradient_descent("hinge", K, np.sign(Y), steps, rate).train
    with compilations() as first:
        run([1, 2], 0.1)
    assert len(first) <= 2
    with compilations() as later:
        run([30, 7], 0.01)
    assert not later


def test_descent_keeps_float32_and_has_a_forward_derivative():
    single = ntk_jax.gradient_descent("l1", K.astype(np.float32), Y, 5, 0.1)
    assert single.train.dtype == jnp.float32
    run = lambda rate: ntk_jax.gradient_descent("mse", K, Y, 5, rate).train
    slope = jax.jvp(run, (0.1,), (1.0,))[1]
    np.testing.assert_allclose(slope, (run(0.1 + 1e-6) - run(0.1 - 1e-6)) / 2e-6, atol=1e-6)


KINKED = ("hinge", "l1", "quantile(0.8)")


@pytest.mark.parametrize("loss", KINKED)
def test_flow_along_kinks_is_the_limit_of_small_steps(loss):
    """The slow twin: 30,000 steps, with an error that is proportional to their size."""
    y, last = TARGETS.get(loss, Y), 60.0
    start = {"fx_train_0": 0.5 * X @ W, "k_test_train": K_TEST, "fx_test_0": 0.5 * X_TEST @ W}
    flow = ntk_jax.gradient_flow(loss, K, y, [last, 0.0, last / 3], **start)
    assert flow.stats["num_steps"] > N and flow.at is None
    np.testing.assert_array_equal(flow.train[1], start["fx_train_0"])
    errors = []
    for steps in (3_000, 30_000):
        at = [steps, 0, steps // 3]
        twin = ntk_jax.gradient_descent(loss, K, y, at, last / steps, **start)
        gaps = (np.max(abs(a - b)) for a, b in zip(flow[:2], twin, strict=True))
        errors.append(max(gaps))
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.02


def test_flow_of_one_output_each_stops_at_its_kink():
    y, rates = Y[:, 0], np.linspace(0.5, 2, N)
    times = np.array([0.0, 0.7, 3.0, 50.0])
    flow = ntk_jax.gradient_flow("l1", np.diag(rates), y, times, dense=True)
    moved = np.minimum(rates * times[:, None] / N, abs(y)) * np.sign(y)
    np.testing.assert_allclose(flow.train, moved, atol=1e-12)
    np.testing.assert_allclose(flow.at(0.7).train, moved[1], atol=1e-12)
    with pytest.raises(ValueError, match="t: expected times up to 50"):
        flow.at(51.0)


@pytest.mark.slow
@pytest.mark.parametrize("loss", KINKED)
def test_flow_along_kinks_takes_kernels_of_every_shape_and_equal_rows(loss):
    y = TARGETS.get(loss, Y)
    want = ntk_jax.gradient_flow(loss, K, y, 30.0).train
    for k in (np.repeat(K[..., None], O, axis=2), K[..., None, None] * np.eye(O)):
        np.testing.assert_allclose(ntk_jax.gradient_flow(loss, k, y, 30.0).train, want, atol=1e-10)
    rows = np.array([*range(N), 0, 1])
    twice = ntk_jax.gradient_flow(loss, K[rows][:, rows], y[rows], 30.0).train
    np.testing.assert_allclose(twice[-2:], twice[:2], atol=1e-10)
    single = ntk_jax.gradient_flow(loss, K.astype(np.float32), y, 30.0).train
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, want, atol=1e-4)
