"""A table as a data set: columns of numbers and of texts, split into training and test rows."""

import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ntk_jax.checks import check_integer, check_number, check_option
from ntk_jax.data.dataset import Dataset, make_dataset, shuffled
from ntk_jax.data.encoding import (
    MOST_TEXTS,
    is_numeric,
    look_like_classes,
    number_of,
    numbers_of,
    text_of,
)
from ntk_jax.data.reading import Table, read_table, shortened
from ntk_jax.data.scaling import standardized

Columns: TypeAlias = tuple[np.ndarray, tuple[str, ...] | None]
"""(n, k) numbers, and the texts that they stand for."""


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
        path: a file that `read_table` reads: CSV, with a header; NPY, NPZ or Parquet.
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
            texts among numbers (all with line and column), fewer than 4 rows, a target that is
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
    table = read_table(path)
    if target not in table.columns:
        raise ValueError(
            f"target: expected one of the columns {shortened(list(table.columns))}; got {target!r}."
        )
    if len(table.columns) < 2 or table.num_rows < 4:
        raise ValueError(
            f"{path}: expected at least 2 columns and 4 rows; got {len(table.columns)} and "
            f"{table.num_rows}."
        )
    y, names = _target(table, target, task)
    num_rows = min(table.num_rows, max_rows)
    num_test = min(max(1, round(test_fraction * num_rows)), num_rows - 2)
    train, test = shuffled(table.num_rows, num_rows - num_test, num_test, seed)
    if np.all(y[train] == y[train[0]]):
        raise ValueError(
            f"column {target}: expected a target that varies among the training rows; got "
            f"{y[train[0]]}."
        )
    parts = [_as_columns(table, name) for name in table.columns if name != target]
    x = np.concatenate(
        [standardized(part, part[train]) if texts is None else part for part, texts in parts],
        axis=1,
    )
    y = standardized(y, y[train]) if names is None else y - 1 / len(names)
    return make_dataset(table.path.stem, x, y, names, train, test)


def _target(table: Table, name: str, task: str | None) -> Columns:
    """The columns of the target, and the names of its classes."""
    if task == "classification":
        return _one_column_each(table, name)
    y, names = _as_columns(table, name)
    if names is not None and task == "regression":
        raise ValueError(
            f"column {name}: expected numbers for a regression; got texts, such as {names[0]!r}."
        )
    if names is None and task is None and look_like_classes(y):
        warnings.warn(
            f"column {name}: holds {len(np.unique(y))} different whole numbers, taken as a "
            "regression. Pass task='classification' if they are classes, task='regression' if not.",
            stacklevel=3,
        )
    return y, names


def _as_columns(table: Table, name: str) -> Columns:
    """Numbers, or one column per text with the texts."""
    _check_no_gaps(table, name)
    if is_numeric(table, name):
        return numbers_of(table, name)[:, None], None
    return _one_column_each(table, name)


def _one_column_each(table: Table, name: str) -> Columns:
    """One column of 0 and 1 per different value: numbers in their order, then texts, so that they
    do not depend on the order of the rows.
    """
    _check_no_gaps(table, name)
    cells = table.columns[name]
    texts = [text_of(cell) for cell in cells]
    numbers = {text: number_of(table, cell) for text, cell in zip(texts, cells, strict=True)}
    names = tuple(sorted(numbers, key=lambda t: (numbers[t] is None, numbers[t] or 0.0, t)))
    if len(names) > MOST_TEXTS:
        raise ValueError(
            f"column {name}: expected numbers or at most {MOST_TEXTS} different texts; got "
            f"{len(names)}. Drop the column."
        )
    return (np.asarray(texts)[:, None] == np.asarray(names)[None]).astype(float), names


def _check_no_gaps(table: Table, name: str) -> None:
    if None in table.columns[name]:
        place = table.place(table.columns[name].index(None), name)
        raise ValueError(f"{place}: expected a value; it is missing. Fill or drop the row.")
