"""What every front door asks of a GPU and a TPU, from programs compiled for devices that are not
here.

Launches (fusions, library calls, copies; in loops once per trip), loops, temporaries. Nothing here
says how fast a launch is, or whether its numbers are right: `python -m benchmarks gpu`, on a device.
The environment that compiles is built on request in `.aot` (`make aot`; 1.9 GB of wheels of the
package index: no driver, no device).
"""

import argparse
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.ahead.devices import FOLDER, REQUIREMENTS, SETTINGS
from benchmarks.environments import ROOT, environment
from benchmarks.harness import save_json, table

N = 2048
# Those that TPU compilers are asked about: some take minutes, such as eigenvectors.
ON_TPU = (
    "mlp_kernels relu",
    "infinite_width",
    "empirical_ntk MLP",
    "ntk_operator",
    "gradient_flow_mse",
)
QUICK = ("kernel_diagonal", "gradient_flow_mse")
COLUMNS = {
    "target": "",
    "door": "",
    "n": "d",
    "launches": "d",
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
    cases = [("h100", QUICK)] if args.quick else [("h100", ()), ("v5e", ON_TPU)]
    rows = []
    for target, doors in cases:
        for row in compiled(target, n, doors):
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(table(rows, COLUMNS))
    options = {"quick": args.quick, "requirements": list(REQUIREMENTS)}
    print(save_json(args.out, "accelerators", rows, options))


def compiled(target: str, n: int, doors: Sequence[str] = ()) -> Iterator[Row]:
    """One row per front door whose name contains one of `doors`, as soon as it is compiled."""
    python = environment(FOLDER, REQUIREMENTS)
    command = [python, "-m", "benchmarks.ahead.compile_doors", target, str(n), *doors]
    settings = {**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=settings, **quiet) as process:  # type: ignore[call-overload]
        yield from map(json.loads, process.stdout)
        errors = process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"{command}: ended with status {process.returncode}:\n{errors}")
