"""The main job: train a wide network and predict the same trajectory from its kernel, in closed
form.
"""

import importlib.util
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


class Experiment(NamedTuple):
    """Everything that was measured, ready for the table, the figures and the JSON."""

    settings: Settings
    numbers: dict[str, Any]
    seconds: dict[str, float]
    ntk: dict[str, np.ndarray]
    t: np.ndarray
    history: History
    predictions: dict[str, Any]
    movement: dict[str, tuple[np.ndarray, np.ndarray]]


def linear_settings(data: Dataset, *, width: int, depth: int, seed: int) -> Settings:
    """The unit-row experiment: first layer weights and biases N(0, 1), readout sqrt(2 / width)
    without bias.
    """
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
    with _timed(seconds, "analytic kernel"):
        options: dict[str, Any] = {
            "depth": settings.depth,
            "W_std": settings.W_std,
            "b_std": settings.b_std,
        }
        analytic = jax.block_until_ready(
            (mlp_kernels(x, **options).ntk, mlp_kernels(x_test, x, **options).ntk)
        )
    with _timed(seconds, "empirical kernel"):
        pair = empirical_ntk(apply_fn, params, x), empirical_ntk(apply_fn, params, x_test, x)
        empirical = jax.block_until_ready(pair)
    with _timed(seconds, "diagonalize"):
        modes = {"empirical": diagonalize(empirical[0]), "analytic": diagonalize(analytic[0])}
    learning_rate = 0.5 * float(max_learning_rate(modes["empirical"], data.y_train.shape[1]))
    with _timed(seconds, "train the network"):
        history = _train(apply_fn, params, settings, data, learning_rate, progress=progress)
    with _timed(seconds, "predict training"):
        tests = {"empirical": empirical[1], "analytic": analytic[1]}
        predictions = {
            name: jax.block_until_ready(
                _predict(modes[name], tests[name], data, history, learning_rate)
            )
            for name in modes
        }
    movement = {}
    if settings.compare_widths:
        with _timed(seconds, "train other widths"):
            movement = _movement(settings, data, history, progress=progress)
    ntk = {"analytic": np.asarray(analytic[0]), "empirical": np.asarray(empirical[0])}
    numbers = _compare(data, history, predictions, ntk, learning_rate)
    return Experiment(
        settings,
        numbers,
        seconds,
        ntk,
        learning_rate * history.steps,
        history,
        predictions,
        movement,
    )


def check_out(out: Path, *, figures: bool = True) -> None:
    """Raise before any work if its results could not be saved to `out`.

    Raises:
        ValueError: `out` is not a folder that can be written.
        ImportError: figures are wanted, and matplotlib (extra `plots`) is missing.
    """
    if figures and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "The figures need matplotlib: pip install 'ntk-jax[plots]', or leave them out "
            "(--no-figures)."
        )
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(
            f"--out: expected a folder; got {out}, where {existing} is a file. Choose another name."
        )
    if not os.access(existing, os.W_OK):
        raise ValueError(
            f"--out: expected a folder that can be written; got {out}, without permission in "
            f"{existing}."
        )


