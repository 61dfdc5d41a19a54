"""Weights that move, and weights that do not."""

from collections.abc import Mapping, Sequence

import numpy as np
from jax.typing import ArrayLike

from ntk_jax.plots.style import Axes, plt


def plot_weights(
    weights: Mapping[str, tuple[ArrayLike, ArrayLike]], axes: Sequence[Sequence[Axes]] | None = None
) -> list[list[Axes]]:
    """Weight matrices before and after training, and their difference, a row for each network.

    Args:
        weights: name -> (matrix at initialization, matrix after training).
        axes: rows of three Axes; a new figure if None.

    Returns:
        Rows of three Axes.

    Example:
        >>> from ntk_jax import plots
        >>> W = np.random.default_rng(0).normal(size=(8, 8))
        >>> plots.plot_weights({"width 8": (W, 1.01 * W)})[0][2].get_title()
        'difference: 1 %'
    """
    if axes is None:
        _, grid = plt.subplots(
            len(weights), 3, figsize=(7.2, 2.3 * len(weights)), layout="constrained", squeeze=False
        )
        axes = grid.tolist()
    for row, (name, (before, after)) in zip(axes, weights.items(), strict=True):
        W_0, W = np.asarray(before), np.asarray(after)
        bound = 2 * W_0.std()
        moved = np.linalg.norm(W - W_0) / np.linalg.norm(W_0)
        for ax, matrix, title in zip(
            row, (W_0, W, W - W_0), ("before", "after", "difference"), strict=True
        ):
            image = ax.imshow(
                matrix,
                cmap="RdBu_r",
                vmin=-bound,
                vmax=bound,
                interpolation="nearest",
                aspect="auto",
            )
            ax.set(
                xticks=[],
                yticks=[],
                title=f"{title}: {100 * moved:.2g} %" if title == "difference" else title,
            )
        row[0].set_ylabel(name)
        row[2].figure.colorbar(image, ax=row[2], shrink=0.9)
    return [list(row) for row in axes]
