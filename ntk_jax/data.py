"""Small real and synthetic data sets for experiments, as NumPy arrays."""

import csv
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike

from ntk_jax.checks import check_integer, check_number, check_option

# What tables hold in place of a value.
MISSING = ("na", "n/a", "nan", "null", "none", "?")


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
    for name, count in [
        ("num_train", num_train),
        ("num_test", num_test),
        ("num_features", num_features),
    ]:
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
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits_data needs scikit-learn: pip install 'ntk-jax[sklearn]'."
        ) from error
    x, labels = load_digits(return_X_y=True)
    names = tuple(str(label) for label in range(10))
    return _split("digits", x, _one_hot(labels, 10), names, num_train, num_test, seed)


def csv_data(
    path: str | Path,
    target: str,
    *,
    task: str | None = None,
    test_fraction: float = 0.2,
    max_rows: int = 2000,
    seed: int = 0,
) -> Dataset:
    """A table with a header row: columns of numbers are standardized, text columns become one
    column per value.

    A numeric target is standardized (regression), a text target becomes one-hot minus 1/classes
    (classification). Means and scales are those of the training rows.

    Args:
        path: file of comma-separated values, UTF-8.
        target: name of the column to predict.
        task: "regression" or "classification", which turns numbers such as 0, 1, 2 into classes;
            None decides by the target.
        test_fraction: share of the rows held out, strictly between 0 and 1.
        max_rows: rows beyond this many are left out after shuffling.
        seed: of the shuffle.

    Returns:
        A float64 Dataset.

    Raises:
        ValueError: a table that cannot be read, repeated or unknown columns, missing values, a few
            texts among numbers (all with row and column), fewer than 4 rows, a target that is
            constant.

    Warns:
        UserWarning: a target of a few whole numbers, which look like classes, without a `task`.
    """
    check_number("test_fraction", test_fraction, strict=True, max_ndim=0)
    if not test_fraction < 1:
        raise ValueError(
            f"test_fraction: expected a share below 1; got {test_fraction!r}. 0.2 holds out every "
            "fifth row."
        )
    check_integer("max_rows", max_rows, minimum=4)
    if task is not None:
        check_option("task", task, ("regression", "classification"))
    header, rows = _read_table(Path(path))
    if target not in header:
        raise ValueError(
            f"target: expected one of the columns {', '.join(header)}; got {target!r}."
        )
    if len(header) < 2 or len(rows) < 4:
        raise ValueError(
            f"{path}: expected at least 2 columns and 4 rows; got {len(header)} and {len(rows)}."
        )
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    y, names = _target(target, columns.pop(target), task)
    num_rows = min(len(rows), max_rows)
    num_test = min(max(1, round(test_fraction * num_rows)), num_rows - 2)
    train, test = _shuffled(len(rows), num_rows - num_test, num_test, seed)
    if np.all(y[train] == y[train[0]]):
        raise ValueError(
            f"column {target}: expected a target that varies among the training rows; got "
            f"{y[train[0]]}."
        )
    parts = [_as_columns(name, values) for name, values in columns.items()]
    x = np.concatenate(
        [_standardized(part, train) if texts is None else part for part, texts in parts], axis=1
    )
    y = _standardized(y, train) if names is None else y - 1 / len(names)
    return _dataset(Path(path).stem, x, y, names, train, test)


