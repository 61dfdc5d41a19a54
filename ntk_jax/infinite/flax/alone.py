"""What belongs to each example alone: computed for some at a time, and cut into tiles."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.examples import Examples, num_rows
from ntk_jax.loops.packing import Packing
from ntk_jax.loops.rolled import Rolled
from ntk_jax.tiling import even, pad_rows

# What belongs to each example, and numbers that tell equal rows, if any.
Side: TypeAlias = tuple[list[Array], Array | None]
Packs: TypeAlias = tuple[list[Array], ...]  # of x1 and x2; of x1 alone where x2 is None
Cut: TypeAlias = Callable[[Array, int], Side]  # of so many examples from one on


class Alone(NamedTuple):
    """What belongs to each example, packed or not, given its leaves."""

    program: Rolled
    shared: list[Array]
    packing: Packing

    def of_one(self, *x: Array) -> list[Array]:
        """Of one, not packed."""
        return self.program(*self.shared, *x)

    def packed(self, *x: Array) -> list[Array]:
        """Of one."""
        return self.packing.packed(self.of_one(*x))

    def of_all(self, x1: Examples, x2: Examples | None, most: int) -> Packs:
        """Of both sides, packed, by one program for both if they are few."""
        n1 = num_rows(x1)
        if x2 is None:
            return (self._some_at_once(x1, most),)
        if n1 + num_rows(x2) > most:
            return self._some_at_once(x1, most), self._some_at_once(x2, most)
        both = jax.tree.map(lambda *x: jnp.concatenate(x), x1, x2)
        found = self._some_at_once(both, most)
        return [a[:n1] for a in found], [a[n1:] for a in found]

    def _some_at_once(self, x: Examples, most: int) -> list[Array]:
        """Of some at a time, computed again for their derivative."""
        n, leaves, f = num_rows(x), jax.tree.leaves(x), jax.vmap(self.packed)
        if n <= most:
            return f(*leaves)
        rows = even(n, most)
        turns = [a.reshape(-1, rows, *a.shape[1:]) for a in pad_rows(leaves, rows)]
        found = lax.map(lambda x: jax.checkpoint(f)(*x), turns)
        return [a.reshape(-1, *a.shape[2:])[:n] for a in found]

    def cut(
        self, x: Examples, packs: list[Array] | None, rows: Array | None, t: int, on_cpu: bool
    ) -> Cut:
        """Of all examples, which are filled up to whole tiles of t: from `packs`, or computed when
        it is asked for.
        """
        some = lax.dynamic_slice_in_dim
        filled, rows = pad_rows((jax.tree.leaves(x) if packs is None else packs, rows), t)
        anew = lambda i, t: jax.vmap(self.of_one)(*(some(a, i, t) for a in filled))
        own = anew if packs is None else self.packing.cutter(filled, on_cpu)
        return lambda i, t: (own(i, t), None if rows is None else some(rows, i, t))
