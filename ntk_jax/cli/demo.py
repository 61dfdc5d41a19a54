"""The main job: train a wide network, and predict its trajectory from its kernel in closed form."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ntk_jax.data import Dataset
from ntk_jax.diagnostics.change import kernel_change
from ntk_jax.dynamics.descent import gradient_descent_mse
from ntk_jax.finite.empirical import empirical_ntk
from ntk_jax.infinite.mlp.kernels import mlp_kernels
from ntk_jax.modes.modes import Modes, diagonalize, max_learning_rate
from ntk_jax.networks.adapters import from_linen, zero_output
from ntk_jax.networks.mlp import MLP
from ntk_jax.training.record import History
from ntk_jax.training.train import train
from ntk_jax.types import ApplyFn, KernelFn, Params


class Settings(NamedTuple):
    """An experiment: data, network and training time."""

    data: Dataset
    width: int
    depth: int
    W_std: tuple[float, ...]
    b_std: tuple[float | None, ...]
    num_steps: int
    seed: int
    start_at_zero: bool
    compare_widths: tuple[int, ...] = ()


class Outputs(NamedTuple):
    """Outputs (T, n, O) of a network or of its prediction, at every record."""

    train: np.ndarray
    test: np.ndarray


class Experiment(NamedTuple):
    """Everything that was measured, ready for the table, the figures and the JSON."""

    settings: Settings
    numbers: dict[str, Any]
    seconds: dict[str, float]
    ntk: dict[str, np.ndarray]
    t: np.ndarray
    history: History
    predictions: dict[str, Outputs]
    movement: dict[str, tuple[np.ndarray, np.ndarray]]


def linear_settings(data: Dataset, *, width: int, depth: int, seed: int) -> Settings:
    """Unit rows: first layer weights and biases N(0, 1), readout sqrt(2 / width) without bias."""
    W_std = (data.x_train.shape[1] ** 0.5, *(2**0.5,) * depth)
    b_std = (*(1.0,) * depth, None)
    widths = tuple(w for w in (16, 128, 1024) if w < width)
    return Settings(data, width, depth, W_std, b_std, 500, seed, False, (*widths, width))


def table_settings(data: Dataset, *, width: int, depth: int, seed: int) -> Settings:
    """A table of standardized features: critical ReLU scale with small biases, outputs that start
    at zero.

    A random initial function would stay in the test outputs as noise, in the network and in the
    prediction alike.
    """
    return Settings(
        data, width, depth, (2**0.5,) * (depth + 1), (0.1,) * (depth + 1), 1000, seed, True
    )


def run(settings: Settings, *, progress: bool = True) -> Experiment:
    """Train, predict and compare; see `Experiment`."""
    seconds: dict[str, float] = {}
    data = settings.data.astype(np.float32)
    apply_fn, params = _network(settings, settings.width)
    x, x_test = jnp.asarray(data.x_train), jnp.asarray(data.x_test)
    options: dict[str, Any] = {
        "depth": settings.depth,
        "W_std": settings.W_std,
        "b_std": settings.b_std,
    }
    kernel_fns: dict[str, KernelFn[Array]] = {
        "analytic": lambda x1, x2=None: mlp_kernels(x1, x2, **options).ntk,
        "empirical": partial(empirical_ntk, apply_fn, params),
    }
    kernels = {}
    for name, kernel_fn in kernel_fns.items():
        with _timed(seconds, f"{name} kernel"):
            kernels[name] = jax.block_until_ready((kernel_fn(x), kernel_fn(x_test, x)))
    with _timed(seconds, "diagonalize"):
        modes = {name: diagonalize(kernels[name][0]) for name in ("empirical", "analytic")}
    learning_rate = 0.5 * float(max_learning_rate(modes["empirical"], data.y_train.shape[1]))
    with _timed(seconds, "train the network"):
        history = _train(apply_fn, params, settings, data, learning_rate, progress=progress)
    with _timed(seconds, "predict training"):
        predictions = {
            name: _predict(modes[name], kernels[name][1], data, history, learning_rate)
            for name in modes
        }
    movement = {}
    if settings.compare_widths:
        with _timed(seconds, "train other widths"):
            movement = _movement(settings, data, history, progress=progress)
    ntk = {name: np.asarray(pair[0]) for name, pair in kernels.items()}
    numbers = _compare(data, history, predictions, ntk, learning_rate)
    t = learning_rate * history.steps
    return Experiment(settings, numbers, seconds, ntk, t, history, predictions, movement)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    print(f"  {stage} ...", flush=True)
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _network(settings: Settings, width: int) -> tuple[ApplyFn, Params]:
    model = MLP(
        (width,) * settings.depth,
        settings.data.y_train.shape[1],
        W_std=settings.W_std,
        b_std=settings.b_std,
    )
    x = jnp.zeros((1, settings.data.x_train.shape[1]), jnp.float32)
    apply_fn, params = from_linen(model, model.init(jax.random.key(settings.seed), x))
    return zero_output(apply_fn, params) if settings.start_at_zero else apply_fn, params


def _train(
    apply_fn: ApplyFn,
    params: Params,
    settings: Settings,
    data: Dataset,
    learning_rate: float,
    *,
    progress: bool,
) -> History:
    # Even on the logarithmic axis of the figures.
    steps = np.unique(np.round(np.geomspace(1, settings.num_steps, 40)).astype(int))
    return train(
        apply_fn,
        params,
        data.x_train,
        data.y_train,
        optimizer=optax.sgd(learning_rate),
        num_steps=settings.num_steps,
        record_every=steps.tolist(),
        x_test=data.x_test,
        y_test=data.y_test,
        record_outputs=True,
        progress=progress,
    )


def _movement(
    settings: Settings, data: Dataset, history: History, *, progress: bool
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and relative weight change at several widths, each at half its critical rate."""
    histories = {settings.width: history}
    for width in settings.compare_widths:
        if width != settings.width:
            apply_fn, params = _network(settings, width)
            modes = diagonalize(empirical_ntk(apply_fn, params, data.x_train))
            rate = 0.5 * float(max_learning_rate(modes, data.y_train.shape[1]))
            histories[width] = _train(apply_fn, params, settings, data, rate, progress=progress)
    by_width = {width: histories[width] for width in settings.compare_widths}
    return {f"width {width}": (h.steps, h.relative_change) for width, h in by_width.items()}


