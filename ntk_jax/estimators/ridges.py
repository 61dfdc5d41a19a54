"""Ridge regression with a kernel on the host, by LAPACK: nothing is compiled.

With weights w the targets have noise r / w. Everything is done with S K S, S = diag(sqrt(w)):

    (K + r W⁻¹)⁻¹ = S (S K S + r)⁻¹ S
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_solve, cholesky, lapack


class Candidates(NamedTuple):
    """Of every ridge: what each row misses when it is left out, and the log evidence."""

    ridges: Float[np.ndarray, " R"]
    errors: Float[np.ndarray, "R n O"]
    evidence: Float[np.ndarray, " R"]


class Solution(NamedTuple):
    """At one ridge: α = (K + r W⁻¹)⁻¹ y, the lower Cholesky factor of S K S + r, what rows miss
    when left out, the factor a of the most probable prior covariance a K, and the log evidence.
    """

    ridge: float
    alpha: Float[np.ndarray, "n O"]
    factor: Float[np.ndarray, "n n"]
    errors: Float[np.ndarray, "n O"]
    amplitude: float
    evidence: float

    def as_candidates(self) -> Candidates:
        """The only candidate."""
        return Candidates(np.array([self.ridge]), self.errors[None], np.array([self.evidence]))


def all_ridges(
    k: Float[np.ndarray, "n n"],
    y: Float[np.ndarray, "n O"],
    weights: Float[np.ndarray, " n"],
    scatter: Float[np.ndarray, " O"],
    ridges: Float[np.ndarray, " R"],
) -> Candidates:
    """All ridges from one eigendecomposition S K S = U diag(s) Uᵀ.

    y_i - f_(-i)(x_i) = β_i / (sqrt(w_i) H_ii),    H = (S K S + r)⁻¹,    β = H S y
    """
    root = np.sqrt(weights)
    s, U = np.linalg.eigh(root[:, None] * k * root)
    s = np.maximum(s, 0)
    targets = U.T @ (root[:, None] * y)
    inverse = 1 / (s + ridges[:, None])  # (R, n)
    own = inverse @ np.square(U).T
    scaled = inverse.T[:, :, None] * targets[:, None, :]  # (n, R, O)
    beta = np.moveaxis((U @ scaled.reshape(len(k), -1)).reshape(scaled.shape), 1, 0)
    errors = beta / (root * own)[:, :, None]
    fit = np.einsum("rj,jo->r", inverse, np.square(targets)) / y.shape[1]
    evidence = np.array(
        [
            _evidence(q, float(np.log(s + r).sum()), weights, scatter, float(r))
            for q, r in zip(fit, ridges, strict=True)
        ]
    )
    return Candidates(ridges, errors, evidence)


def solve(
    k: Float[np.ndarray, "n n"],
    y: Float[np.ndarray, "n O"],
    weights: Float[np.ndarray, " n"],
    scatter: Float[np.ndarray, " O"],
    ridge: float,
) -> Solution:
    """One ridge, by Cholesky.

    Raises:
        ValueError: K + r W⁻¹ not positive definite.
    """
    root = np.sqrt(weights)
    factor = factored(k, weights, ridge)
    beta = cho_solve((factor, True), root[:, None] * y, check_finite=False)
    own = inverse_diagonal(factor)
    errors = beta / (root * own)[:, None]
    quadratic = float(np.sum(root[:, None] * y * beta)) / y.shape[1]
    amplitude = most_probable_amplitude(quadratic, weights, scatter, ridge)
    log_det = 2 * float(np.log(np.diagonal(factor)).sum())
    evidence = _evidence(quadratic, log_det, weights, scatter, ridge)
    return Solution(ridge, root[:, None] * beta, factor, errors, amplitude, evidence)


def factored(
    k: Float[np.ndarray, "n n"], weights: Float[np.ndarray, " n"], ridge: float
) -> Float[np.ndarray, "n n"]:
    """The lower Cholesky factor of S K S + r."""
    root = np.sqrt(weights)
    matrix = root[:, None] * k * root
    matrix[np.diag_indices_from(matrix)] += ridge
    try:
        return cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"ridge: expected large enough for a positive definite kernel; got {ridge:g} in units "
            "of its mean diagonal, which rounding exceeds. Use a larger one, or 'auto'."
        ) from None


def inverse_diagonal(factor: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """The diagonal of (L Lᵀ)⁻¹."""
    inverse, info = lapack.dtrtri(factor, lower=1)
    assert info == 0
    return np.einsum("ji,ji->i", inverse, inverse)


def most_probable_amplitude(
    quadratic: float, weights: np.ndarray, scatter: np.ndarray, ridge: float
) -> float:
    """The most probable variance: the targets are N(0, a (K + r W⁻¹)), also inside equal rows."""
    return (quadratic + float(scatter.mean()) / ridge) / float(weights.sum())


def _evidence(
    quadratic: float,
    log_det: float,
    weights: np.ndarray,
    scatter: np.ndarray,
    ridge: float,
) -> float:
    """log p(y) per output at the best amplitude, without what does not depend on the kernel."""
    total, n = float(weights.sum()), len(weights)
    amplitude = most_probable_amplitude(quadratic, weights, scatter, ridge)
    amplitude = max(amplitude, np.finfo(float).tiny)
    return -(total * np.log(amplitude) + log_det + (total - n) * np.log(ridge)) / 2
