"""What a store is of: written down with it, compared before anything is added to it."""

import hashlib
import importlib.metadata
import uuid
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ntk_jax.memory import readable_size
from ntk_jax.scale.blocks import Probe, Sides
from ntk_jax.scale.grid import Grid, needed_bytes

FORMAT = 1

MOST_PROBED = 256  # numbers of each kernel that are kept

# Of the largest entry: what other processors and other versions of XLA make of one program.
ROUNDING = 64


class Facts(NamedTuple):
    """Inputs by their hashes, tiles, dtype, and the kernel by its values at a few examples.

    Attributes:
        identity: of this store alone.
        grid: tiles.
        outputs: output axes of the kernel.
        dtype: of its entries.
        names: of the kernels.
        inputs: shape, dtype and hash of x1 and x2.
        probed: entries of every kernel between a few examples, to the bit.
        memory: bytes that the kernel function may hold itself, if it takes a limit.
        versions: of JAX and of this package, when the store was made.
    """

    identity: str
    grid: Grid
    outputs: tuple[int, ...]
    dtype: str
    names: tuple[str, ...]
    inputs: tuple[str, ...]
    probed: tuple[str, ...]
    memory: int
    versions: str

    @property
    def pair_bytes(self) -> int:
        """Bytes of the results of one pair of examples."""
        sizes = np.dtype(self.dtype).itemsize * len(self.names)
        return sizes * int(np.prod(self.outputs, dtype=int))


def facts_of(sides: Sides, found: Probe, grid: Grid, memory: int) -> Facts:
    """Of a store that is to be made."""
    inputs, probed = described(sides), bits(found)
    names = found.names
    made = str(uuid.uuid4()), grid, found.outputs, found.dtype.name, names, inputs, probed
    return Facts(*made, memory, _versions())


def as_json(facts: Facts) -> dict[str, Any]:
    """For the attributes of the zarr group."""
    return {"ntk_jax": {"format": FORMAT, **facts._asdict(), "grid": facts.grid._asdict()}}


def from_json(path: Path, attributes: dict[str, Any] | None) -> Facts:
    """Of a store that is there.

    Raises:
        ValueError: none, or one of another format.
    """
    found = dict((attributes or {}).get("ntk_jax", {}))
    if found.get("format") != FORMAT:
        what = "nothing that is one" if not found else f"format {found.get('format')}"
        raise ValueError(
            f"{path}: expected a KernelStore of format {FORMAT}; got {what}. Make one with "
            "tile(kernel_fn, out=path)(x)."
        )
    grid = Grid(**found.pop("grid"))
    outputs, names, inputs, probed = (tuple(found.pop(name)) for name in _LISTS)
    found.pop("format")
    return Facts(grid=grid, outputs=outputs, names=names, inputs=inputs, probed=probed, **found)


_LISTS = ("outputs", "names", "inputs", "probed")  # tuples, which JSON has not


def described(sides: Sides) -> tuple[str, ...]:
    """Shape, dtype and hash of both sides."""
    return tuple("x1 again" if x is None else _described(x) for x in sides)


def _described(x: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(x).data.cast("B")).hexdigest()
    return f"shape {x.shape}, {x.dtype.name}, sha256 {digest[:16]}"


def bits(found: Probe) -> tuple[str, ...]:
    """Some entries of every kernel, as hexadecimal digits."""
    every = max(1, found.values[0].size // MOST_PROBED)
    return tuple(np.ravel(value)[::every].tobytes().hex() for value in found.values)


def check_inputs(path: Path, facts: Facts, sides: Sides) -> None:
    """Raise unless a store is of these examples."""
    for name, ours, theirs in zip(("x1", "x2"), facts.inputs, described(sides), strict=True):
        if ours != theirs:
            raise ValueError(
                f"{path}: expected the examples that the store was made of; {name} there: {ours}; "
                f"here: {theirs}. {_WAY_OUT}"
            )


def check_budget(path: Path, facts: Facts, row_bytes: int, budget: int) -> None:
    """Raise unless a budget that is given for tiles holds those of the store."""
    grid = facts.grid
    needed = needed_bytes(grid, facts.pair_bytes, row_bytes)
    if needed > budget:
        raise ValueError(
            f"{path}: expected a memory_limit that holds the store's tiles of {grid.rows1} x "
            f"{grid.rows2} examples, {readable_size(needed)}; got {readable_size(budget)} for "
            "them. Give more, or take another path, for smaller tiles."
        )


def check_kernel(path: Path, facts: Facts, found: Probe) -> None:
    """Raise unless a kernel function is the one that the store was begun with.

    Warns:
        UserWarning: it is to rounding, as on another processor.
    """
    theirs = found.names, found.dtype.name, found.outputs
    if theirs != (facts.names, facts.dtype, facts.outputs):
        raise ValueError(
            f"{path}: expected {_kind(facts.names, facts.dtype, facts.outputs)}, as in the store; "
            f"got {_kind(*theirs)}. {_WAY_OUT}"
        )
    if bits(found) == facts.probed:
        return
    gap = max(_gap(facts.dtype, *pair) for pair in zip(facts.probed, bits(found), strict=True))
    made = f"The store was made by {facts.versions}; this is {_versions()}."
    if not gap <= ROUNDING * np.finfo(facts.dtype).eps:
        raise ValueError(
            f"{path}: expected the kernel function that the store was begun with; its values at "
            f"a few examples differ by {gap:.2g} of the largest: other parameters, options "
            f"or precision. {made} {_WAY_OUT}"
        )
    warnings.warn(
        f"{path}: the kernel agrees with the store's to rounding only (by {gap:.2g}): new tiles "
        f"will, too, as on another processor. {made}",
        stacklevel=3,
    )


_WAY_OUT = "Take another path, or remove this one."


def _kind(names: tuple[str, ...], dtype: str, outputs: tuple[int, ...]) -> str:
    axes = f" with output axes {outputs}" if outputs else ""
    return f"{' and '.join(names)} in {dtype}{axes}"


def _gap(dtype: str, one: str, other: str) -> float:
    a, b = (np.frombuffer(bytes.fromhex(digits), dtype).astype(float) for digits in (one, other))
    if a.shape != b.shape:
        return np.inf
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), np.finfo(dtype).tiny))


def _versions() -> str:
    names = ("jax", "ntk-jax")
    return ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return "unknown"
