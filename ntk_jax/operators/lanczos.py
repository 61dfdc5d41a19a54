"""Lanczos: a symmetric operator in orthonormal bases of its Krylov spaces span(v, K v, K² v, ...).

There K is tridiagonal. Every new vector is orthogonalized against all before it: the three-term
recursion alone loses orthogonality as soon as an eigenvalue has converged, and finds it again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.draws import draw_flat
from ntk_jax.linalg import matmul
from ntk_jax.norms import norm
from ntk_jax.operators.symmetric import Operator, multiply
from ntk_jax.small_programs import jit_by_size


class Quadrature(NamedTuple):
    """Gauss nodes and weights for vᵀ f(K) v, one row per probe v; the weights of a row add up to
    1.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]


def lanczos_step(
    basis: Float[Array, "m n"], step: int | Array, product: Float[Array, " n"], *, rounding: float
) -> tuple[Float[Array, " n"], Float[Array, ""], Float[Array, ""]]:
    """The next vector of the basis, and K's entries on and beside the diagonal of this step.

    What is left of a product below `rounding` times eps is rounding: the space is exhausted, and
    goes on with zero vectors.
    """

    def project_out(w: Array) -> tuple[Array, Array]:
        inner = jnp.einsum("mn,n->m", basis, w, precision="highest")
        return w - jnp.einsum("mn,m->n", basis, inner, precision="highest"), inner[step]

    rest, alpha = project_out(product)
    rest, correction = project_out(rest)  # what rounding left in the first time; twice is enough
    beta = norm(rest)
    exhausted = beta <= rounding * jnp.finfo(beta.dtype).eps * norm(product)
    following = jnp.where(exhausted, 0, rest / jnp.where(exhausted, 1, beta))
    return following, alpha + correction, jnp.where(exhausted, 0, beta)


@jit_by_size
def lanczos_steps(
    basis: Float[Array, "m n p"], step: int | Array, vectors: Array, product: Array
) -> tuple[Array, Array, Array, Array]:
    """The basis with these vectors, and a step in the space of each column."""
    basis = basis.at[step].set(vectors)
    each = jax.vmap(partial(lanczos_step, rounding=10), (2, None, 1), (1, 0, 0))
    return basis, *each(basis, step, product)


def _tridiagonal(diagonal: Float[Array, " m"], beside: Float[Array, " k"]) -> Float[Array, "m m"]:
    return jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)


def gauss_quadrature(k: Operator, key: Array, num_probes: int, num_steps: int) -> Quadrature:
    """The Gauss rule of the measure Σ_i (u_iᵀ v)² δ(s - s_i) / |v|² of each probe v, random signs,
    by that many Lanczos steps.
    """
    shape, dtype = (k.shape[0], num_probes), jnp.dtype(k.dtype)
    if isinstance(k, Array):
        return _rule_of_matrix(k, key, shape, num_steps)
    # The products are made one by one, outside of any trace: an operator may be any Python code.
    vectors, basis = _start(key, shape, num_steps, dtype)
    entries = []
    for step in range(num_steps):
        product = multiply(k, vectors)
        basis, vectors, *entry = lanczos_steps(basis, np.int32(step), vectors, product)
        entries.append(entry)
    return _rule_of_steps(entries)


@partial(jit_by_size, static_argnums=(1, 2, 3))
def _start(
    key: Array, shape: tuple[int, int], num_steps: int, dtype: jnp.dtype
) -> tuple[Float[Array, "n p"], Float[Array, "m n p"]]:
    probes = draw_flat(jax.random.rademacher, key, shape, dtype)
    return probes / norm(probes, axis=0)[None], jnp.zeros((num_steps, *shape), dtype)


@partial(jit_by_size, static_argnums=(2, 3))
def _rule_of_matrix(
    k: Float[Array, "n n"], key: Array, shape: tuple[int, int], num_steps: int
) -> Quadrature:
    vectors, basis = _start(key, shape, num_steps, k.dtype)

    def step(
        carry: tuple[Array, Array], i: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, vectors = carry
        basis, vectors, alpha, beta = lanczos_steps(basis, i, vectors, matmul(k, vectors))
        return (basis, vectors), (alpha, beta)

    _, (alphas, betas) = jax.lax.scan(step, (basis, vectors), jnp.arange(num_steps))
    return _gauss_rule(alphas.T, betas.T[:, :-1])


@jit_by_size
def _rule_of_steps(entries: Sequence[Sequence[Array]]) -> Quadrature:
    alphas, betas = (jnp.stack(part, 1) for part in zip(*entries, strict=True))
    return _gauss_rule(alphas, betas[:, :-1])


def _gauss_rule(diagonal: Float[Array, "p m"], beside: Float[Array, "p k"]) -> Quadrature:
    """Golub, Welsch 1969: eigenvalues of the tridiagonal matrix, squared first entries of its
    eigenvectors.
    """
    nodes, vectors = jnp.linalg.eigh(jax.vmap(_tridiagonal)(diagonal, beside))
    return Quadrature(nodes, vectors[:, 0, :] ** 2)


def dominant_eigenvector(
    multiply: Callable[[Array], Array], start: Float[Array, " P"], num_steps: int
) -> tuple[Float[Array, ""], Float[Array, " P"]]:
    """The Ritz pair of largest magnitude in the Krylov space of `start`, inside a trace.

    `start` itself is in that space: repeating from the result never loses what was found.
    Eigenvalues of opposite sign, between which power iteration would wander, are told apart.

    Args:
        multiply: v (P,) -> A v for a symmetric A.
        start: a vector that is not 0.
        num_steps: products; more than P of them do no harm.

    Returns:
        The Ritz value and the Ritz vector of norm 1.

    Reference: Golub, Van Loan 2013, section 10.1.
    """

    def step(
        carry: tuple[Array, Array], i: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, vector = carry
        basis = basis.at[i].set(vector)
        # Products with derivatives of a network round more than those with a matrix.
        vector, alpha, beta = lanczos_step(basis, i, multiply(vector), rounding=100)
        return (basis, vector), (alpha, beta)

    empty = jnp.zeros((num_steps, start.size), start.dtype)
    (basis, _), (diagonal, beside) = jax.lax.scan(
        step, (empty, start / norm(start)), jnp.arange(num_steps)
    )
    values, coefficients = jnp.linalg.eigh(_tridiagonal(diagonal, beside[:-1]))
    best = jnp.argmax(jnp.abs(values))
    vector = matmul(basis.T, coefficients[:, best])
    length = norm(vector)
    return values[best], jnp.where(length > 0, vector / jnp.where(length > 0, length, 1), start)
