"""One look for every picture: colors that are safe for color-blind readers, and plain axes."""

from typing import Any, TypeAlias

from ntk_jax.extras import missing

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
except ImportError as error:
    raise missing("ntk_jax.plots", "matplotlib", "plots") from error

# Okabe, Ito 2008.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v")

Style: TypeAlias = dict[str, Any]
"""Keywords of a matplotlib artist, whose values matplotlib itself leaves open."""


def new_axes(ax: Axes | None) -> Axes:
    """The given Axes, or those of a new figure."""
    return plt.subplots(figsize=(4.8, 3.6), layout="constrained")[1] if ax is None else ax


def line(i: int) -> Style:
    """Keywords of the i-th line: 7 colors and 4 dashes make 28 different ones."""
    return {"color": COLORS[i % 7], "linestyle": LINES[i % 4], "linewidth": 2}


def marks(i: int) -> Style:
    """Keywords of the i-th set of markers without a line."""
    return {
        "linestyle": "none",
        "marker": MARKERS[i % 5],
        "markersize": 5,
        "markerfacecolor": "none",
    }


def finish(ax: Axes) -> Axes:
    """The same Axes with a light grid and a legend."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize="small")
    return ax
