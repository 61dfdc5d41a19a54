"""Conjugate gradients to the end: chunk after chunk, each column until it converges or rounding
stops it, with a checkpoint after each.
"""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from ntk_jax.checks import Number
from ntk_jax.linalg import default_rcond
from ntk_jax.operators.checkpoint import Checkpoints, checkpoints
from ntk_jax.operators.conjugate_gradients import (
    Preconditioner,
    Renewed,
    State,
    System,
    chunk,
    renew,
    start,
)
from ntk_jax.operators.nystrom import LowRank, default_rank, nystrom, uniform
from ntk_jax.operators.symmetric import Operator
from ntk_jax.progress import Bar, progress_bar
from ntk_jax.small_programs import jit_by_size

CHUNK = 25
"""Steps between two true residuals, and two checkpoints."""

LOW_RANK = {"nystrom": nystrom, "uniform": uniform}


class Options(NamedTuple):
    """The keywords of `solve`."""

    preconditioner: str | Preconditioner = "nystrom"
    rank: int | None = None
    tol: float | None = None
    max_steps: int = 1000
    method: str = "auto"
    seed: int = 0
    checkpoint: str | Path | None = None
    progress: bool = True


class Found(NamedTuple):
    """For columns of norm 1: x, what is left of them, its norms, which columns rounding stopped."""

    value: Float[Array, "n m"]
    left: Float[Array, "n m"]
    sizes: Float[np.ndarray, " m"]
    stalled: Bool[np.ndarray, " m"]
    steps: int
    bounds: tuple[float, float] | None


def preconditioner_of(k: Operator, ridge: Number, options: Options) -> Preconditioner:
    """The preconditioner that the options name, or are."""
    name, n = options.preconditioner, k.shape[0]
    if not isinstance(name, str):
        return name
    rank = min(options.rank or default_rank(n), n)
    return LOW_RANK[name](k, ridge, rank, np.random.default_rng(options.seed))


def iterate(
    k: Operator, ridge: Number, b: Float[Array, "n m"], tol: float, options: Options
) -> Found:
    """(K + ridge) x = b for columns b of norm 1, by conjugate gradients.

    Raises:
        ValueError: a matrix that is not positive semi-definite, products that are not finite.
    """
    m = preconditioner_of(k, ridge, options)
    system = System(k, ridge, b, m)
    signature = _signature(b)
    problem = {
        "shape": [float(size) for size in b.shape],
        "y": np.asarray(signature, float).reshape(-1).tolist(),
        "diag_reg": np.asarray(ridge, float).reshape(-1).tolist(),
    }
    shows = options.progress and jax.process_index() == 0
    with checkpoints(options.checkpoint, problem) as saved:
        with progress_bar(options.max_steps, "solve", enabled=shows, delay=2.0) as bar:
            run = _Run(system, tol, options.max_steps, saved, bar)
            found = run.to_the_end()
    low, high = found.bounds or (math.nan, math.nan)
    if isinstance(m, LowRank):
        high = max(high, float(m.largest) + float(np.min(ridge)))
    return found._replace(bounds=(low, high))


@jit_by_size
def _signature(b: Float[Array, "n m"]) -> Float[Array, "2 m"]:
    """Numbers that tell right-hand sides apart."""
    wave = jnp.cos(jnp.arange(len(b), dtype=b.dtype) ** 2)
    return jnp.stack([jnp.sum(b * wave[:, None], axis=0), jnp.sum(b * wave[::-1, None], axis=0)])


class _Best(NamedTuple):
    """The best x of every column so far, what it leaves, and the norm of that."""

    value: Float[Array, "n m"]
    left: Float[Array, "n m"]
    size: Float[Array, " m"]
    stalled: Bool[Array, " m"]


class _Run:
    """Chunks until every column has converged, or rounding stops it, or steps are used up."""

    def __init__(
        self,
        system: System,
        tol: float,
        max_steps: int,
        saved: Checkpoints | None,
        bar: Bar,
    ) -> None:
        self.system, self.max_steps, self.saved, self.bar = system, max_steps, saved, bar
        self.tol = np.asarray(tol, system.b.dtype)

    def to_the_end(self) -> Found:
        """From the newest checkpoint, if there is one."""
        state = start(self.system, self.tol)
        best = _first_best(state)
        if self.saved is not None and (found := self.saved.restore((state, best))) is not None:
            state, best = self._resumed(State(*found[0]), _Best(*found[1]))
            self.bar.update(int(state.steps))
        while int(state.steps) < self.max_steps and np.any(np.asarray(state.active)):
            most = min(CHUNK, self.max_steps - int(state.steps))
            state = chunk(self.system, state, most, self.tol, self.bar.update)
            state, best = _kept(renew(self.system, state, self.tol), best, self.tol)
            self._check_definite(state)
            self.bar.set_postfix_str(f"residual {float(np.max(np.asarray(best.size))):.1e}")
            if self.saved is not None:
                self.saved.save(int(state.steps), (state, best))
        low, high = map(float, np.asarray(state.seen))
        sizes, stalled = np.asarray(best.size, float), np.asarray(best.stalled)
        return Found(best.value, best.left, sizes, stalled, int(state.steps), (low, high))

    def _resumed(self, state: State, best: _Best) -> tuple[State, _Best]:
        """The saved state; or from its best x anew, if the operator is not what it was then."""
        then = state._replace(value=best.value, residual=best.left)
        now = renew(self.system, then, self.tol)
        size, drift = np.asarray(now.size), np.asarray(now.drift)
        if not np.any(drift > np.maximum(size / 10, 1e-14)):
            return state, best
        left, stalled = now.state.residual, jnp.zeros_like(best.stalled)
        return now.state, _Best(best.value, left, now.size, stalled)

    def _check_definite(self, state: State) -> None:
        """Raise if a direction p had pᵀ A p < 0 beyond rounding."""
        low, high = map(float, np.asarray(state.seen))
        n, dtype = self.system.b.shape[0], self.system.b.dtype
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(
                "operator: expected finite products and a finite preconditioner; got NaN or "
                "infinity."
            )
        if low < -10 * default_rcond(n, dtype) * max(high, -low):
            raise ValueError(
                "operator + diag_reg: expected a positive semi-definite matrix; a direction of "
                f"conjugate gradients has pᵀ A p / pᵀ p = {low:.3g}, others up to {high:.3g}. "
                "Check that it is a kernel at all, or use diag_reg above its most negative "
                "eigenvalue."
            )


@jit_by_size
def _first_best(state: State) -> _Best:
    size = jnp.sqrt(jnp.sum(jnp.square(state.residual), axis=0))
    return _Best(state.value, state.residual, size, jnp.zeros_like(state.active))


@jit_by_size
def _kept(renewed: Renewed, best: _Best, tol: Array) -> tuple[State, _Best]:
    """The best of both, and which columns rounding stops: the recursion tells nothing of the
    residual any more, or has broken down, and the residual has not halved since.
    """
    state, size, drift, broken, _ = renewed
    stalled = best.stalled | (
        (size > tol) & ((drift > size / 2) | broken) & ~(size < best.size / 2)
    )
    better = size < best.size
    value = jnp.where(better[None], state.value, best.value)
    left = jnp.where(better[None], state.residual, best.left)
    state = state._replace(active=state.active & ~stalled)
    return state, _Best(value, left, jnp.where(better, size, best.size), stalled)
