"""What moves and what does not: laws in the width or the output scale, and the weights themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from ntk_jax.plots.style import COLORS, LINES, MARKERS, Axes, finish, new_axes, plt


def plot_scaling(
    sizes: ArrayLike | Sequence[float],
    curves: Mapping[str, Any],
    ax: Axes | None = None,
    *,
    xlabel: str = "width m",
    ylabel: str = "relative change",
    title: str = "",
) -> Axes:
    """Quantities against a size on logarithmic axes, each with its fitted power law and exponent.

    Args:
        sizes: widths or output scales, (k,).
        curves: name -> values (k,), or (k, seeds): then the median is drawn, and bars from the quartiles.
        ax: Axes; a new figure if None.
        xlabel: what the size is.
        ylabel: quantity and unit.
        title: heading.

    Returns:
        The Axes.

    Raises:
        ValueError: a curve does not have one row per size.
    """
    ax, m = new_axes(ax), np.asarray(sizes, float)
    for i, (name, given) in enumerate(curves.items()):
        values = np.asarray(given, float).reshape(len(given), -1)
        if len(values) != len(m):
            raise ValueError(f"curves[{name!r}]: expected one row per size ({len(m)}); got {len(values)}.")
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
        exponent, level = np.polyfit(np.log(m), np.log(middle), 1)
        style: dict[str, Any] = {"color": COLORS[i % 7], "zorder": 3}
        ax.errorbar(
            m, middle, [middle - low, high - middle], fmt=MARKERS[i % 5], markersize=5, capsize=2,
            label=f"{name}: slope {exponent:.2f}", **style,
        )  # fmt: skip
        ax.plot(m, np.exp(level) * m**exponent, linewidth=1.5, linestyle=LINES[i % 4], color=COLORS[i % 7])
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
    return finish(ax)


def plot_weights(
    weights: Mapping[str, tuple[ArrayLike, ArrayLike]], axes: Sequence[Sequence[Axes]] | None = None
) -> list[list[Axes]]:
    """Weight matrices before and after training, and their difference, a row for each network on one color scale.

    Args:
        weights: name -> (matrix at initialization, matrix after training).
        axes: rows of three Axes; a new figure if None.

    Returns:
        Rows of three Axes.
    """
    if axes is None:
        _, grid = plt.subplots(len(weights), 3, figsize=(7.2, 2.3 * len(weights)), layout="constrained", squeeze=False)
        axes = grid.tolist()
    for row, (name, (before, after)) in zip(axes, weights.items(), strict=True):
        W_0, W = np.asarray(before), np.asarray(after)
        bound = 2 * W_0.std()
        moved = np.linalg.norm(W - W_0) / np.linalg.norm(W_0)
        for ax, matrix, title in zip(row, (W_0, W, W - W_0), ("before", "after", "difference"), strict=True):
            image = ax.imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest", aspect="auto")
            ax.set(xticks=[], yticks=[], title=f"{title}: {100 * moved:.2g} %" if title == "difference" else title)
        row[0].set_ylabel(name)
        row[2].figure.colorbar(image, ax=row[2], shrink=0.9)
    return [list(row) for row in axes]
