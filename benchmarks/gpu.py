"""Proof on this machine's GPU or TPU in six minutes: parity with stored float64 values, speed.

Needs JAX for the device, flax, optax, jaxtyping and lazy-loader; no network. On a CPU it runs at
small sizes.
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
# Seconds after the start at which no further case of a part starts: six minutes in all.
SPEED_UNTIL, DOUBLE_UNTIL = 240, 330
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
    compared = [*parity.compare("float32")]
    compared += parity.symmetry_and_definiteness(256 if small else 2048)
    print(table(compared, PARITY), flush=True)
    sizes = speed.SMALL if small else speed.FULL
    measured = list(_until(start + SPEED_UNTIL, _speed(sizes)))
    print(table(measured, SPEED), flush=True)
    if device.platform != "tpu":  # emulated there, slowly
        with double_precision():
            double = list(_until(start + DOUBLE_UNTIL, parity.compare("float64")))
        print(table(double, PARITY), flush=True)
        compared += double
    failed = [row["case"] for row in compared if row.get("passed") is False]
    options = {"quick": args.quick, "device": device.device_kind, "failed": failed}
    print(save_json(args.out, "gpu", measured, options, parity=compared))
    print(f"failed: {', '.join(failed)}" if failed else "every parity check passed")


def _until(end: float, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows until the time is over, and a row that says so."""
    for row in rows:
        yield row
        if time.perf_counter() > end:
            yield {"case": "the rest", "error": "not run: the time was over"}
            return


def _speed(sizes: speed.Sizes) -> Iterator[Row]:
    """Part after part; what fails is a row, and the next part goes on."""
    can, rows = speed.limits(sizes)
    yield from rows
    parts = (
        lambda: speed.analytic(sizes, can),
        lambda: speed.empirical(sizes, can),
        lambda: speed.peers_mlps(sizes),
        lambda: speed.limiting_networks(sizes),
        lambda: speed.dynamics(sizes),
        lambda: speed.many_rows(sizes),
        lambda: speed.peers_resnet(sizes),
    )
    for part in parts:
        try:
            for row in part():
                print(table([row], SPEED).splitlines()[-1], flush=True)
                yield row
        except (RuntimeError, ValueError) as error:  # out of memory, for instance
            yield {"case": "a part", "error": f"{type(error).__name__}: {error}"[:300]}
