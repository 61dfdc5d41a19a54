"""Kernels of host arrays: any number of rows and columns runs the same few compiled programs.

A program has shapes of its own. Here rows and columns are filled up to few sizes before it is
called, so that folds and grids share programs.
"""

import math

import jax
import numpy as np
from jaxtyping import Float

from ntk_jax.compat import double_precision
from ntk_jax.estimators.sources import MLPSource, Source
from ntk_jax.infinite.mlp.kernels import mlp_kernels_by_layer
from ntk_jax.memory import check_result_fits, free_bytes, how_many, memory_budget
from ntk_jax.operators.solve import LARGEST_FACTORED
from ntk_jax.progress import progress_bar

BLOCK = 1024  # test rows of which kernels are computed at a time
MATRICES = 4  # of n² numbers, which a fit holds at a time
TOO_MANY = (
    "Fit a sample of the rows, or NTKTransformer(n_components=500) and a linear model on its "
    "features."
)


def padded_size(n: int) -> int:
    """At least n: a power of 2 from 64 to 256, then quarters between powers of 2."""
    step = 1 << max(0, (n - 1).bit_length() - (0 if n <= 256 else 3))
    return max(64, -(-n // step) * step)


def filled(x: Float[np.ndarray, "n d"], source: Source) -> Float[np.ndarray, "m k"]:
    """Rows, and for an MLP columns, filled up to few sizes; the kernels of the given rows stay.

    New rows are drawn at random: equal ones would be compared feature by feature. New
    columns of the given rows are 0, and the larger fan-in is undone by the scale.
    """
    n, d = x.shape
    rows = padded_size(n)
    columns = max(16, 1 << (d - 1).bit_length()) if d <= 64 else -(-d // 64) * 64
    if not isinstance(source, MLPSource):
        out = np.concatenate([x, np.repeat(x[-1:], rows - n, axis=0)])
        return out.astype(np.float32)
    out = np.random.default_rng(0).standard_normal((rows, columns))
    out[:n, :d] = x * (columns / d) ** 0.5
    out[:n, d:] = 0
    return out


def training_kernel(source: Source, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """K(x, x), symmetric to the bit."""
    check_fits(len(x))
    with double_precision():
        k = source.block(filled(x, source), None)
    return k[: len(x), : len(x)].astype(np.float64)


def most_factored(memory_limit: float | None) -> int:
    """The most rows whose matrices fit in the limit, or in the free memory."""
    room = free_bytes() if memory_limit is None else memory_limit
    if room is None:
        return LARGEST_FACTORED
    return min(LARGEST_FACTORED, math.isqrt(int(room) // (MATRICES * 8)))


def rows_at_once(n_train: int, memory_limit: float | None) -> int:
    """Test rows whose kernel with the training rows is held at a time: a power of 2."""
    each = MATRICES * 8 * padded_size(n_train)
    rows = how_many(BLOCK, each, memory_budget(memory_limit))
    return max(padded_size(1), 1 << (rows.bit_length() - 1))


def check_fits(n: int) -> None:
    """Raise before anything is computed if the memory cannot hold a fit of n rows."""
    whole = jax.ShapeDtypeStruct((MATRICES, n, n), np.float64)
    check_result_fits(whole, f"a fit of {n} rows", TOO_MANY)


def kernels_by_depth(
    source: MLPSource, depths: tuple[int, ...], x: Float[np.ndarray, "n d"]
) -> dict[int, Float[np.ndarray, "n n"]]:
    """The training kernels of all depths from one recursion to the deepest."""
    if len(depths) == 1:
        return {depths[0]: training_kernel(source._replace(depth=depths[0]), x)}
    options = source.options | {"depth": max(depths)}
    with double_precision():
        layers = getattr(mlp_kernels_by_layer(filled(x, source), **options), source.kind)
    layers = np.asarray(layers)
    return {depth: layers[depth, : len(x), : len(x)] for depth in depths}


def cross_kernel(
    source: Source, x: Float[np.ndarray, "n d"], x_train: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """K(x, x_train), in blocks of rows."""
    train, parts = filled(x_train, source), []
    with progress_bar(len(x), "kernel", enabled=len(x) > BLOCK, delay=2.0) as bar:
        for start in range(0, len(x), BLOCK):
            rows = x[start : start + BLOCK]
            with double_precision():
                k = source.block(filled(rows, source), train)
            parts.append(k[: len(rows), : len(x_train)].astype(np.float64))
            bar.update(len(rows))
    return np.concatenate(parts)


def kernel_of_rows(source: Source, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """K of each row with itself."""
    with double_precision():
        return source.own(filled(x, source))[: len(x)].astype(np.float64)
