"""Which scalar functions a program meets, and at which variances: series have as many terms as
these ask for.
"""

import warnings
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.compat import fetched, is_compiling, is_concrete
from ntk_jax.duals.hermite_series.fit import fitted_rule
from ntk_jax.examples import Examples, num_rows
from ntk_jax.host import by_numpy_if_few
from ntk_jax.infinite.flax.errors import out_of_range
from ntk_jax.infinite.flax.moments.functions import rule_of
from ntk_jax.infinite.flax.traced_model import Duals, Program
from ntk_jax.platforms import is_on_cpu
from ntk_jax.small_programs import LESS, jit_by_size

AT_ONCE = 256  # examples that a CPU looks at together
MOST_BYTES = 2**29  # of those that an accelerator does


class Observer:
    """The duals of one program, as the examples ask for them."""

    def __init__(self, program: Program):
        self.program = program
        self.run = by_numpy_if_few(jit_by_size(partial(_observed, program), 2, LESS))

    def duals(self, x1: Examples, x2: Examples | None, key: Array | None) -> Duals:
        """Those that are series, with enough terms for the variances, known only outside jit."""
        trace = self.program.pair((), key)
        functions = trace.functions
        # Of closed forms, which no variance changes, nothing is looked at.
        if not trace.names and not any(rule_of(f).adaptive for f in functions):
            return ()
        # The model's own, such as a W_std that it is differentiated by.
        scales = self.program.jaxpr.consts
        if is_compiling() or not all(map(is_concrete, jax.tree.leaves((x1, x2, scales)))):
            return ()
        on_cpu = bool(is_on_cpu(x1, x2, key))
        found = fetched([self.run(x, key, on_cpu) for x in (x1, x2) if x is not None])
        largest = [float(max(variances)) for variances in zip(*(f for f, _ in found), strict=True)]
        if not np.isfinite(largest).all():
            raise out_of_range(self.program.dtype)
        for _, tails in found:
            for name, tail in zip(trace.names, tails, strict=True):
                _warn_of_tail(name, float(tail))
        caller, dtype = "infinite_width", self.program.dtype
        # Warnings point at the call of the kernel: this, the compiled model, the kernel.
        return tuple(
            (f, fitted_rule(caller, rule_of(f), q, dtype, stacklevel=5))
            for f, q in zip(functions, largest, strict=True)
        )


def _observed(
    program: Program, x: Examples, key: Array | None, on_cpu: bool
) -> tuple[list[Array], list[Array]]:
    """The largest variances and tails of all examples."""
    trace = program.pair((), key)
    at_once = AT_ONCE if on_cpu else max(AT_ONCE, MOST_BYTES // trace.bytes)
    one = lambda a: trace.observed(a, key, on_cpu=on_cpu)
    found = lax.map(one, x, batch_size=min(num_rows(x), at_once))
    return cast(tuple[list[Array], list[Array]], jax.tree.map(jnp.max, found))


def _warn_of_tail(names: str, tail: float) -> None:
    """Where a series leaves out a good part of its function."""
    if tail > 1e-4:
        warnings.warn(
            "infinite_width: the series of a function of several Gaussians, or that differs "
            f"between examples ({names}), leaves "
            f"out {tail:.1e} of its second moment: kernels at correlations near +-1 are that "
            "accurate, others much closer.",
            stacklevel=5,
        )
