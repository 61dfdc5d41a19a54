"""Finite-width kernels: rate against a matrix product of the host, methods against each other,
memory.

Operations counted are those of the layerwise form with each unordered pair once: forward pass, one
backward pass per output, Gram matrices of layer inputs and of cotangents (folded over outputs;
those of the last hidden layer, a mask times the readout, are one output's). No GPU is needed; on
one, the same
script times `jax.numpy` matrix products as well, because NumPy's run on the host.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import measure, save_json, table
from benchmarks.memory import peak_memory
from ntk_jax import MLP, empirical_ntk, explain_ntk, from_linen

NUM_FEATURES = 784
METHODS = ("auto", "layerwise", "jacobian", "vector_products")
# Slower methods are left out where they would take longer than the rest of the run together.
MAX_OPERATIONS = 2e11

Row = dict[str, Any]


class Problem(NamedTuple):
    """An MLP NUM_FEATURES - width x depth - outputs on n examples, or with `image` a small CNN on
    images.
    """

    n: int
    width: int
    depth: int
    outputs: int
    image: int = 0
    columns: int = 0  # examples of x2; 0 for x2=None

    @property
    def operations(self) -> float:
        """Of an MLP's kernel; the heading says which."""
        sizes = (NUM_FEATURES, *(self.width,) * self.depth, self.outputs)
        weights = [a * b for a, b in itertools.pairwise(sizes)]
        forward = 2.0 * self.n * sum(weights)
        backward = 2.0 * self.n * self.outputs * sum(weights[1:-1])
        grams = self.n**2 * (sum(sizes[:-1]) + self.outputs * sum(sizes[1:-2]) + sizes[-2])
        return forward + backward + grams


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, two of them with stride 2, global mean, readout."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x):
        """Images (n, h, w, 3) -> (n, outputs)."""
        for stride in (1, 2, 2):
            x = nn.relu(nn.Conv(self.width, (3, 3), strides=stride)(x))
        return nn.Dense(self.outputs)(x.mean((1, 2)))


def make_case(
    n: int,
    width: int,
    depth: int,
    outputs: int,
    image: int = 0,
    columns: int = 0,
    method: str = "auto",
    **options: Any,
) -> Any:
    """The function without arguments that computes one kernel."""
    apply_fn, params, x = network(Problem(n, width, depth, outputs, image))
    x2 = (
        jnp.asarray(np.random.default_rng(1).standard_normal((columns, *x.shape[1:]), np.float32))
        if columns
        else None
    )
    return lambda: empirical_ntk(apply_fn, params, x, x2, method=method, **options)


def network(problem: Problem) -> tuple[Any, Any, jax.Array]:
    """The network, its parameters, and examples."""
    p = problem
    shape = (p.image, p.image, 3) if p.image else (NUM_FEATURES,)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((p.n, *shape), dtype=np.float32))
    model = (
        SmallCNN(p.width, p.outputs)
        if p.image
        else MLP((p.width,) * p.depth, p.outputs, W_std=2**0.5, b_std=0.1)
    )
    return *from_linen(model, model.init(jax.random.key(0), x[:1])), x


