"""A data set: training and test examples, and how rows are drawn for both."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike


class Dataset(NamedTuple):
    """Training and test examples; `classes` names the target columns of a classification, and is
    None otherwise.
    """

    name: str
    x_train: Float[np.ndarray, "n_train d"]
    y_train: Float[np.ndarray, "n_train O"]
    x_test: Float[np.ndarray, "n_test d"]
    y_test: Float[np.ndarray, "n_test O"]
    classes: tuple[str, ...] | None = None

    def astype(self, dtype: DTypeLike) -> "Dataset":
        """Return the same examples in another floating-point type."""
        x_train, y_train, x_test, y_test = (a.astype(dtype) for a in self[1:5])
        return Dataset(self.name, x_train, y_train, x_test, y_test, self.classes)


def shuffled(
    num_rows: int, num_train: int, num_test: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of both sets."""
    order = np.random.default_rng(seed).permutation(num_rows)
    return order[:num_train], order[num_train : num_train + num_test]


def make_dataset(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    classes: tuple[str, ...] | None,
    train: np.ndarray,
    test: np.ndarray,
) -> Dataset:
    """Both sets, centered by the mean of the training rows and scaled to their mean square 1."""
    mean = x[train].mean(axis=0)
    scale = np.sqrt(np.mean((x[train] - mean) ** 2)) or 1.0
    x = (x - mean) / scale
    return Dataset(name, x[train], y[train], x[test], y[test], classes)
