"""A progress bar where tqdm is installed (extra `progress`), nothing where it is not: results never
depend on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

# Seconds before the bar of a solver shows, and its steps between two updates.
SOLVER_DELAY, SOLVER_STEPS = 1.0, 50

_solver_bars: list[Any] = []


Bar: TypeAlias = Any
"""What has `update(n)` and `set_postfix_str(text, refresh)`."""


class _Silent:
    def update(self, num_steps: int) -> None:
        """Advance."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Show a short status."""


@contextmanager
def progress_bar(
    total: int, description: str, *, enabled: bool, delay: float = 0.0
) -> Iterator[Bar]:
    """Yield a bar with `update(n)` and `set_postfix_str(text, refresh)`, removed when done."""
    try:
        from tqdm import tqdm
    except ImportError:
        enabled = False
    if not enabled:
        yield _Silent()
        return
    options: dict[str, Any] = {
        "leave": False,
        "dynamic_ncols": True,
        "mininterval": 0.5,
        "delay": delay,
    }
    with tqdm(total=total, desc=description, **options) as bar:
        yield bar


@contextmanager
def solver_meter(diffrax: Any, description: str, *, enabled: bool) -> Iterator[Any]:
    """Yield a diffrax progress meter whose bar shows only on long solves."""
    with progress_bar(100, description, enabled=enabled, delay=SOLVER_DELAY) as bar:
        if isinstance(bar, _Silent):
            yield diffrax.NoProgressMeter()
            return
        _solver_bars.append(bar)
        try:
            yield _meter_class(diffrax)()
        finally:
            # Callbacks of the solve may still be on their way to this bar.
            jax.effects_barrier()
            _solver_bars.remove(bar)


def _advance(progress: Any) -> None:
    """Move the bar of the solve that runs to a fraction of the whole."""
    if _solver_bars:
        bar = _solver_bars[-1]
        bar.update(round(100 * float(progress), 1) - bar.n)


@cache
def _meter_class(diffrax: Any) -> Any:
    """One class, and no state but the number of steps: solves compile once, whichever bar they
    move.
    """

    class Meter(diffrax.AbstractProgressMeter):
        def init(self) -> jax.Array:
            return jnp.asarray(0)

        def step(self, state: jax.Array, progress: jax.Array) -> jax.Array:
            due = state % SOLVER_STEPS == 0
            jax.lax.cond(due, lambda p: jax.debug.callback(_advance, p), lambda p: None, progress)
            return state + 1

        def close(self, state: jax.Array) -> None:
            del state

    return Meter
