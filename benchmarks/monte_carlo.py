"""Random networks of width 4,096 against the analytic kernels: 100 draws of every activation, NNGP
and NTK, in standard errors.

Every draw is a whole network with all its weights sampled: the NNGP is the product of its outputs
averaged over 256 of them, the NTK that of the first output's gradients. The activations share the
draws of the weights. Nothing here is a timing.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import environment_line, save_json, table
from ntk_jax import MLP, duals, empirical_nngp, empirical_ntk, from_linen, mlp_kernels
from ntk_jax.duals.catalogue import CATALOGUE

W_STD, B_STD, NUM_HIDDEN, NUM_OUTPUTS = 1.2, 0.3, 2, 256
COLUMNS = {
    "activation": "",
    "nngp_worst|NNGP off by [SE]": ".2f",
    "nngp_standard_error|one SE, relative": ".1e",
    "ntk_worst|NTK off by [SE]": ".2f",
    "ntk_standard_error|one SE, relative": ".1e",
}


def run(args: argparse.Namespace) -> None:
    """Sample, compare, print the table, save `monte_carlo.json` in `args.out`."""
    width, num_draws = (256, 8) if args.quick else (4096, 100)
    rows = compare(width, num_draws, list(CATALOGUE))
    print(table(rows, COLUMNS))
    print(environment_line())
    options = {
        "quick": args.quick,
        "width": width,
        "num_draws": num_draws,
        "num_hidden": NUM_HIDDEN,
    }
    path = save_json(
        args.out,
        "monte_carlo",
        rows,
        options | {"W_std": W_STD, "b_std": B_STD, "num_outputs": NUM_OUTPUTS},
    )
    print(f"\nSaved {path}.")


def inputs() -> np.ndarray:
    """Three examples: two near each other, one apart."""
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    x[1] = x[0] + 0.4 * x[1]
    return x


def compare(width: int, num_draws: int, names: list[str]) -> list[dict[str, Any]]:
    """One row per activation: the largest deviation of the mean over draws, in its standard errors,
    for both kernels.
    """
    x = jnp.asarray(inputs())
    samples: dict[str, list[Any]] = {name: [] for name in names}
    initialize = jax.jit(network("relu", width).init)
    for key in jax.random.split(jax.random.key(0), num_draws):
        variables = initialize(key, x)  # of any activation: they have the same parameters
        for name in names:
            samples[name].append(jax.device_get(kernels_of_draw(name, width, variables, x)))
    return [result_row(name, samples[name], x) for name in names]


def network(name: str, width: int) -> MLP:
    """The finite network."""
    phi = partial(CATALOGUE[name].function, **CATALOGUE[name].example)
    return MLP((width,) * NUM_HIDDEN, NUM_OUTPUTS, activation=phi, W_std=W_STD, b_std=B_STD)


@partial(jax.jit, static_argnums=(0, 1))
def kernels_of_draw(
    name: str, width: int, variables: Any, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both kernels of one network, (3, 3) each."""
    apply_fn, params = from_linen(network(name, width), variables)
    return empirical_nngp(apply_fn, params, x), empirical_ntk(
        lambda p, x: apply_fn(p, x)[:, :1], params, x
    )


def result_row(name: str, samples: list[Any], x: jax.Array) -> dict[str, Any]:
    """Deviations of both kernels from the analytic ones."""
    rule = duals.rule(name, **CATALOGUE[name].example)
    exact = mlp_kernels(x, depth=NUM_HIDDEN, activation=rule, W_std=W_STD, b_std=B_STD)
    row: dict[str, Any] = {"activation": name}
    for i, kernel in enumerate(("nngp", "ntk")):
        draws = np.stack([np.asarray(sample[i], float) for sample in samples])
        deviation = draws.mean(axis=0) - np.asarray(exact[i], float)
        scale = float(np.max(exact[i]))
        rounding = (
            2e-5 * scale
        )  # of float32 sums over units: the diagonal of a sign network is the same in every draw
        error = np.hypot(draws.std(axis=0, ddof=1) / len(draws) ** 0.5, rounding)
        row[f"{kernel}_worst"] = float(np.max(np.abs(deviation) / error))
        row[f"{kernel}_standard_error"] = float(np.max(error)) / scale
    return row
