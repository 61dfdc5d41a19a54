"""Functions of an operator times vectors, f(K) b, from products alone: by Lanczos, each column in a
Krylov space of its own.

    f(K) b ≈ |b| V f(T) e_1,    K V = V T + β v e_mᵀ
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.compat import on_device
from ntk_jax.operators.lanczos import lanczos_steps
from ntk_jax.operators.symmetric import Operator, multiply
from ntk_jax.progress import progress_bar
from ntk_jax.small_programs import jit_by_size

STRIDE = 10
"""Steps between two looks at the error."""

Functions: TypeAlias = Callable[[Float[np.ndarray, " m"]], Float[np.ndarray, "T m"]]
"""Values of all functions at nodes."""


class Applied(NamedTuple):
    """f(K) b of every function f, relative errors of each column and function, the products, and
    the smallest and largest node.
    """

    value: Float[Array, "n T p"]
    error: Float[np.ndarray, "T p"]
    steps: int
    nodes: tuple[float, float]


def apply_functions(
    k: Operator,
    b: Float[Array, "n p"],
    functions: Functions,
    *,
    tol: float,
    max_steps: int,
    progress: bool,
) -> Applied:
    """f(K) b for several functions from one Krylov space.

    The error is estimated by what the last `STRIDE` steps changed, in units of the result.

    Args:
        k: a symmetric operator.
        b: columns.
        functions: of eigenvalues.
        tol: error to stop at.
        max_steps: products at most, and vectors of length n p that are held.
        progress: show a bar on long runs.
    """
    n, p = b.shape
    basis, vectors, size = _start(b)
    alphas, betas = np.zeros((0, p)), np.zeros((0, p))
    before = None
    max_steps = min(max_steps, n)
    with progress_bar(max_steps, "krylov", enabled=progress, delay=2.0) as bar:
        while True:
            step = len(alphas)
            if step == len(basis):
                basis = _grown(basis)
            product = multiply(k, vectors)
            basis, vectors, alpha, beta = lanczos_steps(basis, np.int32(step), vectors, product)
            alphas = np.concatenate([alphas, np.asarray(alpha, float)[None]])
            betas = np.concatenate([betas, np.asarray(beta, float)[None]])
            bar.update(1)
            done = step + 1 == max_steps or not betas[-1].any()
            if not done and (step + 1) % STRIDE:
                continue
            now, nodes = _coefficients(alphas, betas, functions)
            error = _change(before, now)
            if not betas[-1].any() or step + 1 == n:
                error = np.zeros_like(error)  # the space is whole
            if done or np.all(error <= tol):
                now = now * np.asarray(size, float)
                value = _combined(basis, on_device(now.astype(b.dtype)))
                return Applied(value, error, step + 1, nodes)
            before = now


@jit_by_size
def _start(
    b: Float[Array, "n p"],
) -> tuple[Float[Array, "m n p"], Float[Array, "n p"], Float[Array, " p"]]:
    size = jnp.sqrt(jnp.sum(b * b, axis=0))
    empty = jnp.zeros((2 * STRIDE, *b.shape), b.dtype)
    return empty, b / jnp.where(size > 0, size, 1)[None], size


@jit_by_size
def _grown(basis: Float[Array, "m n p"]) -> Float[Array, "m2 n p"]:
    return jnp.concatenate([basis, jnp.zeros_like(basis)])


def _coefficients(
    alphas: Float[np.ndarray, "m p"], betas: Float[np.ndarray, "m p"], functions: Functions
) -> tuple[Float[np.ndarray, "T m p"], tuple[float, float]]:
    """f(T) e_1 of every column, and the extreme nodes."""
    found, nodes = [], []
    for alpha, beta in zip(alphas.T, betas.T, strict=True):
        beside = beta[:-1]
        values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beside, 1) + np.diag(beside, -1))
        found.append((functions(values) * vectors[0]) @ vectors.T)
        nodes += [float(values[0]), float(values[-1])]
    return np.stack(found, axis=-1), (min(nodes), max(nodes))


def _change(
    before: Float[np.ndarray, "T m p"] | None, now: Float[np.ndarray, "T k p"]
) -> Float[np.ndarray, "T p"]:
    size = np.linalg.norm(now, axis=1)
    if before is None:
        return np.where(size > 0, np.inf, 0)
    change = now.copy()
    change[:, : before.shape[1]] -= before
    return np.linalg.norm(change, axis=1) / np.where(size > 0, size, 1)


@jit_by_size
def _combined(
    basis: Float[Array, "m n p"], coefficients: Float[Array, "T k p"]
) -> Float[Array, "n T p"]:
    held = basis[: coefficients.shape[1]]
    return jnp.einsum("mnp,tmp->ntp", held, coefficients, precision="highest")
