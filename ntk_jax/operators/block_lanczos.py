"""Block Lanczos: one Krylov space of a whole block of vectors, which finds repeated eigenvalues."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.compat import on_device
from ntk_jax.draws import draw_flat
from ntk_jax.linalg import matmul
from ntk_jax.operators.symmetric import Operator, multiply
from ntk_jax.small_programs import jit_by_size


class Krylov(NamedTuple):
    """An orthonormal basis (n, m), the operator in that basis (m, m), and what of it leaves the
    space (b, b).
    """

    basis: Float[Array, "n m"]
    projected: Float[np.ndarray, "m m"]
    remainder: Float[np.ndarray, "b b"]


class BlockLanczos:
    """Grows a Krylov space block by block, each block orthogonalized against all before it."""

    def __init__(self, k: Operator, key: Array, size: int, max_dimension: int):
        self.k, self.size, self.dimension = k, size, 0
        n, dtype = k.shape[0], jnp.dtype(k.dtype)
        self.block = _start(key, (n, size), dtype)
        self.basis = on_device(np.zeros((n, max_dimension), dtype))
        self.projected = np.zeros((max_dimension, max_dimension), dtype)

    def grow(self) -> Krylov:
        """Add the next block to the basis."""
        m, b = self.dimension, self.size
        product = multiply(self.k, self.block)
        self.basis, self.block, column, remainder = _orthogonalize(
            self.basis, self.block, m, product
        )
        self.projected[:, m : m + b] = column
        self.dimension = m + b
        inside = self.projected[: m + b, : m + b]
        return Krylov(self.basis, np.triu(inside) + np.triu(inside, 1).T, np.asarray(remainder))


@partial(jit_by_size, static_argnums=(1, 2))
def _start(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Float[Array, "n b"]:
    return jnp.linalg.qr(draw_flat(jax.random.normal, key, shape, dtype))[0]


@jit_by_size
def _orthogonalize(
    basis: Array, block: Array, m: int | Array, product: Array
) -> tuple[Array, Array, Array, Array]:
    """The basis with the block, the next block, K's coefficients in the basis, and those in the
    next block.
    """
    basis = jax.lax.dynamic_update_slice(basis, block, (0, m))
    # Each projection is made twice, as rounding of the first one needs.
    coefficients = matmul(basis.T, product)
    rest = product - matmul(basis, coefficients)
    correction = matmul(basis.T, rest)
    block, remainder = jnp.linalg.qr(rest - matmul(basis, correction))
    # Where the space is invariant, directions of the block are only rounding, which the first
    # factorization scales up to 1: the second makes them orthogonal to the basis too.
    for _ in range(2):
        block, factor = jnp.linalg.qr(block - matmul(basis, matmul(basis.T, block)))
        remainder = matmul(factor, remainder)
    return basis, block, coefficients + correction, remainder
