"""Small real and synthetic data sets for experiments, as NumPy arrays."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike

from ntk_jax.checks import check_integer, check_number


class Dataset(NamedTuple):
    """Training and test examples; `classes` names the target columns of a classification, and is None otherwise."""

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


def linear_data(num_train: int = 32, num_test: int = 100, num_features: int = 100, *, seed: int = 2134) -> Dataset:
    """A linear function of random directions: y = x·w with unit rows x and w ~ N(0, I).

    Drawn by NumPy's legacy generator in the order x_train, x_test, w, so that published runs are repeated exactly.

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
    for name, count in [("num_train", num_train), ("num_test", num_test), ("num_features", num_features)]:
        check_integer(name, count, minimum=1)
    draw = np.random.RandomState(seed).randn
    x_train, x_test = (draw(n, num_features) for n in (num_train, num_test))
    w = draw(num_features)
    x_train, x_test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (x_train, x_test))
    return Dataset("linear", x_train, (x_train @ w)[:, None], x_test, (x_test @ w)[:, None])


def digits_data(num_train: int = 512, num_test: int = 512, *, seed: int = 0) -> Dataset:
    """The 1,797 handwritten 8 x 8 digits that ship with scikit-learn (extra `sklearn`), ten classes.

    Pixels are centered by the training mean and scaled to mean square 1; targets are one-hot minus 1/10.

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
        raise ImportError("digits_data needs scikit-learn: pip install 'ntk-jax[sklearn]'.") from error
    x, labels = load_digits(return_X_y=True)
    names = tuple(str(label) for label in range(10))
    return _split("digits", x, _one_hot(labels, 10), names, num_train, num_test, seed)


def csv_data(
    path: str | Path, target: str, *, test_fraction: float = 0.2, max_rows: int = 2000, seed: int = 0
) -> Dataset:
    """A table with a header row: numbers are used as they are, text columns become one column per value.

    A numeric target is standardized (regression), a text target becomes one-hot minus 1/classes (classification).

    Args:
        path: file of comma-separated values.
        target: name of the column to predict.
        test_fraction: share of the rows held out, strictly between 0 and 1.
        max_rows: rows beyond this many are left out after shuffling.
        seed: of the shuffle.

    Returns:
        A float64 Dataset.

    Raises:
        ValueError: an unknown column, missing values, fewer than 4 rows or a constant target.
    """
    check_number("test_fraction", test_fraction, strict=True)
    header, rows = _read_table(Path(path))
    if target not in header:
        raise ValueError(f"target: expected one of the columns {', '.join(header)}; got {target!r}.")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    x = np.concatenate([_as_columns(name, values)[0] for name, values in columns.items() if name != target], axis=1)
    y, names = _as_columns(target, columns[target])
    if len(rows) < 4 or np.all(y == y[0]):
        raise ValueError(f"{path}: expected at least 4 rows and a target that varies; got {len(rows)} rows.")
    if names is None:
        y = (y - y.mean()) / y.std()
    else:
        y = y - 1 / len(names)
    num_rows = min(len(rows), max_rows)
    num_test = min(max(1, round(test_fraction * num_rows)), num_rows - 2)
    return _split(Path(path).stem, x, y, names, num_rows - num_test, num_test, seed)


def _split(name, x, y, classes, num_train: int, num_test: int, seed: int) -> Dataset:
    check_integer("num_train", num_train, minimum=1)
    check_integer("num_test", num_test, minimum=1)
    if num_train + num_test > len(x):
        raise ValueError(f"{name}: expected num_train + num_test of at most {len(x)}; got {num_train} + {num_test}.")
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[:num_train], order[num_train : num_train + num_test]
    mean = x[train].mean(axis=0)
    scale = np.sqrt(np.mean((x[train] - mean) ** 2)) or 1.0
    x = (x - mean) / scale
    return Dataset(name, x[train], y[train], x[test], y[test], classes)


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[labels] - 1 / num_classes


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    if len(table) < 2:
        raise ValueError(f"{path}: expected a header row and data rows; got {len(table)} rows in all.")
    header, rows = table[0], table[1:]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header) or "" in row:
            missing = header[row.index("")] if "" in row else f"{len(header)} columns, got {len(row)}"
            raise ValueError(
                f"{path}, row {number}: expected a value in every column; missing {missing}. Fill or drop the row."
            )
    return header, rows


def _as_columns(name: str, values: list[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Standardized numbers, or one column per text value with the values' names."""
    try:
        numbers = np.asarray([float(value) for value in values])[:, None]
    except ValueError:
        names = tuple(sorted(set(values)))
        if len(names) > 100:
            raise ValueError(
                f"column {name}: expected numbers or at most 100 different texts; got {len(names)}. Drop the column."
            ) from None
        return (np.asarray(values)[:, None] == np.asarray(names)[None]).astype(float), names
    if not np.all(np.isfinite(numbers)):
        raise ValueError(f"column {name}: expected finite numbers; got NaN or infinity. Fill or drop those rows.")
    return (numbers - numbers.mean()) / (numbers.std() or 1.0), None
