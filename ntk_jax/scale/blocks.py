"""A kernel function on some rows at a time: what it returns, and its tiles one after another."""

import functools
import inspect
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax import Array

from ntk_jax.checks import as_example_pair
from ntk_jax.compat import is_concrete, on_device
from ntk_jax.scale.grid import Corner, Grid, symmetrized
from ntk_jax.types import KernelFn, Kernels

Tile: TypeAlias = tuple[np.ndarray, ...]
"""A tile of one kernel, or of both."""

NAMES = (*Kernels._fields, "kernel")  # of kernels in a store; the last is that of a single one

PROBED = 4  # examples whose kernel says what a kernel function returns, and which one it is


class Sides(NamedTuple):
    """Examples on the host; x2 = None for those of x1 again."""

    x1: np.ndarray
    x2: np.ndarray | None

    @property
    def row_bytes(self) -> int:
        """Bytes of one example."""
        return self.x1[:1].nbytes


class Probe(NamedTuple):
    """What a kernel function returns: the names of its kernels, and those of a few examples."""

    names: tuple[str, ...]
    values: Tile

    @property
    def outputs(self) -> tuple[int, ...]:
        """Output axes of a kernel."""
        return self.values[0].shape[2:]

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.values[0].dtype

    @property
    def pair_bytes(self) -> int:
        """Bytes of the results of one pair of examples."""
        return sum(value[:1, :1].nbytes for value in self.values)


def as_sides(x1: object, x2: object) -> Sides:
    """Checked examples, where NumPy finds them.

    Raises:
        ValueError: bad examples, or traced ones.
    """
    a1, a2 = as_example_pair(x1, x2)
    if not all(map(is_concrete, (a1, a2))):
        raise ValueError(
            "tile: expected examples whose values are known; got traced ones. Inside jax.jit call "
            "the kernel function itself."
        )
    return Sides(np.asarray(a1), None if a2 is None else np.asarray(a2))


def limited(kernel_fn: KernelFn, memory: int) -> KernelFn:
    """The kernel function with a limit for what it holds itself, if it takes one that is not set:
    such as a `functools.partial` of `empirical_ntk`.
    """
    try:
        limit = inspect.signature(kernel_fn).parameters.get("memory_limit")
    except (TypeError, ValueError):  # of a builtin
        return kernel_fn
    if limit is None or limit.default is not None:
        return kernel_fn
    return functools.partial(kernel_fn, memory_limit=memory)


def probe(kernel_fn: KernelFn, sides: Sides) -> Probe:
    """The kernel of a few examples, spread evenly.

    Raises:
        ValueError: neither a kernel nor `Kernels`, or not of these examples, or not in float32 or
            float64.
    """
    x1 = on_device(_few(sides.x1))
    x2 = None if sides.x2 is None else on_device(_few(sides.x2))
    names, values = _parts(kernel_fn(x1, x2))
    expected = len(x1), len(x1 if x2 is None else x2)
    for value in values:
        if value.shape[:2] != expected or value.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"kernel_fn: expected kernels {expected} in float32 or float64 of so many examples;"
                f" got shape {value.shape} in {value.dtype}."
            )
    if len({(value.shape, value.dtype) for value in values}) > 1:
        raise ValueError("kernel_fn: expected both kernels in one shape and dtype.")
    return Probe(names, tuple(map(np.asarray, values)))


def _few(x: np.ndarray) -> np.ndarray:
    return x[np.unique(np.linspace(0, len(x) - 1, PROBED).astype(int))]


def _parts(found: object) -> tuple[tuple[str, ...], tuple[Array | np.ndarray, ...]]:
    """Names and arrays of what a kernel function returned."""
    if isinstance(found, Kernels):
        return Kernels._fields, tuple(found)
    if isinstance(found, Array | np.ndarray) and found.ndim in (2, 3, 4):
        return NAMES[-1:], (found,)
    raise ValueError(
        "kernel_fn: expected a kernel (n1, n2), (n1, n2, O) or (n1, n2, O, O), or Kernels(nngp, "
        f"ntk); got {jax.tree.map(np.shape, found)}."
    )


def as_found(names: tuple[str, ...], kernels: tuple[np.ndarray, ...]) -> np.ndarray | Kernels:
    """Kernels in the form in which the kernel function returns them."""
    return Kernels(*kernels) if names == Kernels._fields else kernels[0]  # type: ignore[arg-type]


def tiles(
    kernel_fn: KernelFn, sides: Sides, grid: Grid, which: Iterable[Corner]
) -> Iterator[tuple[Corner, Tile]]:
    """The tiles at some corners, on the host; the device has the next one before it is read."""
    ahead = None
    for at in which:
        found = at, _parts(_dispatched(kernel_fn, sides, grid, at))[1]
        if ahead is not None:
            yield _on_host(grid, *ahead)
        ahead = found
    if ahead is not None:
        yield _on_host(grid, *ahead)


def _dispatched(kernel_fn: KernelFn, sides: Sides, grid: Grid, at: Corner) -> object:
    """All tiles have one shape, so that the last ones need no program of their own."""
    rows, columns = grid.place(at)
    x1, x2 = sides.x1, sides.x1 if sides.x2 is None else sides.x2
    one = x1[rows]
    if sides.x2 is None and rows == columns:
        # With rows of other tiles: kernels take an example that meets itself for a near pair.
        return kernel_fn(on_device(np.concatenate([one, x1[: grid.rows1 - len(one)]])))
    return kernel_fn(
        on_device(_filled(one, grid.rows1)), on_device(_filled(x2[columns], grid.rows2))
    )


def _filled(x: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)])


def _on_host(grid: Grid, at: Corner, found: tuple[Array | np.ndarray, ...]) -> tuple[Corner, Tile]:
    rows, columns = grid.place(at)
    shape = rows.stop - rows.start, columns.stop - columns.start
    cropped = tuple(np.asarray(tile)[: shape[0], : shape[1]] for tile in found)
    if grid.symmetric and at[0] == at[1]:
        return at, tuple(map(symmetrized, cropped))
    return at, cropped
