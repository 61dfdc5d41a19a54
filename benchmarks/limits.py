"""Infinite-width kernels of many Flax architectures against wide random networks: deviations, trace
sizes, times.

Networks have Gaussian weights and one output; the limit is that of the very same module. A
deviation is the largest over the entries of the kernel, in standard errors of the Monte-Carlo mean:
with nine entries and two kernels for each architecture, a few beyond 3 are expected by chance, and
networks of finite width differ from their limit by terms of order 1/width.
"""

import argparse
import time
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.harness import environment_line, measure, save_json, table
from cases.architectures import CASES, LimitCase, by_name, init_and_apply, lenient
from cases.wide_networks import estimate
from ntk_jax import MLP, infinite_width, mlp_kernels
from ntk_jax.jaxprs import all_equations

WIDTHS = {"dense": 512, "image": 128, "sequence": 256, "graph": 256}
OTHERS = {
    "flax_mnist": 64,
    "wide_resnet": 64,
    "group_norm": 512,
}  # group_norm: 128 channels in each group
QUICK = ("mlp_relu", "cnn_1d")
NUM_TIMED = 32
COLUMNS = {
    "case": "",
    "width": "d",
    "networks": "d",
    "nngp_deviation|NNGP [s.e.]": ".1f",
    "ntk_deviation|NTK [s.e.]": ".1f",
    "nngp_relative|NNGP [rel.]": ".4f",
    "ntk_relative|NTK [rel.]": ".4f",
    "equations": "d",
    "interpretation_s|trace [s]": ".2f",
    "compile_s|compile [s]": ".2f",
    "entry_us|per entry [µs]": ".3g",
}

BESIDE = {
    "activation": "",
    "n": "d",
    "median_s|infinite_width [s]": ".3g",
    "mlp_kernels_s|mlp_kernels [s]": ".3g",
    "ratio": ".2f",
}

Row = dict[str, Any]


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, save `limits.json` in `args.out`."""
    cases = [by_name(name) for name in QUICK] if args.quick else CASES
    rows = []
    for case in cases:
        width, networks = (48, 24) if args.quick else (width_of(case), 192)
        rows.append(
            {
                "case": case.name,
                "tags": case.tags,
                **compared(case, width, networks),
                **timed(case, width),
            }
        )
        print(table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
    print(table(rows, COLUMNS))
    n = 256 if args.quick else 2048
    beside = [
        over_mlp_kernels(n, activation)
        for activation in (("relu",) if args.quick else ("relu", "erf", "tanh"))
    ]
    print(table(beside, BESIDE))
    print(environment_line())
    options = {"quick": args.quick, "examples": 3, "timed_examples": NUM_TIMED}
    path = save_json(args.out, "limits", rows, options, over_mlp_kernels=beside)
    print(f"\nSaved {path}.")


def width_of(case: LimitCase) -> int:
    """Wide enough for 1/width to be small beside the standard error, narrow enough for minutes."""
    return OTHERS.get(case.name, WIDTHS[case.tags.split()[0]])


def compared(case: LimitCase, width: int, networks: int) -> Row:
    """Deviations of the limit from the mean over random networks."""
    x = case.inputs()
    found = estimate(
        lambda width, outputs: init_and_apply(case.build(width, outputs), x), x, width, networks
    )
    limit = lenient(infinite_width(case.build(width, 1)))(x)
    row: Row = {"width": width, "networks": networks}
    for name, exact in limit._asdict().items():
        mean, error = (
            np.asarray(getattr(found, field), float) for field in (name, f"{name}_error")
        )
        gap = np.abs(np.asarray(exact, float) - mean)
        row[f"{name}_deviation"] = float(np.max(gap / error))
        row[f"{name}_relative"] = float(np.max(gap) / np.max(np.abs(mean)))
    return row


def timed(case: LimitCase, width: int) -> Row:
    """Size of the traced kernel of a pair of examples, seconds to get it and to compile it, time
    per entry of a block.
    """
    x = case.inputs(NUM_TIMED)
    kernel = lenient(infinite_width(case.build(width, 1)))
    start = time.perf_counter()
    traced = jax.make_jaxpr(kernel)(x[:2])
    interpretation = time.perf_counter() - start
    timing = measure({case.name: lambda: kernel(x)}, repeats=5, warmup=0)[case.name]
    seconds = {"interpretation_s": interpretation, **timing.record()}
    return {
        "equations": equations(traced.jaxpr),
        **seconds,
        "entry_us": 1e6 * timing.median / NUM_TIMED**2,
    }


def over_mlp_kernels(n: int, activation: str) -> Row:
    """An `MLP` of three hidden layers read as a Flax model, and the same kernels from the formula,
    calls interleaved.
    """
    x = np.random.default_rng(0).standard_normal((n, 784), dtype=np.float32)
    kernel = infinite_width(MLP((64,) * 3, 1, activation, 2**0.5, 0.1))
    formula = partial(mlp_kernels, x, depth=3, activation=activation, W_std=2**0.5, b_std=0.1)
    timings = measure({"read": lambda: kernel(x), "formula": formula}, repeats=9)
    ratio = timings["read"].ratio(timings["formula"])
    seconds = {**timings["read"].record(), "mlp_kernels_s": timings["formula"].median}
    return {"activation": activation, "n": n, "ratio": ratio, **seconds}


def equations(jaxpr: Any) -> int:
    """Equations of a jaxpr and of all jaxprs inside it."""
    return sum(1 for _ in all_equations(jaxpr))
