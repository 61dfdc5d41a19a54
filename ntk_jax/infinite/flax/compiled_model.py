"""What is compiled for a model and kept: everything that is expensive, by shape of an example."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from ntk_jax.checks import all_finite
from ntk_jax.closures.programs import limits, remember
from ntk_jax.compat import ambient_mesh, is_concrete
from ntk_jax.infinite.flax.batch import Pairs
from ntk_jax.infinite.flax.observed import Observer, out_of_range
from ntk_jax.infinite.flax.reading import Reading
from ntk_jax.infinite.flax.traced_model import Duals, Program
from ntk_jax.types import Kernels


class CompiledProgram:
    """The kernels of one program, traced for examples of one shape and dtype."""

    def __init__(self, program: Program):
        self.program, self.observer = program, Observer(program)
        self.pairs: dict[int | None, Pairs] = {}
        self.explained: dict[Duals, Any] = {}

    def kernels(
        self,
        x1: Array,
        x2: Array | None,
        num_samples: int | None,
        keys: Sequence[Array | None],
        memory_limit: int | None,
    ) -> list[Kernels]:
        """One estimate for each key, of that many samples."""
        duals = self.observer.duals(x1, x2, keys[0])
        # Groups of fewer samples, for a standard error, are other programs of the same trace.
        if num_samples not in self.pairs:
            self.pairs[num_samples] = Pairs(replace(self.program, num_samples=num_samples))
        pairs = self.pairs[num_samples]
        return [_within_range(*pairs(x1, x2, duals, memory_limit, key)) for key in keys]


class CompiledModel:
    """The programs of one model, made when they are asked for, and shared with equal models. Copied
    and pickled as what it was made from: what was traced and compiled is made again.
    """

    def __init__(self, reading: Reading, num_samples: int | None):
        self.made_from = (reading, num_samples)
        self.network = reading.network()
        self.programs: dict[Any, CompiledProgram] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledModel, self.made_from

    def program(self, x: Array) -> CompiledProgram:
        """That for examples like the rows of x."""
        # The default precision is that of what the model makes itself.
        traced_for = (x.shape[1:], x.dtype, jnp.result_type(float), ambient_mesh())
        if traced_for not in self.programs:
            reading, num_samples = self.made_from
            # Rows are not looked at under someone's jit: such a program is not for other calls.
            options = (*sorted(reading.options.items()), num_samples, is_concrete(x))
            self.programs[traced_for] = remember(
                reading.read(self.network), (traced_for, options), partial(self._made, x), limits
            )
        return self.programs[traced_for]

    def _made(self, x: Array, read: object) -> CompiledProgram:
        reading, num_samples = self.made_from
        return CompiledProgram(reading.program(self.network, x, num_samples))


def _within_range(kernels: Kernels, finite: Array | None) -> Kernels:
    if finite is None:
        fits = not all(map(is_concrete, kernels)) or all_finite(list(kernels))
    else:
        fits = not is_concrete(finite) or bool(finite)
    if not fits:
        raise out_of_range(kernels.ntk.dtype)
    return kernels
