"""A kernel function on a mesh of devices: each computes and keeps some rows of the kernel."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from jax.sharding import Mesh
from jax.typing import ArrayLike

from ntk_jax.checks import as_example_pair, check_integer
from ntk_jax.devices.mesh import Tree, one_axis, place
from ntk_jax.devices.processes import agreed, finished
from ntk_jax.scale.tile_products import How
from ntk_jax.scale.tile_writes import strips, whole
from ntk_jax.scale.tracing import Prepared, default_rows, inputs_of, runs_on_cpu, traced_kernel
from ntk_jax.types import KernelFn


def shard(
    kernel_fn: KernelFn[Any], mesh: Mesh, *, block_size: int | None = None
) -> "ShardedKernel":
    """The same kernel function, its rows shared out over the devices of a mesh.

    Example:
        >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",))
        >>> kernel_fn = lambda x1, x2=None: ntk_jax.mlp_kernels(x1, x2, depth=2, activation="erf")
        >>> k = ntk_jax.shard(kernel_fn, mesh)(np.eye(2, dtype=np.float32)).ntk
        >>> print(np.round(k, 3))
        [[0.846 0.   ]
         [0.    0.846]]

    Every device computes its rows in tiles, and nothing is sent between devices. Entries do not
    depend on the number of devices where tiles do not (see `block_size`).

    Args:
        kernel_fn: `kernel_fn(x1, x2=None)` -> an array whose first axes are examples, or a pytree
            of these: what JAX can trace. See `kernel_operator`.
        mesh: devices of one process or many; a mesh of any shape counts as one axis.
        block_size: rows of a tile. None is 256 on CPUs, and on accelerators what suits the number
            of rows of a device.

    Returns:
        `kernel_fn(x1, x2=None)`: the kernel as an array whose rows are shared out over the mesh,
        with x2=None symmetric to the bit. The number of rows of x1 must be a multiple of the number
        of devices; `kernel_operator` has no such limit.

    Raises:
        ValueError: no mesh; when the kernel is asked for, bad examples, a number of rows that the
            devices do not divide, a kernel_fn that looks at values.
    """
    if block_size is not None:
        check_integer("block_size", block_size, minimum=1)
    found = one_axis(mesh)
    if found is None:
        raise ValueError("mesh: expected a jax.sharding.Mesh; got None.")
    return ShardedKernel(kernel_fn, found, block_size)


@dataclass(frozen=True)
class ShardedKernel:
    """`kernel_fn(x1, x2=None)` on the devices of a mesh, see `shard`."""

    kernel_fn: KernelFn[Any]
    mesh: Mesh
    block_size: int | None

    def __call__(self, x1: ArrayLike, x2: ArrayLike | None = None) -> Tree:
        """The kernel, its rows shared out."""
        found = agreed(self.mesh, partial(self._prepared, x1, x2), inputs_of)
        a1, a2 = place((found.x1, found.x2), self.mesh)
        make = whole if self.mesh.size == 1 else strips
        return finished(self.mesh, make(self.kernel_fn, a1, a2, how=found.how))

    def _prepared(self, x1: ArrayLike, x2: ArrayLike | None) -> Prepared:
        a1, a2 = as_example_pair(x1, x2)
        traced_kernel(self.kernel_fn, a1, a2, self.mesh)
        n, devices = len(a1), self.mesh.size
        if n % devices:
            raise ValueError(
                f"x1: expected a multiple of {devices} rows, the number of devices: arrays are "
                f"shared out evenly; got {n}. Leave {n % devices} rows out, or use "
                "ntk_jax.kernel_operator(kernel_fn, x, mesh=mesh), which has no such limit."
            )
        on_cpu = runs_on_cpu(a1, self.mesh)
        rows = self.block_size or default_rows(n, on_cpu, True, devices)
        return Prepared(a1, a2, How(None, None, rows, on_cpu, self.mesh), self.kernel_fn)
