"""What every operator of a kernel checks before it multiplies, and the choice of one kernel."""

from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ntk_jax.checks import as_array, check_finite
from ntk_jax.compat import is_concrete
from ntk_jax.types import Kernels

Found: TypeAlias = Any
"""What a kernel_fn returned: an array, a pair of them, or shapes of these."""


class KernelMatrix:
    """A kernel as a matrix that is only multiplied: `op @ v`, `op.T`, `op.diagonal()`,
    `op.columns(indices)`.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(n1, n2)."""
        raise NotImplementedError

    @property
    def dtype(self) -> jnp.dtype:
        """Of the kernel, and of products."""
        raise NotImplementedError

    @property
    def is_symmetric(self) -> bool:
        """Whether its rows and columns are the same examples."""
        raise NotImplementedError

    def __matmul__(self, v: ArrayLike) -> Array:
        """K v for v of shape (n2,) or (n2, b), in the dtype of the kernel.

        Raises:
            ValueError: another shape; values that are complex, NaN or infinite.
        """
        v = as_array("v", v)
        n2 = self.shape[1]
        if v.ndim not in (1, 2) or v.shape[0] != n2:
            raise ValueError(f"v: expected shape ({n2},) or ({n2}, b); got {v.shape}.")
        if jnp.issubdtype(v.dtype, jnp.complexfloating):
            raise ValueError(
                f"v: expected real values; got {v.dtype}. Multiply real and imaginary part one "
                "after another."
            )
        check_finite("v", v)
        return self._multiply(v.astype(self.dtype))

    def diagonal(self) -> Float[Array, " n"]:
        """The diagonal of a symmetric kernel.

        Raises:
            ValueError: the operator has an x2.
        """
        if not self.is_symmetric:
            raise ValueError(
                "diagonal: expected an operator with x2=None; got rows and columns of different "
                "examples."
            )
        return self._diagonal()

    def columns(self, indices: Int[ArrayLike, " k"]) -> Float[Array, "n1 k"]:
        """The columns of these indices; negative ones count from the end.

        Raises:
            ValueError: indices that are no vector of integers, or out of range.
        """
        indices = as_array("indices", indices)
        if indices.ndim != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
            raise ValueError(
                f"indices: expected integers (k,); got shape {indices.shape} of {indices.dtype}."
            )
        n2 = self.shape[1]
        known = np.asarray(indices) if is_concrete(indices) else np.zeros(1, int)
        if not np.all((known >= -n2) & (known < n2)):
            raise ValueError(f"indices: expected columns 0 to {n2 - 1}; got {known.tolist()}.")
        return self._columns(indices)

    def _multiply(self, v: Float[Array, "n2 ..."]) -> Float[Array, "n1 ..."]:
        raise NotImplementedError

    def _diagonal(self) -> Float[Array, " n"]:
        raise NotImplementedError

    def _columns(self, indices: Int[Array, " k"]) -> Float[Array, "n1 k"]:
        raise NotImplementedError


def the_kernel(found: Found, kernel: str | None) -> Found:
    """One kernel (n1, n2) of what a kernel_fn returned: `kernel` names that of a pair.

    Raises:
        ValueError: a pair and no name, or a name and no pair; something else than one matrix.
    """
    if isinstance(found, Kernels):
        if kernel is None:
            raise ValueError(
                "kernel_fn: expected one kernel; it returns Kernels(nngp, ntk). Choose one: "
                'kernel="ntk" or kernel="nngp".'
            )
        found = getattr(found, kernel)
    elif kernel is not None:
        raise ValueError(
            f"kernel: expected None, as kernel_fn returns one {type(found).__name__} and not "
            f"Kernels(nngp, ntk); got {kernel!r}."
        )
    shape = getattr(found, "shape", None)
    if shape is None or len(shape) != 2:
        got = type(found).__name__ if shape is None else f"shape {shape}"
        raise ValueError(
            f"kernel_fn: expected a kernel (n1, n2); got {got}. Use outputs='mean' of "
            "empirical_ntk, or ntk_operator for a kernel with outputs."
        )
    return found
