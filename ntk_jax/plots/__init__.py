"""Arrays -> matplotlib Axes (extra `plots`): imported on demand, `from ntk_jax import plots`."""

import ntk_jax.signatures as _signatures
from ntk_jax.plots.animations import animate_function_space as animate_function_space
from ntk_jax.plots.animations import animate_networks as animate_networks
from ntk_jax.plots.animations import animate_output_scale as animate_output_scale
from ntk_jax.plots.animations import animate_weights as animate_weights
from ntk_jax.plots.animations import save_gif as save_gif
from ntk_jax.plots.curves import plot_curves as plot_curves
from ntk_jax.plots.curves import plot_predictions as plot_predictions
from ntk_jax.plots.curves import plot_relative_change as plot_relative_change
from ntk_jax.plots.dynamics import plot_band as plot_band
from ntk_jax.plots.dynamics import plot_comparison as plot_comparison
from ntk_jax.plots.evolution import plot_kernel_evolution as plot_kernel_evolution
from ntk_jax.plots.evolution import plot_scaling as plot_scaling
from ntk_jax.plots.flow import plot_function_space as plot_function_space
from ntk_jax.plots.flow import plot_vector_field as plot_vector_field
from ntk_jax.plots.kernels import plot_kernels as plot_kernels
from ntk_jax.plots.limits import plot_limit_check as plot_limit_check
from ntk_jax.plots.phases import plot_phase_diagram as plot_phase_diagram
from ntk_jax.plots.spectrum import plot_eigenvalues as plot_eigenvalues
from ntk_jax.plots.spectrum import plot_learning_curves as plot_learning_curves
from ntk_jax.plots.spectrum import plot_spectral_density as plot_spectral_density
from ntk_jax.plots.style import COLORS as COLORS
from ntk_jax.plots.style import plt as plt
from ntk_jax.plots.weights import plot_weights as plot_weights

_signatures.readable(list(globals().values()))
