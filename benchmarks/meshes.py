"""Weak scaling of kernels and products on forced CPU devices: rows for equal work on each.

The devices are threads of this machine's cores: more devices than cores cannot be faster, and XLA
uses all cores on one device already. What is seen is what sharing out costs, and the memory.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

import ntk_jax
from benchmarks.harness import save_json, table
from benchmarks.processes import in_fresh_process

D, VECTORS = 64, 10
RELU = partial(ntk_jax.mlp_kernels, depth=3, activation="relu", W_std=2**0.5, b_std=0.1)
COLUMNS = {
    "devices": "d",
    "n": "d",
    "build_s|kernel in memory [s]": ".2f",
    "memory_s|product, in memory [s]": ".3f",
    "recompute_s|product, recomputed [s]": ".2f",
    "network_s|product, network [s]": ".2f",
    "peak_mib|peak memory [MiB]": ".0f",
}


def run(args: argparse.Namespace) -> None:
    """Measure in fresh processes, print the table, save `meshes.json` in `args.out`."""
    n = 512 if args.quick else 4096
    rows = [in_process(devices, int(n * devices**0.5)) for devices in (1, 2)]
    print(table(rows, COLUMNS))
    options = {"quick": args.quick, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(save_json(args.out, "meshes", rows, options))


def in_process(devices: int, n: int) -> dict[str, Any]:
    """One row, from a process that does nothing else."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    row: dict[str, Any] = in_fresh_process("benchmarks.meshes", str(n), settings=settings)
    return row


def measured(n: int) -> dict[str, Any]:
    """The row of all devices of this process."""
    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    x, v = (np.random.default_rng(i).standard_normal((n, k)) for i, k in ((0, D), (1, VECTORS)))
    x, v = x.astype(np.float32), v.astype(np.float32)
    model = ntk_jax.MLP((256, 256), 1)
    f, params = ntk_jax.from_linen(model, model.init(jax.random.key(0), x[:1]))
    operator = partial(ntk_jax.kernel_operator, RELU, x, kernel="ntk", mesh=mesh)
    build = lambda: jax.tree.leaves(operator())
    held, recomputed = operator(), operator(storage="recompute")
    network = ntk_jax.ntk_operator(f, params, x, mesh=mesh)
    row = {
        "devices": mesh.size,
        "n": n,
        "build_s": seconds(build),
        "memory_s": seconds(lambda: held @ v),
        "recompute_s": seconds(lambda: recomputed @ v),
        "network_s": seconds(lambda: network @ v),
    }
    return row | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    """The least of some, after one that compiles."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return min(found[1:])


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]))))
