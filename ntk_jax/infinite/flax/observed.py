"""Which scalar functions a program meets, and at which variances: series have as many terms as
these ask for.
"""

import warnings
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from ntk_jax.compat import is_concrete
from ntk_jax.duals.hermite_series.fit import fitted_rule
from ntk_jax.infinite.flax.moments.factors import Function, Observed
from ntk_jax.infinite.flax.moments.functions import rule_of
from ntk_jax.infinite.flax.traced_model import Duals, Program

Tails: TypeAlias = list[tuple[str, Array]]


class Observer:
    """The duals of one program, as the examples ask for them.

    Attributes:
        is_exact: whether only closed forms were met, which no variance changes.
    """

    def __init__(self, program: Program, key: Array | None):
        self.program, self.is_exact = program, False
        self.met: tuple[list[Function], list[str]] = ([], [])

        def one(x: Array) -> tuple[list[Array], list[Array]]:
            observed = Observed([], [])
            program.kernels((x, x), {}, (0, 0), observed=observed, key=key)
            functions = list(dict.fromkeys(f for f, _ in observed.functions))
            # Names cannot leave a trace as its results do.
            self.met = functions, [name for name, _ in observed.tails]
            largest = [
                jnp.max(jnp.stack([jnp.max(q) for f, q in observed.functions if f == g]))
                for g in functions
            ]
            return largest, [jnp.max(tail) for _, tail in observed.tails]

        self.run = jax.jit(lambda x: lax.map(one, x, batch_size=min(len(x), 256)))

    def duals(self, x1: Array, x2: Array | None) -> Duals:
        """Those that are series, with enough terms for the variances, known only outside jit."""
        now = jnp.zeros(())  # traced under someone's jit, where even constants cannot be looked at
        # The model's own, such as a W_std that it is differentiated by.
        scales = self.program.jaxpr.consts
        known = all(is_concrete(x) for x in (now, x1, x2, *scales) if x is not None)
        if not known or self.is_exact:
            return ()
        variances, tails = self.run(x1)
        functions, names = self.met
        self.is_exact = not tails and not any(rule_of(f).adaptive for f in functions)
        if self.is_exact:
            return ()
        all_tails, largest = [tails], [float(jnp.max(q)) for q in variances]
        if x2 is not None:
            more, more_tails = self.run(x2)
            largest = [max(q, float(jnp.max(r))) for q, r in zip(largest, more, strict=True)]
            all_tails.append(more_tails)
        if not np.isfinite(largest).all():
            raise out_of_range(self.program.dtype)
        for found in all_tails:
            for name, tail in zip(names, found, strict=True):
                _warn_of_tail(name, float(jnp.max(tail)))
        caller, dtype = "infinite_width", self.program.dtype
        # Warnings point at the call of the kernel: this, the compiled model, the kernel.
        return tuple(
            (f, fitted_rule(caller, rule_of(f), q, dtype, stacklevel=5))
            for f, q in zip(functions, largest, strict=True)
        )


def out_of_range(dtype: DTypeLike) -> ValueError:
    """The error for kernels that overflow."""
    return ValueError(
        f"infinite_width: expected kernels within the range of {dtype}; they overflow, or the "
        "model holds NaN. "
        "Use float64, smaller inputs, or smaller variances (init_stats) and learning rates."
    )


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
