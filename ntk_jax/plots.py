"""Arrays -> matplotlib Axes (extra `plots`). Colors are safe for color-blind readers; every axis names its unit."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from ntk_jax.infinite.phase import critical_W_std, phase

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
except ImportError as error:
    raise ImportError("ntk_jax.plots needs matplotlib: pip install 'ntk-jax[plots]'.") from error

# Okabe, Ito 2008.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v")


def plot_kernels(analytic: ArrayLike, empirical: ArrayLike, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Heat maps of two kernels on one color scale, and of their difference on its own, centered at 0.

    The percentage is the relative Frobenius norm of the difference.

    Args:
        analytic: kernel (n1, n2).
        empirical: kernel of the same shape.
        axes: three Axes; a new figure if None.

    Returns:
        The three Axes.

    Raises:
        ValueError: the shapes differ, or are not matrices.
    """
    a, b = np.asarray(analytic), np.asarray(empirical)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"plot_kernels: expected two kernels of one shape (n1, n2); got {a.shape} and {b.shape}.")
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    gap = b - a
    bound = np.abs(gap).max() or 1.0
    error = np.linalg.norm(gap) / np.linalg.norm(a)
    panels = [
        ("analytic (infinite width)", a, {"cmap": "viridis", "vmin": low, "vmax": high}),
        ("empirical (this network)", b, {"cmap": "viridis", "vmin": low, "vmax": high}),
        (f"difference: {100 * error:.2g} %", gap, {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}),
    ]
    for ax, (title, k, style) in zip(axes, panels, strict=True):
        image = ax.imshow(k, interpolation="nearest", **style)
        ax.set(title=title, xlabel="example j", ylabel="example i")
        ax.figure.colorbar(
            image, ax=ax, shrink=0.8, label="$\\Theta_{ij}$" if k is not gap else "$\\Delta\\Theta_{ij}$"
        )
    return list(axes)


def plot_curves(
    t: ArrayLike, curves: Mapping[str, ArrayLike], ax: Axes | None = None, *, ylabel: str = "loss", title: str = ""
) -> Axes:
    """Curves over training time on logarithmic axes, the first one (the network) as markers, the others as lines.

    Args:
        t: times, learning rate x steps, (T,); times of 0 are left out.
        curves: name -> values (T,), the network first.
        ax: Axes; a new figure if None.
        ylabel: quantity and unit.
        title: heading.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    t = np.asarray(t)
    later = t > 0
    for i, (name, values) in enumerate(curves.items()):
        style: dict[str, Any] = {"linestyle": _LINES[(i - 1) % 4], "linewidth": 2} if i else _marks(0)
        ax.plot(
            t[later], np.asarray(values)[later], color=COLORS[i % 7], label=name, zorder=3 if i == 0 else 2, **style
        )
    ax.set(xscale="log", yscale="log", xlabel="t = learning rate × steps", ylabel=ylabel, title=title)
    return _finish(ax)


def plot_predictions(network: ArrayLike, kernels: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Test outputs of the trained network against those that each kernel predicts, with the line of equality.

    Args:
        network: outputs, any shape.
        kernels: name -> predicted outputs of the same shape.
        ax: Axes; a new figure if None.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    f, predictions = np.ravel(network), {name: np.ravel(k) for name, k in kernels.items()}
    everything = [f, *predictions.values()]
    ends = min(map(np.min, everything)), max(map(np.max, everything))
    shown = slice(None, None, -(-f.size // 500))  # more points hide each other; the errors are over all
    ax.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
    for i, (name, predicted) in enumerate(predictions.items()):
        label = f"{name}: MSE {np.mean((predicted - f) ** 2):.2g}"
        style = _marks(i) | {"markersize": 4, "alpha": 0.7}
        ax.plot(predicted[shown], f[shown], color=COLORS[(i + 1) % 7], label=label, **style)
    ax.set(
        xlabel="kernel prediction of $f(x)$", ylabel="trained network $f(x)$", title="test outputs at the same time t"
    )
    ax.set_aspect("equal", adjustable="datalim")
    return _finish(ax)


def plot_relative_change(
    steps: Mapping[str, ArrayLike], changes: Mapping[str, ArrayLike], ax: Axes | None = None
) -> Axes:
    """Relative movement of the weights over training steps, one curve per network.

    Args:
        steps: name -> steps (T,); step 0 is left out.
        changes: name -> relative change (T,).
        ax: Axes; a new figure if None.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    for i, (name, values) in enumerate(changes.items()):
        step = np.asarray(steps[name])
        style: dict[str, Any] = {"linestyle": _LINES[i % 4], "linewidth": 2}
        ax.plot(step[step > 0], np.asarray(values)[step > 0], color=COLORS[i % 7], label=name, **style)
    ax.set(xscale="log", yscale="log", xlabel="training step", ylabel=r"$\|\theta_t - \theta_0\| \,/\, \|\theta_0\|$")
    ax.set_title("relative weight change")
    return _finish(ax)


def plot_phase_diagram(
    activation: Any = "tanh", *, W_std: Any = None, b_std: Any = None, ax: Axes | None = None
) -> Axes:
    """chi_1 over (W_std, b_std) in color and the critical line chi_1 = 1 in black: left of it order, right of it chaos.

    Args:
        activation: as in `mlp_kernels`.
        W_std: values of the horizontal axis; None for 25 from 0.5 to 3.
        b_std: values of the vertical axis; None for 13 from 0 to 0.6.
        ax: Axes; a new figure if None.

    Returns:
        The Axes.

    Reference: Poole et al. 2016, figure 1; Schoenholz et al. 2017, figure 1.
    """
    W = np.linspace(0.5, 3, 25) if W_std is None else np.asarray(W_std, float)
    b = np.linspace(0, 0.6, 13) if b_std is None else np.asarray(b_std, float)
    chi = np.array([[phase(activation, W_i, b_i).chi_1 for W_i in W] for b_i in b])
    line = [critical_W_std(activation, b_i) for b_i in b]
    ax = _axes(ax)
    mesh = ax.pcolormesh(W, b, chi, cmap="RdBu_r", vmin=0, vmax=2, shading="nearest")
    ax.plot(line, b, color="black", linewidth=1.5, label=r"critical, $\chi_1 = 1$")
    ax.figure.colorbar(mesh, ax=ax, label=r"$\chi_1$", extend="max" if chi.max() > 2 else "neither")
    for x, word, color in ((0.05, "ordered", "black"), (0.95, "chaotic", "white")):
        ax.text(x, 0.93, word, transform=ax.transAxes, ha="left" if x < 0.5 else "right", va="top", color=color)
    ax.set(
        xlabel=r"$W_\mathrm{std}$",
        ylabel=r"$b_\mathrm{std}$",
        title=f"Phases of deep {activation} networks",
        xlim=(W[0], W[-1]),
    )
    ax.legend(loc="lower right")
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(4.8, 3.6), layout="constrained")[1] if ax is None else ax


def _marks(i: int) -> dict[str, Any]:
    return {"linestyle": "none", "marker": _MARKERS[i % 5], "markersize": 5, "markerfacecolor": "none"}


def _finish(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize="small")
    return ax
