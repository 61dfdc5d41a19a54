"""Fits of more rows than matrices have room for: the kernel is multiplied, and never factored.

Where the memory holds the kernel once, it is made once; else every product makes it anew.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_jax.compat import double_precision
from ntk_jax.data.scaling import scaler
from ntk_jax.estimators.choice import Choice, mean_of_diagonal
from ntk_jax.estimators.fitted import Fitted
from ntk_jax.estimators.kernels import kernel_of_rows, padded_size
from ntk_jax.estimators.ridges import most_probable_amplitude
from ntk_jax.estimators.rows import Rows
from ntk_jax.estimators.sources import MLPSource
from ntk_jax.linalg import default_rcond
from ntk_jax.memory import free_bytes
from ntk_jax.operators.conjugate_gradients import Preconditioner
from ntk_jax.operators.inverse_diagonal import PROBES, solve_with_diagonal
from ntk_jax.operators.iteration import Options, preconditioner_of
from ntk_jax.operators.solve import solve_system
from ntk_jax.operators.symmetric import Operator, as_operator
from ntk_jax.scale.kernel_operator import kernel_operator

ROWS = 256
"""Right-hand sides that are solved for at a time."""

DOUBLE_TOL = 1e-6
"""Relative residual in float64; in float32 that of `solve`, 1e-3."""


class System(NamedTuple):
    """K + r / w in units of K, and its preconditioner."""

    k: Operator
    ridge: Float[np.ndarray, " n"]
    preconditioner: Preconditioner


class Multiplied(Fitted):
    """By conjugate gradients; what rows miss when left out is estimated from random probes.

    In float32, unless the ridge is so small that its rounding would show. The operator is not
    pickled: it is made again.
    """

    def __init__(self, rows: Rows, choice: Choice, memory_limit: float | None) -> None:
        scale = scaler(rows.x, rows.weights, choice.scale)
        own = kernel_of_rows(choice.source, scale(rows.x))
        unit = mean_of_diagonal(own, rows)
        super().__init__(rows, scale, choice.source, unit, choice.ridge)
        self.memory_limit, self._system = memory_limit, None
        with self._precision():
            k, ridge = self._operator(), self._ridges()
            y = jnp.asarray(rows.y, self._dtype)
            found = solve_with_diagonal(
                k, y, ridge, self._options(), num_probes=PROBES, stacklevel=6, name="X"
            )
        self._system = System(k, ridge, found.preconditioner)
        value, _, residual, self.steps = found.solved.solution
        self.residual = float(residual.max())
        self.alpha = np.asarray(value, float) * unit
        self._own = found.diagonal * unit
        self.errors = found.left_out(np.asarray(value, float))[0]
        quadratic = float(np.sum(rows.y * self.alpha)) / rows.y.shape[1]
        self.amplitude = most_probable_amplitude(
            quadratic, rows.weights, rows.scatter, choice.ridge
        )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_system": None}

    def _explained(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " m"]:
        """k G kᵀ, from below: what the solves leave adds to first order, and falls short by the
        second.
        """
        parts = []
        for rows in self._some(k):
            gain, left = self._solved(rows)
            parts.append(np.einsum("ij,ji->i", rows, gain) + np.einsum("ji,ji->i", gain, left))
        return np.concatenate(parts)

    def _shares(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
        return np.concatenate([self._solved(rows)[0].T for rows in self._some(k)])

    def _own_inverse(self) -> Float[np.ndarray, " n"]:
        return self._own

    def _some(self, k: Float[np.ndarray, "m n"]) -> list[Float[np.ndarray, "b n"]]:
        return [k[start : start + ROWS] for start in range(0, len(k), ROWS)]

    def _solved(
        self, k: Float[np.ndarray, "b n"]
    ) -> tuple[Float[np.ndarray, "n b"], Float[np.ndarray, "n b"]]:
        """G kᵀ, and what that leaves of kᵀ."""
        with self._precision():
            system = self._restored()
            options = self._options()._replace(preconditioner=system.preconditioner, progress=False)
            # Columns of 0, which need no step, fill up to few sizes: programs are shared.
            columns = np.zeros((k.shape[1], padded_size(len(k))), self._dtype)
            columns[:, : len(k)] = k.T
            b = jnp.asarray(columns)
            found = solve_system(system.k, b, system.ridge, options, stacklevel=7, name="X")
        gain, left = (
            np.asarray(part, float)[:, : len(k)] for part in (found.solution.value, found.left)
        )
        return gain * self.unit, left

    def _restored(self) -> System:
        if self._system is None:
            k, ridge = self._operator(), self._ridges()
            self._system = System(k, ridge, preconditioner_of(k, ridge, self._options()))
        return self._system

    def _operator(self) -> Operator:
        """The kernel of the training rows: held, if there is room for it."""
        size = len(self.x) ** 2 * self._dtype.itemsize
        room = self.memory_limit
        if room is None:
            free = free_bytes()
            room = np.inf if free is None else free / 2
        kernel_fn, x, kind = self.source.traceable(self.x.astype(self._dtype))
        storage = "memory" if size <= room else "recompute"
        k: Any = kernel_operator(kernel_fn, x, kernel=kind, storage=storage)
        return as_operator("X", k)

    def _ridges(self) -> Float[np.ndarray, " n"]:
        return (self.ridge * self.unit / self.root**2).astype(self._dtype)

    @property
    def _dtype(self) -> np.dtype:
        least = default_rcond(len(self.x), jnp.dtype(jnp.float32))
        single = self.ridge >= least or not isinstance(self.source, MLPSource)
        return np.dtype(np.float32 if single else np.float64)

    def _options(self) -> Options:
        tol = None if self._dtype == np.float32 else DOUBLE_TOL
        return Options(tol=tol, method="conjugate_gradients")

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._dtype == np.float32 else double_precision()
