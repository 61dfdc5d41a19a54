"""Any kernel as an operator: in memory, computed anew in every product, or from a store."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Num

from ntk_jax.checks import as_example_pair, check_integer, check_option
from ntk_jax.closures.fingerprint import read
from ntk_jax.closures.programs import traced
from ntk_jax.memory import check_result_fits
from ntk_jax.platforms import is_on_cpu
from ntk_jax.scale.held import HeldKernel
from ntk_jax.scale.host_loop import HostKernel
from ntk_jax.scale.matrix import KernelMatrix, the_kernel
from ntk_jax.scale.mesh import Tree, one_axis, place
from ntk_jax.scale.recomputed import RecomputedKernel
from ntk_jax.scale.tile_products import How
from ntk_jax.scale.tile_writes import strips, whole
from ntk_jax.types import KernelFn

# Rows of a block. A CPU's tiles are small enough to be made beside each other; an accelerator's
# large enough that launches do not count.
HELD_ON_CPU, RECOMPUTED_ON_CPU, ON_ACCELERATOR, LEAST = 256, 1024, 4096, 256

# What a kernel_fn does that looks at values, which are not there in a program.
LOOKS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


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
    """Any kernel as an operator K(x, x2) for iterative solvers, whose rows may exceed a memory.

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
    check_option("kernel", kernel, (None, "ntk", "nngp"))
    if block_size is not None:
        check_integer("block_size", block_size, minimum=1)
    x1, x2 = as_example_pair(x, x2)
    if not isinstance(storage, str):
        return _checked_store(storage, (len(x1), len(x1 if x2 is None else x2)))
    check_option("storage", storage, ("memory", "recompute"))
    mesh = one_axis(mesh)
    found = _traced_kernel(kernel_fn, x1, x2, mesh)
    if found is None:
        operator = HostKernel(kernel_fn, x1, x2, kernel, block_size or RECOMPUTED_ON_CPU)
        return operator if storage == "recompute" else operator.held()
    on_cpu = _on_cpu(x1, mesh)
    held = storage == "memory"
    rows = block_size or default_rows(len(x1), on_cpu, held, 1 if mesh is None else mesh.size)
    how = How(kernel, jnp.dtype(the_kernel(found, kernel).dtype), rows, on_cpu, mesh)
    x1, x2 = place((x1, x2), mesh)
    if not held:
        return RecomputedKernel(x1, x2, kernel_fn, how)
    return held_kernel(kernel_fn, x1, x2, how)


def held_kernel(kernel_fn: KernelFn[Any], x1: Array, x2: Array | None, how: How) -> HeldKernel:
    """The kernel in memory, if it fits."""
    shape = len(x1), len(x1 if x2 is None else x2)
    share = jax.ShapeDtypeStruct((-(-shape[0] // how.num_devices), shape[1]), how.dtype)
    check_result_fits(share, "a kernel, or a device's share of it,", MEMORY_WAY_OUT)
    make = whole if how.num_devices == 1 else strips
    kernel = make(kernel_fn, x1, x2, how=how)
    return HeldKernel(kernel, shape[0], x2 is None, False, how.mesh)


def default_rows(n: int, on_cpu: bool, held: bool, devices: int) -> int:
    """Rows of a block."""
    if on_cpu:
        # Of a kernel that is held they do not depend on the devices: neither does any entry.
        return HELD_ON_CPU if held else RECOMPUTED_ON_CPU
    share = -(-n // (8 * devices) if held else -n // (2 * devices))
    return int(np.clip(share // LEAST * LEAST, LEAST, ON_ACCELERATOR))


def _on_cpu(x: Array, mesh: Mesh | None) -> bool:
    if mesh is not None:
        return bool(mesh.devices.flat[0].platform == "cpu")
    return is_on_cpu(x) is not False


def _traced_kernel(
    kernel_fn: KernelFn[Any], x1: Array, x2: Array | None, mesh: Mesh | None
) -> Tree | None:
    """What kernel_fn returns, as shapes; None if it looks at values."""
    if not callable(kernel_fn):
        raise ValueError(
            f"kernel_fn: expected a function kernel_fn(x1, x2=None); got "
            f"{type(kernel_fn).__name__}. An array is an operator already."
        )
    few = jax.ShapeDtypeStruct((min(len(x1), 2), *x1.shape[1:]), x1.dtype)
    args = (few,) if x2 is None else (few, jax.ShapeDtypeStruct((1, *x2.shape[1:]), x2.dtype))
    try:
        return traced(lambda reading, *args: reading(*args), read(kernel_fn), *args)[1]
    except LOOKS as error:
        if mesh is None:
            return None
        raise ValueError(
            "kernel_fn: expected a function that JAX can trace, as every device of a mesh runs it "
            f"inside one program; it looks at values: {str(error).splitlines()[0]} Leave mesh out, "
            "or write it with jax.numpy."
        ) from error


def _checked_store(store: object, shape: tuple[int, int]) -> Store:
    if not isinstance(store, Store):
        raise ValueError(
            f"storage: expected 'memory', 'recompute' or a KernelStore; got {type(store).__name__}."
        )
    if tuple(store.shape) != shape:
        raise ValueError(
            f"storage: expected a store of shape {shape}, as x and x2; got {tuple(store.shape)}."
        )
    return store