def host_product(size: int) -> Callable[[], Any]:
    """A float32 product of NumPy's BLAS."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    return lambda: a @ b


def device_product(size: int) -> Callable[[], Any]:
    """The same product on the device, at full precision."""
    a, b = jnp.ones((size, size)), jnp.ones((size, size))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    return lambda: product(a, b)


def rates(problems: tuple[Problem, ...], size: int, repeats: int) -> list[Row]:
    """The rate of the layerwise kernel, as a fraction of a large product timed in the same
    rounds.
    """
    rows = []
    product = host_product if jax.default_backend() == "cpu" else device_product
    for problem in problems:
        case = make_case(*problem)
        timings = measure({"product": product(size), "kernel": case}, repeats=repeats)
        kernel, reference = timings["kernel"], timings["product"]
        ideal = problem.operations / (2.0 * size**3)
        row = {**problem._asdict(), "gflop": problem.operations / 1e9, **kernel.record()}
        row["gflop_per_s"] = problem.operations / kernel.median / 1e9
        row["product_gflop_per_s"] = 2.0 * size**3 / reference.median / 1e9
        row["of_product"] = ideal / kernel.ratio(reference)
        rows.append(row)
    return rows


def methods(problems: tuple[Problem, ...], repeats: int) -> list[Row]:
    """All methods on a grid: the best, and what "auto" costs against it."""
    rows = []
    for problem in problems:
        apply_fn, params, x = network(problem)
        operations = explain_ntk(apply_fn, params, x).operations
        names = [m for m in METHODS if m in ("auto", "layerwise") or operations[m] < MAX_OPERATIONS]
        timings = measure({m: make_case(*problem, method=m) for m in names}, repeats=repeats)
        best = min((m for m in names if m != "auto"), key=lambda m: timings[m].median)
        row = {
            **problem._asdict(),
            "best": best,
            "auto_over_best": timings["auto"].ratio(timings[best]),
        }
        row |= {f"{m}_s": timings[m].median for m in names} | {
            f"{m}_compile_s": timings[m].compile for m in names
        }
        rows.append(row)
    return rows


def memory(problems: tuple[Problem, ...], limit: int | None) -> list[Row]:
    """Peak memory and time of the first call in a fresh process, against the budget given (None:
    the default).
    """
    rows = []
    for problem in problems:
        used = peak_memory("benchmarks.finite:make_case", **problem._asdict(), memory_limit=limit)
        result = 4 * problem.n * (problem.columns or problem.n)
        row = {
            **problem._asdict(),
            "result_mib": result / 2**20,
            "limit_mib": None if limit is None else limit / 2**20,
        }
        row |= {"used_mib": used.used / 2**20, "beside_result_mib": (used.used - result) / 2**20}
        rows.append(row | {"process_mib": used.peak / 2**20, "first_call_s": used.seconds})
    return rows


GRID = tuple(Problem(64, width, 2, outputs) for width in (32, 256) for outputs in (1, 10))
GRID += (Problem(8, 256, 2, 1), Problem(16, 8, 0, 10, image=16), Problem(32, 16, 0, 1, image=8))
COLUMNS = {"n": "d", "width": "d", "depth": "d", "outputs": "d", "image": "d"}
MEMORY = {
    "limit_mib|budget [MiB]": ".0f",
    "result_mib|result [MiB]": ".0f",
    "beside_result_mib|beside it [MiB]": ".0f",
    "process_mib|process [MiB]": ".0f",
    "first_call_s|first call [s]": ".3g",
}


def run(args: argparse.Namespace) -> None:
    """Print the tables and write `finite.json`."""
    quick = args.quick
    large: tuple[Problem, ...] = (
        Problem(2048, 2048, 3, 10),
        Problem(2048, 2048, 3, 1),
        Problem(1024, 512, 3, 10),
    )
    if quick:
        large = (Problem(512, 512, 3, 10), Problem(512, 512, 3, 1))
    found = rates(large, 1024 if quick else 2048, 3 if quick else 5)
    print(
        table(
            found,
            {**COLUMNS, "gflop": ".0f", "median_s": ".3g", "compile_s": ".3g", "of_product": ".0%"},
        )
    )
    grid = methods(GRID[:2] if quick else GRID, 3 if quick else 15)
    seconds = {f"{m}_s": ".3g" for m in METHODS}
    print(table(grid, {**COLUMNS, **seconds, "best": "", "auto_over_best": ".2f"}))
    cnn = () if quick else (Problem(256, 32, 0, 10, image=32),)
    images = methods(cnn, 3)
    if images:
        print(table(images, {**COLUMNS, "layerwise_s": ".3g", "layerwise_compile_s": ".3g"}))
    peaks = memory(
        (Problem(1024, 128, 3, 10) if quick else Problem(6000, 256, 3, 10),),
        2**26 if quick else 2**28,
    )
    if not quick:
        peaks += memory((Problem(20000, 1024, 3, 10),), 2**30)
        peaks += memory((Problem(100, 1024, 3, 10, columns=60000),), None)
    print(table(peaks, {**COLUMNS, "columns": "d", **MEMORY}))
    options = {"quick": quick, "num_features": NUM_FEATURES}
    save_json(args.out, "finite", [*found, *grid, *images, *peaks], options)
