"""Analytic ReLU kernels against the matrix product they start from (NumPy's X Xᵀ), in one run.

Run: python -m benchmarks.analytic [--n 4096] [--peer] [--json out.json]. `--peer` builds an environment with
google/neural-tangents and its pinned old JAX (uv or pip, network needed) and times it on the same inputs. On a GPU the script
also reports entries per second; nothing else changes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax import mlp_kernels

DEPTHS = (1, 3, 10)
PEER = """
import json, sys, time, numpy as np, jax
from neural_tangents import stax
n, d, depths, repeats = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
x, out = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32), {}
for depth in depths:
    layers = [stax.Dense(1, 2**0.5, 0.1), stax.Relu()] * depth + [stax.Dense(1, 2**0.5, 0.1)]
    f = jax.jit(lambda x, k=stax.serial(*layers)[2]: tuple(k(x, None, ('nngp', 'ntk'))))
    jax.block_until_ready(f(x))
    times = []
    for _ in range(repeats):
        start = time.perf_counter(); jax.block_until_ready(f(x)); times.append(time.perf_counter() - start)
    out[depth] = times
print(json.dumps(out))
"""


def interleaved(cases: dict, repeats: int) -> dict[str, list[float]]:
    """Seconds of every case, in rounds: what disturbs one case in a round disturbs all."""
    for case in cases.values():
        jax.block_until_ready(case())
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(case())
            times[name].append(time.perf_counter() - start)
    return times


def temporaries(x1, x2, depth: int) -> int:
    """Bytes of XLA's temporaries, beyond arguments and outputs."""
    call = jax.jit(lambda a, b: mlp_kernels(a, b, depth=depth, W_std=2**0.5, b_std=0.1))
    return int(call.lower(x1, x2).compile().memory_analysis().temp_size_in_bytes)


def peer(n: int, d: int, repeats: int, folder: Path) -> dict[str, list[float]]:
    """Times of google/neural-tangents in an environment of its own, built on the first call."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pinned = ["jax[cpu]==0.4.28", "numpy<2", "scipy<1.13", "neural-tangents==0.6.5"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *pinned], check=True)
    command = [str(python), "-c", PEER, str(n), str(d), json.dumps(DEPTHS), str(repeats)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run(n: int = 4096, d: int = 784, repeats: int = 5, peer_folder: Path | None = None) -> dict:
    """Medians, ratios to X Xᵀ of the same round, symmetric against rectangular, and temporaries."""
    host1, host2 = (np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32) for seed in (0, 1))
    x1, x2 = jnp.asarray(host1), jnp.asarray(host2)
    options = {"W_std": 2**0.5, "b_std": 0.1}
    cases = {"numpy X X^T": lambda: host1 @ host1.T}
    for depth in DEPTHS:
        cases[f"symmetric depth {depth}"] = lambda depth=depth: mlp_kernels(x1, depth=depth, **options)
        cases[f"rectangular depth {depth}"] = lambda depth=depth: mlp_kernels(x1, x2, depth=depth, **options)
    times = interleaved(cases, repeats)
    base = np.array(times["numpy X X^T"])
    result = {"n": n, "d": d, "device": str(jax.devices()[0]), "jax": jax.__version__, "cases": {}}
    for name, seconds in times.items():
        ratio = float(np.median(np.array(seconds) / base))
        result["cases"][name] = {
            "median_s": statistics.median(seconds),
            "ratio": ratio,
            "entries_per_s": n * n / min(seconds),
        }
    for depth in DEPTHS:
        pair = (np.array(times[f"{kind} depth {depth}"]) for kind in ("symmetric", "rectangular"))
        result[f"symmetric / rectangular, depth {depth}"] = float(np.median(np.divide(*pair)))
        result[f"temporary / output bytes, depth {depth}"] = temporaries(x1, None, depth) / (8 * n * n)
    if peer_folder is not None:
        for depth, seconds in peer(n, d, repeats, peer_folder).items():
            ours = result["cases"][f"symmetric depth {depth}"]["median_s"]
            result[f"neural-tangents / ours, depth {depth}"] = statistics.median(seconds) / ours
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = Path("out/neural-tangents-env") if arguments.peer else None
    report = json.dumps(run(arguments.n, repeats=arguments.repeats, peer_folder=folder), indent=1)
    print(report)
    if arguments.json:
        arguments.json.write_text(report + "\n")
