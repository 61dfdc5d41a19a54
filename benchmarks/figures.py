"""Figures of benchmark results: legible, labelled with units, safe for colour-blind readers."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette; markers differ as well, for print and for those who see no colour.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
)
NAIVE_STYLES = (("#000000", "x"), ("#8C8C8C", "+"))
DASHED = (0, (2, 2))

Row = Mapping[str, Any]


def scaling_figure(
    rows: Sequence[Row],
    base: Mapping[str, int],
    sweeps: Mapping[str, Sequence[int]],
    path: Path,
    *,
    labels: Mapping[str, str],
    note: str,
) -> None:
    """Save time (top) and share of a matrix product (bottom) against each size, the other sizes
    held at `base`.
    """
    figure = Figure(figsize=(4.0 * len(sweeps), 7.2), layout="constrained")
    axes = figure.subplots(2, len(sweeps), sharex="col", sharey="row", squeeze=False)
    styles = case_styles(rows)
    for column, size in enumerate(sweeps):
        line = [row for row in rows if all(row[k] == v for k, v in base.items() if k != size)]
        for case, style in styles.items():
            chosen = sorted((row for row in line if row["case"] == case), key=lambda row: row[size])
            draw_time(axes[0, column], chosen, size, style)
            draw_share(axes[1, column], chosen, size, style)
        label_axes(list(axes[:, column]), size, base, sorted(sweeps[size]))
    axes[0, 0].set_ylabel("time per kernel [ms]\n(median; bars: min to max)")
    axes[1, 0].set_ylabel("useful arithmetic rate\n[% of a large matrix product]")
    for ax in axes[:, 0]:
        ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    add_legend(
        figure, axes[0, 0], {labels.get(case, case): style for case, style in styles.items()}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.supxlabel(note, fontsize=8, color="0.35")
    figure.savefig(path, dpi=150)


def case_styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker per case, in order of appearance; naive loops come last, without colour."""
    cases = sorted(dict.fromkeys(row["case"] for row in rows), key=lambda case: "naive" in case)
    naive, coloured = itertools.cycle(NAIVE_STYLES), itertools.cycle(STYLES)
    return {case: next(naive if "naive" in case else coloured) for case in cases}


def draw_time(ax: Axes, rows: Sequence[Row], size: str, style: tuple[str, str]) -> None:
    """Draw one line: medians with bars from minimum to maximum, dashed where extrapolated."""
    colour, marker = style
    measured = [row for row in rows if not row.get("extrapolated_from_n")]
    extrapolated = measured[-1:] + [row for row in rows if row.get("extrapolated_from_n")]
    if measured:
        mid = [1e3 * row["median_s"] for row in measured]
        low = [1e3 * (row["median_s"] - row["min_s"]) for row in measured]
        high = [1e3 * (row["max_s"] - row["median_s"]) for row in measured]
        x = [row[size] for row in measured]
        ax.errorbar(
            x,
            mid,
            yerr=(low, high),
            color=colour,
            marker=marker,
            markersize=6,
            markeredgewidth=1.4,
            capsize=2.5,
            linewidth=1.6,
        )
    if len(extrapolated) > 1:
        x, mid = (
            [row[size] for row in extrapolated],
            [1e3 * row["median_s"] for row in extrapolated],
        )
        ax.plot(x, mid, color=colour, linestyle=DASHED, linewidth=1.4)


def draw_share(ax: Axes, rows: Sequence[Row], size: str, style: tuple[str, str]) -> None:
    """Draw one line: useful floating-point operations per second as a share of the matrix
    product's.
    """
    measured = [row for row in rows if not row.get("extrapolated_from_n")]
    share = [100 * row["share_of_matmul"] for row in measured]
    ax.plot(
        [row[size] for row in measured],
        share,
        color=style[0],
        marker=style[1],
        markersize=6,
        markeredgewidth=1.4,
        linewidth=1.6,
    )


def label_axes(
    axes: Sequence[Axes], size: str, base: Mapping[str, int], ticks: Sequence[int]
) -> None:
    """Set logarithmic scales, a tick per measured size, and a title that says what is held
    fixed.
    """
    fixed = ", ".join(f"{name} = {value}" for name, value in base.items() if name != size)
    axes[0].set_title(f"against {size}  ({fixed})", fontsize=10.5)
    units = {"n": "examples n", "width": "hidden units per layer", "depth": "hidden layers"}
    axes[-1].set_xlabel(units.get(size, size))
    for ax in axes:
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.grid(which="major", color="0.88", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)


def add_legend(figure: Figure, ax: Axes, styles: Mapping[str, tuple[str, str]]) -> None:
    """Put one legend for all panels above them, with the meaning of a dashed line."""
    handles = [
        ax.plot([], [], color=c, marker=m, markersize=6, markeredgewidth=1.4, label=label)[0]
        for label, (c, m) in styles.items()
    ]
    handles += ax.plot(
        [], [], color=NAIVE_STYLES[0][0], linestyle=DASHED, label="extrapolated, not measured"
    )
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=math.ceil(len(handles) / 2),
        frameon=False,
    )
