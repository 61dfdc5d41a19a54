"""A network beside its prediction over time, and functions with their uncertainty."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from ntk_jax.plots.style import COLORS, Axes, finish, marks, new_axes, plt
from ntk_jax.training.compare import Comparison


def plot_comparison(
    comparison: Comparison, axes: Sequence[Axes] | None = None, *, num_outputs: int = 4
) -> list[Axes]:
    """Loss, outputs, and accuracy or sup-norm gap: the network as markers, its prediction as lines.

    The learning rate in units of the critical one stands under the losses, in red where training is
    unstable.

    Args:
        comparison: what `compare` returns.
        axes: three Axes; a new figure if None.
        num_outputs: outputs (first output coordinate of the first examples, of the test set if
            there is one) to show.

    Returns:
        The three Axes.

    Example:
        >>> import optax
        >>> from ntk_jax import plots
        >>> x, y = np.eye(4, 3, dtype=np.float32), np.ones((4, 1), np.float32)
        >>> apply_fn, params = lambda w, x: x @ w, jnp.zeros((3, 1))
        >>> sgd = optax.sgd(0.1)
        >>> options = {"num_steps": 20, "record_outputs": True}
        >>> history = ntk_jax.train(apply_fn, params, x, y, optimizer=sgd, **options)
        >>> modes = ntk_jax.diagonalize(ntk_jax.empirical_ntk(apply_fn, params, x))
        >>> predicted = ntk_jax.gradient_descent_mse(modes, y, history.steps, 0.1)
        >>> comparison = ntk_jax.compare(history, predicted, y, learning_rate=0.1)
        >>> [ax.get_title() for ax in plots.plot_comparison(comparison)][0]
        'loss'
    """
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    both = {"train": comparison.train, "test": comparison.test}
    sides = {name: side for name, side in both.items() if side is not None}
    t, late = comparison.t, comparison.t > 0
    for i, (name, side) in enumerate(sides.items()):
        if side.loss is not None:
            _pair(axes[0], t[late], side.loss[:, late], i, name)
        if side.accuracy is not None:
            _pair(axes[2], t[late], side.accuracy[:, late], i, name)
        else:
            axes[2].plot(t[late], side.gap[late], color=COLORS[i], label=f"{name}: sup-norm gap")
    last = list(sides)[-1]
    outputs = sides[last].outputs
    shown = outputs.reshape(*outputs.shape[:3], -1)[:, :, :num_outputs, 0]
    for i in range(shown.shape[2]):
        _pair(axes[1], t[late], shown[:, late, i], i, f"{last} example {i}")
    gap = max(float(side.gap.max()) for side in sides.values())
    axes[0].set(ylabel="loss", yscale="log", title="loss")
    axes[1].set(ylabel="$f(x)$", title=f"outputs, sup-norm gap {gap:.2g}")
    accuracies = comparison.train.accuracy is not None
    axes[2].set(
        title="accuracy" if accuracies else "largest difference of outputs",
        ylabel="accuracy" if accuracies else "gap",
    )
    unstable = (
        comparison.critical_learning_rate is not None
        and comparison.learning_rate >= comparison.critical_learning_rate
    )
    axes[0].text(
        0.03,
        0.03,
        comparison.stability.replace(" = ", "\n= "),
        transform=axes[0].transAxes,
        fontsize="small",
        color="#b00000" if unstable else "0.35",
    )
    for ax in axes:
        ax.set(xscale="log", xlabel="t = learning rate × steps")
        finish(ax)
    axes[1].legend(framealpha=0.8, edgecolor="none", fontsize="x-small", ncols=2)
    return list(axes)


def _pair(ax: Axes, t: np.ndarray, values: np.ndarray, i: int, name: str) -> None:
    """Network as markers, prediction as a line of the same color."""
    every = max(1, len(t) // 25)
    ax.plot(t[::every], values[0][::every], color=COLORS[i % 7], label=name, **marks(i))
    ax.plot(t, values[1], color=COLORS[i % 7], linewidth=1.5)


def plot_band(
    x: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    ax: Axes | None = None,
    *,
    samples: ArrayLike | None = None,
    data: tuple[ArrayLike, ArrayLike] | None = None,
    label: str = "mean ± 2 standard deviations",
    title: str = "",
    color: str = COLORS[0],
) -> Axes:
    """A random function of one variable: mean, two standard deviations, some samples, the data.

    Args:
        x: where it is evaluated, (n,).
        mean: (n,).
        variance: (n,), as `gp_posterior` and `ensemble_mse` return it for a diagonal k_test_test.
        ax: Axes; a new figure if None.
        samples: functions drawn from it, or trained networks, (num_samples, n).
        data: training inputs and targets, (x, y).
        label: of the band in the legend.
        title: heading.
        color: of the band.

    Returns:
        The Axes.

    Example:
        >>> from ntk_jax import plots
        >>> x = np.linspace(-1, 1, 30)
        >>> ax = plots.plot_band(x, np.sin(x), 0.01 + x**2, data=(x[::9], x[::9]))
        >>> ax.get_ylabel()
        'f(x)'
    """
    ax = new_axes(ax)
    x, mean, spread = np.ravel(x), np.ravel(mean), 2 * np.sqrt(np.ravel(variance))
    ax.fill_between(
        x, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0, label=label
    )
    if samples is not None:
        for sample in np.asarray(samples):
            ax.plot(x, np.ravel(sample), color="0.45", linewidth=0.6, alpha=0.7)
    ax.plot(x, mean, color=color, linewidth=2)
    if data is not None:
        ax.plot(np.ravel(data[0]), np.ravel(data[1]), "k.", markersize=7, label="data", zorder=4)
    ax.set(xlabel="x", ylabel="f(x)", title=title)
    return finish(ax)
