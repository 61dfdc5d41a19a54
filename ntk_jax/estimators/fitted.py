"""A fitted kernel machine: values, variances and influences at new rows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cho_solve, solve_triangular

from ntk_jax.estimators.choice import Kernel
from ntk_jax.estimators.kernels import cross_kernel, kernel_of_rows, training_kernel
from ntk_jax.estimators.ridges import Solution, factored, inverse_diagonal
from ntk_jax.estimators.rows import Rows, Scaler
from ntk_jax.estimators.sources import Source


class Influence(NamedTuple):
    """The training rows that move predictions most, largest first.

    `rows` (n, top) are positions in the training data, `change` (n, top) says by how much the
    prediction would fall if that row were removed.
    """

    rows: Int[np.ndarray, "n top"]
    change: Float[np.ndarray, "n top"]


class Fitted:
    """What predictions need. The Cholesky factor (n, n) is not pickled: it is computed again."""

    def __init__(self, rows: Rows, kernel: Kernel, solution: Solution) -> None:
        self.scaler: Scaler = kernel.scaler
        self.source: Source = kernel.source
        self.unit, self.x = kernel.unit, kernel.x
        self.root, self.first = np.sqrt(rows.weights), rows.first
        self.ridge, self.amplitude = solution.ridge, solution.amplitude
        self.alpha, self.errors = solution.alpha, solution.errors
        self._factor: np.ndarray | None = solution.factor

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_factor": None}

    def values(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n O"]:
        """K(x, x_train) α."""
        return self._cross(X) @ self.alpha

    def values_and_variances(
        self, X: Float[np.ndarray, "n d"]
    ) -> tuple[Float[np.ndarray, "n O"], Float[np.ndarray, " n"]]:
        """Also the posterior variance of a new observation, for targets of unit amplitude.

        K(x, x) + r - K(x, x_train) (K + r W⁻¹)⁻¹ K(x_train, x)
        """
        k = self._cross(X)
        white = solve_triangular(self.factor, (k * self.root).T, lower=True, check_finite=False)
        prior = kernel_of_rows(self.source, self.scaler(X)) / self.unit
        explained = np.einsum("ij,ij->j", white, white)
        return k @ self.alpha, np.maximum(prior - explained, 0) + self.ridge

    def variances_left_out(self) -> Float[np.ndarray, " n"]:
        """The same variance at training rows, of fits without them: 1 / G_ii, with r for r / w."""
        own = inverse_diagonal(self.factor) * self.root**2
        return 1 / own - self.ridge / self.root**2 + self.ridge

    def influence(
        self, X: Float[np.ndarray, "n d"], output: Int[np.ndarray, " n"], top: int
    ) -> Influence:
        """What one output of each row owes to each training row: exactly, by the same algebra.

        Removing row j moves every prediction as if its target became its left-out prediction:

            f(x) - f_(-j)(x) = (K(x, x_train) G)_j (y_j - f_(-j)(x_j)),    G = (K + r W⁻¹)⁻¹
        """
        k = (self._cross(X) * self.root).T
        shares = cho_solve((self.factor, True), k, check_finite=False).T * self.root
        change = shares * self.errors[:, output].T
        order = np.argsort(-np.abs(change), axis=1, kind="stable")[:, :top]
        return Influence(self.first[order], np.take_along_axis(change, order, axis=1))

    @property
    def factor(self) -> np.ndarray:
        """The lower Cholesky factor of S K S + r."""
        if self._factor is None:
            k = training_kernel(self.source, self.x) / self.unit
            self._factor = factored(k, self.root**2, self.ridge)
        return self._factor

    def _cross(self, X: np.ndarray) -> np.ndarray:
        return cross_kernel(self.source, self.scaler(X), self.x) / self.unit
