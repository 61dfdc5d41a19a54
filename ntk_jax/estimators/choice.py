"""The scale of inputs, the kernel and the ridge that predict rows left out best."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from ntk_jax.data.scaling import Scaler, scaler
from ntk_jax.estimators.kernels import kernels_by_depth, training_kernel
from ntk_jax.estimators.ridges import Candidates, Solution, all_ridges, solve
from ntk_jax.estimators.rows import Rows
from ntk_jax.estimators.sources import MLPSource, Source

SAMPLE = 400  # rows on which kernels are compared: one eigendecomposition each
MOST_DIAGONALIZED = 1000  # rows of which all ridges are compared again
MOST_REFINED = 4000  # rows of which a few are
ONE_THREAD = 2000  # rows up to which one thread of BLAS factors in a fraction of a second
RIDGES = np.geomspace(1e-6, 1e2, 25)

Criterion = Callable[[Rows, Candidates], Float[np.ndarray, " R"]]
"""What is to be small: a loss for every ridge."""


class Grid(NamedTuple):
    """Kernels and ridges to choose from: every scale with every source, of every depth."""

    scales: tuple[str, ...]
    sources: tuple[Source, ...]
    depths: tuple[int, ...]
    ridges: Float[np.ndarray, " R"]


class Choice(NamedTuple):
    """What was chosen, and its loss; the ridge is in units of the kernel's mean diagonal."""

    scale: str
    source: Source
    ridge: float
    loss: float


class Kernel(NamedTuple):
    """The kernel of the training rows, divided by the weighted mean of its diagonal."""

    scaler: Scaler
    source: Source
    unit: float
    x: Float[np.ndarray, "n d"]
    k: Float[np.ndarray, "n n"]


def choose(rows: Rows, grid: Grid, criterion: Criterion) -> tuple[Kernel, Solution, Choice]:
    """The best of the grid, on a sample of the rows, and the fit of all rows with it."""
    # Threads of BLAS wait busily, for each other and in the way of XLA's.
    with threadpool_limits(1 if len(rows.x) <= ONE_THREAD else None, user_api="blas"):
        return _choose(rows, grid, criterion)


def _choose(rows: Rows, grid: Grid, criterion: Criterion) -> tuple[Kernel, Solution, Choice]:
    if len(grid.scales) * len(grid.sources) * len(grid.depths) * len(grid.ridges) == 1:
        how, source, ridge = grid.scales[0], grid.sources[0], float(grid.ridges[0])
        best = Choice(how, _at_depth(source, grid.depths[0]), ridge, np.nan)
    else:
        few = rows if len(rows.x) <= SAMPLE else rows.take(sample(len(rows.x), SAMPLE))
        with threadpool_limits(1, user_api="blas"):
            best = min(_choices(few, grid, criterion), key=lambda choice: choice.loss)
    kernel = _kernel_of(rows, best)
    ridges = np.array([best.ridge])
    if len(grid.ridges) > 1 and len(rows.x) > SAMPLE:
        if len(rows.x) <= MOST_DIAGONALIZED:
            found = all_ridges(kernel.k, *rows[1:4], grid.ridges)
            ridges = grid.ridges[[int(np.argmin(criterion(rows, found)))]]
        elif len(rows.x) <= MOST_REFINED:
            ridges = best.ridge * np.array([1.0, 0.3, 0.1])
    return kernel, *_best_solution(rows, kernel, ridges, criterion, best)


def _best_solution(
    rows: Rows, kernel: Kernel, ridges: np.ndarray, criterion: Criterion, choice: Choice
) -> tuple[Solution, Choice]:
    found: list[tuple[Solution, float]] = []
    for ridge in ridges:
        solution = solve(kernel.k, *rows[1:4], float(ridge))
        loss = float(criterion(rows, solution.as_candidates())[0])
        if not found or loss < found[0][1]:
            found = [(solution, loss)]
    ((solution, loss),) = found
    return solution, choice._replace(ridge=solution.ridge, loss=loss)


def _choices(rows: Rows, grid: Grid, criterion: Criterion) -> Iterator[Choice]:
    """The best ridge of every kernel."""
    for how in grid.scales:
        x = scaler(rows.x, rows.weights, how)(rows.x)
        for source in grid.sources:
            for depth, k in _kernels(source, grid.depths, x):
                found = all_ridges(
                    k / mean_of_diagonal(np.diagonal(k), rows), *rows[1:4], grid.ridges
                )
                losses = criterion(rows, found)
                i = int(np.argmin(losses))
                ridge, loss = float(grid.ridges[i]), float(losses[i])
                yield Choice(how, _at_depth(source, depth), ridge, loss)


def _kernels(
    source: Source, depths: tuple[int, ...], x: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    if isinstance(source, MLPSource):
        yield from kernels_by_depth(source, depths, x).items()
    else:
        yield depths[0], training_kernel(source, x)


def _kernel_of(rows: Rows, choice: Choice) -> Kernel:
    scale = scaler(rows.x, rows.weights, choice.scale)
    x = scale(rows.x)
    k = training_kernel(choice.source, x)
    unit = mean_of_diagonal(np.diagonal(k), rows)
    return Kernel(scale, choice.source, unit, x, k / unit)


def mean_of_diagonal(own: Float[np.ndarray, " n"], rows: Rows) -> float:
    """The weighted mean of the diagonal; 1 for a kernel that is 0."""
    return float(own @ rows.weights / rows.weights.sum()) or 1.0


def _at_depth(source: Source, depth: int) -> Source:
    return source._replace(depth=depth) if isinstance(source, MLPSource) else source


def sample(n: int, size: int) -> Int[np.ndarray, " k"]:
    """So many of n rows, the same in every call."""
    return np.sort(np.random.default_rng(0).permutation(n)[:size])
