"""Kernels as pictures."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from ntk_jax.plots.style import Axes, plt


def plot_kernels(
    analytic: ArrayLike, empirical: ArrayLike, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Heat maps of two kernels on one color scale, and of their difference on its own.

    The percentage is the relative Frobenius norm of the difference.

    Args:
        analytic: kernel (n1, n2).
        empirical: kernel of the same shape.
        axes: three Axes; a new figure if None.

    Returns:
        The three Axes.

    Raises:
        ValueError: the shapes differ, or are not matrices.

    Example:
        >>> from ntk_jax import plots
        >>> k = np.array([[2.0, 1.0], [1.0, 2.0]])
        >>> plots.plot_kernels(k, 1.1 * k)[2].get_title()
        'difference: 10 %'
    """
    a, b = np.asarray(analytic), np.asarray(empirical)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"plot_kernels: expected two kernels of one shape (n1, n2); got {a.shape} and "
            f"{b.shape}."
        )
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    gap = b - a
    bound = np.abs(gap).max() or 1.0
    error = np.linalg.norm(gap) / np.linalg.norm(a)
    panels = [
        ("analytic (infinite width)", a, {"cmap": "viridis", "vmin": low, "vmax": high}),
        ("empirical (this network)", b, {"cmap": "viridis", "vmin": low, "vmax": high}),
        (
            f"difference: {100 * error:.2g} %",
            gap,
            {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound},
        ),
    ]
    for ax, (title, k, style) in zip(axes, panels, strict=True):
        image = ax.imshow(k, interpolation="nearest", **style)
        ax.set(title=title, xlabel="example j", ylabel="example i")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(plt.MaxNLocator(integer=True))
        ax.figure.colorbar(
            image,
            ax=ax,
            shrink=0.8,
            label="$\\Theta_{ij}$" if k is not gap else "$\\Delta\\Theta_{ij}$",
        )
    return list(axes)
