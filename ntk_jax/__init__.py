"""Neural tangent kernels in JAX: finite width, infinite width, and what training under them does."""

from ntk_jax.dynamics.modes import Modes as Modes
from ntk_jax.dynamics.modes import Prediction as Prediction
from ntk_jax.dynamics.modes import diagonalize as diagonalize
from ntk_jax.dynamics.modes import gradient_descent_mse as gradient_descent_mse
from ntk_jax.dynamics.modes import gradient_flow_mse as gradient_flow_mse
from ntk_jax.dynamics.modes import max_learning_rate as max_learning_rate
from ntk_jax.dynamics.posterior import Regression as Regression
from ntk_jax.dynamics.posterior import kernel_regression as kernel_regression
from ntk_jax.finite.empirical import empirical_nngp as empirical_nngp
from ntk_jax.finite.empirical import empirical_ntk as empirical_ntk
from ntk_jax.finite.linearize import linearize as linearize
from ntk_jax.infinite import duals as duals
from ntk_jax.infinite.mlp import kernel_diagonal as kernel_diagonal
from ntk_jax.infinite.mlp import mlp_kernels as mlp_kernels
from ntk_jax.infinite.mlp import mlp_kernels_by_layer as mlp_kernels_by_layer
from ntk_jax.networks import MLP as MLP
from ntk_jax.networks import Dense as Dense
from ntk_jax.networks import from_linen as from_linen
from ntk_jax.networks import scale_output as scale_output
from ntk_jax.networks import zero_output as zero_output
from ntk_jax.types import ApplyFn as ApplyFn
from ntk_jax.types import KernelFn as KernelFn
from ntk_jax.types import Kernels as Kernels
from ntk_jax.types import Params as Params
