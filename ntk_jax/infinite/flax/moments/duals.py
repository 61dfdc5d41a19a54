"""The duals that an interpretation asks for: answered at once, or left open in its trace and filled
in when it is known how many terms their series need. Interpreting a model takes longer than what is
done with it, and is done once.
"""

from collections.abc import Hashable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Primitive

from ntk_jax.duals.dual_rule import Dual, DualRule
from ntk_jax.infinite.flax.moments.functions import rule_of
from ntk_jax.infinite.flax.moments.pair import AskDual, with_axes
from ntk_jax.infinite.flax.values.expression import Function
from ntk_jax.jaxprs import Eqn, dtype_of, shape_of

OPEN = Primitive("open_dual")
OPEN.multiple_results = True


def answered(rules: Mapping[Function, DualRule]) -> AskDual:
    """At once, by these rules or by `rule_of`."""
    return lambda function, what, *args: _asked(_rule(function, rules), what, *args)


def left_open(function: Function, what: str, *args: Array) -> Array | Dual:
    """As equations of the trace, for `Filled`."""
    found = OPEN.bind(*args, function=function, what=what)
    return found[0] if what == "mean" else Dual(*found)


@OPEN.def_abstract_eval
def _of_open(
    *args: jax.core.ShapedArray, function: Function, what: str
) -> list[jax.core.ShapedArray]:
    like = args[what == "pair"]
    return [jax.core.ShapedArray(like.shape, like.dtype)] * (1 if what == "mean" else 2)


class Filled:
    """eqn -> what is filled in for an equation that was left open, and None for others."""

    def __init__(self, rules: Mapping[Function, DualRule]):
        self.rules = rules
        self.known: dict[Hashable, ClosedJaxpr] = {}

    def __call__(self, eqn: Eqn) -> ClosedJaxpr | None:
        """The program, traced once for questions that are alike."""
        if eqn.primitive is not OPEN:
            return None
        moments = tuple((shape_of(a), dtype_of(a)) for a in eqn.invars)
        function, what = eqn.params["function"], eqn.params["what"]
        if (function, what, moments) not in self.known:
            ask = partial(_asked, _rule(function, self.rules), what)
            like = [jax.ShapeDtypeStruct(*m) for m in moments]
            self.known[function, what, moments] = jax.make_jaxpr(ask)(*like)
        return self.known[function, what, moments]


def _rule(function: Function, rules: Mapping[Function, DualRule]) -> DualRule:
    return rules.get(function) or rule_of(function)


@partial(jax.jit, static_argnums=(0, 1))
def _asked(rule: DualRule, what: str, *args: Array) -> Array | Dual:
    """Traced once for all layers that are alike: then custom derivatives, too, are the same."""
    like = args[what == "pair"]
    if what == "pair":
        q1, q12, q2 = _flat(*args)
        at_left = lambda a: with_axes(a, a.ndim, q12.ndim - q1.ndim)
        at_right = lambda a: with_axes(a, a.ndim - q2.ndim, q12.ndim - q2.ndim)
        rows1, rows2 = jax.tree.map(at_left, rule.rows(q1)), jax.tree.map(at_right, rule.rows(q2))
        found, flat = rule.pair(rows1, q12, rows2), q12
    else:
        flat = _row(like)
        found = getattr(rule, what)(flat)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, flat.shape).reshape(like.shape), found)


def _row(a: Array) -> Array:
    """One axis for all positions, or none for one: XLA for a CPU vectorizes loops over long axes
    alone.
    """
    return jnp.reshape(a, [a.size] if a.size > 1 else [])


def _flat(q1: Array, q12: Array, q2: Array) -> tuple[Array, Array, Array]:
    """Moments whose positions are rows, where each position of a side has a variance."""
    if q12.ndim == q1.ndim and q1.size == q12.size == q2.size:
        return _row(q1), _row(q12), _row(q2)
    if q12.ndim > q1.ndim and q12.size == q1.size * q2.size:
        left, right = _row(q1), _row(q2)
        return left, jnp.reshape(q12, left.shape + right.shape), right
    return q1, q12, q2
