"""Primitives by what they do to the entries of their operands, and the two that the algebra writes
itself.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive

from ntk_jax import jaxprs

ELEMENTWISE = jaxprs.ELEMENTWISE | {"copy", "reduce_precision", "stop_gradient"}
REDUCTIONS = frozenset({"reduce_max", "reduce_min", "reduce_and", "reduce_or"})
# What leaves entries as they are: an inner product that awaits its division may pass.
PASSING = frozenset(
    """
    reshape transpose squeeze broadcast_in_dim convert_element_type copy reduce_precision slice
    """.split()
)
RANDOMNESS = frozenset(
    """
    random_bits threefry2x32 random_seed random_wrap random_fold_in random_split rng_bit_generator
    """.split()
)


def _primitive(f: Callable[..., Any]) -> tuple[Primitive, dict[str, Any]]:
    (eqn,) = jax.make_jaxpr(f)(1.0, 2.0).eqns
    return eqn.primitive, dict(eqn.params)


MUL = _primitive(jax.lax.mul)
ADD = _primitive(jax.lax.add)
