"""Kernels that move: over training time, with width, with the scale of the output."""

from collections.abc import Mapping, Sequence

import numpy as np
from jax.typing import ArrayLike

from ntk_jax.diagnostics.evolution import KernelRecord
from ntk_jax.plots.style import COLORS, Axes, finish, line, marks, new_axes, plt

QUANTITIES = {
    "change": r"change $\|K_t - K_0\| \,/\, \|K_0\|$",
    "alignment": "alignment with the targets",
    "effective_rank": "effective rank",
    "velocity": r"velocity $\|dK/dt\| \,/\, \|K\|$",
}


def plot_kernel_evolution(
    t: Mapping[str, ArrayLike],
    records: Mapping[str, KernelRecord],
    quantities: Sequence[str] = ("change", "alignment", "effective_rank", "velocity"),
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """What happens to the kernels of several networks over training time, a panel per quantity.

    Args:
        t: name -> times, learning rate x steps (T,); time 0 is left out.
        records: name -> `History.recorded` of a training run with `record=kernel_evolution(...)`.
        quantities: fields of KernelRecord: "change", "alignment", "effective_rank", "velocity".
        axes: one Axes per quantity; a new figure if None.

    Returns:
        The Axes.

    Raises:
        ValueError: an unknown quantity, or one that was not recorded.

    Example:
        >>> import optax
        >>> from ntk_jax import plots
        >>> x, y = np.eye(4, 3, dtype=np.float32), np.ones((4, 1), np.float32)
        >>> apply_fn, params = lambda w, x: (x @ w) ** 2, jnp.full((3, 1), 0.5)
        >>> options = {"num_steps": 4, "record": ntk_jax.kernel_evolution(apply_fn, params, x, y)}
        >>> history = ntk_jax.train(apply_fn, params, x, y, optimizer=optax.sgd(0.1), **options)
        >>> t, records = {"square": 0.1 * history.steps}, {"square": history.recorded}
        >>> len(plots.plot_kernel_evolution(t, records))
        4
    """
    for quantity in quantities:
        if quantity not in QUANTITIES or any(
            getattr(record, quantity) is None for record in records.values()
        ):
            raise ValueError(
                f"quantities: expected some of {', '.join(map(repr, QUANTITIES))}, the last of "
                f"which need targets in kernel_evolution; got {quantity!r}."
            )
    if axes is None:
        size = (3.6 * len(quantities), 3.2)
        _, grid = plt.subplots(
            1, len(quantities), figsize=size, layout="constrained", squeeze=False
        )
        axes = list(grid[0])
    for ax, quantity in zip(axes, quantities, strict=True):
        for i, (name, record) in enumerate(records.items()):
            times = np.asarray(t[name])
            values = np.asarray(getattr(record, quantity))
            ax.plot(times[times > 0], values[times > 0], label=name, **line(i))
        yscale = "log" if quantity in ("change", "velocity") else "linear"
        label = "t = learning rate × steps"
        ax.set(xscale="log", yscale=yscale, xlabel=label, title=QUANTITIES[quantity])
        finish(ax)
        if ax is not axes[0] and (legend := ax.get_legend()):
            legend.remove()
    return list(axes)


def plot_scaling(
    sizes: ArrayLike,
    values: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    xlabel: str = "width $m$",
    ylabel: str = "",
    title: str = "",
    fitted: Sequence[str] | None = None,
) -> Axes:
    """Quantities against a size on logarithmic axes, with the power law through each.

    Args:
        sizes: widths, output scales, ... (S,).
        values: name -> values (S,), or (S, repetitions), whose mean is drawn with a bar of two
            standard errors.
        ax: Axes; a new figure if None.
        xlabel: what the size is.
        ylabel: quantity and unit.
        title: heading.
        fitted: names of the quantities that follow a power law; the others are joined by lines. All
            if None.

    Returns:
        The Axes; the legend holds the exponents.

    Example:
        >>> from ntk_jax import plots
        >>> widths = np.array([64, 256, 1024])
        >>> ax = plots.plot_scaling(widths, {"error": widths**-0.5})
        >>> ax.get_legend().get_texts()[0].get_text()
        'error: exponent -0.50'
    """
    ax = new_axes(ax)
    m = np.asarray(sizes, float)
    for i, (name, value) in enumerate(values.items()):
        runs = np.asarray(value, float).reshape(m.size, -1)
        mean = runs.mean(axis=1)
        bars = 2 * runs.std(axis=1, ddof=1) / runs.shape[1] ** 0.5 if runs.shape[1] > 1 else None
        slope, intercept = np.polyfit(np.log(m), np.log(mean), 1)
        law = fitted is None or name in fitted
        label, line = (
            (f"{name}: exponent {slope:.2f}", np.exp(intercept) * m**slope) if law else (name, mean)
        )
        ax.errorbar(m, mean, bars, color=COLORS[i % 7], capsize=3, label=label, **marks(i))
        ax.plot(
            m, line, color=COLORS[i % 7], linewidth=1.5, linestyle="-" if law else "--", zorder=1
        )
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
    if m.size <= 6:
        ax.set_xticks(m, [f"{size:g}" for size in m])
        ax.set_xticks([], minor=True)
    return finish(ax)
