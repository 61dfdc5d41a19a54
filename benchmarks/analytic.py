"""Analytic kernels against the matrix product they start from, NumPy's X Xᵀ: symmetric,
rectangular, and of rows that are all nearly parallel.

In CPU seconds, of all threads: ReLU, and two series with kinks at a depth of 3, of a quarter of the
examples.
NumPy recognizes X @ X.T as symmetric and lets BLAS compute half of it, so a ratio to it compares a
rectangular kernel with half its product. NumPy's product runs on the host, whatever device JAX
uses. Memory is XLA's own analysis of the compiled program, beyond the arguments; None where the
backend gives none.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Timing, environment_line, measure, save_json, table
from ntk_jax import mlp_kernels

NUM_FEATURES = 784
W_STD, B_STD = 2**0.5, 0.1
DEPTHS = (1, 3, 10)
PRODUCT, SYMMETRIC, RECTANGULAR = "NumPy X @ X.T", "symmetric", "rectangular"
BUDGET = 60.0  # seconds of rounds, of which there are three at least
CLUSTER, DISTANCE = "all rows in one cluster", 1e-3
SERIES, SERIES_DEPTH = ("hard_tanh", "relu6"), 3
COLUMNS = {
    "activation": "",
    "case": "",
    "depth": "d",
    "n": "d",
    "median_s|CPU [s]": ".3g",
    "over_product|/ X @ X.T": ".2f",
    "over_rectangular|/ rectangular": ".2f",
    "over_symmetric|/ symmetric": ".2f",
    "compile_s|compile [s]": ".2f",
    "temporary_mib|temporaries [MiB]": ".1f",
    "output_mib|outputs [MiB]": ".1f",
}

Row = dict[str, Any]


class Case(NamedTuple):
    """One call of `mlp_kernels`: of one set of examples with itself (x2=None), spread or in one
    cluster, or of two sets of equal size.
    """

    kind: str
    depth: int
    activation: str = "relu"

    def rows(self, n: int) -> int:
        """Examples, where n are those of ReLU."""
        return n if self.activation == "relu" else n // 4


CASES = tuple(Case(kind, depth) for depth in DEPTHS for kind in (SYMMETRIC, RECTANGULAR, CLUSTER))
CASES += tuple(Case(k, SERIES_DEPTH, a) for a in SERIES for k in (SYMMETRIC, CLUSTER))


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, save `analytic.json` in `args.out`."""
    n, repeats = (256, 1) if args.quick else (4096, 7)
    rows = measure_all(n, repeats)
    print(table([in_display_units(row) for row in rows], COLUMNS))
    print(environment_line())
    options = {
        "quick": args.quick,
        "n": n,
        "num_features": NUM_FEATURES,
        "dtype": "float32",
        "clock": "CPU seconds of all threads",
    }
    path = save_json(
        args.out, "analytic", rows, options | {"W_std": W_STD, "b_std": B_STD, "repeats": repeats}
    )
    print(f"\nSaved {path}.")


def inputs(n: int) -> np.ndarray:
    """Two sets of n standard normal float32 examples, the same in every run."""
    return np.random.default_rng(0).standard_normal((2, n, NUM_FEATURES), dtype=np.float32)


def arguments(case: Case, n: int) -> tuple[jax.Array, jax.Array | None]:
    """The examples of a case, on the device."""
    x1, x2 = inputs(case.rows(n))
    if case.kind == CLUSTER:
        x1 = x1[:1] + np.float32(DISTANCE) * x1
    return jnp.asarray(x1), jnp.asarray(x2) if case.kind == RECTANGULAR else None


def kernels(x1: jax.Array, x2: jax.Array | None, depth: int, activation: str) -> Any:
    """NNGP and NTK, with the options of this benchmark."""
    return mlp_kernels(x1, x2, depth=depth, activation=activation, W_std=W_STD, b_std=B_STD)


def kernel_call(case: Case, n: int) -> Callable[[], Any]:
    """The function without arguments that is timed."""
    x1, x2 = arguments(case, n)
    return lambda: kernels(x1, x2, case.depth, case.activation)


def product_call(n: int) -> Callable[[], Any]:
    """NumPy's product of the first set of examples with itself."""
    x = inputs(n)[0]
    return lambda: x @ x.T


def measure_all(n: int, repeats: int) -> list[Row]:
    """A row for the product, then one per case; all are timed in the same rounds."""
    calls: dict[Any, Callable[[], Any]] = {PRODUCT: product_call(n)}
    calls |= {case: kernel_call(case, n) for case in CASES}
    timings: dict[Any, Timing] = measure(
        calls, repeats=repeats, clock=time.process_time, budget=BUDGET
    )
    product = {
        **timings[PRODUCT].record(),
        "first_call_s": None,
        "compile_s": None,
    }  # NumPy compiles nothing
    return [
        {"case": PRODUCT, "n": n, **product, "over_product": 1.0},
        *(result_row(c, n, timings) for c in CASES),
    ]


def result_row(case: Case, n: int, timings: dict[Any, Timing]) -> Row:
    """Times, ratios and memory of one case."""
    timing = timings[case]
    rows = case.rows(n)
    row: Row = {"activation": case.activation, "case": case.kind, "depth": case.depth, "n": rows}
    row |= timing.record()
    if rows == n:
        row["over_product"] = timing.ratio(timings[PRODUCT])
    if case.kind == CLUSTER:
        row["over_symmetric"] = timing.ratio(timings[case._replace(kind=SYMMETRIC)])
    elif case.kind == SYMMETRIC and case.activation == "relu":
        row["over_rectangular"] = timing.ratio(timings[case._replace(kind=RECTANGULAR)])
    return row | xla_memory(case, n)


def xla_memory(case: Case, n: int) -> Row:
    """Bytes of XLA's temporaries and outputs, or None."""
    if case.activation != "relu":  # inside jit they are other programs than the ones above
        return {}
    lowered = jax.jit(kernels, static_argnums=(2, 3)).lower(*arguments(case, n), *case[1:])
    compiled = lowered.compile()
    analysis = compiled.memory_analysis()
    names = {"temporary_bytes": "temp_size_in_bytes", "output_bytes": "output_size_in_bytes"}
    return {key: getattr(analysis, name, None) for key, name in names.items()}


def in_display_units(row: Row) -> Row:
    """The row with mebibytes."""
    sizes = {name: row.get(f"{name}_bytes") for name in ("temporary", "output")}
    return {
        **row,
        **{f"{name}_mib": None if size is None else size / 2**20 for name, size in sizes.items()},
    }
