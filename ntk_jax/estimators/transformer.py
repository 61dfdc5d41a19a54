"""Kernels and their features as steps of a pipeline."""

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state

from ntk_jax.checks import check_integer, check_option
from ntk_jax.data.scaling import SCALES, scaler
from ntk_jax.estimators.kernels import cross_kernel, training_kernel
from ntk_jax.estimators.scikit import as_features, validated
from ntk_jax.estimators.settings import Options, grid_of


class NTKTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Rows -> their kernel with the training rows, or features whose products are that kernel.

    The kernel feeds estimators with kernel="precomputed", such as `SVC`. With `n_components` = m
    the features are those of Nyström's method on m training rows Z drawn at random,

        φ(x) = K(x, Z) K(Z, Z)^(-1/2),    φ(x) φ(x')ᵀ ≈ K(x, x'),  exact where x or x' is in Z

    for linear models, and for more rows than a kernel of all pairs has room for. Kernels are
    divided by the mean of their diagonal, so that a C or a ridge means the same for all of them.
    Arguments that are not named below are those of `NTKRegressor`, without "auto": there is no
    target to choose by.

    Args:
        scale: "columns", "all" or "none".
        n_components: None for the kernel, or a number of features (at most as many as rows).
        random_state: of the rows Z, and of the network of finite width.

    Attributes:
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Reference: Williams, Seeger 2001.

    Example:
        >>> from ntk_jax.estimators import NTKTransformer
        >>> NTKTransformer().fit_transform(np.eye(5)).shape
        (5, 5)
        >>> NTKTransformer(n_components=2).fit_transform(np.eye(5)).shape
        (5, 2)
    """

    def __init__(
        self,
        *,
        kernel: object = "ntk",
        depth: object = 2,
        activation: object = "relu",
        W_std: object = 2**0.5,
        b_std: object = 0.3,
        scale: object = "columns",
        n_components: object = None,
        width: object = None,
        model: object = None,
        input_shape: object = None,
        random_state: object = None,
    ) -> None:
        self.kernel = kernel
        self.depth = depth
        self.activation = activation
        self.W_std = W_std
        self.b_std = b_std
        self.scale = scale
        self.n_components = n_components
        self.width = width
        self.model = model
        self.input_shape = input_shape
        self.random_state = random_state

    def fit(self, X: object, y: object = None) -> "NTKTransformer":
        """Remember the rows, or a sample of them; y is ignored.

        Raises:
            ValueError: bad data or parameters.
        """
        x = validated(self, X, dtype=np.float64)
        assert isinstance(x, np.ndarray)
        check_option("scale", self.scale, SCALES)
        grid = grid_of(Options(**{n: getattr(self, n) for n in Options._fields}), 1.0, x.shape[1])
        if len(grid.sources) > 1 or len(grid.depths) > 1:
            raise ValueError(
                "depth, W_std, b_std: expected numbers; got 'auto', and there is no target to "
                "choose by. Use NTKRegressor or NTKClassifier, or a grid search of the pipeline."
            )
        self.kernel_ = grid.sources[0]
        self._scaler = scaler(x, np.ones(len(x)), str(self.scale))
        x = self._scaler(x)
        if self.n_components is not None:
            x = x[self._drawn(len(x))]
        k = training_kernel(self.kernel_, x)
        self._unit = float(np.diagonal(k).mean()) or 1.0
        self._x, self._root = x, None
        if self.n_components is not None:
            self._root = _inverse_root(k / self._unit)
        self._n_features_out = len(x)
        return self

    def transform(self, X: object) -> Float[np.ndarray, "n m"]:
        """The kernel of rows X with the training rows, or their features."""
        x = as_features(self, X)
        k = cross_kernel(self.kernel_, self._scaler(x), self._x) / self._unit
        return k if self._root is None else k @ self._root

    def _drawn(self, n: int) -> np.ndarray:
        m = self.n_components
        check_integer("n_components", m, minimum=1)
        assert isinstance(m, int | np.integer)
        if m > n:
            raise ValueError(
                f"n_components: expected at most the {n} rows of X (n_samples = {n}); got {m}."
            )
        return np.sort(check_random_state(self.random_state).permutation(n)[:m])


def _inverse_root(k: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """K^(-1/2), without modes that are rounding."""
    s, U = np.linalg.eigh(k)
    kept = s > 1e-10 * s[-1]
    return (U * np.where(kept, 1 / np.sqrt(np.where(kept, s, 1)), 0)) @ U.T
