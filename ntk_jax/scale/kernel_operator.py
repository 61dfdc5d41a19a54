"""Any kernel as an operator: in memory, computed anew in every product, or from a store."""

from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Num

from ntk_jax.checks import as_example_pair, check_integer, check_option
from ntk_jax.devices.mesh import devices_of_one_memory, num_devices, one_axis, place
from ntk_jax.devices.processes import agreed, finished
from ntk_jax.memory import check_result_fits
from ntk_jax.scale.held import HeldKernel
from ntk_jax.scale.host_loop import HostKernel
from ntk_jax.scale.matrix import KernelMatrix, the_kernel
from ntk_jax.scale.recomputed import RecomputedKernel
from ntk_jax.scale.tile_products import How
from ntk_jax.scale.tile_writes import strips, whole
from ntk_jax.scale.tracing import (
    RECOMPUTED_ON_CPU,
    Prepared,
    default_rows,
    inputs_of,
    runs_on_cpu,
    traced_kernel,
)
from ntk_jax.types import KernelFn

MEMORY_WAY_OUT = (
    "Use storage='recompute', which holds one tile, a KernelStore, or more devices by mesh=."
)


@runtime_checkable
class Store(Protocol):
    """A kernel on disk: an operator, as `KernelStore`."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def __matmul__(self, v: ArrayLike, /) -> ArrayLike: ...

    def diagonal(self) -> ArrayLike: ...  # noqa: D102

    def columns(self, indices: ArrayLike) -> ArrayLike: ...  # noqa: D102


def kernel_operator(
    kernel_fn: KernelFn[Any],
    x: Num[ArrayLike, "n1 *d"],
    x2: Num[ArrayLike, "n2 *d"] | None = None,
    *,
    kernel: str | None = None,
    mesh: Mesh | None = None,
    storage: str | Store = "memory",
    block_size: int | None = None,
) -> KernelMatrix | Store:
    """Any kernel as an operator, (op @ v)_i = Σ_j K(x_i, x2_j) v_j, whose rows may exceed a memory.

    Example:
        >>> kernel_fn = lambda x1, x2=None: ntk_jax.mlp_kernels(x1, x2, depth=2, activation="erf")
        >>> x = np.eye(2, dtype=np.float32)
        >>> op = ntk_jax.kernel_operator(kernel_fn, x, kernel="ntk", storage="recompute")
        >>> print(op.shape, np.round(op @ np.ones(2), 3))
        (2, 2) [0.846 0.846]

    Args:
        kernel_fn: `kernel_fn(x1, x2=None)` -> a kernel (n1, n2), or Kernels(nngp, ntk): a function
            with options such as `functools.partial(mlp_kernels, depth=3)`, `infinite_width(model)`,
            or `lambda x1, x2=None: empirical_ntk(apply_fn, params, x1, x2)`.
        x: examples of the rows.
        x2: examples of the columns; None means x again: then the operator is symmetric.
        kernel: "ntk" or "nngp", where kernel_fn returns both.
        mesh: devices that share the work, of one process or many; a mesh of any shape counts as one
            axis. Every process passes the same x. Products come whole to every device, and the
            rows of `columns` stay where they are if the number of devices divides n1.
        storage: "memory" holds the kernel, a share of the rows on every device of the mesh;
            "recompute" holds nothing but one tile, and every product computes the kernel again: of
            a symmetric one, half of the tiles; a `KernelStore` reads it from disk.
        block_size: rows of a tile. None takes what suits the device.

    Returns:
        An operator with `op @ v` for v (n2,) or (n2, b), `op.T`, `op.diagonal()`,
        `op.columns(indices)`, `shape` and `dtype`: a pytree, to be passed to jitted functions as an
        argument. Matrix products are in full precision.

    Raises:
        ValueError: bad examples or options; a kernel that is none of one output; one that does not
            fit the memory, before it is computed; a store of another shape; a mesh with a kernel_fn
            that looks at values.
    """
    prepare = partial(_prepared, kernel_fn, x, x2, kernel, mesh, storage, block_size)
    found = agreed(mesh if isinstance(mesh, Mesh) else None, prepare, inputs_of)
    if not isinstance(found, Prepared):
        return found
    x1, x2, how = found.x1, found.x2, found.how
    x1, x2 = place((x1, x2), how.mesh)
    if storage == "recompute":
        return RecomputedKernel(x1, x2, kernel_fn, how)
    make = whole if how.num_devices == 1 else strips
    kernel_array = finished(how.mesh, make(kernel_fn, x1, x2, how=how))
    return HeldKernel(kernel_array, len(x1), x2 is None, False, how.mesh)


def _prepared(
    kernel_fn: KernelFn[Any],
    x1: ArrayLike,
    x2: ArrayLike | None,
    kernel: str | None,
    mesh: Mesh | None,
    storage: str | Store,
    block_size: int | None,
) -> Prepared | HostKernel | HeldKernel | Store:
    """Checked arguments; an operator where no program is needed for it."""
    check_option("kernel", kernel, (None, "ntk", "nngp"))
    if block_size is not None:
        check_integer("block_size", block_size, minimum=1)
    a1, a2 = as_example_pair(x1, x2)
    shape = len(a1), len(a1 if a2 is None else a2)
    if not isinstance(storage, str):
        return _checked_store(storage, shape, kernel, mesh)
    check_option("storage", storage, ("memory", "recompute"))
    mesh = one_axis(mesh)
    found = traced_kernel(kernel_fn, a1, a2, mesh)
    if found is None:
        operator = HostKernel(kernel_fn, a1, a2, kernel, block_size or RECOMPUTED_ON_CPU)
        return operator if storage == "recompute" else operator.held()
    on_cpu, devices, held = runs_on_cpu(a1, mesh), num_devices(mesh), storage == "memory"
    rows = block_size or default_rows(shape[0], on_cpu, held, devices)
    how = How(kernel, jnp.dtype(the_kernel(found, kernel).dtype), rows, on_cpu, mesh)
    if held:
        share = -(-shape[0] // devices) * devices_of_one_memory(mesh)
        result = jax.ShapeDtypeStruct((share, shape[1]), how.dtype)
        check_result_fits(result, "a kernel, or a device's share of it,", MEMORY_WAY_OUT)
    return Prepared(a1, a2, how, kernel_fn)


def _checked_store(
    store: object, shape: tuple[int, int], kernel: str | None, mesh: Mesh | None
) -> Store:
    store = store if kernel is None else getattr(store, kernel, store)
    if not isinstance(store, Store):
        raise ValueError(
            f"storage: expected 'memory', 'recompute' or a KernelStore; got {type(store).__name__}."
        )
    if tuple(store.shape) != shape:
        raise ValueError(
            f"storage: expected a store of shape {shape}, as x and x2; got {tuple(store.shape)}."
        )
    if mesh is not None:
        raise ValueError("mesh: expected None with a store, which the host reads; got a mesh.")
    return store
