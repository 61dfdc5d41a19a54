"""Training over time, and what was predicted."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from ntk_jax.plots.style import COLORS, LINES, Axes, finish, line, marks, new_axes


def plot_curves(
    t: ArrayLike,
    curves: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    ylabel: str = "loss",
    title: str = "",
) -> Axes:
    """Curves over training time on logarithmic axes, the network as markers, the others as lines.

    Args:
        t: times, learning rate x steps, (T,); times of 0 are left out.
        curves: name -> values (T,), the network first.
        ax: Axes; a new figure if None.
        ylabel: quantity and unit.
        title: heading.

    Returns:
        The Axes.

    Example:
        >>> from ntk_jax import plots
        >>> t = np.array([1.0, 10.0, 100.0])
        >>> ax = plots.plot_curves(t, {"network": 1 / t, "kernel": 1.1 / t})
        >>> ax.get_xlabel()
        't = learning rate × steps'
    """
    ax = new_axes(ax)
    t = np.asarray(t)
    later = t > 0
    for i, (name, values) in enumerate(curves.items()):
        style = (
            line(i) | {"linestyle": LINES[(i - 1) % 4]} if i else {"color": COLORS[0], **marks(0)}
        )
        ax.plot(t[later], np.asarray(values)[later], label=name, zorder=3 if i == 0 else 2, **style)
    ax.set(
        xscale="log", yscale="log", xlabel="t = learning rate × steps", ylabel=ylabel, title=title
    )
    return finish(ax)


def plot_predictions(
    network: ArrayLike, kernels: Mapping[str, ArrayLike], ax: Axes | None = None
) -> Axes:
    """Test outputs of the trained network against those that each kernel predicts.

    Args:
        network: outputs, any shape.
        kernels: name -> predicted outputs of the same shape.
        ax: Axes; a new figure if None.

    Returns:
        The Axes.

    Example:
        >>> from ntk_jax import plots
        >>> f = np.linspace(-1, 1, 50)
        >>> ax = plots.plot_predictions(f, {"infinite width": f + 0.1})
        >>> ax.get_legend().get_texts()[0].get_text()
        'infinite width: MSE 0.01'
    """
    ax = new_axes(ax)
    f, predictions = np.ravel(network), {name: np.ravel(k) for name, k in kernels.items()}
    everything = [f, *predictions.values()]
    ends = min(map(np.min, everything)), max(map(np.max, everything))
    # More points than these hide each other; the errors are over all.
    shown = slice(None, None, -(-f.size // 500))
    ax.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
    for i, (name, predicted) in enumerate(predictions.items()):
        label = f"{name}: MSE {np.mean((predicted - f) ** 2):.2g}"
        style = marks(i) | {"markersize": 4, "alpha": 0.7}
        ax.plot(predicted[shown], f[shown], color=COLORS[(i + 1) % 7], label=label, **style)
    ax.set(
        xlabel="kernel prediction of $f(x)$",
        ylabel="trained network $f(x)$",
        title="test outputs at the same time t",
        aspect="equal",
        adjustable="datalim",
    )
    return finish(ax)


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

    Example:
        >>> from ntk_jax import plots
        >>> steps = np.array([0, 1, 10])
        >>> ax = plots.plot_relative_change({"width 64": steps}, {"width 64": 0.01 * steps})
        >>> ax.get_title()
        'relative weight change'
    """
    ax = new_axes(ax)
    for i, (name, values) in enumerate(changes.items()):
        step = np.asarray(steps[name])
        ax.plot(step[step > 0], np.asarray(values)[step > 0], label=name, **line(i))
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="training step",
        ylabel=r"$\|\theta_t - \theta_0\| \,/\, \|\theta_0\|$",
        title="relative weight change",
    )
    return finish(ax)
