"""The phase diagram of deep networks, to be merged into plots.py."""

from typing import Any

import numpy as np

from ntk_jax.infinite.phase import critical_W_std, phase


def plot_phase_diagram(activation: Any = "tanh", *, W_std: Any = None, b_std: Any = None, ax: Any = None) -> Any:
    """chi_1 over (W_std, b_std) in color and the critical line chi_1 = 1 in black: left of it order, right of it chaos.

    Args:
        activation: as in `mlp_kernels`.
        W_std: values of the horizontal axis; None for 25 from 0.5 to 3.
        b_std: values of the vertical axis; None for 13 from 0 to 0.6.
        ax: matplotlib axes; None for new ones.

    Returns:
        The axes.

    Reference: Poole et al. 2016, figure 1; Schoenholz et al. 2017, figure 1.
    """
    import matplotlib.pyplot as plt

    W = np.linspace(0.5, 3, 25) if W_std is None else np.asarray(W_std, float)
    b = np.linspace(0, 0.6, 13) if b_std is None else np.asarray(b_std, float)
    chi = np.array([[phase(activation, W_i, b_i).chi_1 for W_i in W] for b_i in b])
    line = [critical_W_std(activation, b_i) for b_i in b]
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    mesh = ax.pcolormesh(W, b, chi, cmap="RdBu_r", vmin=0, vmax=2, shading="nearest")
    ax.plot(line, b, color="black", linewidth=1.5, label=r"critical, $\chi_1 = 1$")
    ax.figure.colorbar(mesh, ax=ax, label=r"$\chi_1$", extend="max" if chi.max() > 2 else "neither")
    for x, word, color in ((0.05, "ordered", "black"), (0.95, "chaotic", "white")):
        ax.text(x, 0.93, word, transform=ax.transAxes, ha="left" if x < 0.5 else "right", va="top", color=color)
    ax.set(xlabel="W_std", ylabel="b_std", title=f"Phases of deep {activation} networks", xlim=(W[0], W[-1]))
    ax.legend(loc="lower right")
    return ax
