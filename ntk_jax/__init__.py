"""Neural tangent kernels in JAX: finite width, infinite width, and training under them."""

import importlib.metadata as _metadata

import ntk_jax.signatures as _signatures
from ntk_jax import duals as duals
from ntk_jax import losses as losses
from ntk_jax.diagnostics.change import RelativeChange as RelativeChange
from ntk_jax.diagnostics.change import TaylorGap as TaylorGap
from ntk_jax.diagnostics.change import jacobian_change as jacobian_change
from ntk_jax.diagnostics.change import kernel_change as kernel_change
from ntk_jax.diagnostics.change import relative_change as relative_change
from ntk_jax.diagnostics.change import taylor_gap as taylor_gap
from ntk_jax.diagnostics.convergence import LimitCheck as LimitCheck
from ntk_jax.diagnostics.convergence import check_limit as check_limit
from ntk_jax.diagnostics.evolution import KernelRecord as KernelRecord
from ntk_jax.diagnostics.evolution import kernel_evolution as kernel_evolution
from ntk_jax.diagnostics.evolution import kernel_velocity as kernel_velocity
from ntk_jax.diagnostics.influence import single_step_influence as single_step_influence
from ntk_jax.diagnostics.laziness import Laziness as Laziness
from ntk_jax.diagnostics.laziness import laziness as laziness
from ntk_jax.diagnostics.min_norm import Displacement as Displacement
from ntk_jax.diagnostics.min_norm import min_norm_displacement as min_norm_displacement
from ntk_jax.dynamics.any_loss import Flow as Flow
from ntk_jax.dynamics.any_loss import gradient_flow as gradient_flow
from ntk_jax.dynamics.any_loss_descent import gradient_descent as gradient_descent
from ntk_jax.dynamics.descent import gradient_descent_mse as gradient_descent_mse
from ntk_jax.dynamics.ensemble import Ensemble as Ensemble
from ntk_jax.dynamics.ensemble import ensemble_mse as ensemble_mse
from ntk_jax.dynamics.flow import gradient_flow_mse as gradient_flow_mse
from ntk_jax.finite.by_layer import empirical_ntk_by_layer as empirical_ntk_by_layer
from ntk_jax.finite.empirical import contract as contract
from ntk_jax.finite.empirical import empirical_nngp as empirical_nngp
from ntk_jax.finite.empirical import empirical_ntk as empirical_ntk
from ntk_jax.finite.empirical import tangent_features as tangent_features
from ntk_jax.finite.explain import Explanation as Explanation
from ntk_jax.finite.explain import LayerRow as LayerRow
from ntk_jax.finite.explain import explain_ntk as explain_ntk
from ntk_jax.finite.features.features import TangentFeatures as TangentFeatures
from ntk_jax.finite.linearize import linearize as linearize
from ntk_jax.finite.linearize import taylor_expand as taylor_expand
from ntk_jax.finite.monte_carlo import MonteCarlo as MonteCarlo
from ntk_jax.finite.monte_carlo import monte_carlo_estimates as monte_carlo_estimates
from ntk_jax.finite.monte_carlo import monte_carlo_kernels as monte_carlo_kernels
from ntk_jax.finite.operator import KernelOperator as KernelOperator
from ntk_jax.finite.operator import ntk_operator as ntk_operator
from ntk_jax.inference.cross_validation import (
    generalized_cross_validation as generalized_cross_validation,
)
from ntk_jax.inference.gaussian_process import Posterior as Posterior
from ntk_jax.inference.gaussian_process import gp_posterior as gp_posterior
from ntk_jax.inference.gaussian_process import log_marginal_likelihood as log_marginal_likelihood
from ntk_jax.inference.hyperparameters import Fit as Fit
from ntk_jax.inference.hyperparameters import fit_hyperparameters as fit_hyperparameters
from ntk_jax.inference.learning_curves import LearningCurve as LearningCurve
from ntk_jax.inference.learning_curves import eigenlearning as eigenlearning
from ntk_jax.inference.leave_one_out import LeaveOneOut as LeaveOneOut
from ntk_jax.inference.leave_one_out import Ridge as Ridge
from ntk_jax.inference.leave_one_out import leave_one_out as leave_one_out
from ntk_jax.inference.leave_one_out import select_diag_reg as select_diag_reg
from ntk_jax.inference.regression import Regression as Regression
from ntk_jax.inference.regression import kernel_regression as kernel_regression
from ntk_jax.inference.subsampling import PoolCurve as PoolCurve
from ntk_jax.inference.subsampling import learning_curve as learning_curve
from ntk_jax.infinite.flax.errors import NoLimitError as NoLimitError
from ntk_jax.infinite.flax.explain import explain_limit as explain_limit
from ntk_jax.infinite.flax.limit import infinite_width as infinite_width
from ntk_jax.infinite.flax.register import register_rule as register_rule
from ntk_jax.infinite.mlp.kernels import kernel_diagonal as kernel_diagonal
from ntk_jax.infinite.mlp.kernels import mlp_kernels as mlp_kernels
from ntk_jax.infinite.mlp.kernels import mlp_kernels_by_layer as mlp_kernels_by_layer
from ntk_jax.infinite.mlp.phase import Phase as Phase
from ntk_jax.infinite.mlp.phase import critical_W_std as critical_W_std
from ntk_jax.infinite.mlp.phase import phase as phase
from ntk_jax.initializers.stats import InitStats as InitStats
from ntk_jax.initializers.stats import gaussian_initializer as gaussian_initializer
from ntk_jax.initializers.stats import init_stats as init_stats
from ntk_jax.modes.modes import Modes as Modes
from ntk_jax.modes.modes import Prediction as Prediction
from ntk_jax.modes.modes import diagonalize as diagonalize
from ntk_jax.modes.modes import max_learning_rate as max_learning_rate
from ntk_jax.networks.adapters import from_linen as from_linen
from ntk_jax.networks.adapters import from_nnx as from_nnx
from ntk_jax.networks.adapters import scale_output as scale_output
from ntk_jax.networks.adapters import zero_output as zero_output
from ntk_jax.networks.mlp import MLP as MLP
from ntk_jax.networks.mlp import Dense as Dense
from ntk_jax.networks.mlp import torch_init as torch_init
from ntk_jax.operators.solve import Solution as Solution
from ntk_jax.operators.solve import solve as solve
from ntk_jax.scale.kernel_operator import kernel_operator as kernel_operator
from ntk_jax.scale.shard import shard as shard
from ntk_jax.scale.store import KernelStore as KernelStore
from ntk_jax.scale.tiles import tile as tile
from ntk_jax.spectrum.alignment import alignment as alignment
from ntk_jax.spectrum.alignment import centered_alignment as centered_alignment
from ntk_jax.spectrum.alignment import cosine as cosine
from ntk_jax.spectrum.alignment import kernel_distance as kernel_distance
from ntk_jax.spectrum.definiteness import Definiteness as Definiteness
from ntk_jax.spectrum.definiteness import definiteness as definiteness
from ntk_jax.spectrum.eigenmodes import cumulative_power as cumulative_power
from ntk_jax.spectrum.eigenmodes import learning_times as learning_times
from ntk_jax.spectrum.eigenmodes import rkhs_norm as rkhs_norm
from ntk_jax.spectrum.eigenvalues import TopEigenvalues as TopEigenvalues
from ntk_jax.spectrum.eigenvalues import effective_rank as effective_rank
from ntk_jax.spectrum.eigenvalues import eigenvalues as eigenvalues
from ntk_jax.spectrum.eigenvalues import top_eigenvalues as top_eigenvalues
from ntk_jax.spectrum.stochastic_traces import SpectralDensity as SpectralDensity
from ntk_jax.spectrum.stochastic_traces import log_determinant as log_determinant
from ntk_jax.spectrum.stochastic_traces import spectral_density as spectral_density
from ntk_jax.spectrum.stochastic_traces import stochastic_trace as stochastic_trace
from ntk_jax.training.compare import Comparison as Comparison
from ntk_jax.training.compare import Curves as Curves
from ntk_jax.training.compare import compare as compare
from ntk_jax.training.parameter_flow import parameter_flow as parameter_flow
from ntk_jax.training.record import History as History
from ntk_jax.training.train import train as train
from ntk_jax.training.train_ensemble import EnsembleHistory as EnsembleHistory
from ntk_jax.training.train_ensemble import train_ensemble as train_ensemble
from ntk_jax.types import ApplyFn as ApplyFn
from ntk_jax.types import Estimate as Estimate
from ntk_jax.types import KernelFn as KernelFn
from ntk_jax.types import Kernels as Kernels
from ntk_jax.types import Params as Params

try:
    __version__ = _metadata.version("ntk-jax")
except _metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "unknown"

_own = {n: v for n, v in globals().items() if n[0] != "_" and not isinstance(v, type(_metadata))}
__all__ = [*_own, "duals", "losses"]
_signatures.readable([*_own.values(), *vars(duals).values(), *vars(losses).values()])


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
