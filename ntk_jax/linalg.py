"""Kernels as symmetric matrices: shape, symmetry, eigenvalues, and what rounding does to them."""

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import eigh
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.compat import is_concrete
from ntk_jax.matrix_functions.basis import NULL, Basis, matmul
from ntk_jax.platforms import by_platform


def default_rcond(size: int, dtype: jnp.dtype) -> float:
    """n · eps: a bound of what rounding may do to a matrix of n rows, in units of its largest
    eigenvalue.
    """
    return size * float(jnp.finfo(dtype).eps)


def null_rcond(dtype: jnp.dtype) -> float:
    """Eigenvalues up to this fraction of the largest count as 0: what rounding does to them in
    fact, whatever N.
    """
    return NULL * float(jnp.finfo(dtype).eps)


def as_matrix(k: Float[Array, "n1 n2 ..."]) -> Float[Array, "n1_O n2_O"]:
    """A kernel (n1, n2) as it is, a full one (n1, n2, O, O) as the (n1·O, n2·O) matrix of flattened
    outputs.
    """
    if k.ndim == 2:
        return k
    return k.transpose(0, 2, 1, 3).reshape(k.shape[0] * k.shape[2], k.shape[1] * k.shape[3])


Decomposition: TypeAlias = tuple[Array, Array]

TOO_MANY_ROWS = 32_767
"""Rows of which LAPACK with 32-bit counts, which XLA calls on a CPU, cannot count its workspace:
1 + 6 n + 2 n² numbers. NumPy's has 64-bit ones.
"""


def ascending_eigh(k: Float[Array, "n n"]) -> Decomposition:
    """Eigenvalues, smallest first, and eigenvectors in columns; for compiled programs."""
    if k.shape[-1] < TOO_MANY_ROWS:
        return eigh(k)
    shapes = jax.ShapeDtypeStruct(k.shape[:1], k.dtype), jax.ShapeDtypeStruct(k.shape, k.dtype)
    by_numpy = partial(jax.pure_callback, _eigh_of_numpy, shapes, vmap_method="sequential")
    return by_platform(by_numpy, eigh, k)


def _eigh_of_numpy(k: Array) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(np.asarray(k))
    return values, vectors


def ascending_eigenvalues(k: Float[Array, "*B n n"]) -> Float[Array, "*B n"]:
    """Eigenvalues alone, smallest first; for compiled programs."""
    if k.shape[-1] < TOO_MANY_ROWS:
        return jnp.linalg.eigvalsh(k)
    shape = jax.ShapeDtypeStruct(k.shape[:-1], k.dtype)
    by_numpy = partial(jax.pure_callback, _eigvalsh_of_numpy, shape, vmap_method="sequential")
    return by_platform(by_numpy, jnp.linalg.eigvalsh, k)


def _eigvalsh_of_numpy(k: Array) -> np.ndarray:
    return np.linalg.eigvalsh(np.asarray(k))


@jax.custom_jvp
def symmetric_eigh(k: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues, largest first, and eigenvectors in columns: K = U diag(s) Uᵀ.

    Derivatives are finite: eigenvectors of equal eigenvalues are kept from turning into each other,
    which no function of K depends on. What is a function of K as a whole goes by `matrix_functions`
    instead, exact to any order.
    """
    values, vectors = ascending_eigh(k)
    return values[::-1], vectors[:, ::-1]


@symmetric_eigh.defjvp
def _symmetric_eigh_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Decomposition, Decomposition]:
    s, U = symmetric_eigh(*primals)
    omega = matmul(U.T, matmul(tangents[0], U))
    omega = (omega + omega.T) / 2
    gap = s[None, :] - s[:, None]
    # Eigenvectors of equal eigenvalues turn freely into each other, at any speed: at none, here.
    equal = jnp.abs(gap) <= null_rcond(s.dtype) * jnp.max(jnp.abs(s))
    return (s, U), (
        jnp.diagonal(omega),
        matmul(U, jnp.where(equal, 0, omega / jnp.where(equal, 1, gap))),
    )


def basis_of(k: Float[Array, "n n"], traced: bool) -> Basis:
    """The modes of a symmetric matrix in a compiled program, and the matrix for derivatives.

    `traced` says whether these are taken: whether the matrix is traced outside of the program, too.
    """
    return Basis(*symmetric_eigh(k), k if traced else None)


def check_psd(name: str, eigenvalues: Float[ArrayLike, "*B n"]) -> None:
    """Raise if the smallest eigenvalue (the last) is negative beyond rounding: below -10 n eps
    times the largest. Of several matrices, the first that is not PSD is told.
    """
    if not is_concrete(eigenvalues):
        return
    for s in np.asarray(eigenvalues).reshape(-1, np.shape(eigenvalues)[-1]):
        # Ten times the bound of one rounding of K: kernels are sums, and sums are rounded more
        # often.
        largest, smallest = float(s[0]), float(s[-1])
        rounding = 10 * default_rcond(s.size, s.dtype) * max(abs(largest), abs(smallest))
        if not smallest >= -rounding:
            raise ValueError(
                f"{name}: expected a positive semi-definite kernel; got {np.sum(s < -rounding)} of "
                f"{s.size} eigenvalues below -{rounding:.3g} (smallest {smallest:.6g}, largest "
                f"{largest:.6g}). Compute it in float64 or with full-precision matrix products, or "
                "check that it is a kernel at all."
            )
