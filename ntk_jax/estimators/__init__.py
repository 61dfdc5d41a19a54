"""scikit-learn estimators (extra `sklearn`), on demand: `from ntk_jax import estimators`."""

import ntk_jax.signatures as _signatures
from ntk_jax.extras import missing as _missing

try:
    import sklearn as _sklearn
except ImportError as error:
    raise _missing("ntk_jax.estimators", "scikit-learn", "sklearn") from error

from ntk_jax.estimators.classifier import NTKClassifier as NTKClassifier
from ntk_jax.estimators.fitted import Influence as Influence
from ntk_jax.estimators.gp_kernel import NTKKernel as NTKKernel
from ntk_jax.estimators.regressor import NTKRegressor as NTKRegressor
from ntk_jax.estimators.transformer import NTKTransformer as NTKTransformer

_signatures.readable(list(globals().values()))
