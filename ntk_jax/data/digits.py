"""Handwritten digits (extra `sklearn`)."""

import numpy as np

from ntk_jax.checks import check_integer
from ntk_jax.data.dataset import Dataset, make_dataset, shuffled


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
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits_data needs scikit-learn: pip install 'ntk-jax[sklearn]'."
        ) from error
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
