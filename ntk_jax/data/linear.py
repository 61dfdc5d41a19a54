"""A linear function of random directions."""

import numpy as np

from ntk_jax.checks import check_integer
from ntk_jax.data.dataset import Dataset


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
    """
    counts = {"num_train": num_train, "num_test": num_test, "num_features": num_features}
    for name, count in counts.items():
        check_integer(name, count, minimum=1)
    draw = np.random.RandomState(seed).randn
    x_train, x_test = (draw(n, num_features) for n in (num_train, num_test))
    w = draw(num_features)
    x_train, x_test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (x_train, x_test))
    return Dataset("linear", x_train, (x_train @ w)[:, None], x_test, (x_test @ w)[:, None])
