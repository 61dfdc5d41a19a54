"""Linear systems with a kernel: steps by preconditioner, memory of Cholesky, a recomputed kernel.

The kernel is the NTK of three hidden layers of ReLU, in float32. `--rows 60000` runs nothing but
the regression with a recomputed kernel, of so many rows and of a third of them.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.harness import environment_line, save_json, table
from benchmarks.memory import peak_memory
from ntk_jax import kernel_operator, kernel_regression, mlp_kernels, solve
from ntk_jax.operators.symmetric import SymmetricOperator

NUM_FEATURES, NUM_TARGETS, TOL = 64, 10, 1e-4
PRECONDITIONERS = {"none": None, "uniform columns": "uniform", "pivoted columns": "nystrom"}
kernel_fn = partial(mlp_kernels, activation="relu", depth=3)
COLUMNS = {
    "case": "",
    "data": "",
    "n": ",d",
    "steps": "d",
    "residual": ".1e",
    "seconds|time [s]": ".3g",
    "copies|memory / K": ".2f",
    "test_error|test error": ".4f",
}


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, save `solves.json` in `args.out`, or `solves_recomputed.json`."""
    options = {"tol": TOL, "depth": 3, "num_features": NUM_FEATURES, "num_targets": NUM_TARGETS}
    options["quick"] = args.quick
    if args.rows:
        save_json(args.out, "solves_recomputed", recomputed_rows(args.rows), options)
        return
    sizes = (256, 512) if args.quick else (1000, 2000, 4000, 8000, 16_000)
    rows: list[dict[str, Any]] = []
    for data in ("decaying spectrum", "clusters"):
        for n in sizes:
            rows += iterations(n, data)
            print(table(rows[-len(PRECONDITIONERS) :], COLUMNS), flush=True)
    for n in (512,) if args.quick else (8000, 20_000):
        rows.append(cholesky_row(n))
        print(table(rows[-1:], COLUMNS), flush=True)
    rows += recomputed_rows(600 if args.quick else 20_000)
    print(table(rows, COLUMNS))
    print(environment_line())
    path = save_json(args.out, "solves", rows, options)
    print(f"\nSaved {path}.")


def iterations(n: int, data: str) -> list[dict[str, Any]]:
    """Steps of conjugate gradients, with and without preconditioners."""
    x = inputs(n, data)
    k, y = kernel_of(x), np.random.default_rng(1).standard_normal((n, NUM_TARGETS))
    ridge = 1e-2 * float(np.mean(np.diagonal(k)))
    rows = []
    for name, preconditioner in PRECONDITIONERS.items():
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the residual is in the table
            found = solve(
                k,
                y.astype(np.float32),
                diag_reg=ridge,
                preconditioner=preconditioner,
                tol=TOL,
                method="conjugate_gradients",
                progress=False,
            )
        row = {"case": f"preconditioner: {name}", "data": data, "n": n, "steps": found.steps}
        row |= {"residual": float(found.residual.max()), "converged": bool(found.converged.all())}
        rows.append(row | {"seconds": time.perf_counter() - start})
    return rows


def cholesky_row(n: int) -> dict[str, Any]:
    """Memory of a regression beside its kernel, in a fresh process."""
    memory = peak_memory("benchmarks.solves:make_regression", n=n)
    copies = memory.used / (4 * n * n)
    row = {"case": "kernel_regression by Cholesky", "data": "decaying spectrum", "n": n}
    return row | {"seconds": memory.seconds, "copies": copies, "used_bytes": memory.used}


def make_regression(n: int) -> Callable[[], Any]:
    """The call whose memory is measured."""
    x = inputs(n, "decaying spectrum")
    k, y = kernel_of(x), targets(x)
    k_test = k[:100].copy()
    ridge = 1e-2 * float(np.mean(np.diagonal(k)))
    held = jax.block_until_ready(jax.device_put(k))  # a copy that would count, if it came later
    return lambda: kernel_regression(held, y, k_test, diag_reg=ridge)


def recomputed_rows(n: int) -> list[dict[str, Any]]:
    """A regression whose kernel is never held, beside one with a third of its rows."""
    x, x_test = inputs(n, "decaying spectrum"), inputs(1000, "decaying spectrum", seed=7)
    rows = []
    for size in (n // 3, n):
        start = time.perf_counter()
        operator = kernel_operator(kernel_fn, x[:size], kernel="ntk", storage="recompute")
        ridge = 1e-2 * float(np.mean(operator.diagonal()))
        assert isinstance(operator, SymmetricOperator)
        found = solve(operator, targets(x[:size]), diag_reg=ridge, tol=1e-3)
        test = kernel_operator(kernel_fn, x_test, x[:size], kernel="ntk", storage="recompute")
        miss = np.asarray(test @ found.value) - targets(x_test, noise=0)
        row = {"case": "recomputed kernel", "data": "decaying spectrum", "n": size}
        row |= {"steps": found.steps, "residual": float(found.residual.max())}
        row |= {"test_error": float(np.sqrt(np.mean(miss**2)))}
        rows.append(row | {"seconds": time.perf_counter() - start})
        print(table(rows[-1:], COLUMNS), flush=True)
    return rows


def inputs(n: int, data: str, seed: int = 0) -> np.ndarray:
    """Rows with a covariance that decays as 1 / k, or in clusters whose sizes decay."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, NUM_FEATURES)) * np.arange(1, NUM_FEATURES + 1) ** -0.5
    if data == "clusters":
        share = np.arange(1, 61) ** -1.5
        centers = np.random.default_rng(2).standard_normal((60, NUM_FEATURES))
        x = centers[rng.choice(60, n, p=share / share.sum())] + 0.05 * x
    return x.astype(np.float32)


def targets(x: np.ndarray, noise: float = 0.1) -> np.ndarray:
    """Smooth functions of the rows, with noise."""
    rng = np.random.default_rng(3)
    W = 0.3 * rng.standard_normal((NUM_FEATURES, NUM_TARGETS))
    y = np.sin(x @ W) + noise * rng.standard_normal((len(x), NUM_TARGETS))
    return y.astype(np.float32)


def kernel_of(x: np.ndarray) -> np.ndarray:
    """The kernel, in blocks of rows: nothing is held beside it."""
    k = np.empty((len(x), len(x)), np.float32)
    for start in range(0, len(x), 1000):
        k[start : start + 1000] = kernel_fn(x[start : start + 1000], x).ntk
    return k
