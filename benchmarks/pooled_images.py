"""Pooled kernels of many 32 x 32 images: seconds of a pair, memory for two numbers of them, kills.

The whole kernel of 1,200 such images would take hours: its first tiles to disk are measured, each
peak of memory in a fresh process. Kills are SIGKILL while a tile is computed.
"""

import argparse
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

import ntk_jax
from benchmarks.harness import environment_line, measure, save_json
from benchmarks.memory import peak_memory
from benchmarks.scale import announced, tiles_begun, written

SIZE, TILES = 32, 4  # of images; how many tiles of their kernel
PAIRS_LIMIT, TILES_LIMIT = 2**28, 200_000  # bytes for pairs, and for tiles of 4 x 4 images


def run(args: argparse.Namespace) -> None:
    """Seconds of a pair in blocks of two sizes; memory of the first tiles, of two numbers of
    images; tiles after kills.
    """
    print(environment_line())
    size, rows = 8 if args.quick else SIZE, []
    kernel_fn = pooled()
    for m in (2, 4):
        x = jnp.asarray(some_images(m, size))
        case = {"block": partial(kernel_fn, x, x + 1)}
        timing = measure(case, repeats=2, warmup=1, budget=60, clock=time.process_time)["block"]
        rows.append({"case": "block", "rows": m, "cpu_s_per_pair": timing.median / m**2})
    folder = Path(tempfile.mkdtemp(prefix="scale_images"))
    try:
        for n in (300, 1200):
            there = {"n": n, "size": size, "path": str(folder / f"{n}.zarr")}
            memory = peak_memory("benchmarks.pooled_images:make_first_tiles", **there)
            used = {"peak_beyond_imports_mib": memory.used / 2**20, "seconds": memory.seconds}
            rows.append({"case": "first tiles", "n": n, "tiles": TILES, **used})
        rows.append(killed(n, size, folder / "killed.zarr"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        print(row)
    options = {"size": size, "memory_limit": PAIRS_LIMIT, "tiles_limit": TILES_LIMIT}
    save_json(args.out, "pooled_images", rows, options)


class Pooled(nn.Module):
    """Two convolutions of 3 x 3 with ReLU, and the average of all positions."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(n, h, w, 3) -> (n, 1)."""
        for _ in range(2):
            x = nn.relu(nn.Conv(32, (3, 3))(x))
        return nn.Dense(1)(x.mean(axis=(1, 2)))


def pooled() -> Callable[..., Any]:
    """Its NTK."""
    return ntk_jax.infinite_width(Pooled(), memory_limit=PAIRS_LIMIT, kernels="ntk")


def some_images(n: int, size: int) -> np.ndarray:
    """Of Gaussian pixels."""
    return np.random.default_rng(0).standard_normal((n, size, size, 3)).astype(np.float32)


def make_first_tiles(n: int, size: int, path: str) -> Callable[[], Any]:
    """A case of `peak_memory`: the first tiles of the kernel of n images to disk."""
    x, kernel_fn, calls = some_images(n, size), pooled(), iter(range(TILES + 1))

    def first(x1: Array, x2: Array | None = None) -> Any:
        if next(calls, None) is None:  # one call tells the kernel
            raise InterruptedError
        return kernel_fn(x1, x2)

    def fill() -> Array:
        with contextlib.suppress(InterruptedError):
            ntk_jax.tile(first, memory_limit=TILES_LIMIT, out=path, progress=False)(x)
        return jnp.zeros(())

    return fill


def fill(n: int, path: str, size: int) -> None:
    """What is killed; says when a tile is about to be computed."""
    ntk_jax.tile(announced(pooled()), memory_limit=TILES_LIMIT, out=path, progress=False)(
        some_images(n, size)
    )


def killed(n: int, size: int, path: Path) -> dict[str, Any]:
    """Two processes, each killed by SIGKILL as it begins another tile."""
    tiles_begun(f"pooled_images.fill({n}, {str(path)!r}, {size})", 0.0)
    before = written(path)
    tiles_begun(f"pooled_images.fill({n}, {str(path)!r}, {size})", 0.0)
    after = written(path)
    again = sum(after.get(name) != when for name, when in before.items())
    there = [len(before), len(after)]
    return {"case": "killed", "n": n, "tiles_there_after_each": there, "tiles_written_again": again}
