"""How long people wait for the compiler: first and second calls of every front door in fresh
processes.

Each door of `cases/front_doors.py` has a process of its own: seconds of the import of ntk_jax, of
the first call, which imports what it needs besides JAX, Flax and Optax, of the second with equal
objects built anew, and of a third, and the number of programs that XLA was asked for in each; once
with an empty persistent compilation cache, and once again with the one that this left. `quickstart`
is the first code block of the README. Then the first calls of
google/neural-tangents (LATENCY_PEERS=0 in the environment leaves them out).
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import environment_line, save_json, table
from benchmarks.peer_processes.problems import JITTED, Problem
from benchmarks.processes import in_fresh_process

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
QUICKSTART = "quickstart"

# Aims, cold, in seconds of a quiet CPU.
TARGETS = {
    "mlp_kernels relu": 0.6, "mlp_kernels tanh": 1.0, "mlp_kernels gelu_tanh": 1.5,
    "empirical_ntk": 0.5, "infinite_width MLP": 1.0, "infinite_width CNN": 3.0, "diagonalize": 0.3,
    "gradient_flow_mse": 0.3, "gp_posterior": 0.6, "train": 0.8, QUICKSTART: 6.0,
}  # fmt: skip

PEER_PROBLEMS = (
    Problem("mlp", n=32, width=256, depth=2, outputs=1),
    Problem("analytic", n=32, depth=3),
    Problem("limit_flatten", n=8, depth=2, image=8),
    Problem("limit_pool", n=4, depth=2, image=8),
)

COLUMNS = {
    "door": "",
    "import_s|import": ".2f",
    "first_s|first call": ".2f",
    "first_warm_s|with a warm cache": ".2f",
    "target_s|aim": ".1f",
    "programs|programs": "d",
    "second_ms|second [ms]": ".1f",
    "second_programs|programs": "d",
    "third_ms|third [ms]": ".1f",
}


PEER_COLUMNS = {
    "problem": "",
    "n": "d",
    "peer": "",
    "called": "",
    "first_call_s": ".2f",
    "median_s": ".4f",
}


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, save `latency.json`."""
    repeats, names = (1, ["diagonalize"]) if args.quick else (2, [*_doors(), QUICKSTART])
    rows = []
    for name in names:
        rows.append(_row(name, repeats))
        print(table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
    print(table(rows, COLUMNS))
    peers: list[Row] = []
    if not args.quick and os.environ.get("LATENCY_PEERS") != "0":
        peers = _peers()
    options = {"quick": args.quick, "repeats": repeats}
    save_json(args.out, "latency", rows, options, peers=peers)
    print(environment_line())


def _row(name: str, repeats: int) -> Row:
    """Medians over processes, each pair with a persistent cache of its own."""
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(_fresh(name, cache))
            warm.append(_fresh(name, cache))
    row = {key: median(answer[key] for answer in cold) for key in cold[0]}
    counts = {key: int(value) for key, value in row.items() if key.endswith("programs")}
    first_warm = median(answer["first_s"] for answer in warm)
    return {
        "door": name,
        **row,
        **counts,
        "first_warm_s": first_warm,
        "target_s": TARGETS.get(name),
    }


def _fresh(name: str, cache: str) -> Row:
    """The answer of a process that does nothing else."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    return in_fresh_process("benchmarks.latency", name, settings=settings)


def _peers() -> list[Row]:
    """The same problems by google/neural-tangents: first call, and the median of the later ones."""
    from benchmarks import peers

    found = []
    for problem in PEER_PROBLEMS:
        kind = problem.kind != "mlp"
        ours = (peers.OURS, "infinite_width" if kind else "auto"), (peers.OURS, JITTED)
        theirs = (peers.NT, "stax" if kind else "structured_derivatives")
        rows = peers.measure_problem(problem, (*ours, theirs), 15)
        called = "as it is", "in jax.jit", "in jax.jit"  # which the peer's documentation asks for
        found += [{**row, "called": word} for row, word in zip(rows, called, strict=True)]
        print(table(found[-3:], PEER_COLUMNS), flush=True)
    return found


def _doors() -> list[str]:
    from cases.front_doors import DOORS

    return list(DOORS)


def _quickstart() -> Callable[[float], Any]:
    """The first block of code of the README."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert found, "README.md: expected a block of Python"
    code = compile(found[1], "README.md", "exec")

    def call(_: float) -> Any:
        names: dict[str, Any] = {}
        exec(code, names)
        return names["f_t"]

    return call


def _probe(name: str) -> Row:
    """What one process measures: the import, then three calls."""
    import jax

    start = time.perf_counter()
    import ntk_jax  # noqa: F401

    answer: Row = {"import_s": time.perf_counter() - start}
    from cases.compilations import compilations
    from cases.front_doors import DOORS

    call = _quickstart() if name == QUICKSTART else DOORS[name]()
    for key, scale, number in (("first", 1, 1.0), ("second", 1e3, 1.0), ("third", 1e3, 1.01)):
        with compilations() as programs:
            start = time.perf_counter()
            jax.block_until_ready(call(number))
            seconds = time.perf_counter() - start
        answer[f"{key}_s" if scale == 1 else f"{key}_ms"] = scale * seconds
        answer["programs" if key == "first" else f"{key}_programs"] = len(programs)
    return answer


if __name__ == "__main__":
    print(json.dumps(_probe(sys.argv[1])))
