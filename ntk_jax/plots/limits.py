"""Networks on their way to infinite width."""

import numpy as np

from ntk_jax.diagnostics.convergence import LimitCheck
from ntk_jax.plots.style import COLORS, Axes, finish, new_axes


def plot_limit_check(
    check: LimitCheck, ax: Axes | None = None, *, label: str = "networks", color: int = 0
) -> Axes:
    """Relative errors of tangent kernels against width, and the line of slope -1/2.

    Args:
        check: the result of `check_limit`.
        ax: Axes; a new figure if None. Several checks may share one.
        label: name in the legend.
        color: which of `COLORS`.

    Returns:
        The Axes.

    Example:
        >>> from ntk_jax import plots
        >>> errors = np.array([[0.21, 0.19], [0.1, 0.1]])
        >>> check = ntk_jax.LimitCheck((64, 256), errors, errors.mean(1), -0.5, 0.05, "converges")
        >>> plots.plot_limit_check(check).get_xlabel()
        'width'
    """
    fresh = ax is None
    ax = new_axes(ax)
    widths, errors, rms = (np.asarray(v, float) for v in (check.widths, check.errors, check.rms))
    ax.plot(
        np.repeat(widths, errors.shape[1]),
        errors.ravel(),
        ".",
        color=COLORS[color],
        alpha=0.3,
        markersize=5,
    )
    text = f"{label}: width$^{{{check.slope:.2f} \\pm {check.slope_error:.2f}}}$"
    ax.plot(widths, rms, "o-", color=COLORS[color], linewidth=1.5, markersize=5, label=text)
    if fresh:
        ax.plot(
            widths, rms[0] * (widths / widths[0]) ** -0.5, "--", color="0.4", label="slope −1/2"
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="width",
        ylabel=r"$\|\Theta - \Theta_\infty\| \,/\, \|\Theta_\infty\|$",
        title="tangent kernels and their limit",
    )
    ax.set_xticks(widths, [f"{int(w)}" for w in widths])
    ax.xaxis.minorticks_off()
    return finish(ax)
