"""scikit-learn estimators (extra `sklearn`), on demand: `from ntk_jax import estimators`."""

try:
    import sklearn as _sklearn
except ImportError as error:
    raise ImportError(
        "ntk_jax.estimators needs scikit-learn: pip install 'ntk-jax[sklearn]'."
    ) from error

from ntk_jax.estimators.classifier import NTKClassifier as NTKClassifier
from ntk_jax.estimators.fitted import Influence as Influence
from ntk_jax.estimators.gp_kernel import NTKKernel as NTKKernel
from ntk_jax.estimators.regressor import NTKRegressor as NTKRegressor
from ntk_jax.estimators.transformer import NTKTransformer as NTKTransformer
