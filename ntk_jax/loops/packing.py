"""What belongs to an example, in few arrays: every array that a loop cuts or fills is some
operations to compile.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate, pairwise

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.platforms import held_by_a_loop


class Packing:
    """How arrays like these, of one example, are put side by side: numbers with numbers, larger
    ones with larger ones.
    """

    def __init__(self, like: Sequence[jax.ShapeDtypeStruct]):
        self.shapes = [a.shape for a in like]
        self.members: dict[tuple[bool, Hashable], list[int]] = {}
        for i, a in enumerate(like):
            self.members.setdefault((math.prod(a.shape) == 1, a.dtype), []).append(i)
        self.of_numbers = [number for number, _ in self.members]

    def packed(self, arrays: Sequence[Array]) -> list[Array]:
        """Those of one example."""
        flat = [jnp.ravel(a) for a in arrays]
        return [jnp.concatenate([flat[i] for i in of]) for of in self.members.values()]

    def unpacked(self, packs: Sequence[Array]) -> list[Array]:
        """Those of all examples, which are the first axis."""
        found: dict[int, Array] = {}
        for pack, of in zip(packs, self.members.values(), strict=True):
            ends = accumulate((math.prod(self.shapes[i]) for i in of), initial=0)
            for i, (low, high) in zip(of, pairwise(ends), strict=True):
                found[i] = pack[:, low:high].reshape(len(pack), *self.shapes[i])
        return [found[i] for i in range(len(self.shapes))]

    def cutter(self, packs: Sequence[Array], on_cpu: bool) -> Callable[[Array, int], list[Array]]:
        """(start, size) -> the arrays of so many examples.

        On a CPU what is cut is made before it is used, or XLA would cut for each entry that reads
        it, and not vectorize that; and entries that are read together are next to each other: of
        numbers those of all examples.
        """
        axes = [int(number and on_cpu) for number in self.of_numbers]
        stored = [pack.T if axis else pack for pack, axis in zip(packs, axes, strict=True)]

        def cut(start: Array, size: int) -> list[Array]:
            some = [
                lax.dynamic_slice_in_dim(pack, start, size, axis)
                for pack, axis in zip(stored, axes, strict=True)
            ]
            some = held_by_a_loop(some) if on_cpu else some
            return self.unpacked([a.T if axis else a for a, axis in zip(some, axes, strict=True)])

        return cut
