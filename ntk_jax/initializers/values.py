"""What an array inside an initializer can be: a constant, a random key, random words, entries of a
known law.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ntk_jax.initializers.laws import Law

# 0-d where all entries of an array are alike, else one per entry: np.ndarray | np.generic | float,
# but mypy knows no arithmetic of np.generic.
Entries: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Constant:
    """The same values at every draw; a 0-d `value` stands for an array that is the same
    everywhere.
    """

    value: Entries


@dataclass(frozen=True)
class Key:
    """A random key, or an array of them; equal `ident` means equal keys, and `loops` are the scans
    it varies in.
    """

    ident: int
    loops: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Words:
    """An elementwise function of one uniform random word of `bits` bits per entry."""

    bits: int
    fn: Callable[[Any], Any]
    source: Key


@dataclass(frozen=True, eq=False)
class Random:
    """Entries shift + scale x, x of one `law`, independent of each other.

    Attributes:
        law: the law of x.
        shift: 0-d, or one per entry.
        scale: 0-d, or one per entry.
        sources: the keys it was drawn with.
        layout: two arrays of equal sources and layout hold the same draw at the same place.
    """

    law: Law
    sources: frozenset[Key]
    layout: int
    shift: Entries = 0.0
    scale: Entries = 1.0

    @property
    def mean(self) -> Entries:
        """Of an entry: 0-d, or one per entry."""
        return self.shift + self.scale * self.law.mean

    @property
    def variance(self) -> Entries:
        """Of an entry: 0-d, or one per entry."""
        return self.scale**2 * self.law.variance

    @property
    def uniform(self) -> bool:
        """Whether all entries have the same law."""
        return np.ndim(self.shift) == 0 and np.ndim(self.scale) == 0

    def affine(self, shift: Entries, scale: Entries) -> "Random":
        """These entries times `scale`, plus `shift`."""
        return replace(self, shift=shift + scale * self.shift, scale=scale * self.scale)

    def value(self, z: Any) -> Any:
        """The entries at the points z of the law's base."""
        return self.shift + self.scale * self.law.value(z)


@dataclass(frozen=True)
class Unknown:
    """No law is known, because of `reason`; `tag` follows the factors of a QR decomposition."""

    reason: str
    tag: tuple[Any, ...] = ()


Value: TypeAlias = Constant | Key | Words | Random | Unknown
# Operands of an equation, of which a rule knows or asks what they are.
Values: TypeAlias = list[Any]
