"""Time and memory of an MLP's kernels against n, width and depth: finite and infinite width, and
naive loops.

References, timed in the same rounds: a large float32 matrix product in NumPy, the rate the hardware
allows, and the loop of the tutorials: the gradient of one example at a time, then one inner product
per pair of examples. Only the products of a kernel count as its work, half of J Jᵀ (finite width)
or X Xᵀ (infinite width): a method that avoids some of them can exceed 100 % of the matrix product.
"""

import argparse
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.figures import scaling_figure
from benchmarks.harness import Timing, environment_line, measure, save_json, table
from benchmarks.memory import peak_memory
from ntk_jax import MLP, empirical_ntk, from_linen, mlp_kernels
from ntk_jax.finite.empirical import METHODS

NUM_FEATURES = 100
W_STD, B_STD = 2**0.5, 0.1
MATMUL, ANALYTIC, NAIVE, NAIVE_ANALYTIC = (
    "matrix product",
    "analytic",
    "naive gradient loop",
    "naive analytic loop",
)
EMPIRICAL = tuple(method for method in METHODS if method != "auto")
LIBRARY = (*EMPIRICAL, ANALYTIC)
LABELS = {method: f"empirical_ntk: {method}" for method in EMPIRICAL}
LABELS |= {
    ANALYTIC: "mlp_kernels",
    NAIVE: "finite width: naive loop",
    NAIVE_ANALYTIC: "infinite width: naive loop",
}

Case = Callable[[], Any]
Row = dict[str, Any]


class Problem(NamedTuple):
    """The kernel of n examples under an MLP of `depth` hidden layers of `width` units, with one
    output.
    """

    n: int
    width: int
    depth: int

    @property
    def num_params(self) -> int:
        """Weights and biases."""
        sizes = (NUM_FEATURES, *(self.width,) * self.depth, 1)
        return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


class Plan(NamedTuple):
    """What one run measures: lines through `base` along each size, and limits."""

    base: Problem
    sweeps: dict[str, tuple[int, ...]]
    matmul_size: int
    naive_max_n: int  # above, naive loops are extrapolated
    naive_max_bytes: (
        int  # of gradients that the naive loop may hold; it runs at a smaller n instead
    )
    slow: float  # seconds per call; a case of the library that took more is not run at larger sizes
    repeats: int
    budget: float  # seconds of rounds per problem
    memory: tuple[tuple[str, int], ...]  # case, n


