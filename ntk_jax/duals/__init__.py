"""Dual activations: E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of a scalar function at two Gaussian
inputs.
"""

import ntk_jax.signatures as _signatures
from ntk_jax.duals.any_function import rule as rule
from ntk_jax.duals.any_function import series as series
from ntk_jax.duals.catalogue import CLOSED_FORM_NAMES as CLOSED_FORM_NAMES
from ntk_jax.duals.catalogue import SERIES_NAMES as SERIES_NAMES
from ntk_jax.duals.classical_kernels import cos as cos
from ntk_jax.duals.classical_kernels import exp as exp
from ntk_jax.duals.classical_kernels import gaussian as gaussian
from ntk_jax.duals.classical_kernels import hermite as hermite
from ntk_jax.duals.classical_kernels import monomial as monomial
from ntk_jax.duals.classical_kernels import normalized_exp as normalized_exp
from ntk_jax.duals.classical_kernels import polynomial as polynomial
from ntk_jax.duals.classical_kernels import rbf as rbf
from ntk_jax.duals.classical_kernels import sin as sin
from ntk_jax.duals.classical_kernels import sinusoid as sinusoid
from ntk_jax.duals.dual_rule import Dual as Dual
from ntk_jax.duals.dual_rule import DualRule as DualRule
from ntk_jax.duals.functions import abs as abs
from ntk_jax.duals.functions import erf as erf
from ntk_jax.duals.functions import gelu as gelu
from ntk_jax.duals.functions import identity as identity
from ntk_jax.duals.functions import leaky_relu as leaky_relu
from ntk_jax.duals.functions import rectified_monomial as rectified_monomial
from ntk_jax.duals.functions import rectifier as rectifier
from ntk_jax.duals.functions import relu as relu
from ntk_jax.duals.functions import sigmoid as sigmoid
from ntk_jax.duals.functions import sign as sign
from ntk_jax.duals.functions import silu as silu
from ntk_jax.duals.functions import softplus as softplus
from ntk_jax.duals.functions import step as step
from ntk_jax.duals.functions import swish as swish
from ntk_jax.duals.functions import tanh as tanh
from ntk_jax.duals.hermite_series.series import Series as Series

_signatures.readable([*globals().values()])
