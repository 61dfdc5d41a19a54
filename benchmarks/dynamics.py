"""Predictions at 1,000 times against the one eigendecomposition that they all share, and against
one solve per time.

The outputs at 1,000 times, 10 outputs and 500 test points cost one product with the eigenvectors of
the training kernel and one with the test kernel; the latter alone with `predict_train=False`.
Without the modes every time would take a matrix exponential; the table has one of those.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import environment_line, measure, save_json, table
from ntk_jax import diagonalize, gradient_descent_mse, gradient_flow_mse, mlp_kernels

NUM_FEATURES, NUM_OUTPUTS = 64, 10
DIAGONALIZE, FLOW, DESCENT, ONE_EXPONENTIAL = (
    "diagonalize",
    "flow",
    "descent, momentum",
    "one time by expm",
)
FLOW_TEST = "flow, test outputs only"
COLUMNS = {
    "case": "",
    "n": "d",
    "num_times|times": "d",
    "median_s|time [s]": ".3g",
    "over_diagonalize|/ diagonalize": ".3f",
    "compile_s|compile [s]": ".2f",
}

Row = dict[str, Any]


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, save `dynamics.json` in `args.out`."""
    n, num_test, num_times, repeats = (200, 50, 100, 3) if args.quick else (2000, 500, 1000, 5)
    rows = measure_all(n, num_test, num_times, repeats)
    print(table(rows, COLUMNS))
    print(environment_line())
    options = {
        "quick": args.quick,
        "n": n,
        "num_test": num_test,
        "num_times": num_times,
        "repeats": repeats,
    }
    path = save_json(
        args.out, "dynamics", rows, options | {"num_outputs": NUM_OUTPUTS, "dtype": "float32"}
    )
    print(f"\nSaved {path}.")


def problem(n: int, num_test: int) -> dict[str, Any]:
    """Analytic kernels of random examples, targets, initial outputs: float32, the same in every
    run.
    """
    rng = np.random.default_rng(0)
    x, x_test = (
        jnp.asarray(rng.standard_normal((rows, NUM_FEATURES), dtype=np.float32))
        for rows in (n, num_test)
    )
    draw = lambda rows: jnp.asarray(rng.standard_normal((rows, NUM_OUTPUTS), dtype=np.float32))
    options: dict[str, Any] = {"depth": 2, "W_std": 2**0.5, "b_std": 0.1}
    k, k_test = mlp_kernels(x, **options).ntk, mlp_kernels(x_test, x, **options).ntk
    return {
        "k": k,
        "k_test_train": k_test,
        "y": draw(n),
        "fx_train_0": draw(n),
        "fx_test_0": draw(num_test),
    }


def measure_all(n: int, num_test: int, num_times: int, repeats: int) -> list[Row]:
    """A row per case; all are timed in the same rounds."""
    data = problem(n, num_test)
    k, y = data.pop("k"), data.pop("y")
    modes = diagonalize(k)
    t = jnp.geomspace(0.1, 1e5, num_times, dtype=jnp.float32)
    steps = jnp.unique(
        jnp.geomspace(1, 1e5, num_times).astype(int), size=num_times, fill_value=10**5
    )
    timings = measure(
        {
            DIAGONALIZE: lambda: diagonalize(k),
            FLOW: lambda: gradient_flow_mse(modes, y, t, **data),
            FLOW_TEST: lambda: gradient_flow_mse(modes, y, t, **data, predict_train=False),
            DESCENT: lambda: gradient_descent_mse(modes, y, steps, 1.0, momentum=0.9, **data),
            ONE_EXPONENTIAL: lambda: by_exponential(k, y, data["k_test_train"], data["fx_train_0"]),
        },
        repeats=repeats,
    )
    counts = {
        DIAGONALIZE: None,
        FLOW: num_times,
        FLOW_TEST: num_times,
        DESCENT: num_times,
        ONE_EXPONENTIAL: 1,
    }
    return [
        {"case": case, "n": n, "num_times": counts[case], **timing.record()}
        | {"over_diagonalize": timing.ratio(timings[DIAGONALIZE])}
        for case, timing in timings.items()
    ]


@jax.jit
def by_exponential(k: jax.Array, y: jax.Array, k_test: jax.Array, f_0: jax.Array) -> jax.Array:
    """Test outputs at t = 100 without modes: a matrix exponential and a solve."""
    remaining = jax.scipy.linalg.expm(-100.0 / y.size * k) @ (y - f_0)
    return k_test @ jnp.linalg.solve(k, y - f_0 - remaining)
