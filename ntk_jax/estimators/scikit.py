"""The only place where versions of scikit-learn differ, and checks that it leaves to others."""

import numpy as np
from jaxtyping import Float
from sklearn.utils import validation


def validated(
    estimator: object, *data: object, reset: bool = True, **options: object
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """X, or X and y, checked; sets or compares the number and the names of the features."""
    if hasattr(validation, "validate_data"):
        return validation.validate_data(estimator, *data, reset=reset, **options)
    check = getattr(estimator, "_validate_data")  # noqa: B009  (a method until scikit-learn 1.5)
    return check(*data, reset=reset, **options)


def as_features(estimator: object, X: object) -> Float[np.ndarray, "n d"]:
    """Rows to predict at, with the features of the fit."""
    validation.check_is_fitted(estimator)
    x = validated(estimator, X, reset=False, dtype=np.float64)
    assert isinstance(x, np.ndarray)
    return x


def as_weights(sample_weight: object, n: int) -> Float[np.ndarray, " n"]:
    """Weights of the rows; 1 where none are given.

    Raises:
        ValueError: not one for each row; negative or not finite; none above 0.
    """
    if sample_weight is None:
        return np.ones(n)
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(n, float(weights))
    if weights.ndim != 1:
        raise ValueError("sample_weight: Sample weights must be 1D array or scalar.")
    if len(weights) != n:
        raise ValueError(
            f"sample_weight: expected one for each of the {n} rows; got {len(weights)}."
        )
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise ValueError(
            "sample_weight: expected finite numbers of at least 0; got "
            f"{weights.min():g} to {weights.max():g}."
        )
    if not np.any(weights):
        raise ValueError("sample_weight: expected a weight above 0; got only weights of zero.")
    return weights
