"""Kernels beyond memory: tiles to disk, killed and resumed; what the tile loop costs.

`--store`: the ReLU NTK of depth 3 in tiles on the disk. Peak memory is of a fresh process; kills
are SIGKILL at random moments, after each of which finished tiles must stand as they were.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

import ntk_jax
from benchmarks.environments import ROOT
from benchmarks.harness import environment_line, measure, save_json, table
from benchmarks.memory import peak_memory
from ntk_jax.scale.files import Writer
from ntk_jax.scale.grid import Grid

FEATURES, DEPTH, KILLS = 64, 3, 6


def run(args: argparse.Namespace) -> None:
    """All parts, or those that are chosen."""
    print(environment_line())
    store(args)


def store(args: argparse.Namespace) -> None:
    """To disk: memory, kills, rate of writing; the loop in memory."""
    n, small = (2000, 1500) if args.quick else (20_000, 6000)
    folder = Path(tempfile.mkdtemp(prefix="scale_store"))
    try:
        rows = [whole(n, folder / "whole.zarr")]
        rows += [killed(n, folder / "killed.zarr", folder / "whole.zarr", rows[0]["seconds"])]
        shutil.rmtree(folder / "whole.zarr")
        shutil.rmtree(folder / "killed.zarr")
        rows += [writing(n, folder), overhead(small)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        print(
            table([row], {name: ".4g" if isinstance(v, float) else "" for name, v in row.items()})
        )
    options = {
        "features": FEATURES,
        "depth": DEPTH,
        "memory_limit": memory_limit(n),
        "quick": args.quick,
    }
    save_json(args.out, "scale_store", rows, options)


def examples(n: int) -> np.ndarray:
    """Gaussian rows."""
    return np.random.default_rng(0).standard_normal((n, FEATURES)).astype(np.float32)


def ntk(x1: Array, x2: Array | None = None) -> Array:
    """The ReLU NTK at critical scale."""
    return ntk_jax.mlp_kernels(x1, x2, depth=DEPTH, W_std=2**0.5, b_std=0.1).ntk


def memory_limit(n: int) -> int:
    """For tiles: 512 MiB at full size, and of small kernels so much that they have several."""
    return min(2**29, 4 * n * n)


def make_fill(n: int, path: str) -> Callable[[], Any]:
    """A case of `peak_memory`: the kernel of n examples to disk."""
    x = examples(n)
    return lambda: len(
        ntk_jax.tile(ntk, memory_limit=memory_limit(n), out=path, progress=False)(x).missing()
    )


def whole(n: int, path: Path) -> dict[str, Any]:
    """Without an interruption, in a fresh process."""
    memory = peak_memory("benchmarks.scale:make_fill", n=n, path=str(path))
    found = ntk_jax.KernelStore.open(path)
    return {
        "case": "whole",
        "n": n,
        "tiles": len(found.facts.grid.corners),
        "rows_of_tile": found.facts.grid.rows1,
        "seconds": memory.seconds,
        "peak_beyond_imports_mib": memory.used / 2**20,
        "peak_mib": memory.peak / 2**20,
        "kernel_mib": n * n * 4 / 2**20,
        "on_disk_mib": sum(f.stat().st_size for f in _tiles(path)) / 2**20,
    }


def fill(n: int, path: str) -> None:
    """What is killed; says when a tile is about to be computed."""
    ntk_jax.tile(announced(ntk), memory_limit=memory_limit(n), out=path, progress=False)(
        examples(n)
    )


def announced(kernel_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same, which says when it is asked."""

    def loud(x1: Array, x2: Array | None = None) -> Any:
        print("tile", flush=True)
        return kernel_fn(x1, x2)

    return loud


def killed(n: int, path: Path, reference: Path, seconds: float) -> dict[str, Any]:
    """With SIGKILL at random moments of its work; then to the end."""
    generator, there, redone = random.Random(0), [], 0
    fill_call = f"scale.fill({n}, {str(path)!r})"
    for _ in range(KILLS):
        before = written(path)
        tiles_begun(fill_call, generator.uniform(0, 0.4 * seconds / KILLS))
        redone += sum(written(path).get(name) != when for name, when in before.items())
        there.append(len(written(path)))
    before, missing = written(path), len(ntk_jax.KernelStore.open(path).missing())
    calls = tiles_begun(fill_call, None)
    redone += sum(written(path).get(name) != when for name, when in before.items())
    found = ntk_jax.KernelStore.open(path)
    return {
        "case": "killed",
        "n": n,
        "kills": KILLS,
        "tiles_there_after_each": there,
        "missing_at_the_last_start": missing,
        "computed_by_the_last": calls - 1,  # without the few examples that tell the kernel
        "finished_tiles_written_again": redone,
        "bad_tiles": len(found.verify(progress=False)) + len(found.missing()),
        "bit_identical": _digest(path) == _digest(reference),
    }


