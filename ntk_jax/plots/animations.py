"""Training, moving: matplotlib animations, for `save_gif` or, in a notebook, `to_jshtml`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.typing import ArrayLike
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.artist import Artist

from ntk_jax.plots.flow import kernel_ellipse
from ntk_jax.plots.style import COLORS, finish, line, plt


def save_gif(animation: FuncAnimation, path: str | Path, *, fps: int = 12, dpi: int = 72) -> Path:
    """Write an animation as a GIF (by Pillow, which comes with matplotlib) and return its path.

    Args:
        animation: what an `animate_...` function returns.
        path: of the file.
        fps: frames per second.
        dpi: dots per inch.

    Returns:
        The path.

    Example:
        >>> from ntk_jax import plots
        >>> W = np.random.default_rng(0).normal(size=(2, 8, 8))
        >>> animation = plots.animate_weights({"width 8": W}, steps=[0, 1])
        >>> plots.save_gif(animation, "weights.gif").stat().st_size > 0
        True
    """
    animation.save(str(path), writer=PillowWriter(fps=fps), dpi=dpi)
    return Path(path)


def animate_networks(
    x: ArrayLike,
    outputs: ArrayLike,
    times: ArrayLike | Sequence[float],
    *,
    data: tuple[ArrayLike, ArrayLike],
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
) -> FuncAnimation:
    """Many networks in training, a thin line each, with the mean ± 2 std that theory gives.

    Args:
        x: inputs (n,).
        outputs: of every network at every time, (T, networks, n).
        times: (T,).
        data: training inputs and targets.
        mean: predicted mean (T, n).
        std: predicted standard deviation (T, n).

    Returns:
        The animation, T frames.

    Example:
        >>> from ntk_jax import plots
        >>> x, times = np.linspace(-1, 1, 20), [0.0, 1.0, 2.0]
        >>> networks = np.random.default_rng(0).normal(size=(3, 5, 20))
        >>> animation = plots.animate_networks(x, networks, times, data=(x[::6], x[::6]))
        >>> plots.save_gif(animation, "networks.gif").name
        'networks.gif'
    """
    grid, f, t = np.ravel(x), np.asarray(outputs), np.ravel(times)
    fig, ax = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    alpha = float(np.clip(12 / f.shape[1], 0.08, 0.8))
    lines = [ax.plot(grid, row, color=COLORS[0], linewidth=0.8, alpha=alpha)[0] for row in f[0]]
    bands, ends = [], list(np.quantile(f, [0.002, 0.998]))
    if mean is not None:
        middle = np.asarray(mean)
        width = 2 * np.asarray(np.zeros_like(middle) if std is None else std)
        for sign, style in ((0, "-"), (1, "--"), (-1, "--")):
            label = {0: "kernel: mean", 1: "kernel: ±2 std", -1: None}[sign]
            curve = ax.plot([], [], color=COLORS[1], linestyle=style, linewidth=1.8, label=label)[0]
            bands.append((curve, middle + sign * width))
            ends += [bands[-1][1].min(), bands[-1][1].max()]
    ax.plot(np.ravel(data[0]), np.ravel(data[1]), "ko", markersize=5, label="data", zorder=4)
    low, high = min(ends), max(ends)
    room = 0.05 * (high - low)  # above, for the legend
    ax.set(
        xlabel="x", ylabel="f(x)", ylim=(low - room, high + 3 * room), xlim=(grid.min(), grid.max())
    )
    finish(ax)
    ax.legend(frameon=False, fontsize="small", loc="upper left", ncols=3)

    def update(i: int) -> Sequence[Artist]:
        for curve, row in zip(lines, f[i], strict=True):
            curve.set_ydata(row)
        for curve, values in bands:
            curve.set_data(grid, values[i])
        title = ax.set_title(f"{f.shape[1]} networks, t = {t[i]:.3g}")
        return [*lines, *(curve for curve, _ in bands), title]

    return FuncAnimation(fig, update, frames=len(t), interval=80)


def animate_weights(
    weights: Mapping[str, ArrayLike], steps: ArrayLike | Sequence[int], *, max_rows: int = 40
) -> FuncAnimation:
    """Weight matrices during training, side by side: those of wide networks do not budge.

    Args:
        weights: name -> matrices (T, rows, columns).
        steps: (T,).
        max_rows: rows and columns that are drawn, the first ones; the percentages are of whole
            matrices.

    Returns:
        The animation, T frames.

    Example:
        >>> from ntk_jax import plots
        >>> W = np.random.default_rng(0).normal(size=(2, 100, 100))
        >>> animation = plots.animate_weights({"width 100": W}, steps=[0, 50])
        >>> plots.save_gif(animation, "weights.gif").name
        'weights.gif'
    """
    frames = {name: np.asarray(matrices) for name, matrices in weights.items()}
    fig, axes = plt.subplots(
        1, len(frames), figsize=(2.6 * len(frames), 2.9), layout="constrained", squeeze=False
    )
    images = []
    for ax, (name, W) in zip(axes[0], frames.items(), strict=True):
        bound = 2 * W[0].std()
        shown = W[0, :max_rows, :max_rows]
        images.append(
            ax.imshow(shown, cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
        )
        part = "" if shown.shape == W[0].shape else f" (first {max_rows})"
        ax.set(xticks=[], yticks=[], title=f"{name}{part}")

    def update(i: int) -> Sequence[Artist]:
        for ax, image, W in zip(axes[0], images, frames.values(), strict=True):
            image.set_data(W[i, :max_rows, :max_rows])
            moved = np.linalg.norm(W[i] - W[0]) / np.linalg.norm(W[0])
            ax.set_xlabel(f"moved {100 * moved:.1f} %")
        fig.suptitle(f"hidden weights, step {np.ravel(steps)[i]}", fontsize="medium")
        return images

    return FuncAnimation(fig, update, frames=len(np.ravel(steps)), interval=80)


def animate_function_space(
    paths: Mapping[str, ArrayLike],
    kernels: Mapping[str, ArrayLike],
    y: ArrayLike | Sequence[float],
    times: ArrayLike | Sequence[float],
) -> FuncAnimation:
    """Two outputs on their way to two targets, pushed by the kernel: its ellipse travels with them.

    The ellipse is K u for all residuals u of one length. It keeps its shape for a lazy network, and
    turns for a rich one.

    Args:
        paths: name -> outputs (T, 2).
        kernels: name -> kernels (T, 2, 2), or (2, 2) for a constant one.
        y: targets (2,).
        times: (T,).

    Returns:
        The animation, T frames.

    Example:
        >>> from ntk_jax import plots
        >>> k, y = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([1.0, -1.0])
        >>> t = np.linspace(0, 4, 3)
        >>> path = y * (1 - np.exp(-t[:, None] * np.array([2.6, 0.4])))
        >>> animation = plots.animate_function_space({"kernel": path}, {"kernel": k}, y, t)
        >>> plots.save_gif(animation, "path.gif").name
        'path.gif'
    """
    target, t = np.ravel(np.asarray(y)), np.ravel(times)
    tracks = {name: np.asarray(path).reshape(len(t), 2) for name, path in paths.items()}
    fig, ax = plt.subplots(figsize=(4.6, 4.0), layout="constrained")
    drawn = []
    for i, (name, points) in enumerate(tracks.items()):
        path = ax.plot([], [], label=name, **line(i))[0]
        ellipse = ax.plot([], [], **line(i) | {"linewidth": 1})[0]
        k = np.broadcast_to(np.asarray(kernels[name]), (len(t), 2, 2))
        drawn.append((points, k, path, ellipse, ax.plot([], [], "o", color=COLORS[i % 7])[0]))
    ax.plot(*target, "k*", markersize=13, label="target", zorder=5)
    everything = np.concatenate([*tracks.values(), target[None]])
    middle = (everything.max(0) + everything.min(0)) / 2
    half = 0.75 * np.ptp(everything, axis=0).max()
    ax.set(
        xlabel="$f(x_1)$",
        ylabel="$f(x_2)$",
        xlim=middle[0] + [-half, half],
        ylim=middle[1] + [-half, half],
        aspect="equal",
    )
    finish(ax)

    def update(i: int) -> Sequence[Artist]:
        for points, k, path, ellipse, head in drawn:
            path.set_data(*points[: i + 1].T)
            head.set_data(*points[i : i + 1].T)
            ellipse.set_data(*kernel_ellipse(points[i], k[i], half / 3 / np.linalg.norm(k[0], 2)))
        return [ax.set_title(f"training in function space, t = {t[i]:.3g}")]

    return FuncAnimation(fig, update, frames=len(t), interval=80)


def animate_output_scale(
    x: ArrayLike,
    outputs: Mapping[str, ArrayLike],
    times: ArrayLike | Sequence[float],
    *,
    data: tuple[ArrayLike, ArrayLike],
    linear: Mapping[str, ArrayLike] | None = None,
) -> FuncAnimation:
    """From lazy to rich: a panel per output scale, the network and what its kernel predicts.

    Args:
        x: inputs (n,).
        outputs: name of the scale -> network outputs (T, n).
        times: (T,).
        data: training inputs and targets.
        linear: name of the scale -> outputs of the linearized network (T, n).

    Returns:
        The animation, T frames.

    Example:
        >>> from ntk_jax import plots
        >>> x, times = np.linspace(-1, 1, 20), [0.0, 1.0]
        >>> outputs = {"scale 1": np.stack([0 * x, np.sin(x)]), "scale 10": np.stack([0 * x, x])}
        >>> animation = plots.animate_output_scale(x, outputs, times, data=(x[::6], x[::6]))
        >>> plots.save_gif(animation, "scales.gif").name
        'scales.gif'
    """
    grid, t = np.ravel(x), np.ravel(times)
    tracks = {
        name: [np.asarray(outputs[name]), *([np.asarray(linear[name])] if linear else [])]
        for name in outputs
    }
    fig, axes = plt.subplots(
        1,
        len(tracks),
        figsize=(2.9 * len(tracks), 3.0),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    lines = []
    for ax, (name, rows) in zip(axes[0], tracks.items(), strict=True):
        for row, label, style, color in zip(
            rows, ("network", "linearized"), ("-", "--"), COLORS, strict=False
        ):
            curve = ax.plot(grid, row[0], color=color, linestyle=style, linewidth=2, label=label)[0]
            lines.append((curve, row))
        ax.plot(np.ravel(data[0]), np.ravel(data[1]), "ko", markersize=5, label="data", zorder=4)
        ax.set(title=name, xlabel="x")
        ax.spines[["top", "right"]].set_visible(False)
    values = np.concatenate(
        [row.ravel() for rows in tracks.values() for row in rows] + [np.ravel(data[1])]
    )
    axes[0, 0].set(ylabel="f(x)", ylim=(values.min() - 0.1, values.max() + 0.1))
    axes[0, 0].legend(frameon=False, fontsize="small")

    def update(i: int) -> Sequence[Artist]:
        for curve, row in lines:
            curve.set_ydata(row[i])
        fig.suptitle(f"t = {t[i]:.3g}", fontsize="medium")
        return [curve for curve, _ in lines]

    return FuncAnimation(fig, update, frames=len(t), interval=80)
