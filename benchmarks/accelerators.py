"""What every front door asks of a GPU and a TPU, from programs compiled for devices that are not
here.

Launches (fusions, library calls, copies; in loops once per trip), loops, temporaries. Nothing here
says how fast a launch is, or whether its numbers are right: on a device, `python -m benchmarks gpu`
does.
The environment that compiles is built on request in `.aot` (`make aot`; 1.9 GB of wheels of the
package index: no driver, no device).
"""

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from benchmarks.ahead.devices import FOLDER, REQUIREMENTS, SETTINGS
from benchmarks.environments import ROOT, environment
from benchmarks.harness import save_json, table

N, LARGE = 2048, 8192
AT_LARGE = ("mlp_kernels relu",)  # temporaries in units of a result, where results are large
# Those that the compiler for TPUs is asked about: it takes minutes for some others.
ON_TPU = (
    "mlp_kernels relu",
    "infinite_width flat CNN",
    "infinite_width pooled CNN",
    "empirical_ntk MLP",
    "empirical_ntk flat CNN",
    "gradient_flow_mse",
)
QUICK = ("kernel_diagonal", "gradient_flow_mse")
COLUMNS = {
    "target": "",
    "door": "",
    "n": "d",
    "launches": "d",
    "in_branches|in branches": "d",
    "most_trips|trips of a loop": "d",
    "open_loops|loops by data": "d",
    "temporary_mib|temporaries [MiB]": ".0f",
    "output_mib|outputs [MiB]": ".0f",
    "compile_s|compile [s]": ".1f",
    "error": "",
}

Row = dict[str, Any]


def run(args: argparse.Namespace) -> None:
    """Compile, print the table, save `accelerators.json` in `args.out`."""
    n = 512 if args.quick else N
    cases = [("h100", n, ()), ("h100", LARGE, AT_LARGE), ("v5e", n, ON_TPU)]
    rows = []
    for target, size, doors in [("h100", n, QUICK)] if args.quick else cases:
        rows += compiled(target, size, doors)
        print(f"compiled for {target}", flush=True)
    print(table(rows, COLUMNS))
    options = {"quick": args.quick, "requirements": list(REQUIREMENTS)}
    print(save_json(args.out, "accelerators", rows, options))


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/accelerators.md."""
    head = (
        "device | front door | launches | more in a branch | in loops (trips) | temporaries [MiB]"
    )
    lines = [f"| {head} |", "| --- " * 6 + "|"]
    for row in rows:
        loops = ", ".join("by data" if trips is None else str(trips) for trips, _ in row["loops"])
        always, branch = row["launches"] - row["in_branches"], row["in_branches"]
        launches = f"{always:,} | {branch or '–'} | {loops or '–'}"
        numbers = f"{launches} | {row['temporary_mib']:,.0f}"
        size = f", n = {row['n']:,}" if row["n"] == LARGE else ""
        lines.append(f"| {row['target']} | {row['door']}{size} | {numbers} |")
    return "\n".join(lines)


def compiled(target: str, n: int, doors: Sequence[str] = ()) -> list[Row]:
    """One row per front door, of these names if there are any."""
    return _ahead("compile_doors", target, str(n), *doors)


def compiled_on_meshes(target: str) -> list[Row]:
    """One row per program for eight devices, with what these send to each other."""
    return _ahead("compile_meshes", target)


def _ahead(script: str, *arguments: str) -> list[Row]:
    python = environment(FOLDER, REQUIREMENTS)
    command = [str(python), "-m", f"benchmarks.ahead.{script}", *arguments]
    settings = {**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command}: ended with status {done.returncode}:\n{done.stderr}")
    return list(map(json.loads, done.stdout.splitlines()))
