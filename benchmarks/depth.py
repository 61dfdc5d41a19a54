"""First calls of `infinite_width` by the number of equal blocks, whose programs are loops, against
the same without loops. Every case has a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import environment_line, save_json, table

ROOT = Path(__file__).parents[1]
BLOCKS = {
    "convolutional": "convolution, ReLU",
    "residual": "residual, two layers, ReLU",
    "normalized": "residual, LayerNorm, ReLU",
    "attention": "transformer, gelu",
}
COLUMNS = {
    "blocks|block": "",
    "depth|number": "d",
    "first_s|first": ".1f",
    "first_without_s|without loops": ".1f",
    "second_ms|second [ms]": ".1f",
    "second_without_ms|without loops": ".1f",
}


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, save `depth.json`."""
    depths, rows = ((2, 4) if args.quick else (2, 8, 16)), []
    for kind, blocks in BLOCKS.items():
        for depth in depths:
            loops, flat = (_fresh(kind, depth, least) for least in (None, 10**9))
            without = {
                f"{k[: k.index('_')]}_without{k[k.index('_') :]}": v for k, v in flat.items()
            }
            rows.append({"kind": kind, "blocks": blocks, "depth": depth, **loops, **without})
            print(table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
    print(table(rows, COLUMNS))
    save_json(args.out, "depth", rows, {"quick": args.quick})
    print(environment_line())


def _fresh(kind: str, depth: int, least_turns: int | None) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.depth", kind, str(depth), str(least_turns or "")]
    unset = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, cwd=ROOT, env=unset, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind}: the process ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _probe(kind: str, depth: int, least_turns: str) -> dict[str, float]:
    """Seconds of the first call, and milliseconds of the fastest of twenty further ones."""
    import jax

    import ntk_jax
    from cases.deep import Deep, deep_examples
    from ntk_jax.loops import repeats

    repeats.LEAST_TURNS = int(least_turns or repeats.LEAST_TURNS)
    x: Any = deep_examples(kind)
    kernel_fn = ntk_jax.infinite_width(Deep(kind, depth), inner_products="mean")
    times = []
    for _ in range(21):
        start = time.perf_counter()
        jax.block_until_ready(kernel_fn(x))
        times.append(time.perf_counter() - start)
    return {"first_s": times[0], "second_ms": 1e3 * min(times[1:])}


if __name__ == "__main__":
    print(json.dumps(_probe(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
