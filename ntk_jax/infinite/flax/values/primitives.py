"""Primitives by what they do to the entries of their operands, and the two that the algebra writes
itself.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive

ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type
    copy cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log
    log1p log2 logistic lt max min mul ne neg nextafter not one_minus_square or polynomial pow
    reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh
    xor
    """.split()
)
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
