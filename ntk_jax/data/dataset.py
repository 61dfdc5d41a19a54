"""A data set: training and test examples; a synthetic one, and one of handwritten digits."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike

from ntk_jax.checks import check_integer
from ntk_jax.extras import missing


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


def linear_data(
    num_train: int = 32, num_test: int = 100, num_features: int = 100, *, seed: int = 2134
) -> Dataset:
    """A linear function of random directions: y = x·w with unit rows x and w ~ N(0, I).

    Drawn by NumPy's legacy generator in the order x_train, x_test, w, so that published runs are
    repeated exactly.

    Args:
        num_train: training rows.
        num_test: test rows.
        num_features: d.
        seed: of `numpy.random.RandomState`.

    Returns:
        A float64 Dataset with one output.

    Raises:
        ValueError: a count below 1.

    Example:
        >>> from ntk_jax import data
        >>> found = data.linear_data(num_train=4, num_test=2, num_features=3)
        >>> found.x_train.shape, found.y_test.shape
        ((4, 3), (2, 1))
    """
    counts = {"num_train": num_train, "num_test": num_test, "num_features": num_features}
    for name, count in counts.items():
        check_integer(name, count, minimum=1)
    draw = np.random.RandomState(seed).randn
    x_train, x_test = (draw(n, num_features) for n in (num_train, num_test))
    w = draw(num_features)
    x_train, x_test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (x_train, x_test))
    return Dataset("linear", x_train, (x_train @ w)[:, None], x_test, (x_test @ w)[:, None])


def digits_data(num_train: int = 512, num_test: int = 512, *, seed: int = 0) -> Dataset:
    """The 1,797 handwritten 8 x 8 digits that ship with scikit-learn (extra `sklearn`), ten
    classes.

    Pixels are centered by the training mean and scaled to mean square 1; targets are one-hot minus
    1/10.

    Args:
        num_train: training rows.
        num_test: test rows; together at most 1,797.
        seed: of the shuffle.

    Returns:
        A float64 Dataset with ten outputs.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: more rows asked for than there are.

    Example:
        >>> from ntk_jax import data
        >>> digits = data.digits_data(20, 10)
        >>> digits.x_train.shape, digits.y_test.shape
        ((20, 64), (10, 10))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing("digits_data", "scikit-learn", "sklearn") from error
    x, labels = load_digits(return_X_y=True)
    names = tuple(str(label) for label in range(10))
    y = np.eye(10)[labels] - 1 / 10
    check_integer("num_train", num_train, minimum=1)
    check_integer("num_test", num_test, minimum=1)
    if num_train + num_test > len(x):
        raise ValueError(
            f"digits: expected num_train + num_test of at most {len(x)}; got {num_train} + "
            f"{num_test}."
        )
    return make_dataset("digits", x, y, names, *shuffled(len(x), num_train, num_test, seed))