def _target(
    name: str, values: list[str], task: str | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The columns of the target, and the names of its classes."""
    if task == "classification":
        return _one_column_each(name, values)
    y, names = _as_columns(name, values)
    if names is not None and task == "regression":
        raise ValueError(
            f"column {name}: expected numbers for a regression; got texts, such as {names[0]!r}."
        )
    num_values = len(np.unique(y))
    if (
        names is None
        and task is None
        and 1 < num_values <= min(20, len(y) // 2)
        and np.all(y == np.round(y))
    ):
        warnings.warn(
            f"column {name}: holds {num_values} different whole numbers, taken as a regression. "
            "Pass "
            "task='classification' if they are classes, task='regression' if not.",
            stacklevel=3,
        )
    return y, names


def _split(name, x, y, classes, num_train: int, num_test: int, seed: int) -> Dataset:
    check_integer("num_train", num_train, minimum=1)
    check_integer("num_test", num_test, minimum=1)
    if num_train + num_test > len(x):
        raise ValueError(
            f"{name}: expected num_train + num_test of at most {len(x)}; got {num_train} + "
            f"{num_test}."
        )
    return _dataset(name, x, y, classes, *_shuffled(len(x), num_train, num_test, seed))


def _shuffled(
    num_rows: int, num_train: int, num_test: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of both sets."""
    order = np.random.default_rng(seed).permutation(num_rows)
    return order[:num_train], order[num_train : num_train + num_test]


def _dataset(name, x, y, classes, train: np.ndarray, test: np.ndarray) -> Dataset:
    """Both sets, centered by the mean of the training rows and scaled to their mean square 1."""
    mean = x[train].mean(axis=0)
    scale = np.sqrt(np.mean((x[train] - mean) ** 2)) or 1.0
    x = (x - mean) / scale
    return Dataset(name, x[train], y[train], x[test], y[test], classes)


def _standardized(columns: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Every column with mean 0 and variance 1 on the training rows; a constant one there is not
    scaled.
    """
    largest = np.max(np.abs(columns), axis=0)
    columns = columns / np.where(largest > 0, largest, 1)  # so that squares of any numbers exist
    columns = columns - columns[train].mean(axis=0)
    std = columns[train].std(axis=0)
    return columns / np.where(std > 8 * np.finfo(float).eps, std, 1)


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[labels] - 1 / num_classes


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            table = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
        except csv.Error as error:
            raise ValueError(
                f"{path}, row {reader.line_num}: expected comma-separated values; {error}. Is a "
                "quotation mark left open?"
            ) from None
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: expected text in UTF-8; {error}. Save the table in that encoding."
            ) from None
    if len(table) < 2:
        raise ValueError(
            f"{path}: expected a header row and data rows; got {len(table)} rows in all."
        )
    header = table[0][1]
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(
            f"{path}, row 1: expected a name of its own for each column; got {', '.join(repeated)} "
            "repeated."
        )
    for number, row in table[1:]:
        if len(row) != len(header) or "" in row:
            missing = (
                header[row.index("")] if "" in row else f"{len(header)} columns, got {len(row)}"
            )
            raise ValueError(
                f"{path}, row {number}: expected a value in every column; missing {missing}. Fill "
                "or drop the row."
            )
    return header, [row for _, row in table[1:]]


def _as_columns(name: str, values: list[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Numbers, or one column per text value with the values' names."""
    numbers = np.array([_number(value) for value in values])
    texts = [
        i
        for i, value in enumerate(values)
        if np.isnan(numbers[i]) and value.lower() not in ("nan", "-nan", "+nan")
    ]
    if not texts:
        if not np.all(np.isfinite(numbers)):
            row = int(np.argmin(np.isfinite(numbers)))
            raise ValueError(
                f"column {name}: expected finite numbers; got {values[row]} in data row {row + 1}. "
                "Fill or drop those rows."
            )
        return numbers[:, None], None
    if len(texts) < len(values) / 2:
        raise ValueError(
            f"column {name}: expected numbers, as most are; got {values[texts[0]]!r} in data row "
            f"{texts[0] + 1}. Fill or "
            "drop the row, or make texts of the numbers."
        )
    return _one_column_each(name, values)


def _one_column_each(name: str, values: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """One column of 0 and 1 per different value."""
    for row, value in enumerate(values, start=1):
        if value.lower() in MISSING:
            raise ValueError(
                f"column {name}: expected a value; got {value!r} in data row {row}, which stands "
                "for a missing one. Fill or "
                "drop the row, or write the value in another way."
            )
    names = tuple(
        sorted(set(values), key=lambda value: (np.isnan(_number(value)), _number(value), value))
    )
    if len(names) > 100:
        raise ValueError(
            f"column {name}: expected numbers or at most 100 different texts; got {len(names)}. "
            "Drop the column."
        )
    return (np.asarray(values)[:, None] == np.asarray(names)[None]).astype(float), names


def _number(value: str) -> float:
    """The number that a text is; NaN if it is none."""
    try:
        return float(value)
    except ValueError:
        return np.nan