FULL = Plan(
    base=Problem(n=64, width=256, depth=2),
    sweeps={
        "n": (16, 32, 64, 128, 256, 512, 1024),
        "width": (64, 128, 256, 512, 1024),
        "depth": (1, 2, 4, 8, 16),
    },
    matmul_size=2048,
    naive_max_n=64,
    naive_max_bytes=2**27,
    slow=2.0,
    repeats=5,
    budget=2.5,
    memory=tuple(itertools.product(LIBRARY, (64, 512))),
)
QUICK = Plan(
    base=Problem(n=8, width=32, depth=1),
    sweeps={"n": (8, 16), "width": (32, 64), "depth": (1, 2)},
    matmul_size=512,
    naive_max_n=8,
    naive_max_bytes=2**27,
    slow=0.5,
    repeats=3,
    budget=0.5,
    memory=((EMPIRICAL[0], 8),),
)


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables, save `kernels.json` and `kernels.png` in `args.out`."""
    plan = QUICK if args.quick else FULL
    rows = measure_all(plan)
    memory = [memory_row(plan.base._replace(n=n), case) for case, n in plan.memory]
    print(report(plan, rows, memory))
    options = {
        "quick": args.quick,
        "num_features": NUM_FEATURES,
        "W_std": W_STD,
        "b_std": B_STD,
        **plan._asdict(),
    }
    path = save_json(
        args.out, "kernels", rows, options | {"base": plan.base._asdict()}, memory=memory
    )
    figure = args.out / "kernels.png"
    scaling_figure(
        rows, plan.base._asdict(), plan.sweeps, figure, labels=LABELS, note=environment_line()
    )
    print(f"\nSaved {path} and {figure}.")


def inputs(problem: Problem) -> np.ndarray:
    """Standard normal float32 examples, the same in every run."""
    return np.random.default_rng(0).standard_normal((problem.n, NUM_FEATURES)).astype(np.float32)


@functools.lru_cache(maxsize=2)
def network(problem: Problem) -> tuple[Callable[..., jax.Array], Any]:
    """`(apply_fn, params)`: all parameters of the "ntk" parameterization are standard normal, so
    NumPy draws them.
    """
    rng = np.random.default_rng(1)
    model = MLP((problem.width,) * problem.depth, W_std=W_STD, b_std=B_STD)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs(problem))
    return from_linen(
        model,
        jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), shapes),
    )


def library_case(problem: Problem, case: str) -> Case:
    """One call of the library: `case` is a method of `empirical_ntk`, or "analytic"."""
    x = jnp.asarray(inputs(problem))
    if case == ANALYTIC:
        return lambda: mlp_kernels(x, depth=problem.depth, W_std=W_STD, b_std=B_STD)
    apply_fn, params = network(problem)
    return lambda: empirical_ntk(apply_fn, params, x, method=case)


def memory_case(case: str, **sizes: int) -> Case:
    """What the memory probe calls, in its own process."""
    return library_case(Problem(**sizes), case)


def naive_gradients(problem: Problem) -> Callable[[], list[jax.Array]]:
    """The gradient of one example after the other, each flattened: a jitted function called n
    times.
    """
    apply_fn, params = network(problem)
    gradient = jax.jit(
        lambda p, x_one: ravel_pytree(jax.grad(lambda p: apply_fn(p, x_one[None])[0, 0])(p))[0]
    )
    return lambda: [gradient(params, x_one) for x_one in inputs(problem)]


def naive_pairs(gradients: list[jax.Array]) -> Callable[[], np.ndarray]:
    """The double loop over examples: n² inner products, one call each."""
    dot = jax.jit(jnp.vdot)
    return lambda: np.array([[float(dot(g_i, g_j)) for g_j in gradients] for g_i in gradients])


def naive_analytic(problem: Problem) -> Callable[[], np.ndarray]:
    """The ReLU recursion with arccos in scalar arithmetic, for one pair of examples at a time."""
    x = inputs(problem).astype(np.float64)
    return lambda: np.array([[_pair_ntk(x_i, x_j, problem.depth) for x_j in x] for x_i in x])


def _pair_ntk(x_i: np.ndarray, x_j: np.ndarray, depth: int) -> float:
    W2, b2 = W_STD**2, B_STD**2
    q11, q12, q22 = (
        b2 + W2 * float(a @ b) / NUM_FEATURES for a, b in ((x_i, x_i), (x_i, x_j), (x_j, x_j))
    )
    theta = q12
    for _ in range(depth):
        norm = math.sqrt(q11 * q22)
        angle = math.acos(min(max(q12 / norm, -1.0), 1.0))
        k_dot = (math.pi - angle) / (2 * math.pi)
        q12 = b2 + W2 * (norm * math.sin(angle) / (2 * math.pi) + q12 * k_dot)
        theta = q12 + W2 * k_dot * theta
        q11, q22 = b2 + W2 * q11 / 2, b2 + W2 * q22 / 2
    return theta


def matrix_product(size: int) -> Case:
    """A product of two different square float32 matrices: X Xᵀ would let NumPy compute half of
    it.
    """
    left, right = np.random.default_rng(0).standard_normal((2, size, size)).astype(np.float32)
    return lambda: left @ right


def measure_all(plan: Plan) -> list[Row]:
    """The rows of all problems on the lines of the plan, each measured once, small to large."""
    rows: list[Row] = []
    for problem in problems(plan):
        done = measure_problem(problem, plan, skipped=slow_cases(problem, rows, plan.slow))
        times = ", ".join(f"{row['case']} {1e3 * row['median_s']:.3g} ms" for row in done)
        print(
            f"  n = {problem.n}, width {problem.width}, depth {problem.depth}: {times}", flush=True
        )
        rows += done
    return rows


def problems(plan: Plan) -> list[Problem]:
    """The base problem and every replacement of one of its sizes, by the size of the Jacobian."""
    found = {
        plan.base._replace(**{size: v}) for size, values in plan.sweeps.items() for v in values
    }
    return sorted(found, key=lambda p: (p.n * p.num_params, p))


def slow_cases(problem: Problem, rows: Iterable[Row], slow: float) -> set[str]:
    """Cases of the library that took more than `slow` seconds on a problem that is no larger in any
    size.
    """
    smaller = [
        row for row in rows if all(row[size] <= value for size, value in problem._asdict().items())
    ]
    return {row["case"] for row in smaller if row["median_s"] > slow and row["case"] in LIBRARY}


def measure_problem(problem: Problem, plan: Plan, skipped: set[str]) -> list[Row]:
    """One row per case of this problem, the naive loops included: measured, or extrapolated and
    marked.
    """
    n_naive, n_analytic = naive_sizes(problem, plan)
    gradients = naive_gradients(problem._replace(n=n_naive))
    cases: dict[str, Case] = {MATMUL: matrix_product(plan.matmul_size)}
    cases |= {case: library_case(problem, case) for case in LIBRARY if case not in skipped}
    cases |= {"gradients": gradients, "pairs": naive_pairs(gradients())}
    cases |= {NAIVE_ANALYTIC: naive_analytic(problem._replace(n=n_analytic))}
    timings = measure(cases, repeats=plan.repeats, budget=plan.budget)
    growth = problem.n / n_naive
    timings[NAIVE] = combine((growth, timings.pop("gradients")), (growth**2, timings.pop("pairs")))
    timings[NAIVE_ANALYTIC] = combine(((problem.n / n_analytic) ** 2, timings.pop(NAIVE_ANALYTIC)))
    return [result_row(problem, case, timings, plan) for case in timings if case != MATMUL]


def naive_sizes(problem: Problem, plan: Plan) -> tuple[int, int]:
    """The n at which the naive loops are run: over gradients, halved until they fit in memory, and
    over pairs.
    """
    n = min(problem.n, plan.naive_max_n)
    n_gradients = n
    while n_gradients > 1 and 4 * n_gradients * problem.num_params > plan.naive_max_bytes:
        n_gradients //= 2
    return n_gradients, n


def combine(*parts: tuple[float, Timing]) -> Timing:
    """The weighted sum of timings, round by round."""
    rounds = zip(*(timing.rounds for _, timing in parts), strict=True)
    weights = [weight for weight, _ in parts]
    total = tuple(
        sum(w * seconds for w, seconds in zip(weights, one, strict=True)) for one in rounds
    )
    return Timing(sum(weight * timing.first_call for weight, timing in parts), total)


def result_row(problem: Problem, case: str, timings: dict[str, Timing], plan: Plan) -> Row:
    """Sizes, times, ratio to the naive loop and rate of one case."""
    timing, analytic = timings[case], case in (ANALYTIC, NAIVE_ANALYTIC)
    naive, n_naive = (
        timings[NAIVE_ANALYTIC if analytic else NAIVE],
        naive_sizes(problem, plan)[analytic],
    )
    row: Row = {
        "case": case,
        **problem._asdict(),
        "num_params": problem.num_params,
        **timing.record(),
    }
    row |= {
        "naive_s": naive.median,
        "naive_measured_n": n_naive,
        "naive_over_case": naive.ratio(timing),
    }
    if naive is timing and n_naive < problem.n:
        row |= {"extrapolated_from_n": n_naive, "first_call_s": None, "compile_s": None}
    work = problem.n * (problem.n + 1) * (NUM_FEATURES if analytic else problem.num_params)
    share = work / (2 * plan.matmul_size**3) * timings[MATMUL].ratio(timing)
    rate = 2 * plan.matmul_size**3 / timings[MATMUL].median / 1e9
    return row | {
        "gflops": work / timing.median / 1e9,
        "matmul_gflops": rate,
        "share_of_matmul": share,
    }


def memory_row(problem: Problem, case: str) -> Row:
    """Peak memory of the first call of a case, and what all Jacobian rows together would take."""
    memory = peak_memory("benchmarks.kernels:memory_case", case=case, **problem._asdict())
    sizes = {"jacobian_bytes": 4 * problem.n * problem.num_params, "kernel_bytes": 4 * problem.n**2}
    return {
        "case": case,
        **problem._asdict(),
        **sizes,
        "baseline_bytes": memory.baseline,
        "used_bytes": memory.used,
    }


def report(plan: Plan, rows: list[Row], memory: list[Row]) -> str:
    """The tables: one per size, then memory."""
    sizes = {"case": "", "n": "d", "width": "d", "depth": "d"}
    columns = sizes | {"ms|time [ms]": ".3g", "min": ".3g", "max": ".3g"}
    columns |= {
        "compile_s|compile [s]": ".2f",
        "naive_over_case|naive/time": ".3g",
        "naive_measured_n|naive at n": "d",
    }
    columns |= {"gflops|GFLOP/s": ".3g", "percent|% of matmul": ".2g"}
    parts = []
    for size, values in plan.sweeps.items():
        line = [plan.base._replace(**{size: value}) for value in values]
        chosen = [
            row
            for problem in line
            for row in rows
            if all(row[k] == v for k, v in problem._asdict().items())
        ]
        parts.append(
            f"\nAgainst {size}\n" + table([in_display_units(row) for row in chosen], columns)
        )
    held = [
        {**row, **{k: row[f"{k}_bytes"] / 2**20 for k in ("jacobian", "kernel", "used")}}
        for row in memory
    ]
    memory_columns = sizes | {
        "used|peak [MiB]": ".1f",
        "jacobian|n x P Jacobian [MiB]": ".1f",
        "kernel|kernel [MiB]": ".2f",
    }
    return "\n".join([*parts, "\nMemory\n" + table(held, memory_columns), notes(plan, rows)])


def notes(plan: Plan, rows: list[Row]) -> str:
    """What the reader of the tables must know."""
    rates = [row["matmul_gflops"] for row in rows]
    return f"""
Matrix product: {plan.matmul_size}³ float32 in NumPy, {min(rates):.0f} to {max(rates):.0f} GFLOP/s
over the problems. Where n exceeds "naive at n", naive loops are extrapolated: gradients in
proportion to n, pairs to n². A method that took over {plan.slow} s is not run at larger sizes.
Peak memory: first call, its compilation included.
{environment_line()}"""


def in_display_units(row: Row) -> Row:
    """The row with milliseconds and per cent."""
    times = {
        name: 1e3 * row[f"{key}_s"]
        for name, key in (("ms", "median"), ("min", "min"), ("max", "max"))
    }
    return {**row, **times, "percent": 100 * row["share_of_matmul"]}
