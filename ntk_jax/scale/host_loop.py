"""The operator of a kernel_fn that looks at values: a loop of Python's over its tiles."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ntk_jax.compat import is_concrete, on_device
from ntk_jax.scale.held import HeldKernel
from ntk_jax.scale.matrix import KernelMatrix, the_kernel
from ntk_jax.tiling import row_slices
from ntk_jax.types import KernelFn


@dataclass(frozen=True, eq=False)
class HostKernel(KernelMatrix):
    """K(x1, x2), tile by tile, outside of programs: it is no pytree.

    Attributes:
        kernel_fn: the kernel.
        x1: examples of the rows.
        x2: examples of the columns; None means x1.
        kernel: which one of a pair.
        rows: of a block.
    """

    kernel_fn: KernelFn[Any]
    x1: Array
    x2: Array | None
    kernel: str | None
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n1, n2)."""
        return len(self.x1), len(self.x1 if self.x2 is None else self.x2)

    @cached_property
    def dtype(self) -> jnp.dtype:
        """That of one entry."""
        return self._tile(self.x1[:1], None if self.x2 is None else self.x2[:1]).dtype

    @property
    def is_symmetric(self) -> bool:
        """Whether there is no x2."""
        return self.x2 is None

    @property
    def T(self) -> "HostKernel":
        """The transpose, K(x2, x1)."""
        return self if self.x2 is None else replace(self, x1=self.x2, x2=self.x1)

    def held(self) -> HeldKernel:
        """The kernel in memory."""
        kernel = np.empty(self.shape, self.dtype)
        for i, j, tile in self._tiles():
            kernel[i, j] = tile
            if self.x2 is None:
                kernel[j, i] = tile.T
        return HeldKernel(on_device(kernel), len(kernel), self.x2 is None, False, None)

    def _multiply(self, v: Float[Array, "n2 ..."]) -> Float[Array, "n1 ..."]:
        if not is_concrete(v):
            raise ValueError(
                "v: expected values, as this kernel_fn looks at its own and cannot be part of a "
                "program; got a traced array. Multiply outside of jax.jit, or write kernel_fn with "
                "jax.numpy."
            )
        w = np.asarray(v)
        out = np.zeros((self.shape[0], *w.shape[1:]), self.dtype)
        for i, j, tile in self._tiles():
            out[i] += tile @ w[j]
            if self.x2 is None and i != j:
                out[j] += tile.T @ w[i]
        return on_device(out)

    def _diagonal(self) -> Float[Array, " n"]:
        blocks = (self.x1[i] for i in row_slices(len(self.x1), 32))
        return on_device(np.concatenate([np.diagonal(self._tile(x, None)) for x in blocks]))

    def _columns(self, indices: Int[Array, " k"]) -> Float[Array, "n1 k"]:
        chosen = (self.x1 if self.x2 is None else self.x2)[indices]
        parts = [self._tile(self.x1[i], chosen) for i in row_slices(len(self.x1), self.rows)]
        out = np.concatenate(parts)
        if self.x2 is None:
            own = [self._tile(x[None], None)[0, 0] for x in chosen]
            out[np.asarray(indices), np.arange(len(own))] = own
        return on_device(out)

    def _tiles(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        side = self.x1 if self.x2 is None else self.x2
        for i in row_slices(len(self.x1), self.rows):
            for j in row_slices(len(side), self.rows):
                if self.x2 is None and i == j:
                    yield i, j, self._tile(self.x1[i], None)
                elif self.x2 is not None or i.start < j.start:
                    yield i, j, self._tile(self.x1[i], side[j])

    def _tile(self, a: Array, b: Array | None) -> np.ndarray:
        found = self.kernel_fn(a) if b is None else self.kernel_fn(a, b)
        return np.asarray(the_kernel(found, self.kernel))
