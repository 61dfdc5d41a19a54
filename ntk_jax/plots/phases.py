"""Order and chaos."""

from collections.abc import Callable

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ntk_jax.checks import check_number
from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.infinite.mlp.phase import critical_line, fixed_point_and_chi_1
from ntk_jax.plots.style import Axes, new_axes


def plot_phase_diagram(
    activation: str | Callable[[Array], Array] = "tanh",
    *,
    W_std: ArrayLike | None = None,
    b_std: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """chi_1 over (W_std, b_std), and the critical line chi_1 = 1 between order and chaos.

    Args:
        activation: as in `mlp_kernels`.
        W_std: values of the horizontal axis; None for 25 from 0.5 to 3.
        b_std: values of the vertical axis; None for 13 from 0 to 0.6.
        ax: Axes; a new figure if None.

    Returns:
        The Axes.

    Reference: Poole et al. 2016, figure 1; Schoenholz et al. 2017, figure 1.

    Example:
        >>> from ntk_jax import plots
        >>> W_std, b_std = np.linspace(1, 2, 5), np.array([0.0, 0.1])
        >>> ax = plots.plot_phase_diagram("relu", W_std=W_std, b_std=b_std)
        >>> ax.get_title()
        'Phases of deep relu networks'
    """
    W = np.linspace(0.5, 3, 25) if W_std is None else np.asarray(W_std, float)
    b = np.linspace(0, 0.6, 13) if b_std is None else np.asarray(b_std, float)
    for name, values in (("W_std", W), ("b_std", b)):
        check_number(name, values, max_ndim=1)
    _, chi = fixed_point_and_chi_1(dual_rule(activation), W**2, b[:, None] ** 2)
    line = critical_line(activation, b)
    ax = new_axes(ax)
    mesh = ax.pcolormesh(W, b, chi, cmap="RdBu_r", vmin=0, vmax=2, shading="nearest")
    ax.plot(line, b, color="black", linewidth=1.5, label=r"critical, $\chi_1 = 1$")
    ax.figure.colorbar(mesh, ax=ax, label=r"$\chi_1$", extend="max" if chi.max() > 2 else "neither")
    for x, word, color in ((0.05, "ordered", "black"), (0.95, "chaotic", "white")):
        ax.text(
            x,
            0.93,
            word,
            transform=ax.transAxes,
            ha="left" if x < 0.5 else "right",
            va="top",
            color=color,
        )
    ax.set(
        xlabel=r"$W_\mathrm{std}$",
        ylabel=r"$b_\mathrm{std}$",
        title=f"Phases of deep {activation} networks",
        xlim=(W[0], W[-1]),
    )
    ax.legend(loc="lower right")
    return ax
