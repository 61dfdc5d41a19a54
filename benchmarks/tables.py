"""Tables to classify or regress on, with the split that methods are tuned on and the folds."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn import datasets
from sklearn.model_selection import KFold, StratifiedKFold

NUM_FOLDS = 4
BUNDLED = ("iris", "wine", "breast_cancer", "digits", "diabetes", "linnerud")
REGRESSIONS = ("diabetes", "linnerud")
Split = tuple[np.ndarray, np.ndarray]


class Problem(NamedTuple):
    """Standardized rows, targets, one split to tune on, and folds to test on."""

    name: str
    x: np.ndarray
    y: np.ndarray
    tune: Split
    folds: list[Split]
    classes: bool = True


def bundled_problem(name: str, num_folds: int = NUM_FOLDS) -> Problem:
    """A data set that ships with scikit-learn; half of the rows tune, half validate."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    classes = name not in REGRESSIONS
    splitter = StratifiedKFold if classes else KFold
    halves = next(splitter(2, shuffle=True, random_state=1).split(x, y))
    folds = list(splitter(num_folds, shuffle=True, random_state=0).split(x, y))
    return Problem(name, _standardized(x), y, halves, folds, classes)


def uci_problems(folder: Path, most: int = 5000) -> list[str]:
    """Names of the sets of a folder in the UCI-121 layout that the published table is of.

    Those without a test set of their own, of at most `most` rows.

    Raises:
        ValueError: none.
    """
    found = []
    for path in sorted(folder.glob("*/*.txt")):
        if path.stem == path.parent.name:
            facts = _facts(path)
            if "n_patrons2" not in facts and int(facts["n_patrons1"]) <= most:
                found.append(path.stem)
    if not found:
        raise ValueError(
            f"--data: expected folders NAME with NAME.txt, NAME_R.dat, conxuntos.dat and "
            f"conxuntos_kfold.dat; found none in {folder}."
        )
    return found


def uci_problem(folder: Path, name: str) -> Problem:
    """One set of that layout, whose rows are standardized already.

    Raises:
        ValueError: rows or splits that do not fit what NAME.txt says.
    """
    facts = _facts(folder / name / f"{name}.txt")
    num_rows, num_columns = int(facts["n_patrons1"]), int(facts["n_entradas"])
    path = folder / name / facts.get("fich1", f"{name}_R.dat")
    cells = np.array([line.split() for line in path.read_text().splitlines()[1:] if line.strip()])
    if cells.shape != (num_rows, num_columns + 2):
        raise ValueError(
            f"{path}: expected {num_rows} rows of a number, {num_columns} features and a class; "
            f"got shape {cells.shape}."
        )
    x, y = cells[:, 1:-1].astype(float), cells[:, -1].astype(float).astype(int)
    train, validation = _splits(folder / name / "conxuntos.dat", num_rows)[:2]
    rest = _splits(folder / name / "conxuntos_kfold.dat", num_rows)
    return Problem(name, x, y, (train, validation), list(zip(rest[::2], rest[1::2], strict=True)))


def _facts(path: Path) -> dict[str, str]:
    """Lines such as `n_patrons1= 150`."""
    pairs = (line.replace("=", " ").split() for line in path.read_text().splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _splits(path: Path, num_rows: int) -> list[np.ndarray]:
    splits = [np.array(line.split(), int) for line in path.read_text().splitlines() if line.strip()]
    if len(splits) % 2 or not splits or max(s.max() for s in splits) >= num_rows:
        raise ValueError(f"{path}: expected pairs of lines with row numbers below {num_rows}.")
    return splits


def _standardized(x: np.ndarray) -> np.ndarray:
    std = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(std > 0, std, 1)
