"""The eigenvalue of largest magnitude of a symmetric operator, from products with it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_jax.norms import norm


def dominant_eigenvector(
    multiply: Callable[[Array], Array], start: Float[Array, " P"], num_steps: int
) -> tuple[Float[Array, ""], Float[Array, " P"]]:
    """The Ritz pair of largest magnitude in the Krylov space of `start`, by Lanczos with full
    reorthogonalization.

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
    dtype, eps = start.dtype, jnp.finfo(start.dtype).eps

    def step(
        carry: tuple[Array, Array], i: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, q = carry
        basis = basis.at[i].set(q)
        w = multiply(q)
        scale, diagonal = norm(w), jnp.vdot(q, w)
        for _ in range(2):  # twice is enough
            w = w - basis.T @ (basis @ w)
        rest = norm(w)
        found = rest > 100 * eps * scale  # else the space is invariant: what remains is rounding
        q = jnp.where(found, w / jnp.where(found, rest, 1), 0)
        return (basis, q), (diagonal, jnp.where(found, rest, 0))

    empty = jnp.zeros((num_steps, start.size), dtype)
    (basis, _), (diagonal, beside) = jax.lax.scan(
        step, (empty, start / norm(start)), jnp.arange(num_steps)
    )
    values, vectors = jnp.linalg.eigh(
        jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    )
    best = jnp.argmax(jnp.abs(values))
    vector = basis.T @ vectors[:, best]
    length = norm(vector)
    return values[best], jnp.where(length > 0, vector / jnp.where(length > 0, length, 1), start)
