"""The same kernels by google/neural-tangents and PyTorch, each in its own environment, and by this
library.

Environments are built on request in `.peers` (a few minutes, some gigabytes): neural-tangents 0.6.5
needs JAX 0.4.38 and TensorFlow. Every case runs in one process per peer, on the same numbers from
one file; the calls of all processes are interleaved, and all results are compared with each other
before any time is believed. PEERS_ONLY=limit in the environment runs only the kinds of problems
whose name contains that word, and saves only those.
"""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.environments import ROOT
from benchmarks.harness import environment_line, save_json, table
from benchmarks.peer_processes.environments import command
from benchmarks.peer_processes.networks import shapes_of
from benchmarks.peer_processes.problems import LIMITS, Problem, draw

Row = dict[str, Any]
OURS, NT, TORCH, NAIVE = "ntk_jax", "neural_tangents", "torch", "naive"
NT_FAST, NT_ALL = (
    ((NT, "structured_derivatives"),),
    ((NT, "structured_derivatives"), (NT, "jacobian_contraction")),
)
TORCH_METHODS = ("jacobian", "vector_products")
LARGE, SMALL = (
    ((OURS, "auto"), *NT_FAST),
    ((OURS, "auto"), *NT_ALL, (NT, "ntk_vector_products"), (NT, "default")),
)

# Jacobians of the large networks need hundreds of gigabytes: the other implementations cannot run
# there.
CASES: tuple[tuple[Problem, tuple[tuple[str, str], ...], int], ...] = (
    *(
        (Problem("analytic", n=4096, depth=depth), ((OURS, "mlp_kernels"), (NT, "stax")), 5)
        for depth in (1, 3, 10)
    ),
    (
        Problem("limit_flatten", n=64, depth=3, image=32),
        ((OURS, "infinite_width"), (NT, "stax")),
        5,
    ),
    (Problem("limit_pool", n=8, depth=3, image=32), ((OURS, "infinite_width"), (NT, "stax")), 3),
    (Problem("mlp", n=2048, width=2048, depth=3, outputs=10), LARGE, 3),
    (Problem("mlp", n=2048, width=2048, depth=3, outputs=1), LARGE, 5),
    (Problem("mlp", n=1024, width=512, depth=3, outputs=10), LARGE, 5),
    (Problem("cnn", n=256, width=32, outputs=10, image=32), (*SMALL[:3], (TORCH, "jacobian")), 3),
    (
        Problem("mlp", n=256, width=512, depth=2, outputs=1),
        (*SMALL, (TORCH, "jacobian"), (NAIVE, "loop")),
        3,
    ),
    (
        Problem("mlp", n=256, width=512, depth=2, outputs=10),
        (*LARGE, (NT, "default"), (NAIVE, "loop")),
        1,
    ),
    (Problem("resnet18", n=16, outputs=10, image=64), SMALL[:3], 3),
    (
        Problem("mlp", n=32, width=256, depth=2, outputs=1),
        (*SMALL[:3], *((TORCH, m) for m in TORCH_METHODS)),
        5,
    ),
)
QUICK: tuple[tuple[Problem, tuple[tuple[str, str], ...], int], ...] = (
    (Problem("mlp", n=16, width=64, depth=2, outputs=3), ((OURS, "auto"), (NAIVE, "loop")), 2),
)
# float32 on both sides; the analytic kernel of neural-tangents is itself off by 2e-3 at depth 10.
TOLERANCE = 5e-3


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, save `peers.json`."""
    rows = []
    only = os.environ.get(
        "PEERS_ONLY", ""
    )  # a part of a kind, such as "limit": the others are left out
    for problem, peers, repeats in QUICK if args.quick else CASES:
        if only not in problem.kind:
            continue
        rows += measure_problem(problem, peers, repeats)
        print(table(rows[-len(peers) :], COLUMNS), flush=True)
        save_json(
            args.out, "peers", rows, {"quick": args.quick, "dtype": "float32", "outputs": "mean"}
        )
    print(environment_line())


COLUMNS = {
    "problem": "",
    "n": "d",
    "peer": "",
    "method": "",
    "median_s|time [s]": ".3g",
    "first_call_s|first call [s]": ".3g",
    "entry_us|per entry [µs]": ".3g",
    "over_ours|/ ntk_jax": ".2f",
    "peak_mib|peak [MiB]": ".0f",
    "difference": ".0e",
}


def measure_problem(
    problem: Problem, peers: tuple[tuple[str, str], ...], repeats: int
) -> list[Row]:
    """One row per peer; ours is the first."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "numbers.npz"
        numbers = {} if problem.kind in ("analytic", *LIMITS) else draw(shapes_of(problem))
        np.savez(file, **numbers)  # type: ignore[arg-type]
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(_running(problem, str(file), *peer)) for peer in peers]
            first = [_call(process) for process in processes]
            rounds = [[_call(process) for process in processes] for _ in range(repeats)]
    ours = first[0]
    rows = []
    for i, (peer, method) in enumerate(peers):
        times = [answers[i]["seconds"] for answers in rounds]
        difference = _difference(first[i], ours)
        if difference > TOLERANCE:
            raise RuntimeError(
                f"{problem}: {peer} ({method}) and {OURS} disagree by {difference:.2g}."
            )
        row = {"problem": problem.label, **problem._asdict(), "peer": peer, "method": method}
        row |= {"median_s": median(times), "rounds_s": times, "first_call_s": first[i]["seconds"]}
        row["entry_us"] = 1e6 * median(times) / problem.n**2
        row["over_ours"] = median(
            answers[i]["seconds"] / answers[0]["seconds"] for answers in rounds
        )
        rows.append(row | {"peak_mib": rounds[-1][i]["peak_mib"], "difference": difference})
    return rows


def _difference(answer: Row, reference: Row) -> float:
    a, b = np.array(answer["corner"]), np.array(reference["corner"])
    return float(
        max(np.abs(a - b).max() / np.abs(b).max(), abs(answer["norm"] / reference["norm"] - 1))
    )


@contextlib.contextmanager
def _running(problem: Problem, numbers: str, peer: str, method: str) -> Iterator[Any]:
    """A peer's process; it is gone, and its files are closed, when the context ends."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile(
        "w+"
    ) as errors:  # a pipe that nobody reads would fill up and stop the process
        process: Any = subprocess.Popen(
            command(peer), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, **quiet}, cwd=ROOT,
        )  # fmt: skip
        process.errors = errors
        with process:  # closes the pipes and waits
            try:
                _write(
                    process,
                    json.dumps(
                        {"problem": problem._asdict(), "numbers": numbers, "method": method}
                    ),
                )
                yield process
            finally:
                process.kill()


def _write(process: Any, line: str) -> None:
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _call(process: Any) -> Row:
    try:
        _write(process, "again")
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        status = process.wait()
        process.errors.seek(0)
        raise RuntimeError(
            f"a peer's process ended with status {status}:\n{process.errors.read()[-3000:]}"
        )
    return json.loads(answer)