def _predict(
    modes: Modes, k_test_train: Array, data: Dataset, history: History, learning_rate: float
) -> Outputs:
    assert history.fx_train is not None and history.fx_test is not None
    found = gradient_descent_mse(
        modes,
        data.y_train,
        history.steps,
        learning_rate,
        fx_train_0=history.fx_train[0],
        k_test_train=k_test_train,
        fx_test_0=history.fx_test[0],
    )
    return Outputs(np.asarray(found.train), np.asarray(found.test))


def _compare(
    data: Dataset,
    history: History,
    predictions: dict[str, Outputs],
    ntk: dict[str, np.ndarray],
    learning_rate: float,
) -> dict[str, Any]:
    mse = lambda a, b: float(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))
    assert history.fx_test is not None
    final = {
        "network": history.fx_test[-1],
        **{name: p.test[-1] for name, p in predictions.items()},
        **_baselines(data),
    }
    numbers: dict[str, Any] = {
        "learning rate (half the critical one)": learning_rate,
        "time t = learning rate x steps": float(learning_rate * history.steps[-1]),
        "kernel error, empirical vs analytic": float(
            kernel_change(ntk["empirical"], ntk["analytic"])
        ),
        "relative weight change": float(history.relative_change[-1]),
        "final training loss": float(history.loss[-1]),
    }
    for name in predictions:
        numbers[f"test MSE between network and {name} kernel"] = mse(final["network"], final[name])
    for name, outputs in final.items():
        numbers[f"test error (MSE to targets), {name}"] = mse(outputs, data.y_test)
        if data.classes is not None:
            hits = np.argmax(outputs, 1) == np.argmax(data.y_test, 1)
            numbers[f"test accuracy, {name}"] = float(hits.mean())
    by_layer = history.relative_change_by_layer.items()
    numbers["relative weight change by layer"] = {
        name: float(values[-1]) for name, values in by_layer
    }
    return numbers


def _baselines(data: Dataset) -> dict[str, np.ndarray]:
    """What any model must be better than: a linear one, and the mean of the training targets."""
    with_one = lambda x: np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights = np.linalg.lstsq(with_one(data.x_train), data.y_train, rcond=None)[0]
    mean = np.broadcast_to(data.y_train.mean(0), data.y_test.shape)
    return {"linear model": with_one(data.x_test) @ weights, "mean of targets": mean}
