"""Programs on small arrays, which take longer to compile than to run: on a CPU XLA optimizes them
little.

Their values differ by roundings from those of the same program on large arrays, as those of any two
programs do.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, update_wrapper
from typing import Any

import jax
import numpy as np

from ntk_jax.compat import are_of_one_cpu, is_tracing

ARRAYS = jax.Array, np.ndarray, np.generic
LARGEST = 128 * 128  # entries of a small array
OF_MATRICES = 64  # times as many, where the time is in LAPACK: matrices of 1,024 rows
# Times as many moments of pairs: programs of networks take longer to compile than others on as many
# entries, and few of them are faster for what `LESS` leaves out.
OF_NETWORKS = 64

# For loops over entries, which stay vectorized. Two threads generate code.
LESS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 2}
# For programs whose time is in LAPACK and in products of matrices, which are compiled already.
LITTLE = LESS | {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


class jit_by_size:  # noqa: N801  # it stands where jax.jit would
    """`jax.jit(f)`: on a CPU with other options of XLA while no argument has more than `LARGEST`
    entries, or as many as `entries` says of the arguments.

    Programs of matrices, by default, are optimized little, and less up to `OF_MATRICES` times as
    many. `times` as many entries are few of this `f`; `jit` is what stands for `jax.jit`.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        static_argnums: int | tuple[int, ...] = (),
        options: Mapping[str, bool | int] = LITTLE,
        entries: Callable[..., int] | None = None,
        jit: Callable[..., Any] = jax.jit,
        times: int = 1,
    ) -> None:
        static = {} if static_argnums == () else {"static_argnums": static_argnums}
        self.static = (static_argnums,) if isinstance(static_argnums, int) else static_argnums
        self.large = jit(f, **static)
        self.options, self.entries, self.times = options, entries, times
        self.with_options = cache(lambda *known: jit(f, compiler_options=dict(known), **static))
        update_wrapper(self, f)

    def __call__(self, *args: object) -> Any:
        """`f` of them."""
        arrays = [a for a in jax.tree.leaves(args) if isinstance(a, ARRAYS)]
        options = self._options_for(self.entries_of(arrays, args))
        if options is None or jax.config.read(_LITTLE) or not are_on_cpu(arrays):
            return self.large(*args)
        return self.small(options, *args)

    def entries_of(self, arrays: Iterable[Any], args: Sequence[object]) -> int:
        """What decides about arguments with these arrays."""
        if self.entries is not None:
            return self.entries(*args)
        return max((a.size for a in arrays), default=0)

    def _options_for(self, most: int) -> Mapping[str, bool | int] | None:
        """With so many entries; None: as large arrays."""
        if most <= LARGEST * self.times:
            return self.options
        of_matrices = self.options is LITTLE and most <= LARGEST * OF_MATRICES
        return LESS if of_matrices else None

    def small(self, options: Mapping[str, bool | int], *args: object) -> object:
        """With those of the options that this version of XLA knows."""
        while True:
            known = [option for option in options.items() if option[0] not in _UNKNOWN]
            try:
                return self.with_options(*known)(*args)
            except RuntimeError as error:
                refused = {name for name in options if f"option: '{name}'" in str(error)}
                if not refused:
                    raise
            _UNKNOWN.update(refused)


_LITTLE = "jax_disable_most_optimizations"  # then all programs are optimized little
_UNKNOWN: set[str] = set()  # "xla_cpu_use_fusion_emitters" since JAX 0.12


def is_small(entries: int) -> bool:
    """Whether programs on so many entries take longer to compile than to run."""
    return entries <= LARGEST


def are_on_cpu(arrays: list[jax.Array | np.ndarray | np.generic]) -> bool:
    """Whether a computation on these is one of the CPU, and of no mesh, where entries shall not
    depend on the number of devices: False in a trace, where nobody knows.
    """
    if is_tracing() or not are_of_one_cpu(arrays):
        return False
    single = jax.sharding.SingleDeviceSharding
    return all(isinstance(a.sharding, single) for a in arrays if isinstance(a, jax.Array))
