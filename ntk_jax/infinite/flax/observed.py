"""Which scalar functions a program meets, and at which variances: series have as many terms as
these ask for.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.duals.hermite_series.fit import fitted_rule
from ntk_jax.infinite.flax.moments.functions import rule_of
from ntk_jax.infinite.flax.traced_model import Program, largest_variances


def kind(x: Array) -> tuple[Any, ...]:
    """What a program is traced for: an example's shape and dtype, and the default precision of what
    the model makes itself.
    """
    return x.shape[1:], x.dtype, jnp.result_type(float)


def observed(
    known: dict[Any, Any], samples_key: Any, program: Program, x: Array
) -> tuple[list[Any], Any, list[Any]]:
    """Scalar functions met, largest variances of their arguments for every example, tails of the
    other functions.
    """
    key = kind(x)
    if key not in known:
        names: dict[str, Any] = {}

        def one(x):
            moments, _ = program.kernels((x, x), {}, (0, 0), observe=True, key=samples_key)
            functions, variances = largest_variances(moments.observed)
            names["functions"], names["tails"] = (
                functions,
                [name for name, _ in moments.observed.tails],
            )
            return variances, [jnp.max(t) for _, t in moments.observed.tails]

        known[key] = (jax.jit(lambda x: jax.lax.map(one, x, batch_size=min(len(x), 256))), names)
    run, names = known[key]
    variances, tails = run(x)
    return names["functions"], variances, list(zip(names["tails"], tails, strict=True))


def fitted(found: tuple[tuple[Any, float], ...], dtype: Any) -> tuple[tuple[Any, DualRule], ...]:
    """The dual of each function with enough terms for its largest variance."""
    return tuple(
        (f, fitted_rule("infinite_width", rule_of(f), q, dtype, stacklevel=5)) for f, q in found
    )


def warn_tail(names: str, tail: float) -> None:
    """Warn where a series leaves out a good part of its function."""
    if tail > 1e-4:
        warnings.warn(
            "infinite_width: the series of a function of several Gaussians, or that differs "
            f"between examples ({names}), leaves "
            f"out {tail:.1e} of its second moment: kernels at correlations near +-1 are that "
            "accurate, others much closer.",
            stacklevel=4,
        )
