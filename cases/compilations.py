"""Counting the programs that XLA compiles, by the events of `jax.monitoring`."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_SECONDS: list[float] = []


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED:
        _SECONDS.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of each program that is compiled in this context, in a list that fills at its
    end.
    """
    found: list[float] = []
    before = len(_SECONDS)
    yield found
    found += _SECONDS[before:]
