"""Proof on this machine's GPU or TPU: parity with stored float64 values, then speed, in six minutes.

Needs JAX for the device, flax, optax and jaxtyping; no network. On a CPU it runs at small sizes.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.harness import environment_line, save_json, table
from benchmarks.on_device import parity, speed
from ntk_jax.compat import double_precision

Row = dict[str, Any]
SECONDS = 300  # after which no further case starts
PARITY = {
    "case": "",
    "dtype": "",
    "difference": ".1e",
    "tolerance": ".0e",
    "worst": "",
    "symmetric": "",
    "below_zero_in_n_eps|below 0 [n eps]": ".2g",
    "passed": "",
    "error": "",
}
SPEED = {
    "case": "",
    "seconds|time [s]": ".4g",
    "share_of_limit|of the limit": ".0%",
    "tflops|TFLOP/s": ".1f",
    "gb_per_s|GB/s": ".0f",
    "first_call_s|first call [s]": ".2f",
    "peak_gib_so_far|peak so far [GiB]": ".1f",
    "published": "",
    "error": "",
}


def run(args: argparse.Namespace) -> None:
    """Compare, measure, print the tables, save `gpu.json` in `args.out`."""
    start, device = time.perf_counter(), jax.devices()[0]
    small = args.quick or device.platform == "cpu"
    print(environment_line(), flush=True)
    compared = list(_parity(256 if small else 2048))
    print(table(compared, PARITY), flush=True)
    measured = list(_speed(speed.SMALL if small else speed.FULL, start))
    print(table(measured, SPEED))
    failed = [row["case"] for row in compared if not row["passed"]]
    options = {"quick": args.quick, "device": device.device_kind, "failed": failed}
    print(save_json(args.out, "gpu", measured, options, parity=compared))
    print(f"failed: {', '.join(failed)}" if failed else "every parity check passed")


def _parity(n: int) -> Iterator[Row]:
    yield from parity.compare("float32")
    yield from parity.symmetry_and_definiteness(n)
    if jax.devices()[0].platform != "tpu":  # emulated there, slowly
        with double_precision():
            yield from parity.compare("float64")


def _speed(sizes: speed.Sizes, start: float) -> Iterator[Row]:
    """Part after part, until the time is over; what fails is a row, and the next part goes on."""
    can, rows = speed.limits(sizes)
    yield from rows
    parts = (
        lambda: speed.analytic(sizes, can),
        lambda: speed.empirical(sizes, can),
        lambda: speed.peers_marks(sizes),
        lambda: speed.limiting_networks(sizes),
        lambda: speed.dynamics(sizes),
        lambda: speed.many_rows(sizes),
    )
    for part in parts:
        try:
            for row in part():
                print(table([row], SPEED).splitlines()[-1], flush=True)
                yield row
                if time.perf_counter() - start > SECONDS:
                    yield {"case": "the rest", "error": f"not run: {SECONDS} s were over"}
                    return
        except (RuntimeError, ValueError) as error:  # out of memory, for instance
            yield {"case": "a part", "error": f"{type(error).__name__}: {error}"[:300]}