def save(experiments: list[Experiment], out: Path, *, figures: bool = True) -> list[Path]:
    """Write figures and `demo.json` to `out`; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "demo.json"]
    report = {e.settings.data.name: _report(e) for e in experiments}
    paths[0].write_text(json.dumps(report, indent=2) + "\n")
    if figures:
        from ntk_jax import plots

        for experiment in experiments:
            paths += _figures(experiment, out, plots)
    return paths


def table(experiments: list[Experiment]) -> str:
    """One text table of all experiments, a column each."""
    columns = [_column(e) for e in experiments]
    names = max((list(column) for column in columns), key=len)
    names += [name for column in columns for name in column if name not in names]
    rows = {name: [column.get(name, "-") for column in columns] for name in names}
    first = max(map(len, rows))
    width = max(len(cell) for cells in rows.values() for cell in cells) + 2
    return "\n".join(
        name.ljust(first) + "".join(cell.rjust(width) for cell in cells)
        for name, cells in rows.items()
    )


def _column(e: Experiment) -> dict[str, str]:
    s = e.settings
    return {
        "": s.data.name,
        "hidden layers x width": f"{s.depth} x {s.width}",
        "train / test rows": f"{len(s.data.x_train)} / {len(s.data.x_test)}",
        **{name: f"{value:.4g}" for name, value in e.numbers.items() if isinstance(value, float)},
        **{f"seconds: {name}": f"{value:.1f}" for name, value in e.seconds.items()},
    }


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    print(f"  {stage} ...", flush=True)
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _network(settings: Settings, width: int) -> tuple[Any, Any]:
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
    apply_fn, params, settings: Settings, data: Dataset, learning_rate: float, *, progress: bool
) -> History:
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


def _movement(settings: Settings, data: Dataset, history: History, *, progress: bool):
    """Steps and relative weight change of networks of several widths, each at half its critical
    learning rate.
    """
    movement = {}
    for width in settings.compare_widths:
        if width != settings.width:
            apply_fn, params = _network(settings, width)
            modes = diagonalize(empirical_ntk(apply_fn, params, data.x_train))
            learning_rate = 0.5 * float(max_learning_rate(modes, data.y_train.shape[1]))
            history_of_width = _train(
                apply_fn, params, settings, data, learning_rate, progress=progress
            )
        else:
            history_of_width = history
        movement[f"width {width}"] = history_of_width.steps, history_of_width.relative_change
    return movement


def _predict(
    modes: Modes, k_test_train: Array, data: Dataset, history: History, learning_rate: float
):
    assert history.fx_train is not None and history.fx_test is not None
    return gradient_descent_mse(
        modes,
        data.y_train,
        history.steps,
        learning_rate,
        fx_train_0=history.fx_train[0],
        k_test_train=k_test_train,
        fx_test_0=history.fx_test[0],
    )


def _compare(
    data: Dataset, history: History, predictions, ntk, learning_rate: float
) -> dict[str, Any]:
    mse = lambda a, b: float(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))
    assert history.fx_test is not None
    final = {
        "network": history.fx_test[-1],
        **{name: np.asarray(p.test[-1]) for name, p in predictions.items()},
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


def _report(e: Experiment) -> dict[str, Any]:
    s = e.settings
    losses = {name: _loss(p.train, s.data.y_train).tolist() for name, p in e.predictions.items()}
    return {
        "settings": {name: value for name, value in s._asdict().items() if name != "data"},
        "numbers": e.numbers,
        "seconds": e.seconds,
        "curves": {
            "steps": e.history.steps.tolist(),
            "t": e.t.tolist(),
            "training loss": {"network": e.history.loss.tolist(), **losses},
            "relative weight change": e.history.relative_change.tolist(),
        },
        "jax": jax.__version__,
        "device": jax.devices()[0].platform,
    }


def _loss(f: Array, y: np.ndarray) -> np.ndarray:
    return np.mean((np.asarray(f, float) - y) ** 2, axis=(1, 2)) / 2


def _figures(e: Experiment, out: Path, plots: Any) -> list[Path]:
    plt, name, s = plots.plt, e.settings.data.name, e.settings
    shown = np.arange(len(s.data.y_train))[:64]
    if s.data.classes is not None:
        shown = shown[
            np.argsort(np.argmax(s.data.y_train[shown], 1), kind="stable")
        ]  # blocks of a class together
    analytic, empirical = (
        e.ntk[kernel][np.ix_(shown, shown)] for kernel in ("analytic", "empirical")
    )
    kernels = plots.plot_kernels(analytic, empirical)[0].figure
    fig, axes = plt.subplots(
        1, 2 + bool(e.movement), figsize=(13.5 if e.movement else 9.2, 3.8), layout="constrained"
    )
    curves = {"network": e.history.loss}
    curves |= {
        f"{kernel} kernel": _loss(p.train, s.data.y_train) for kernel, p in e.predictions.items()
    }
    plots.plot_curves(
        e.t,
        curves,
        axes[0],
        ylabel="training loss, half mean square",
        title=f"{name}, width {s.width}",
    )
    assert e.history.fx_test is not None
    tests = {f"{kernel} kernel": p.test[-1] for kernel, p in e.predictions.items()}
    plots.plot_predictions(e.history.fx_test[-1], tests, axes[1])
    if e.movement:
        steps, changes = ({w: pair[i] for w, pair in e.movement.items()} for i in (0, 1))
        plots.plot_relative_change(steps, changes, axes[2])
    paths = []
    for figure, kind in ((kernels, "kernels"), (fig, "training")):
        paths.append(out / f"{name}_{kind}.png")
        figure.savefig(paths[-1], dpi=130)
        plt.close(figure)
    return paths
