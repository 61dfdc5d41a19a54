"""First calls of `infinite_width` by the number of equal blocks, whose programs are loops, against
the same without loops. Every case has a process of its own.
"""

import argparse
import json
import sys
import time
from typing import Any

from benchmarks.harness import environment_line, save_json, table
from benchmarks.processes import in_fresh_process

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
            loops, flat = (_fresh(kind, depth, how) for how in ("loops", "flat"))
            without = {"first_without_s": flat["first_s"], "second_without_ms": flat["second_ms"]}
            rows.append({"kind": kind, "blocks": blocks, "depth": depth, **loops, **without})
            print(table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
    print(table(rows, COLUMNS))
    save_json(args.out, "depth", rows, {"quick": args.quick})
    print(environment_line())


def _fresh(kind: str, depth: int, how: str) -> dict[str, float]:
    cold = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    row: dict[str, float] = in_fresh_process(
        "benchmarks.depth", kind, str(depth), how, settings=cold
    )
    return row


def _probe(kind: str, depth: int, how: str) -> dict[str, float]:
    """Seconds of the first call, and milliseconds of the fastest of twenty further ones."""
    import jax

    import ntk_jax
    from cases.deep import Deep, deep_examples
    from ntk_jax.loops import repeats

    if how == "flat":
        repeats.LEAST_TURNS = 10**9
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
