"""Programs of few entries by NumPy: XLA takes longer to compile them than NumPy for many calls."""

from collections.abc import Callable, Sequence
from functools import lru_cache, update_wrapper

import jax
import numpy as np

from ntk_jax.compat import given_to_device
from ntk_jax.host.arrangements import Value
from ntk_jax.host.program import QUICK, HostProgram, host_program
from ntk_jax.platforms import is_the_host
from ntk_jax.small_programs import ARRAYS, are_on_cpu, jit_by_size

FEW = 2**14
"""Entries of the largest array up to which NumPy is tried."""


class by_numpy_if_few:  # noqa: N801  # it stands where jit_by_size would
    """`program`, by NumPy where it has few entries, its arrays are the host's, and NumPy knows its
    operations and is quick with them; elsewhere `otherwise`, which is the program.
    """

    def __init__(self, program: jit_by_size, otherwise: Callable[..., Value] | None = None) -> None:
        self.program, self.otherwise = program, otherwise or program
        self.on_host = lru_cache(maxsize=256)(self._on_host)
        update_wrapper(self, program)

    def __call__(self, *args: Value) -> Value:
        """Its results, as arrays of JAX."""
        found = self._by_numpy(args)
        return self.otherwise(*args) if found is None else found

    def _by_numpy(self, args: tuple[Value, ...]) -> Value:
        """The same; None where it is left to XLA."""
        static = self.program.static
        fixed = tuple(args[i] for i in static)
        leaves, structure = jax.tree.flatten([a for i, a in enumerate(args) if i not in static])
        if not (is_the_host() and all(map(_is_array, leaves))):
            return None
        if self.program.entries_of(leaves, args) > FEW or not are_on_cpu(leaves):
            return None
        kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        x64: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        found = self.on_host(fixed, structure, kinds, x64)
        if found is None:
            return None
        program, results = found
        new = [np.array(a) for a in program(*map(np.asarray, leaves))]  # no view of an argument
        return jax.tree.unflatten(results, given_to_device(new))

    def _on_host(
        self, fixed: Value, structure: Value, kinds: Sequence[Value], x64: bool
    ) -> tuple[HostProgram, Value] | None:
        args: list[Value] = jax.tree.unflatten(
            structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds]
        )
        for place, value in zip(self.program.static, fixed, strict=True):
            args.insert(place, value)
        # what is traced here is not traced again where XLA compiles it
        traced = self.program.large.trace(*args)
        closed = traced.jaxpr
        # JAX 0.6 makes arguments of values from someone's trace
        own = len(closed.jaxpr.invars) == len(kinds)
        program = host_program(closed, QUICK) if own else None
        return None if program is None else (program, jax.tree.structure(traced.out_info))


def _is_array(leaf: object) -> bool:
    """Of numbers, and not of random keys."""
    return isinstance(leaf, ARRAYS) and isinstance(leaf.dtype, np.dtype)
