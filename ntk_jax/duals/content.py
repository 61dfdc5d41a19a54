"""Functions as what they are: equal if they compute the same, and what was found out about them
remembered by it.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from ntk_jax.closures.fingerprint import Reading, read
from ntk_jax.closures.programs import remember

T = TypeVar("T")


def by_content(phi: Callable[..., Any]) -> Callable[..., Any]:
    """`phi`, equal to every function that computes the same: those of this library are by
    themselves.
    """
    own = type(phi).__module__.startswith("ntk_jax.")
    return phi if own else read(phi)


def remembered(phi: Callable[..., Any], rest: Hashable, make: Callable[[], T]) -> T:
    """`make()`, remembered by what `phi` is and by `rest`; it must not hold `phi`, which may
    change.
    """
    phi = by_content(phi)
    if isinstance(phi, Reading):
        return remember(phi, rest, lambda _: make())
    return remember((), (phi, rest), lambda _: make())
