"""Devices in a row: what each has of an array, and how it gets there."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ntk_jax.compat import shard_map
from ntk_jax.platforms import by_platform
from ntk_jax.tiling import pad_rows

ROWS = "rows"
"""The one axis of a mesh."""

T = TypeVar("T")

Tree: TypeAlias = Any
"""A pytree of arrays."""


def one_axis(mesh: Mesh | None) -> Mesh | None:
    """The devices of any mesh on one axis.

    Raises:
        ValueError: no mesh; one of some processes.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"mesh: expected a jax.sharding.Mesh; got {type(mesh).__name__}. Make one of all "
            "devices: jax.make_mesh((jax.device_count(),), ('rows',))."
        )
    if 1 < num_processes(mesh) < jax.process_count():
        raise ValueError(
            f"mesh: expected devices of this process, or of all {jax.process_count()}, which agree "
            f"on their arguments together; got devices of {num_processes(mesh)}."
        )
    return Mesh(mesh.devices.reshape(-1), (ROWS,))


def num_devices(mesh: Mesh | None) -> int:
    """How many share the work."""
    return 1 if mesh is None else mesh.size


def num_processes(mesh: Mesh) -> int:
    """How many processes the devices are of."""
    return len({device.process_index for device in mesh.devices.flat})


def devices_of_one_memory(mesh: Mesh | None) -> int:
    """How many devices share a memory: CPUs of a process do."""
    if mesh is None or not is_of_cpus(mesh):
        return 1
    return sum(device.process_index == jax.process_index() for device in mesh.devices.flat)


def everywhere(mesh: Mesh) -> NamedSharding:
    """Every device has all."""
    return NamedSharding(mesh, PartitionSpec())


def is_of_cpus(mesh: Mesh) -> bool:
    """Whether the devices are CPUs."""
    return bool(mesh.devices.flat[0].platform == "cpu")


def by_device(mesh: Mesh | None, run: Callable[[bool, Tree], Array], x: Tree) -> Array:
    """`run(on_cpu, x)`: a mesh says what its devices are, and else the platform decides."""
    if mesh is not None:
        return run(is_of_cpus(mesh), x)
    return by_platform(partial(run, True), partial(run, False), x)


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


def share_rows(tree: T, mesh: Mesh | None) -> T:
    """Concrete arrays, their rows shared out over the mesh; where the devices do not divide the
    number of rows, every device has all.
    """
    if mesh is None:
        return tree
    axes = lambda a: (ROWS,) if len(a) % mesh.size == 0 else ()
    where = lambda a: NamedSharding(mesh, PartitionSpec(*axes(a)))
    return jax.tree.map(lambda a: _placed(a, where(a)), tree)


def filled(tree: T, mesh: Mesh | None, *, zeros: bool = False) -> T:
    """In a program: rows up to a multiple of the number of devices, see `pad_rows`."""
    return pad_rows(tree, num_devices(mesh), zeros=zeros)


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
) -> Tree:
    """`run(its shares, whole)` on every device; results are joined along their first axis."""
    if mesh is None:
        return run(shares, whole)
    rows, all_ = PartitionSpec(ROWS), PartitionSpec()
    return shard_map(run, mesh, (rows, all_), rows)(shares, whole)
