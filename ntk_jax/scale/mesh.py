"""Devices in a row: what each has of an array, and how it gets there."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ntk_jax.compat import shard_map

ROWS = "rows"
"""The one axis of a mesh."""

T = TypeVar("T")

Tree: TypeAlias = Any
"""A pytree of arrays."""


def one_axis(mesh: Mesh | None) -> Mesh | None:
    """The devices of any mesh on one axis.

    Raises:
        ValueError: no mesh.
    """
    if mesh is None or isinstance(mesh, Mesh):
        return None if mesh is None else Mesh(mesh.devices.reshape(-1), (ROWS,))
    raise ValueError(
        f"mesh: expected a jax.sharding.Mesh; got {type(mesh).__name__}. Make one of all devices: "
        "jax.make_mesh((jax.device_count(),), ('rows',))."
    )


def by_rows(mesh: Mesh) -> NamedSharding:
    """Every device has some rows."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Every device has all."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: T, mesh: Mesh | None) -> T:
    """Arrays on every device of the mesh, whole; every process has the same ones."""
    return tree if mesh is None else jax.tree.map(lambda a: _placed(a, everywhere(mesh)), tree)


def _placed(a: Tree, where: NamedSharding) -> Array:
    if isinstance(a, jax.core.Tracer) or getattr(a, "sharding", None) == where:
        return a
    if isinstance(a, Array) and not a.is_fully_addressable:
        return jax.jit(lambda a: a, out_shardings=where)(a)
    if where.is_fully_addressable:
        return jax.device_put(a, where)
    held = np.asarray(a)
    return jax.make_array_from_callback(held.shape, where, lambda index: held[index])


def replicated(mesh: Mesh | None, a: Array) -> Array:
    """In a program: a result that every device has whole."""
    return a if mesh is None else jax.lax.with_sharding_constraint(a, everywhere(mesh))


def shared_out(mesh: Mesh | None, lists: Tree, fill: Tree) -> Tree:
    """Rows of integers, as many for every device: `fill` is a row that makes up the number."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, lists)

    def even(rows: np.ndarray, fill: list[int]) -> Array:
        missing = -len(rows) % mesh.size
        return jnp.asarray(np.concatenate([rows, np.tile(fill, (missing, 1)).astype(rows.dtype)]))

    if isinstance(lists, tuple):
        return tuple(even(*pair) for pair in zip(lists, fill, strict=True))
    return even(lists, fill)


def on_every_device(
    mesh: Mesh | None, run: Callable[[Any, Any], Tree], shares: Tree, whole: Tree
) -> Array:
    """`run(its shares, whole)` on every device; results are joined along their first axis."""
    if mesh is None:
        return run(shares, whole)
    rows, all_ = PartitionSpec(ROWS), PartitionSpec()
    return shard_map(run, mesh, (rows, all_), rows)(shares, whole)
