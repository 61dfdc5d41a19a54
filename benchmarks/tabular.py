"""Tables: tangent kernels against forests, boosting and the RBF-SVM, by Arora et al.'s protocol.

Arora et al. 2020 (arXiv:1910.01663): 15 NTKs (1 to 5 layers, any number of first layers frozen)
and C from 1e-2 to 1e4, tuned on one split, then the mean of 4 folds. `--data DIR` takes the UCI-121
sets of Fernández-Delgado et al. 2014 in their layout: as published, those of at most 5000 rows
without a test set of their own, 90 of them, 81.95 % for the NTK-SVM and 81.56 % for the forest.
Without it, what scikit-learn ships. A run that is stopped goes on where it was: methods of a set
that are in the JSON are not run again.
`--rows 30000` runs nothing but a drawn set of so many rows, whose kernel is multiplied and never
factored: time and memory in fresh processes, beside boosting and a fit of 4,000 of the rows.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.multioutput import MultiOutputRegressor
from sklearn.svm import SVC, SVR

from benchmarks.harness import environment_line, save_json, table
from benchmarks.memory import peak_memory
from benchmarks.tables import BUNDLED, Problem, Split, bundled_problem, uci_problem, uci_problems
from ntk_jax import mlp_kernels_by_layer
from ntk_jax.compat import double_precision
from ntk_jax.estimators import NTKClassifier, NTKRegressor

DEPTH = 5
COSTS = 10.0 ** np.arange(-2, 5)
MOST_STEPS = 10**6  # of libsvm, which takes minutes for C = 1e4 on some sets
Score = tuple[float, float]  # the mean over folds, and seconds of all fits of the folds


def layer_kernels(x: np.ndarray) -> np.ndarray:
    """The 15 kernels (15, n, n): of 1 to 5 layers, the first 0 to depth - 1 of them frozen.

    Weights of frozen layers are not trained, so Θ starts at the layer where training does:

        K ← E[φφ],    Θ ← [layer ≥ frozen] K + E[φ'φ'] Θ,    with K⁰ = x·x', Θ⁰ = [0 ≥ frozen] K⁰
    """
    n, depth = len(x), DEPTH - 1
    rows = np.concatenate([x, np.random.default_rng(0).standard_normal((-n % 64, x.shape[1]))])
    W_std = (x.shape[1] ** 0.5, *(1.0,) * depth)
    options: dict[str, Any] = {"depth": depth, "W_std": W_std, "b_std": None}
    with double_precision():
        found = [mlp_kernels_by_layer(rows, trainable_from=j, **options).ntk for j in range(DEPTH)]
    by_layer = [np.asarray(k, np.float64)[:, :n, :n] for k in found]
    return np.stack([by_layer[frozen][m] for m in range(DEPTH) for frozen in range(m + 1)])


def ntk_svm(problem: Problem) -> Score:
    """The published protocol: the kernel and C of the best validation accuracy, by libsvm."""

    def accuracy(k: np.ndarray, split: Split, cost: float) -> float:
        train, test = split
        machine = SVC(kernel="precomputed", C=cost, cache_size=500, max_iter=MOST_STEPS)
        machine.fit(k[np.ix_(train, train)], problem.y[train])
        return machine.score(k[np.ix_(test, train)], problem.y[test])

    start = time.perf_counter()
    kernels = layer_kernels(problem.x)
    scores = [[accuracy(k, problem.tune, cost) for cost in COSTS] for k in kernels]
    k, cost = _best(kernels, scores)
    mean = float(np.mean([accuracy(k, split, cost) for split in problem.folds]))
    return mean, time.perf_counter() - start


def ntk_ridge(problem: Problem) -> Score:
    """The same kernels with ridge regression on indicators: every C from one decomposition."""
    onehot = (problem.y[:, None] == np.unique(problem.y)).astype(float)

    def accuracies(k: np.ndarray, split: Split, costs: np.ndarray) -> list[float]:
        train, test = split
        s, U = np.linalg.eigh(k[np.ix_(train, train)])
        unit, mean = s.mean(), onehot[train].mean(axis=0)
        targets, rows = U.T @ (onehot[train] - mean), k[np.ix_(test, train)] @ U
        truth = onehot[test].argmax(axis=1)
        fits = [rows @ (targets / (np.maximum(s, 0) + unit / c)[:, None]) + mean for c in costs]
        return [float(np.mean(fit.argmax(axis=1) == truth)) for fit in fits]

    start = time.perf_counter()
    kernels = layer_kernels(problem.x)
    scores = [accuracies(k, problem.tune, COSTS) for k in kernels]
    k, cost = _best(kernels, scores)
    found = [accuracies(k, split, np.array([cost]))[0] for split in problem.folds]
    return float(np.mean(found)), time.perf_counter() - start


def _best(kernels: np.ndarray, scores: list[list[float]]) -> tuple[np.ndarray, float]:
    """The first kernel and C of the largest score."""
    i, j = np.unravel_index(np.argmax(scores), (len(kernels), len(COSTS)))
    return kernels[i], float(COSTS[j])


def tuned(problem: Problem, candidates: list[BaseEstimator]) -> Score:
    """The candidate of the best validation score on all folds."""
    start = time.perf_counter()
    best = candidates[0]
    if len(candidates) > 1:
        train, test = problem.tune
        fits = [clone(c).fit(problem.x[train], problem.y[train]) for c in candidates]
        scores = [fit.score(problem.x[test], problem.y[test]) for fit in fits]
        best = candidates[int(np.argmax(scores))]
    found = [
        clone(best).fit(problem.x[a], problem.y[a]).score(problem.x[b], problem.y[b])
        for a, b in problem.folds
    ]
    return float(np.mean(found)), time.perf_counter() - start


def methods(problem: Problem, quick: bool) -> dict[str, Callable[[], Score]]:
    """Every method of a table; all but the two NTK estimators are tuned or of fixed settings."""
    grid = [(C, g / problem.x.shape[1]) for C in COSTS for g in 4.0 ** np.arange(-3, 3)]
    trees, several = (20 if quick else 500), problem.y.ndim > 1
    many = MultiOutputRegressor if several else lambda machine: machine
    if problem.classes:
        estimators: dict[str, list[BaseEstimator]] = {
            "NTKClassifier()": [NTKClassifier()],
            "random forest": [RandomForestClassifier(trees, random_state=0)],
            "RBF-SVM": [SVC(C=C, gamma=g, max_iter=MOST_STEPS) for C, g in grid],
            "boosting": [HistGradientBoostingClassifier(random_state=0)],
        }
        found = {"NTK-SVM": lambda: ntk_svm(problem), "NTK ridge": lambda: ntk_ridge(problem)}
    else:
        scale = problem.y.std()
        machines = [SVR(C=C * scale, gamma=g, max_iter=MOST_STEPS) for C, g in grid]
        estimators = {
            "NTKRegressor()": [NTKRegressor()],
            "random forest": [RandomForestRegressor(trees, random_state=0)],
            "RBF-SVM": [many(machine) for machine in machines],
            "boosting": [many(HistGradientBoostingRegressor(random_state=0))],
        }
        found = {}
    makers = {name: lambda c=c: tuned(problem, c) for name, c in estimators.items()}
    return {**found, **makers}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the sets that every method has: mean accuracy, P90, P95, PMA, Friedman rank, seconds.

    P90 is the share of sets on which a method has 90 % of the best accuracy, PMA the mean share of
    the best accuracy, and the rank is the mean over sets (1 is the best).
    """
    rows = [row for row in rows if row["classes"]]
    names = list(dict.fromkeys(row["method"] for row in rows))
    by_set: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_set.setdefault(row["set"], {})[row["method"]] = row
    whole = [found for found in by_set.values() if len(found) == len(names)]
    if not whole:
        return []
    score = np.array([[found[name]["score"] for name in names] for found in whole])
    share = score / score.max(axis=1, keepdims=True)
    ranks = rankdata(-score, axis=1)
    seconds = np.array([[found[name]["seconds"] for name in names] for found in whole])
    columns = {
        "accuracy": score.mean(axis=0),
        "p90": (share >= 0.9).mean(axis=0),
        "p95": (share >= 0.95).mean(axis=0),
        "pma": share.mean(axis=0),
        "rank": ranks.mean(axis=0),
        "seconds": seconds.sum(axis=0),
    }
    return [
        {"method": name, "sets": len(whole), **{key: float(v[i]) for key, v in columns.items()}}
        for i, name in enumerate(names)
    ]


