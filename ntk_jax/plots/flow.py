"""Descent seen from above: losses with their gradient fields, and training as a path of outputs."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ntk_jax.plots.style import COLORS, LINES, Axes, finish, line, new_axes


def plot_vector_field(
    f: Callable[[Array], Array],
    xlim: tuple[float, float],
    ylim: tuple[float, float],
    paths: Mapping[str, ArrayLike] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Level lines of a function of two variables, arrows along -grad f, and paths in the plane.

    Args:
        f: (2,) -> scalar, a JAX function.
        xlim: range of the first variable.
        ylim: range of the second.
        paths: name -> points (T, 2).
        ax: Axes; a new figure if None.

    Returns:
        The Axes.

    Example:
        >>> from ntk_jax import plots
        >>> path = np.array([[1.0, 1.0], [0.5, 0.1], [0.0, 0.0]])
        >>> f = lambda w: w[0] ** 2 + 4 * w[1] ** 2
        >>> ax = plots.plot_vector_field(f, (-2, 2), (-2, 2), {"descent": path})
        >>> ax.get_xlabel()
        '$w_1$'
    """
    ax = new_axes(ax)
    fine, coarse = (np.meshgrid(np.linspace(*xlim, k), np.linspace(*ylim, k)) for k in (80, 14))
    values = jax.vmap(f)(jnp.stack([side.ravel() for side in fine], 1)).reshape(fine[0].shape)
    slopes = -np.asarray(jax.vmap(jax.grad(f))(jnp.stack([side.ravel() for side in coarse], 1)))
    lengths = np.linalg.norm(slopes, axis=1, keepdims=True)
    # Roots of the lengths: linear ones would vanish near the minimum.
    arrows = (
        slopes / np.where(lengths > 0, lengths, 1) * np.sqrt(lengths / max(lengths.max(), 1e-30))
    )
    filled = ax.contourf(*fine, values, levels=16, cmap="Blues_r", alpha=0.75)
    ax.figure.colorbar(filled, ax=ax, label="$f$")
    ax.quiver(*coarse, *arrows.T, color="0.25", width=0.004, scale=18, pivot="mid")
    for i, (name, given) in enumerate((paths or {}).items()):
        points = np.asarray(given)
        color = COLORS[(i + 1) % 7]
        ax.plot(*points.T, color=color, linewidth=2, linestyle=LINES[i % 4], label=name, zorder=3)
        ax.plot(*points[0], "o", color=color, zorder=4)
    ax.set(
        xlabel="$w_1$", ylabel="$w_2$", xlim=xlim, ylim=ylim, title=r"level lines and $-\nabla f$"
    )
    if paths:
        ax.legend(fontsize="small", loc="upper right")
    return ax


def plot_function_space(
    paths: Mapping[str, ArrayLike],
    y: ArrayLike | Sequence[float],
    k: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Training on two points as a path in the plane of the two outputs, up to the target.

    The kernel turns a ball of residuals into an ellipse: outputs move fast along its long axis. It
    is drawn around the start of the first path; its long axis reaches a quarter of the way to the
    target.

    Args:
        paths: name -> outputs (T, 2).
        y: targets (2,).
        k: kernel (2, 2), for its ellipse.
        ax: Axes; a new figure if None.

    Returns:
        The Axes.

    Example:
        >>> from ntk_jax import plots
        >>> k, y = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([1.0, -1.0])
        >>> t = np.linspace(0, 20, 50)
        >>> path = y * (1 - np.exp(-t[:, None] * np.array([2.6, 0.4])))
        >>> ax = plots.plot_function_space({"kernel": path}, y, k)
        >>> ax.get_title()
        'training in function space'
    """
    ax, target = new_axes(ax), np.ravel(np.asarray(y))
    for i, (name, given) in enumerate(paths.items()):
        points = np.asarray(given).reshape(-1, 2)
        ax.plot(*points.T, label=name, zorder=3, **line(i))
        ax.plot(*points[0], "o", color=COLORS[i % 7], markersize=6, zorder=4)
    if k is not None:
        start = np.asarray(next(iter(paths.values()))).reshape(-1, 2)[0]
        radius = float(np.linalg.norm(target - start) / 4 / np.linalg.norm(np.asarray(k), 2))
        ax.plot(
            *kernel_ellipse(start, np.asarray(k), radius),
            color="0.45",
            linewidth=1.2,
            label="kernel ellipse",
        )
    ax.plot(*target, "k*", markersize=13, label="target", zorder=5)
    ax.set(xlabel="$f(x_1)$", ylabel="$f(x_2)$", title="training in function space")
    ax.set(aspect="equal", adjustable="datalim")
    return finish(ax)


def kernel_ellipse(center: np.ndarray, k: np.ndarray, radius: float) -> np.ndarray:
    """Points (2, 200) of center + radius · K u over unit vectors u."""
    angle = np.linspace(0, 2 * np.pi, 200)
    return center[:, None] + radius * k @ np.stack([np.cos(angle), np.sin(angle)])
