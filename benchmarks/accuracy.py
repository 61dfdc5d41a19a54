"""Kernels of activations with kinks against 60 digits, in ulps of sqrt(K_xx K_yy).

One row with others at every distance from it and from its mirror image, in three bands of the gap
1 - |rho| of the inputs: near (below 2e-5), mid (below 1e-2) and wide. Inputs and weight variances
are exact in float32, so the reference starts at the same numbers in both precisions. What is
shown is the largest error of a band, over both choices of scales. Closed forms are measured in
`mlp_kernels`; series, of which each depth there compiles for a minute, in `mlp_kernels_by_layer`,
whose layers are the same functions.
"""

import argparse
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from mpmath import mpf, sqrt

from benchmarks.harness import environment_line, save_json, table
from cases.sixty_digits import DIGITS, by_depth
from ntk_jax import mlp_kernels, mlp_kernels_by_layer
from ntk_jax.duals.catalogue import CATALOGUE, dual_rule

SCALES = ((1.3125, 0.0), (1.25, 0.25))  # W_std, b_std, whose squares are exact
DEPTHS = (1, 3, 10, 30)
BANDS = {"near": 2e-5, "mid": 1e-2, "wide": 2.0}
# Gaps of the inputs, and what each second row is scaled by.
PAIRS = (
    (1e-12, 1.0), (1e-8, -1.75), (1e-5, 1.25), (1e-4, -1.0), (1e-3, 1.75), (8e-3, 1.0),
    (0.03, 1.25), (0.3, -1.0), (1.0, 1.75),
)  # fmt: skip
DTYPES = (np.float32, np.float64)
KERNELS = ("nngp", "ntk")
COLUMNS = {"activation": "", "kernel": "", "depth": "d"} | {
    f"{np.dtype(dtype).name}_{band}": ".2g" for dtype in DTYPES for band in BANDS
}

Row = dict[str, Any]


def run(args: argparse.Namespace) -> None:
    """Compare, print the table, save `accuracy.json` in `args.out`."""
    depths = DEPTHS[:2] if args.quick else DEPTHS
    names = ("relu", "step") if args.quick else kinked_names()
    x64 = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        rows = [row for name in names for row in compared(name, depths)]
    finally:
        jax.config.update("jax_enable_x64", x64)
    print(table(rows, COLUMNS))
    print(environment_line())
    options = {"quick": args.quick, "digits": DIGITS, "scales": SCALES, "pairs": PAIRS}
    print(save_json(args.out, "accuracy", rows, options))


def kinked_names() -> list[str]:
    """The activations that are followed by their gaps."""
    rules = ((name, dual_rule(name, **entry.example)) for name, entry in CATALOGUE.items())
    return sorted(name for name, rule in rules if rule.cusp)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """A row of 20 features, and those that it is paired with."""
    x, w = np.random.default_rng(0).standard_normal((2, 20))
    w -= x * (w @ x) / (x @ x)
    w *= np.sqrt((x @ x) / (w @ w))
    angles = [(2 * np.arcsin(np.sqrt(gap / 2)), scale) for gap, scale in PAIRS]
    y = np.stack([scale * (np.cos(angle) * x + np.sin(angle) * w) for angle, scale in angles])
    return x.astype(np.float32), y.astype(np.float32)


def compared(name: str, depths: Sequence[int]) -> list[Row]:
    """A row per depth and kernel."""
    x, y = inputs()
    rows: dict[Any, Row] = {
        (d, k): {"activation": name, "kernel": k, "depth": d} for d in depths for k in KERNELS
    }
    for W_std, b_std in SCALES:
        exact = [by_depth(name, x, row, max(depths), W_std, b_std) for row in y]
        for dtype in DTYPES:
            found = kernels(name, x.astype(dtype), y.astype(dtype), depths, W_std, b_std)
            for depth, (which, kernel) in itertools.product(depths, enumerate(KERNELS)):
                row, k = rows[depth, kernel], found[depth][which]
                for j, (gap, _) in enumerate(PAIRS):
                    band = next(band for band, end in BANDS.items() if gap < end)
                    key = f"{np.dtype(dtype).name}_{band}"
                    row[key] = max(row.get(key, 0.0), ulps(k[j], exact[j][depth][which]))
    return list(rows.values())


def kernels(
    name: str, x: np.ndarray, y: np.ndarray, depths: Sequence[int], W_std: float, b_std: float
) -> dict[int, Any]:
    """Both kernels of the library by depth, of x with each row of y."""
    rule = dual_rule(name, **CATALOGUE[name].example)
    options: dict[str, Any] = {"activation": rule, "W_std": W_std, "b_std": b_std}
    with warnings.catch_warnings():  # of bounds that are larger than what is measured
        warnings.simplefilter("ignore")
        if rule.exact:
            found = {d: mlp_kernels(x[None], y, depth=d, **options) for d in depths}
            return {d: [np.asarray(k)[0] for k in both] for d, both in found.items()}
        layers = mlp_kernels_by_layer(x[None], y, depth=max(depths), **options)
    return {d: [np.asarray(k)[d, 0] for k in layers] for d in depths}


def ulps(ours: Any, exact: Sequence[Any]) -> float:
    """How far an entry is from the exact one, given the moments xx, xy, yy of this."""
    xx, xy, yy = exact
    eps = float(np.finfo(ours.dtype).eps)
    return float(abs(mpf(float(ours)) - xy) / sqrt(xx * yy) / eps)
