"""scikit-learn estimators on tangent kernels (extra `sklearn`): `from ntk_jax import estimators`."""

from ntk_jax.estimators.classifier import NTKClassifier as NTKClassifier
from ntk_jax.estimators.fitted import Influence as Influence
from ntk_jax.estimators.gp_kernel import NTKKernel as NTKKernel
from ntk_jax.estimators.regressor import NTKRegressor as NTKRegressor
from ntk_jax.estimators.transformer import NTKTransformer as NTKTransformer
