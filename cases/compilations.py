"""The programs that XLA compiles: how many, by the events of `jax.monitoring`, and how well."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

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


@contextmanager
def optimized(much: bool) -> Iterator[None]:
    """What XLA does with programs that are compiled in this context, and by processes that are
    started there. The flags of `make` stay, with which loops are vectorized all the same.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, not much)
    try:
        with mock.patch.dict(os.environ, {name.upper(): str(int(not much))}):
            yield
    finally:
        jax.config.update(name, before)
