"""What is compiled for a model and kept: everything that is expensive, by shape of an example."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from jax import Array
from jax.dtypes import canonicalize_dtype

from ntk_jax.checks import all_finite
from ntk_jax.closures.programs import limits, remember
from ntk_jax.compat import ambient_mesh, is_concrete
from ntk_jax.examples import Examples
from ntk_jax.infinite.flax.batch import Pairs
from ntk_jax.infinite.flax.errors import out_of_range
from ntk_jax.infinite.flax.fully_connected import FullyConnected, fully_connected
from ntk_jax.infinite.flax.observed import Observer
from ntk_jax.infinite.flax.reading import Reading, is_known
from ntk_jax.infinite.flax.traced_model import Duals, Program
from ntk_jax.networks.apply_fn import shapes_of_example
from ntk_jax.types import BOTH, Kernels, Which, as_asked


class CompiledProgram:
    """The kernels of one program, traced for examples of one shape and dtype."""

    def __init__(self, program: Program):
        self.program, self.observer = program, Observer(program)
        self.pairs: dict[tuple[int | None, Which], Pairs] = {}
        self.explained: dict[Duals, Any] = {}

    def kernels(
        self,
        x1: Examples,
        x2: Examples | None,
        num_samples: int | None,
        keys: Sequence[Array | None],
        memory_limit: int | None,
        which: Which = BOTH,
    ) -> list[Kernels | Array]:
        """One estimate for each key, of that many samples; a network without a closed form alone
        depends on them.
        """
        if self.network is None:
            return self.interpreted(x1, x2, num_samples, keys, memory_limit, which)
        found = self.network.kernels(x1, x2, which)
        if self.program.positions == "full":  # it has one
            found = [k.reshape(*k.shape, 1, 1) for k in found]
        return [as_asked(found)] * len(keys)

    @cached_property
    def network(self) -> FullyConnected | None:
        """What `mlp_kernels` would be asked for, if it is a fully connected network."""
        return fully_connected(self.program)

    def interpreted(
        self,
        x1: Examples,
        x2: Examples | None,
        num_samples: int | None,
        keys: Sequence[Array | None],
        memory_limit: int | None,
        which: Which = BOTH,
    ) -> list[Kernels | Array]:
        """The same, of any model: by the moments of one pair of examples, mapped over all."""
        duals = self.observer.duals(x1, x2, keys[0])
        # Groups of fewer samples, for a standard error, are other programs of the same trace.
        kind = num_samples, which
        if kind not in self.pairs:
            self.pairs[kind] = Pairs(replace(self.program, num_samples=num_samples), which)
        pairs = self.pairs[kind]
        each = [_within_range(*pairs(x1, x2, duals, memory_limit, key)) for key in keys]
        return list(map(as_asked, each))


class CompiledModel:
    """The programs of one model, made when they are asked for, and shared with equal models. Copied
    and pickled as what it was made from: what was traced and compiled is made again.
    """

    def __init__(self, reading: Reading, num_samples: int | None):
        self.reading, self.num_samples = reading, num_samples
        self.network = reading.network()
        self.programs: dict[Any, CompiledProgram] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledModel, (self.reading, self.num_samples)

    def program(self, x: Examples) -> CompiledProgram:
        """That for examples like the rows of x."""
        # The default precision is that of what the model makes itself.
        traced_for = (*shapes_of_example(x), canonicalize_dtype(float), ambient_mesh())
        if traced_for not in self.programs:
            reading, num_samples = self.reading, self.num_samples
            # Rows are not looked at under someone's jit: such a program is not for other calls.
            options = (*sorted(reading.options.items()), reading.positions, num_samples)
            options = (*options, reading.batch_coupled, is_known(x))
            self.programs[traced_for] = remember(
                reading.read(self.network), (traced_for, options), partial(self._made, x), limits
            )
        return self.programs[traced_for]

    def _made(self, x: Examples, read: object) -> CompiledProgram:
        return CompiledProgram(self.reading.program(self.network, x, self.num_samples))


def _within_range(kernels: tuple[Array, ...], finite: Array | None) -> tuple[Array, ...]:
    if finite is None:
        fits = not all(map(is_concrete, kernels)) or all_finite(list(kernels))
    else:
        fits = not is_concrete(finite) or bool(finite)
    if not fits:
        raise out_of_range(kernels[0].dtype)
    return kernels
