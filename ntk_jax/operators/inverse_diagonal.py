"""The diagonal of (K + ridge)⁻¹ from random probes, solved for together with a right-hand side.

    G_ii ≈ M_ii + mean over probes z of z_i ((G - M) z)_i,    G = (K + ridge)⁻¹

M is the preconditioner, whose diagonal is known: probes see only what it leaves of the inverse. By
Schur complements 1 / (K_ii + ridge_i) <= G_ii <= 1 / ridge_i, and so is every estimate.
References: Hutchinson 1990; Bekas, Kokiopoulou, Saad 2007.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.checks import Number
from ntk_jax.operators.conjugate_gradients import Preconditioner
from ntk_jax.operators.iteration import Options, preconditioner_of
from ntk_jax.operators.nystrom import LowRank, diagonal_of
from ntk_jax.operators.solve import Solution, Solved, solve_system
from ntk_jax.operators.symmetric import Operator

PROBES = 32


class WithDiagonal(NamedTuple):
    """What is solved, the diagonal of the inverse, how far each probe's estimate is from it, and
    the preconditioner, for further solves.
    """

    solved: Solved
    diagonal: Float[np.ndarray, " n"]
    deviations: Float[np.ndarray, "n probes"]
    preconditioner: Preconditioner

    def left_out(
        self, alpha: Float[np.ndarray, "n m"]
    ) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
        """α_i / G_ii, unbiased to second order in the deviations, and its standard error."""
        spread = self.deviations.std(axis=1, ddof=1) / self.deviations.shape[1] ** 0.5
        share = (spread / self.diagonal)[:, None]
        error = alpha / self.diagonal[:, None] / (1 + share**2)
        return error, np.abs(error) * share


def solve_with_diagonal(
    k: Operator,
    y: Float[Array, "n m"],
    ridge: Number,
    options: Options,
    *,
    num_probes: int,
    stacklevel: int,
    name: str = "operator",
) -> WithDiagonal:
    """(K + ridge)⁻¹ y and the diagonal of (K + ridge)⁻¹, by products that both share."""
    n, dtype, columns = k.shape[0], jnp.dtype(k.dtype), y.shape[1]
    inverse = preconditioner_of(k, ridge, options)
    rng = np.random.default_rng([options.seed, 1])
    signs = rng.choice(np.array([-1, 1], dtype), (n, num_probes))
    both = np.concatenate([np.asarray(y), signs], axis=1)
    options = options._replace(preconditioner=inverse)
    solved = solve_system(k, both, ridge, options, stacklevel=stacklevel + 1, name=name)
    value, converged, residual, steps = solved.solution
    found, known = np.asarray(value)[:, columns:], np.zeros(n)
    if isinstance(inverse, LowRank):
        found = found - np.asarray(inverse(jnp.asarray(signs)))
        known = np.asarray(inverse.inverse, float)
        known = known - np.square(np.asarray(inverse.basis, float)).sum(axis=1)
    samples = found.astype(float) * signs
    mean = samples.mean(axis=1)
    of_y = Solution(value[:, :columns], converged[:columns], residual[:columns], steps)
    return WithDiagonal(
        solved._replace(solution=of_y, left=solved.left[:, :columns]),
        _bounded(known + mean, k, ridge),
        samples - mean[:, None],
        inverse,
    )


def _bounded(own: Float[np.ndarray, " n"], k: Operator, ridge: Number) -> Float[np.ndarray, " n"]:
    """Estimates within what the diagonal of K lets the inverse have."""
    ridges, prior = np.broadcast_to(np.asarray(ridge, float), own.shape), diagonal_of(k)
    least = 0.0 if prior is None else 1 / (np.asarray(prior, float) + ridges)
    with np.errstate(divide="ignore"):
        return np.clip(own, least, 1 / ridges)
