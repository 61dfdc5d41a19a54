"""f(K) in the basis U of the modes of K, held fixed: times columns, in diagonal blocks, its trace.

U diag(f(s)) Uᵀ is smooth in K wherever f is; U alone is not, since 1 / (s_i - s_j) enters its
derivative. In the basis U, K is a matrix M with the value diag(s) and the derivative Uᵀ dK U, and
derivatives of f(M) are operator integrals, `operator_integral`.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.matrix_functions.basis import (
    Basis,
    Constants,
    Parameters,
    SpectralFunction,
    einsum,
    fixed,
    matmul,
)
from ntk_jax.matrix_functions.operator_integral import operator_integral


def apply(
    f: SpectralFunction,
    basis: Basis,
    columns: Float[Array, "n m"],
    parameters: Parameters,
    constants: Constants = (),
) -> Float[Array, "n m"]:
    """f(M) times columns, both in the basis of the modes; differentiable in the kernel, the columns
    and the parameters.

    Args:
        f: hashable.
        basis: the modes; derivatives by the kernel go through `basis.kernel`.
        columns: Uᵀ v, with U held fixed.
        parameters: of f, scalars; for several times or ridges use `jax.vmap`.
        constants: of f, what it is not differentiated by.
    """
    M = jnp.zeros((0, 0), columns.dtype) if basis.kernel is None else _in_basis(basis.kernel, basis)
    return operator_integral(f, fixed(basis.eigenvalues), M, columns, (parameters, constants))


def _in_basis(k: Array, basis: Basis) -> Array:
    """Uᵀ K U with U held fixed, of the symmetric part, which is all that a decomposition sees."""
    U = fixed(basis.eigenvectors)
    M = matmul(U.T, matmul(k, U))
    return (M + M.T) / 2


def diagonal_blocks(
    f: SpectralFunction,
    basis: Basis,
    rows: Float[Array, "N g n"],
    parameters: Parameters,
    constants: Constants = (),
) -> Float[Array, "N g g"]:
    """R f(M) Rᵀ of every group R of rows; arguments and derivatives as for `apply`."""
    if basis.kernel is None:  # of all groups in one product
        values = f.value(basis.eigenvalues, parameters, constants)
        return einsum("Ngn,Nhn,n->Ngh", rows, rows, values)
    N, g, n = rows.shape
    products = apply(f, basis, rows.reshape(N * g, n).T, parameters, constants)
    return einsum("Ngn,nNh->Ngh", rows, products.reshape(n, N, g))


def trace(
    f: SpectralFunction, basis: Basis, parameters: Parameters, constants: Constants = ()
) -> Float[Array, ""]:
    """The trace of f(M), the sum of f over the eigenvalues; arguments and derivatives as for
    `apply`.
    """
    s = basis.eigenvalues
    if basis.kernel is None:
        return jnp.sum(f.value(s, parameters, constants))
    return jnp.trace(apply(f, basis, jnp.eye(len(s), dtype=s.dtype), parameters, constants))
