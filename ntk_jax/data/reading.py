"""Files as tables of named columns: CSV, NPY, NPZ and Parquet, each cell a number or a text."""

import csv
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

Cell: TypeAlias = float | str | None
"""A number, a text, or nothing; numbers of a CSV are still texts."""

DELIMITERS = ",;\t|"
# What tables hold in place of a value.
MISSING = ("na", "n/a", "nan", "null", "none", "?")


class Table(NamedTuple):
    """Columns by name, and the line of the file that each row begins in (None: no lines)."""

    path: Path
    columns: dict[str, list[Cell]]
    lines: tuple[int, ...] | None
    decimal: str = "."

    @property
    def num_rows(self) -> int:
        """Rows of data."""
        return len(next(iter(self.columns.values())))

    def place(self, row: int, name: str) -> str:
        """Where a cell is, for messages."""
        at = f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"
        return f"{self.path}, {at}, column {name}"

    def without(self, names: list[str]) -> "Table":
        """The table without some columns.

        Raises:
            ValueError: a name that no column has.
        """
        for name in names:
            self.column(name)
        kept = {name: cells for name, cells in self.columns.items() if name not in names}
        return self._replace(columns=kept)

    def rows(self, kept: list[int]) -> "Table":
        """Some of the rows."""
        columns = {name: [cells[i] for i in kept] for name, cells in self.columns.items()}
        lines = None if self.lines is None else tuple(self.lines[i] for i in kept)
        return self._replace(columns=columns, lines=lines)

    def column(self, name: str) -> list[Cell]:
        """The cells of a column.

        Raises:
            ValueError: no column has this name.
        """
        if name not in self.columns:
            raise ValueError(
                f"{self.path}: expected a column {name}; got {shortened(list(self.columns))}."
            )
        return self.columns[name]


def shortened(names: list[str]) -> str:
    """At most ten names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def read_table(path: str | Path) -> Table:
    """A table from a file, by its ending: .npy, .npz, .parquet, or else comma-separated values.

    CSV: a header line, in UTF-8 with or without a byte order mark; commas, semicolons (then with
    decimal commas, too), tabs or bars between cells. NPY: an array of numbers (n, d), whose columns
    are named 0, 1, ... NPZ: one such array, or `x` (n, d) and `y` (n,). Parquet needs pyarrow.

    Raises:
        ValueError: a file that is no table, with the line and the column.
        ImportError: a Parquet file without pyarrow.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending in (".npy", ".npz"):
        return _from_arrays(path)
    if ending in (".parquet", ".pq"):
        return _from_parquet(path)
    return _from_text(path)


def _from_text(path: Path) -> Table:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: expected text in UTF-8; got the byte "
            f"0x{raw[error.start]:02x}. Save the table in that encoding."
        ) from None
    if not text.strip():
        raise ValueError(f"{path}, line 1: expected a header with the names of columns; got none.")
    lines = text.splitlines(keepends=True)
    delimiter = _delimiter(next(line for line in lines if line.strip()))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows, numbers, start = [], [], 1
    try:
        for row in reader:
            if row and (len(row) > 1 or row[0].strip()):
                rows.append([cell.strip() for cell in row])
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {start}: expected cells between {delimiter!r}; {error}. Is a quotation "
            "mark left open?"
        ) from None
    _check_rows(path, rows, numbers)
    cells = zip(*rows[1:], strict=True)
    columns: dict[str, list[Cell]] = {
        name: [None if cell.lower() in ("", *MISSING) else cell for cell in column]
        for name, column in zip(rows[0], cells, strict=True)
    }
    return Table(path, columns, tuple(numbers[1:]), "," if delimiter == ";" else ".")


def _delimiter(header: str) -> str:
    """The one that parts the header into most names."""
    return max(DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d))))


def _check_rows(path: Path, rows: list[list[str]], numbers: list[int]) -> None:
    header = rows[0]
    for i, name in enumerate(header):
        if not name:
            raise ValueError(
                f"{path}, line {numbers[0]}: expected a name for every column; column {i + 1} has "
                "none. Name it, or write the table without it (pandas: index=False)."
            )
        if name in header[:i]:
            raise ValueError(
                f"{path}, line {numbers[0]}: expected a name of its own for every column; {name} "
                f"is that of columns {header.index(name) + 1} and {i + 1}."
            )
    if len(rows) == 1:
        raise ValueError(f"{path}: expected rows below the header of line {numbers[0]}; got none.")
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {number}: expected {len(header)} cells, as in the header; got "
                f"{len(row)}."
            )


def _from_arrays(path: Path) -> Table:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = dict(loaded) if path.suffix.lower() == ".npz" else {"x": loaded}
    except ValueError as error:
        raise ValueError(
            f"{path}: expected arrays of numbers; {error}. Objects are not unpickled: they could "
            "run any code."
        ) from None
    if len(arrays) == 1:
        arrays = {"x": next(iter(arrays.values()))}
    if not set(arrays) <= {"x", "y"} or "x" not in arrays:
        raise ValueError(
            f"{path}: expected one array, or x and y; got {shortened(sorted(arrays))}."
        )
    x, parts = arrays["x"], arrays.get("y")
    x = x[:, None] if x.ndim == 1 else x.reshape(len(x), -1) if x.ndim else x[None, None]
    named = {str(i): x[:, i] for i in range(x.shape[1])}
    if parts is not None:
        named["y"] = parts.reshape(-1)
    for name, column in named.items():
        if len(column) != len(x) or not len(x):
            raise ValueError(
                f"{path}, column {name}: expected {len(x)} rows, at least one; got {len(column)}."
            )
        if column.dtype.kind not in "biufUS":
            raise ValueError(
                f"{path}, column {name}: expected numbers or texts; got {column.dtype}."
            )
    return Table(path, {name: list(map(_cell, column)) for name, column in named.items()}, None)


def _from_parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: a Parquet file needs pyarrow: pip install pyarrow.") from error
    table = pyarrow.parquet.read_table(path)
    if not table.num_rows or not table.num_columns:
        raise ValueError(
            f"{path}: expected rows and columns; got {table.num_rows} and {table.num_columns}."
        )
    columns = zip(table.column_names, table.columns, strict=True)
    return Table(
        path, {name: list(map(_cell, column.to_pylist())) for name, column in columns}, None
    )


def _cell(value: object) -> Cell:
    """A value of an array: NaN is nothing."""
    if value is None or value != value:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return (
        float(value) if isinstance(value, bool | int | float | np.number | np.bool) else str(value)
    )
