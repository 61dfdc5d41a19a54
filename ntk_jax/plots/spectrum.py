"""Eigenvalues, and the learning curves they predict."""

from collections.abc import Mapping, Sequence

import numpy as np
from jax.typing import ArrayLike

from ntk_jax.plots.style import COLORS, Axes, finish, line, marks, new_axes


def plot_eigenvalues(eigenvalues: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Eigenvalues against their rank on logarithmic axes, without those that are not positive.

    Args:
        eigenvalues: name -> eigenvalues, largest first.
        ax: Axes; a new figure if None.

    Returns:
        The Axes.

    Example:
        >>> from ntk_jax import plots
        >>> rank = np.arange(1.0, 50.0)
        >>> ax = plots.plot_eigenvalues({"relu": rank**-2, "erf": rank**-4})
        >>> ax.get_yscale()
        'log'
    """
    ax = new_axes(ax)
    for i, (name, values) in enumerate(eigenvalues.items()):
        s = np.asarray(values)
        rank = np.arange(1, s.size + 1)
        ax.plot(rank[s > 0], s[s > 0], label=name, **line(i))
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="rank $i$",
        ylabel="eigenvalue $s_i$",
        title="spectrum of the kernel",
    )
    return finish(ax)


def plot_spectral_density(
    nodes: ArrayLike,
    weights: ArrayLike,
    eigenvalues: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The share of eigenvalues above each value: estimated from products, and the exact one.

    Args:
        nodes: of `spectral_density`.
        weights: of `spectral_density`.
        eigenvalues: all of them, for comparison.
        ax: Axes; a new figure if None.

    Returns:
        The Axes.

    Example:
        >>> from ntk_jax import plots
        >>> s = np.arange(1.0, 41.0)
        >>> ax = plots.plot_spectral_density(s[::10], np.full(4, 0.25), eigenvalues=s)
        >>> len(ax.lines)
        2
    """
    ax = new_axes(ax)
    order = np.argsort(np.asarray(nodes))[::-1]
    s, share = np.asarray(nodes)[order], np.cumsum(np.asarray(weights)[order])
    if eigenvalues is not None:
        exact = np.sort(np.asarray(eigenvalues))[::-1]
        above = np.arange(1, exact.size + 1) / exact.size
        ax.plot(
            exact[exact > 0], above[exact > 0], color="0.75", linewidth=5, label="all eigenvalues"
        )
    ax.plot(s[s > 0], share[s > 0], label="from products with random vectors", **line(0))
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="eigenvalue $s$",
        ylabel="share of eigenvalues above $s$",
        title="distribution of eigenvalues",
    )
    return finish(ax)


def plot_learning_curves(
    num_train: ArrayLike | Sequence[int],
    measured: ArrayLike,
    predicted: Mapping[str, ArrayLike],
    standard_error: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Measured test errors as markers, predicted ones as lines, against the number of examples.

    Args:
        num_train: numbers of examples (T,).
        measured: mean test errors (T,).
        predicted: name -> predicted test errors (T,).
        standard_error: of the measured means (T,), drawn as bars.
        ax: Axes; a new figure if None.

    Returns:
        The Axes.

    Example:
        >>> from ntk_jax import plots
        >>> n = np.array([10, 20, 40])
        >>> ax = plots.plot_learning_curves(n, 1 / n, {"predicted": 1.1 / n})
        >>> ax.get_title()
        'learning curve'
    """
    ax = new_axes(ax)
    n = np.asarray(num_train)
    for i, (name, values) in enumerate(predicted.items()):
        style = line(i) | {"color": COLORS[(i + 1) % 7]}  # the first color is of what was measured
        ax.plot(n, np.asarray(values), label=name, **style)
    bars = None if standard_error is None else 2 * np.asarray(standard_error)
    ax.errorbar(
        n,
        np.asarray(measured),
        bars,
        color=COLORS[0],
        label="measured",
        capsize=3,
        zorder=3,
        **marks(0),
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="training examples $n$",
        ylabel="test error, mean square",
        title="learning curve",
    )
    ax.set_xticks(n, [f"{count:g}" for count in n])
    ax.set_xticks([], minor=True)
    return finish(ax)
