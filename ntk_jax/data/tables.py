"""Tables of comma-separated values: columns of numbers and of texts."""

import csv
import warnings
from pathlib import Path

import numpy as np

from ntk_jax.checks import check_integer, check_number, check_option
from ntk_jax.data.dataset import Dataset, make_dataset, shuffled

# What tables hold in place of a value.
MISSING = ("na", "n/a", "nan", "null", "none", "?")


def csv_data(
    path: str | Path,
    target: str,
    *,
    task: str | None = None,
    test_fraction: float = 0.2,
    max_rows: int = 2000,
    seed: int = 0,
) -> Dataset:
    r"""A table with a header row: columns of numbers are standardized, text columns become one
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

    Example:
        >>> import tempfile, pathlib
        >>> from ntk_jax import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "table.csv"
        ...     _ = path.write_text("size,price\n1.5,2\n2,2.5\n3,4.5\n4,5\n5,7.5\n")
        ...     found = data.csv_data(path, "price")
        >>> found.x_train.shape, found.y_test.shape
        ((4, 1), (1, 1))
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
    train, test = shuffled(len(rows), num_rows - num_test, num_test, seed)
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
    return make_dataset(Path(path).stem, x, y, names, train, test)


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


def _standardized(columns: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Every column with mean 0 and variance 1 on the training rows; a constant one there is not
    scaled.
    """
    largest = np.max(np.abs(columns), axis=0)
    columns = columns / np.where(largest > 0, largest, 1)  # so that squares of any numbers exist
    columns = columns - columns[train].mean(axis=0)
    std = columns[train].std(axis=0)
    return columns / np.where(std > 8 * np.finfo(float).eps, std, 1)


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
    # Numbers in their order, then texts: the columns do not depend on the order of the rows.
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
