"""Entries divided by the root of the sum of their squares, as weight normalization stores them
(Salimans and Kingma 2016, arXiv:1602.07868).

The squares of n such entries add up to 1: if their law is symmetric and all are alike, each has
mean 0 and variance 1/n.
"""

import math

import numpy as np

from ntk_jax.initializers.laws import CUT, Law
from ntk_jax.initializers.values import Constant, Random, Unknown, Value, Values
from ntk_jax.jaxprs import Eqn, shape_of

SYMMETRIC = ("normal", "truncated normal", "uniform")  # about their mean
REASON = "a norm of random entries meets something other than these entries"
KINDS = ("sum", "sqrt", "rsqrt")  # of sums of squares, and functions of them
SMALL = 1e-9  # next to the sum of squares, what is added lest it be 0


def normalized(eqn: Eqn, values: Values) -> Value | None:
    """A sum of random entries, its root, or entries divided by the root of the sum of their
    squares; None for any other operation.
    """
    name = eqn.primitive.name
    if name == "reduce_sum" and isinstance(values[0], Random) and values[0].uniform:
        axes = tuple(eqn.params["axes"])
        return Unknown("`reduce_sum` of random entries", ("sum", values[0], axes))
    at = [i for i, v in enumerate(values) if isinstance(v, Unknown) and v.tag and v.tag[0] in KINDS]
    if len(at) != 1:
        return None
    total, others = values[at[0]], [v for i, v in enumerate(values) if i != at[0]]
    kind, squares, axes = total.tag
    if name in ("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "convert_element_type"):
        return total
    if name == "add" and kind == "sum" and isinstance(others[0], Constant):
        return total if np.all(np.abs(others[0].value) <= SMALL * squares.mean) else None
    if name in ("sqrt", "rsqrt") and kind == "sum":
        return Unknown(REASON, (name, squares, axes))
    divided = (name, kind) == ("mul", "rsqrt") or (name, kind, at[0]) == ("div", "sqrt", 1)
    if not divided or not _are_squares(squares, others[0]):
        return None
    whole = shape_of(eqn.outvars[0])
    kept = tuple(1 if a in axes else s for a, s in enumerate(whole))
    shape = shape_of(eqn.invars[at[0]])
    if (1,) * (len(kept) - len(shape)) + shape != kept:
        return None
    terms = math.prod(whole[a] for a in axes)
    return Random(Law("divided by its norm", 0.0, 1 / terms), others[0].sources, 0)


def _are_squares(squares: Random, of: Value) -> bool:
    """Whether they are those of entries with a symmetric law."""
    if not (isinstance(of, Random) and of.uniform and of.law.name in SYMMETRIC and of.mean == 0):
        return False
    if (squares.sources, squares.layout, squares.law.base) != (of.sources, of.layout, of.law.base):
        return False
    if of.law.base is None:
        return False
    z = np.linspace(max(of.law.base.low, -CUT), min(of.law.base.high, CUT), 5)
    return bool(np.allclose(squares.value(z), of.value(z) ** 2, rtol=1e-6))
