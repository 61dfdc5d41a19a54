"""The largest eigenvalues and kappa of a network with a million parameters, from products alone.

The kernel of n examples is an operator: neither it nor a Jacobian is formed. Memory is that of a
fresh process, beyond the network and the examples, compilation included.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.harness import environment_line, measure, save_json, table
from benchmarks.memory import peak_memory
from ntk_jax import (
    MLP,
    KernelOperator,
    TopEigenvalues,
    eigenvalues,
    empirical_ntk,
    from_linen,
    laziness,
    ntk_operator,
    top_eigenvalues,
)

NUM_FEATURES, NUM_TOP = 64, 20
COLUMNS = {
    "case": "",
    "parameters": ",d",
    "n": "d",
    "median_s|time [s]": ".3g",
    "num_products|products": "d",
    "worst_error|error / largest": ".1e",
    "used_mib|memory [MiB]": ".0f",
}


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, save `spectrum.json` in `args.out`."""
    width, n = (128, 128) if args.quick else (960, 1000)
    op = operator(width, n)
    found: list[TopEigenvalues] = []
    cases = {"top 20 by block Lanczos": lambda: found.append(top_of(op))}
    timings = measure(cases, repeats=2, warmup=0)
    memory = peak_memory("benchmarks.spectrum:make_case", width=width, n=n)
    top, truth = found[-1], eigenvalues(empirical_ntk(op.apply_fn, op.params, op.x1))
    row = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(op.params)),
        "n": n,
        "converged": top.converged,
        "num_products": top.num_products,
        "worst_error": float(np.max(np.abs(top.eigenvalues - truth[:NUM_TOP])) / truth[0]),
        "used_bytes": memory.used,
        "used_mib": memory.used / 2**20,
    }
    rows: list[dict[str, Any]] = [
        {"case": name, **row, **timing.record()} for name, timing in timings.items()
    ]
    rows.append(kappa_row(width, n // 16))
    print(table(rows, COLUMNS))
    print(environment_line())
    options = {
        "quick": args.quick,
        "width": width,
        "depth": 2,
        "num_features": NUM_FEATURES,
        "num_top": NUM_TOP,
    }
    path = save_json(args.out, "spectrum", rows, options)
    print(f"\nSaved {path}.")


def kappa_row(width: int, n: int) -> dict[str, Any]:
    """Chizat, Oyallon and Bach's kappa: the first call of a fresh process, compilation included."""
    memory = peak_memory("benchmarks.spectrum:make_kappa_case", width=width, n=n)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(operator(width, 1).params))
    row = {
        "case": "kappa, first call",
        "parameters": parameters,
        "n": n,
        "median_s": memory.seconds,
    }
    return row | {"used_bytes": memory.used, "used_mib": memory.used / 2**20}


def make_kappa_case(width: int, n: int) -> Callable[[], Any]:
    """Kappa against standard normal targets."""
    op = operator(width, n)
    y = jax.random.normal(jax.random.key(3), (n, 1))
    return lambda: laziness(op.apply_fn, op.params, op.x1, y)


def operator(width: int, n: int) -> KernelOperator:
    """The kernel of n standard normal examples under a network with two hidden layers, tanh, one
    output.
    """
    x = jax.random.normal(jax.random.key(0), (n, NUM_FEATURES))
    model = MLP((width, width), 1, "tanh", 1.5, 0.1)
    return ntk_operator(*from_linen(model, model.init(jax.random.key(1), x)), x)


def top_of(op: KernelOperator) -> TopEigenvalues:
    """The largest eigenvalues, to the library's default tolerance."""
    return top_eigenvalues(op, NUM_TOP, key=jax.random.key(2))


def make_case(width: int, n: int) -> Callable[[], Any]:
    """The call whose memory is measured."""
    op = operator(width, n)
    return lambda: top_of(op).eigenvalues