NUM_TEST = 10_000


def drawn_table(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows like those of a land cover survey: 10 numbers, one of 4 areas, one of 40 soils, of 7
    classes; one label in twenty is drawn at random.
    """
    rng, teacher = np.random.default_rng(seed), np.random.default_rng(0)
    numbers = rng.standard_normal((n, 10)) @ np.linalg.cholesky(0.7 * np.eye(10) + 0.3)
    areas, soils = (np.eye(k)[rng.integers(0, k, n)] for k in (4, 40))
    x = np.concatenate([numbers, areas, soils], axis=1)
    hidden = np.tanh(x @ teacher.standard_normal((54, 64)) / 3 + teacher.standard_normal(64))
    y = (hidden @ teacher.standard_normal((64, 7)) + 2 * teacher.standard_normal(7)).argmax(axis=1)
    return x, np.where(rng.random(n) < 0.05, rng.integers(0, 7, n), y)


def make_fit(n: int, memory_limit: float | None, out: str) -> Callable[[], Any]:
    """A fit of n rows and predictions at others; what was found goes to the file `out`."""
    x, y = drawn_table(n, 1)
    x_test, y_test = drawn_table(NUM_TEST if n > 1000 else 200, 2)

    def fit() -> None:
        start = time.perf_counter()
        model = NTKClassifier(memory_limit=memory_limit).fit(x, y)
        fitted = time.perf_counter()
        found = {"score": model.score(x_test, y_test), "fit_s": fitted - start}
        found |= {"predict_s": time.perf_counter() - fitted, "cpu_s": time.process_time()}
        found |= {"left_out_score": model.leave_one_out_score_, "solver": model.solver_}
        found |= {name: getattr(model, f"{name}_", None) for name in ("n_iter", "residual")}
        Path(out).write_text(json.dumps(found | {"ridge": float(model.ridge_)}))

    return fit


def run_rows(args: argparse.Namespace, n: int) -> None:
    """A set beyond the memory of a factorization; save `tabular_rows.json` in `args.out`."""
    x, y = drawn_table(n, 1)
    start = time.perf_counter()
    score = (
        HistGradientBoostingClassifier(random_state=0).fit(x, y).score(*drawn_table(NUM_TEST, 2))
    )
    rows: list[dict[str, Any]] = [{"method": "boosting", "n": n, "score": score}]
    rows[0]["fit_s"] = time.perf_counter() - start
    few = n // 3
    cases = {"kernel held": (n, 5 * n * n), "kernel recomputed": (few, 2 * few**2)}
    for name, (size, limit) in (cases | {"factored": (min(n, 4000), None)}).items():
        with tempfile.NamedTemporaryFile("r") as file:
            memory = peak_memory("benchmarks.tabular:make_fit", n=size, memory_limit=limit,
                                 out=file.name)  # fmt: skip
            found = json.load(file)
        row = {"method": f"NTKClassifier(), {name}", "n": size, "memory_limit": limit}
        rows.append(row | found | {"used_bytes": memory.used, "used_gib": memory.used / 2**30})
        save_json(args.out, "tabular_rows", rows, {"quick": args.quick, "num_test": NUM_TEST})
    heads = {"method": "", "n": ",d", "score": ".4f", "left_out_score": ".4f", "fit_s": ".1f"}
    heads |= {"predict_s": ".1f", "cpu_s": ".0f", "used_gib": ".2f", "n_iter": "d"}
    print(f"{table(rows, heads)}\n\n{environment_line()}")


def run(args: argparse.Namespace) -> None:
    """Every method on every set; print both tables, save `tabular.json` in `args.out`."""
    if rows := getattr(args, "rows", None):
        run_rows(args, rows)
        return
    data = getattr(args, "data", None)
    names = list(BUNDLED) if data is None else uci_problems(data)
    names = ["iris", "linnerud"] if args.quick and data is None else names
    options = {"quick": args.quick, "data": "bundled" if data is None else "UCI-121 layout"}
    rows = _rows_before(args.out / "tabular.json", options)
    for name in names:
        problem = bundled_problem(name) if data is None else uci_problem(data, name)
        done = {row["method"] for row in rows if row["set"] == name}
        for method, score in methods(problem, args.quick).items():
            if method in done:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                mean, seconds = score()
            facts = {"n": len(problem.x), "d": problem.x.shape[1], "classes": problem.classes}
            rows.append({"set": name, **facts, "method": method, "score": mean, "seconds": seconds})
            save_json(args.out, "tabular", rows, options, summary=summary(rows))
    columns = {"set": "", "n": "d", "d": "d", "method": "", "score": ".4f", "seconds": ".2f"}
    print(table(rows, columns))
    heads = {"method": "", "sets": "d", "accuracy": ".4f", "p90": ".3f", "p95": ".3f"}
    print(f"\n{table(summary(rows), {**heads, 'pma': '.4f', 'rank': '.2f', 'seconds': '.1f'})}")
    print(f"\n{environment_line()}")


def _rows_before(path: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run with the same options left."""
    if not path.exists():
        return []
    document = json.loads(path.read_text())
    return document["results"] if document["options"] == options else []
