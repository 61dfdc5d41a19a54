"""A kernel in memory as an operator: on one device, or some rows on every device of a mesh."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jaxtyping import Float, Int

from ntk_jax.linalg import matmul
from ntk_jax.scale.matrix import KernelMatrix
from ntk_jax.scale.mesh import on_every_device, replicated

Known: TypeAlias = tuple[int, bool, bool, Mesh | None]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class HeldKernel(KernelMatrix):
    """K(x1, x2) as an array. A pytree.

    Attributes:
        kernel: (n1, n2); on a mesh its rows are shared out, and some at the end may be 0.
        num_rows: n1.
        symmetric: whether rows and columns are the same examples.
        is_transposed: whether this is the operator of the transposed array.
        mesh: the devices, on one axis; None for one device.
    """

    kernel: Array
    num_rows: int
    symmetric: bool
    is_transposed: bool
    mesh: Mesh | None

    def tree_flatten(self) -> tuple[tuple[Array], Known]:
        """The array, and what is known of it."""
        return (self.kernel,), (self.num_rows, self.symmetric, self.is_transposed, self.mesh)

    @classmethod
    def tree_unflatten(cls, rest: Known, arrays: tuple[Array]) -> "HeldKernel":
        """The operator of this array."""
        return cls(arrays[0], rest[0], rest[1], rest[2], rest[3])

    def __repr__(self) -> str:
        """Without entries."""
        devices = 1 if self.mesh is None else self.mesh.size
        return f"HeldKernel(shape={self.shape}, dtype={self.dtype.name}, devices={devices})"

    @property
    def shape(self) -> tuple[int, int]:
        """(n1, n2)."""
        shape = self.num_rows, self.kernel.shape[1]
        return shape[::-1] if self.is_transposed else shape

    @property
    def dtype(self) -> jnp.dtype:
        """Of the kernel."""
        return self.kernel.dtype

    @property
    def is_symmetric(self) -> bool:
        """Whether rows and columns are the same examples."""
        return self.symmetric

    @property
    def T(self) -> "HeldKernel":
        """The transpose."""
        return self if self.is_symmetric else replace(self, is_transposed=not self.is_transposed)

    def _multiply(self, v: Float[Array, "n2 ..."]) -> Float[Array, "n1 ..."]:
        run = _transposed_product if self.is_transposed else _product
        return run(self.kernel, v, self.num_rows, self.mesh)

    def _diagonal(self) -> Float[Array, " n"]:
        return _diagonal(self.kernel, self.num_rows, self.mesh)

    def _columns(self, indices: Int[Array, " k"]) -> Float[Array, "n1 k"]:
        if self.is_transposed:
            return _rows(self.kernel, jnp.where(indices < 0, indices + self.num_rows, indices)).T
        return _columns(self.kernel, indices, self.num_rows, self.mesh)


@partial(jax.jit, static_argnums=(2, 3))
def _product(kernel: Array, v: Array, n: int, mesh: Mesh | None) -> Array:
    out = on_every_device(mesh, matmul, kernel, v)
    return replicated(mesh, out)[:n]


@partial(jax.jit, static_argnums=(2, 3))
def _transposed_product(kernel: Array, v: Array, n: int, mesh: Mesh | None) -> Array:
    """Kᵀ v: what the rows of every device add, summed over the mesh."""
    v = jnp.pad(v, [(0, len(kernel) - n), *[(0, 0)] * (v.ndim - 1)])
    share = len(kernel) if mesh is None else len(kernel) // mesh.size
    starts = jnp.arange(0, len(kernel), share)

    def run(sides: tuple[Array, Array], v: Array) -> Array:
        rows, start = sides
        return matmul(rows.T, lax.dynamic_slice_in_dim(v, start[0], share))[None]

    return replicated(mesh, on_every_device(mesh, run, (kernel, starts), v).sum(0))


@partial(jax.jit, static_argnums=(1, 2))
def _diagonal(kernel: Array, n: int, mesh: Mesh | None) -> Array:
    share = len(kernel) if mesh is None else len(kernel) // mesh.size
    starts = jnp.arange(0, len(kernel), share)

    def run(start: Array, rows: Array) -> Array:
        places = jnp.minimum(start[0] + jnp.arange(share), n - 1)
        return jnp.take_along_axis(rows, places[:, None], 1)[:, 0]

    found = on_every_device(mesh, lambda sides, _: run(*sides), (starts, kernel), ())
    return replicated(mesh, found)[:n]


@partial(jax.jit, static_argnums=(2, 3))
def _columns(kernel: Array, indices: Array, n: int, mesh: Mesh | None) -> Array:
    found = on_every_device(mesh, lambda rows, indices: rows[:, indices], kernel, indices)
    return found if len(found) == n else replicated(mesh, found[:n])


_rows = jax.jit(lambda kernel, indices: kernel[indices])
