"""What is left of a demo: a text table, figures, and a JSON of all numbers."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from ntk_jax.cli.demo import Experiment
from ntk_jax.extras import install


def check_out(out: Path, *, figures: bool = True) -> None:
    """Raise before any work if its results could not be saved to `out`.

    Raises:
        ValueError: `out` is not a folder that can be written.
        ImportError: figures are wanted, and matplotlib (extra `plots`) is missing.
    """
    if figures and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            f"The figures need matplotlib: {install('plots')}, or leave them out (--no-figures)."
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


def summary(experiments: list[Experiment]) -> str:
    """One text table of all experiments, a column each."""
    columns = [_column(e) for e in experiments]
    # Rows in the order of the longest column, then what only others have.
    names = dict.fromkeys(name for c in sorted(columns, key=len, reverse=True) for name in c)
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


def _loss(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.mean((f.astype(float) - y) ** 2, axis=(1, 2)) / 2


def _figures(e: Experiment, out: Path, plots: ModuleType) -> list[Path]:
    plt, name, s = plots.plt, e.settings.data.name, e.settings
    shown = np.arange(len(s.data.y_train))[:64]
    if s.data.classes is not None:
        # Rows of one class together: the kernel then shows blocks.
        shown = shown[np.argsort(np.argmax(s.data.y_train[shown], 1), kind="stable")]
    analytic, empirical = (
        e.ntk[kernel][np.ix_(shown, shown)] for kernel in ("analytic", "empirical")
    )
    kernels = plots.plot_kernels(analytic, empirical)[0].figure
    size = (13.5 if e.movement else 9.2, 3.8)
    fig, axes = plt.subplots(1, 2 + bool(e.movement), figsize=size, layout="constrained")
    losses = {f"{k} kernel": _loss(p.train, s.data.y_train) for k, p in e.predictions.items()}
    ylabel, title = "training loss, half mean square", f"{name}, width {s.width}"
    plots.plot_curves(
        e.t, {"network": e.history.loss, **losses}, axes[0], ylabel=ylabel, title=title
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