def tiles_begun(call: str, kill_after: float | None) -> int:
    """How many tiles a process began; it is killed some seconds after all is compiled."""
    command = [sys.executable, "-c", f"from benchmarks import {call.partition('.')[0]}; {call}"]
    calls = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            calls += 1
            if calls == 5 and kill_after is not None:
                time.sleep(kill_after)
                process.send_signal(signal.SIGKILL)
    if process.returncode != (0 if kill_after is None else -signal.SIGKILL):
        raise RuntimeError(f"{call} ended with status {process.returncode}")
    return calls


def _tiles(path: Path) -> list[Path]:
    return sorted(path.glob("kernel/c/*/[0-9]*[0-9]")) + sorted(path.glob("kernel/c/*/[0-9]"))


def written(path: Path) -> dict[str, int]:
    """When each tile was."""
    return {str(f.relative_to(path)): f.stat().st_mtime_ns for f in _tiles(path)}


def _digest(path: Path) -> dict[str, str]:
    read = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()
    return {str(file.relative_to(path)): read(file) for file in _tiles(path)}


def writing(n: int, folder: Path) -> dict[str, Any]:
    """The rate of writing tiles that are ready, and of as many bytes to one plain file."""
    ready = np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)
    rates: dict[str, list[float]] = {"raw": [], "store": []}
    for _ in range(5):
        grid = _write_store(n, folder / "ready.zarr", ready, rates["store"])
        size = grid.rows1 * grid.rows2 * 4
        _write_raw(folder / "raw", ready.tobytes()[:size], len(grid.corners), rates["raw"])
    shares = [a / b for a, b in zip(rates["store"], rates["raw"], strict=True)]
    return {
        "case": "writing",
        "bytes": size * len(grid.corners),
        **{f"{name}_gb_per_s": found for name, found in rates.items()},
        "store_share_of_raw": median(shares),
    }


def _write_store(n: int, path: Path, ready: np.ndarray, rates: list[float]) -> Grid:
    def kernel_fn(x1: Array, x2: Array | None = None) -> np.ndarray:
        return ready[: len(x1), : len(x1 if x2 is None else x2)]

    found = ntk_jax.tile(kernel_fn, memory_limit=memory_limit(n), out=path, progress=False)
    disk = found(examples(n)).disk
    grid = disk.facts.grid
    disk.discard(grid.corners)
    os.sync()
    start = time.perf_counter()
    with Writer(path, disk.arrays, grid) as writer:
        for at in grid.corners:
            rows, columns = grid.place(at)
            height, width = rows.stop - rows.start, columns.stop - columns.start
            writer.write(at, (ready[:height, :width],))
    seconds = time.perf_counter() - start
    rates.append(grid.rows1 * grid.rows2 * 4 * len(grid.corners) / seconds / 1e9)
    shutil.rmtree(path)
    return grid


def _write_raw(path: Path, block: bytes, count: int, rates: list[float]) -> None:
    os.sync()
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(block)
        os.fsync(file.fileno())
    rates.append(len(block) * count / (time.perf_counter() - start) / 1e9)
    path.unlink()


def overhead(n: int) -> dict[str, Any]:
    """The loop over tiles in memory beside one call of the kernel: seconds, and CPU seconds, which
    other processes take less part in.
    """
    x, row = jnp.asarray(examples(n)), {"case": "loop in memory", "n": n}
    cases: dict[str, Callable[[], Any]] = {
        "kernel": lambda: ntk(x),
        "tiles": partial(ntk_jax.tile(ntk, memory_limit=memory_limit(n), progress=False), x),
    }
    for name, clock in (("", time.perf_counter), ("cpu_", time.process_time)):
        timings = measure(cases, repeats=11, warmup=1, budget=40, clock=clock)
        row[f"{name}kernel_s"] = timings["kernel"].median
        row[f"{name}tiles_s"] = timings["tiles"].median
        row[f"{name}ratio"] = timings["tiles"].ratio(timings["kernel"])
    return row
