"""The values of a tensor program: what is deterministic, views of parameters, random vectors.

A pair of examples is interpreted at once. The words used in all of `infinite/flax`:

- wide axis: its entries are independent and alike (the units of a hidden layer), and infinitely
  many in the limit. It is stored with size 1, its true length in `wide`, its multiplicity.
- finite axis: any other (positions, channels of the input); stored in full, multiplicity 1.
- field: a Gaussian for each position along finite axes, the same in law for every unit: what a
  random weight makes of its input, or the entries of a parameter.
- degenerate field: one of zero variance at initialization (a bias that starts at 0): only its
  derivative counts.
- expression: an elementwise function as a graph of primitives; its leaves are variables (fields),
  operands (deterministic arrays) and constants.
- factor: an expression of some fields, or a field itself, or a function known by samples.
- term: a linear map over finite axes of a product of independent factors.
- wide value: a random vector, the sum of terms and a deterministic offset.
- mask: the independent zeros of dropout, of which only the first two moments count.
- view: a parameter, or a part of it, with its axes moved; not yet contracted with anything.
- squares: those of a parameter's entries, and what becomes of their sum: its norm.
- side: which example of the pair, 0 or 1; deterministic values hold one array per side.
"""

from ntk_jax.infinite.flax.values.bases import bases, linear_map
from ntk_jax.infinite.flax.values.deterministic import (
    AnyArray,
    Det,
    Shape,
    both_sides,
    fixed_key,
    is_key,
    joint_wide,
    number,
    static_det,
    zeros,
)
from ntk_jax.infinite.flax.values.expression import PrimitiveParams, apply, bind_elementwise
from ntk_jax.infinite.flax.values.expression_builder import ExpressionBuilder, multiple_of, root
from ntk_jax.infinite.flax.values.fields import (
    Combination,
    Entries,
    Field,
    InnerProduct,
    Opened,
    Segment,
    Weight,
)
from ntk_jax.infinite.flax.values.linear import Key, Linear, add_maps, then
from ntk_jax.infinite.flax.values.parameters import Cut, Param, Squares
from ntk_jax.infinite.flax.values.primitives import (
    ELEMENTWISE,
    MUL,
    PASSING,
    RANDOMNESS,
    REDUCTIONS,
)
from ntk_jax.infinite.flax.values.values import (
    Factor,
    Joined,
    Masked,
    Noise,
    Part,
    Sampled,
    Term,
    Value,
    Wide,
    fields_of,
    fields_of_terms,
    gaussian,
)
