"""Columns of a table as numbers: what the training table says is kept for every later one."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ntk_jax.data.reading import Cell, Table, shortened

MOST_TEXTS = 100
# From here on a text in every row is no category.
FEW_ROWS = 10


class Numbers(NamedTuple):
    """A column of numbers: what fills gaps, and whether the training table had any."""

    fill: float
    had_gaps: bool


class Texts(NamedTuple):
    """A column of texts: one column of 0 and 1 for each."""

    values: tuple[str, ...]


class Encoder(NamedTuple):
    """How every column becomes numbers; `notices` say what a reader should know."""

    columns: dict[str, Numbers | Texts]
    notices: list[str]

    def __call__(self, table: Table) -> Float[np.ndarray, "n d"]:
        """The matrix of a table with these columns, in any order.

        Raises:
            ValueError: a column is missing, or a cell is not what its column holds.
        """
        parts = [_encoded(table, name, how, self.notices) for name, how in self.columns.items()]
        return np.concatenate(parts, axis=1)


def encoder(table: Table) -> Encoder:
    """How the columns of a training table become numbers.

    Gaps among numbers are filled with the median, and marked by a column of their own; texts, and
    their gaps, become one column each.

    Raises:
        ValueError: a few texts among numbers; more different texts than could tell anything, or
            one for every row; no column left.
    """
    columns: dict[str, Numbers | Texts] = {}
    notices: list[str] = []
    for name, cells in table.columns.items():
        given = [cell for cell in cells if cell is not None]
        if not given:
            notices.append(f"column {name}: empty, left out")
            continue
        if is_numeric(table, name):
            numbers = numbers_of(table, name)
            gaps = int(np.isnan(numbers).sum())
            columns[name] = Numbers(float(np.nanmedian(numbers)), gaps > 0)
            if gaps:
                notices.append(
                    f"column {name}: {gaps} of {len(cells)} missing, filled with the median "
                    f"{columns[name][0]:g}, and marked"
                )
            continue
        values = tuple(sorted({text_of(cell) for cell in cells}))
        if len(values) == len(cells) > FEW_ROWS:
            raise ValueError(
                f"{table.path}, column {name}: expected numbers, or texts that rows share; got "
                f"another one in every row, such as {values[0]!r}. Write numbers without signs or "
                f"separators of thousands; leave out what only names rows (--drop {name})."
            )
        if len(values) > MOST_TEXTS:
            raise ValueError(
                f"{table.path}, column {name}: expected numbers or at most {MOST_TEXTS} different "
                f"texts; got {len(values)}. Leave it out (--drop {name})."
            )
        columns[name] = Texts(values)
        notices.append(
            f"column {name}: {len(values)} texts, one column each ({shortened(list(values))})"
        )
    if not columns:
        raise ValueError(f"{table.path}: expected a column besides the target; got none.")
    return Encoder(columns, notices)


def is_numeric(table: Table, name: str) -> bool:
    """Whether a column holds numbers.

    Raises:
        ValueError: most cells are numbers, and a few are not.
    """
    cells = [(i, cell) for i, cell in enumerate(table.columns[name]) if cell is not None]
    texts = [i for i, cell in cells if number_of(table, cell) is None]
    if texts and len(texts) < len(cells) / 2:
        raise ValueError(
            f"{table.place(texts[0], name)}: expected a number, as most are in this column; got "
            f"{table.columns[name][texts[0]]!r}. Correct or empty the cell."
        )
    return not texts


def numbers_of(table: Table, name: str) -> Float[np.ndarray, " n"]:
    """A column of numbers, NaN where there is none.

    Raises:
        ValueError: a text, or an infinite number.
    """
    out = np.full(table.num_rows, np.nan)
    for i, cell in enumerate(table.column(name)):
        if cell is None:
            continue
        number = number_of(table, cell)
        if number is None or not np.isfinite(number):
            raise ValueError(f"{table.place(i, name)}: expected a finite number; got {cell!r}.")
        out[i] = number
    return out


def number_of(table: Table, cell: Cell) -> float | None:
    """The number that a cell is; None if it is none, or nothing."""
    if not isinstance(cell, str):
        return cell
    for text in (cell, cell.replace(",", ".")) if table.decimal == "," else (cell,):
        try:
            return float(text)
        except ValueError:
            continue
    return None


def look_like_classes(y: Float[np.ndarray, "n *O"]) -> bool:
    """Whether a target of numbers holds a few different whole ones."""
    return 1 < len(np.unique(y)) <= min(20, len(y) // 2) and bool(np.all(y == np.round(y)))


def text_of(cell: Cell) -> str:
    """A cell as the name of a class."""
    return "" if cell is None else f"{cell:g}" if isinstance(cell, float) else cell


def _encoded(
    table: Table, name: str, how: Numbers | Texts, notices: list[str]
) -> Float[np.ndarray, "n k"]:
    if isinstance(how, Numbers):
        numbers = numbers_of(table, name)
        gaps = np.isnan(numbers)
        filled = np.where(gaps, how.fill, numbers)
        if gaps.any() and not how.had_gaps:
            notices.append(
                f"{table.path}, column {name}: {gaps.sum()} missing, filled with the median of the "
                f"training table {how.fill:g}"
            )
        return np.stack([filled, gaps], axis=1) if how.had_gaps else filled[:, None]
    texts = [text_of(cell) for cell in table.column(name)]
    unknown = [i for i, text in enumerate(texts) if text not in how.values]
    if unknown:
        notices.append(
            f"{table.place(unknown[0], name)}: {texts[unknown[0]]!r} is not in the training table"
        )
    return (np.asarray(texts)[:, None] == np.asarray(how.values)[None]).astype(float)
