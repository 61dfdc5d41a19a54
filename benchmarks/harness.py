"""What every benchmark shares: interleaved timing, the environment, tables and JSON files.

A benchmark is a module of this folder with a docstring, whose first line `python -m benchmarks`
lists, and a function `run(args)`, where `args.quick` is a bool (finish within seconds) and
`args.out` is the folder for its files. It needs:

    timings = measure({"ours": f, "reference": g})       # f(), g() -> arrays; interleaved: f g f g
    ... timings["ours"].median, timings["ours"].ratio(timings["reference"])
    memory = peak_memory("benchmarks.NAME:make_case", n=64)   # benchmarks/memory.py; in a fresh
    process print(table(rows, {"n": "d", "median_s": ".3g"}))
    save_json(args.out, "NAME", rows, options)
"""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1
# Processes that wanted a core in the minute before the run: if well above 0, times are those of a
# busy machine.
LOAD_AT_START = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
MISSING = "–"


class Timing(NamedTuple):
    """Seconds of one case: its first call, which compiles, and one entry per round after that."""

    first_call: float
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds: what tables show."""
        return median(self.rounds)

    @property
    def compile(self) -> float:
        """What the first call took beyond the median: tracing, compilation, allocation."""
        return max(self.first_call - self.median, 0.0)

    def ratio(self, reference: "Timing") -> float:
        """The median over rounds of self / reference: a load that lasts several calls hits both and
        cancels.
        """
        return median(a / b for a, b in zip(self.rounds, reference.rounds, strict=True))

    def record(self) -> dict[str, Any]:
        """The columns of a result row that describe time."""
        return {
            "median_s": self.median,
            "min_s": min(self.rounds),
            "max_s": max(self.rounds),
            "first_call_s": self.first_call,
            "compile_s": self.compile,
            "rounds_s": list(self.rounds),
        }


def measure(
    cases: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 7,
    warmup: int = 1,
    budget: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the cases in turn, A B B A A B ..., each call until its result is ready.

    To and fro: always in one order, the first case would pay for the caches that the last one
    emptied.

    Args:
        cases: functions without arguments, which return a pytree of arrays (or anything, if they
            block themselves).
        repeats: rounds that are measured.
        warmup: calls of each case between the first, which is reported separately, and the measured
            rounds.
        budget: seconds after which no further round starts, once there are three (or `repeats`, if
            fewer).
        clock: seconds, as a function.

    Returns:
        One `Timing` per case, all with the same number of rounds.
    """
    # a first call compiles, whatever ran before; what two cases share is the first one's to compile
    jax.clear_caches()
    first_calls = {name: _seconds(fn, clock) for name, fn in cases.items()}
    for _ in range(warmup):
        for fn in cases.values():
            _seconds(fn, clock)
    rounds: dict[str, list[float]] = {name: [] for name in cases}
    start = clock()
    for done in range(repeats):
        if done >= 3 and clock() - start > budget:
            break
        for name in list(cases)[:: -1 if done % 2 else 1]:
            rounds[name].append(_seconds(cases[name], clock))
    return {name: Timing(first_calls[name], tuple(rounds[name])) for name in cases}


def _seconds(fn: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    jax.block_until_ready(fn())
    return clock() - start


def environment() -> dict[str, Any]:
    """Versions, processor, load and date; nothing that names the machine or its folders."""
    packages = ("ntk-jax", "jax", "jaxlib", "flax", "numpy")
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_at_start": LOAD_AT_START,
        "backend": device.platform,
        "device": device.device_kind,
        "x64": jax.numpy.result_type(float).itemsize == 8,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return "not installed"


def environment_line() -> str:
    """What a reader of a table or figure should know of the environment."""
    e = environment()
    text = f"{e['cpu']}, {e['cores']} cores, {e['device']} backend; "
    text += f"JAX {e['jax']}, NumPy {e['numpy']}; {e['date'][:10]}"
    return text + f"; load before the run {e['load_at_start']}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def save_json(
    out: Path,
    name: str,
    results: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    **extra: Any,
) -> Path:
    """Write `out/name.json`: schema, benchmark, environment, options, results (one object per row),
    extra keys.
    """
    document = {
        "schema": SCHEMA,
        "benchmark": name,
        "environment": environment(),
        "options": dict(options),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    fields = (
        f" {json.dumps(key)}: {_one_row_a_line(value)}"
        for key, value in {**document, **extra, "results": results}.items()
    )
    path.write_text("{\n" + ",\n".join(fields) + "\n}\n")
    return path


def _one_row_a_line(value: Any) -> str:
    """JSON with six significant digits; a list gets a line per item, so that files stay short and
    can be compared.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        return (
            "[\n"
            + ",\n".join("  " + json.dumps(_rounded(row), allow_nan=False) for row in value)
            + "\n ]"
        )
    return json.dumps(_rounded(value), allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Aligned text: one line per row, one column per key with its format specification; absent or
    None is a dash.

    A key may carry a heading after a bar: `{"median_s|time [s]": ".3g"}`.
    """
    keys = [column.partition("|")[0] for column in columns]
    heads = [column.partition("|")[2] or column for column in columns]
    cells = [
        [_cell(row.get(key), spec) for key, spec in zip(keys, columns.values(), strict=True)]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [heads, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _cell(value: Any, spec: str) -> str:
    return MISSING if value is None else format(value, spec)
