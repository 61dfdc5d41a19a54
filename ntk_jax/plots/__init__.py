"""Arrays -> matplotlib Axes (extra `plots`): imported on demand, `from ntk_jax import plots`."""

from ntk_jax.plots.curves import plot_curves as plot_curves
from ntk_jax.plots.curves import plot_predictions as plot_predictions
from ntk_jax.plots.curves import plot_relative_change as plot_relative_change
from ntk_jax.plots.kernels import plot_kernels as plot_kernels
from ntk_jax.plots.limits import plot_limit_check as plot_limit_check
from ntk_jax.plots.phases import plot_phase_diagram as plot_phase_diagram
from ntk_jax.plots.style import COLORS as COLORS
from ntk_jax.plots.style import plt as plt
