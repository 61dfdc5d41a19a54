"""A fitted kernel machine: values, variances and influences at new rows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cho_solve, solve_triangular

from ntk_jax.data.scaling import Scaler
from ntk_jax.estimators.choice import Kernel
from ntk_jax.estimators.kernels import cross_kernel, kernel_of_rows, rows_at_once, training_kernel
from ntk_jax.estimators.ridges import Solution, factored, inverse_diagonal
from ntk_jax.estimators.rows import Rows
from ntk_jax.estimators.sources import Source
from ntk_jax.progress import progress_bar


class Influence(NamedTuple):
    """The training rows that move predictions most, largest first.

    `rows` (n, top) are positions in the training data, `change` (n, top) says by how much the
    prediction would fall if that row were removed.
    """

    rows: Int[np.ndarray, "n top"]
    change: Float[np.ndarray, "n top"]


class Fitted:
    """What predictions need. Those who inherit say how systems with the kernel are solved.

    With the kernel K of the training rows in units of its mean diagonal, G = (K + r W⁻¹)⁻¹.
    """

    alpha: Float[np.ndarray, "n O"]
    errors: Float[np.ndarray, "n O"]
    amplitude: float

    def __init__(
        self, rows: Rows, scaler: Scaler, source: Source, unit: float, ridge: float
    ) -> None:
        self.scaler, self.source, self.unit = scaler, source, unit
        self.x = scaler(rows.x)
        self.root, self.first, self.ridge = np.sqrt(rows.weights), rows.first, ridge
        self.memory_limit: float | None = None

    def values(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n O"]:
        """K(x, x_train) α."""
        return np.concatenate([k @ self.alpha for _, k in self._cross(X)])

    def values_and_variances(
        self, X: Float[np.ndarray, "n d"]
    ) -> tuple[Float[np.ndarray, "n O"], Float[np.ndarray, " n"]]:
        """Also the posterior variance of a new observation, for targets of unit amplitude.

        K(x, x) + r - K(x, x_train) G K(x_train, x)
        """
        parts = [(k @ self.alpha, self._explained(k)) for _, k in self._cross(X)]
        values, explained = (np.concatenate(part) for part in zip(*parts, strict=True))
        prior = kernel_of_rows(self.source, self.scaler(X)) / self.unit
        return values, np.maximum(prior - explained, 0) + self.ridge

    def variances_left_out(self) -> Float[np.ndarray, " n"]:
        """The same variance at training rows, of fits without them: 1 / G_ii, with r for r / w."""
        return 1 / self._own_inverse() - self.ridge / self.root**2 + self.ridge

    def influence(
        self, X: Float[np.ndarray, "n d"], output: Int[np.ndarray, " n"], top: int
    ) -> Influence:
        """What one output of each row owes to each training row: by the algebra of leave-one-out.

        Removing row j moves every prediction as if its target became its left-out prediction:

            f(x) - f_(-j)(x) = (K(x, x_train) G)_j (y_j - f_(-j)(x_j))
        """
        parts = []
        for rows, k in self._cross(X):
            change = self._shares(k) * self.errors[:, output[rows]].T
            order = np.argsort(-np.abs(change), axis=1, kind="stable")[:, :top]
            parts.append((self.first[order], np.take_along_axis(change, order, axis=1)))
        return Influence(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _cross(
        self, X: Float[np.ndarray, "n d"]
    ) -> Iterator[tuple[slice, Float[np.ndarray, "m n_train"]]]:
        """The kernel with the training rows, of some rows at a time."""
        x, most = self.scaler(X), rows_at_once(len(self.x), self.memory_limit)
        with progress_bar(len(x), "rows", enabled=len(x) > most, delay=2.0) as bar:
            for start in range(0, len(x), most):
                rows = slice(start, min(start + most, len(x)))
                yield rows, cross_kernel(self.source, x[rows], self.x) / self.unit
                bar.update(rows.stop - start)

    def _explained(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " m"]:
        """The diagonal of k G kᵀ."""
        raise NotImplementedError

    def _shares(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
        """k G."""
        raise NotImplementedError

    def _own_inverse(self) -> Float[np.ndarray, " n"]:
        """The diagonal of G."""
        raise NotImplementedError


class Factored(Fitted):
    """By Cholesky. The factor (n, n) is not pickled: it is computed again."""

    def __init__(self, rows: Rows, kernel: Kernel, solution: Solution) -> None:
        super().__init__(rows, kernel.scaler, kernel.source, kernel.unit, solution.ridge)
        self.alpha, self.errors = solution.alpha, solution.errors
        self.amplitude = solution.amplitude
        self._factor: np.ndarray | None = solution.factor

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_factor": None}

    @property
    def factor(self) -> np.ndarray:
        """The lower Cholesky factor of S K S + r."""
        if self._factor is None:
            k = training_kernel(self.source, self.x) / self.unit
            self._factor = factored(k, self.root**2, self.ridge)
        return self._factor

    def _explained(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " m"]:
        white = solve_triangular(self.factor, (k * self.root).T, lower=True, check_finite=False)
        return np.einsum("ij,ij->j", white, white)

    def _shares(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
        found = cho_solve((self.factor, True), (k * self.root).T, check_finite=False)
        return found.T * self.root

    def _own_inverse(self) -> Float[np.ndarray, " n"]:
        return inverse_diagonal(self.factor) * self.root**2
