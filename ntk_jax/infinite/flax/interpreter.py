"""The walk over a traced network, for a pair of examples: each operation's rule turns values into
values.

Rules are registered by the name of their primitive in `RULES`; they call each other through it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import CALLS, CUSTOM_CALLS
from ntk_jax.infinite.flax.answers import Answers
from ntk_jax.infinite.flax.derivatives import check_custom_derivative
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.evaluation import deterministic
from ntk_jax.infinite.flax.layouts import LAYOUTS
from ntk_jax.infinite.flax.model import is_sampled_key
from ntk_jax.infinite.flax.parameter_uses import Uses
from ntk_jax.infinite.flax.values import (
    ELEMENTWISE,
    Det,
    Field,
    Joined,
    Noise,
    Param,
    Squares,
    Value,
    Wide,
    fixed_key,
    is_key,
    static_det,
)
from ntk_jax.jaxprs import (
    INNER,
    Eqn,
    Jaxpr,
    dtype_of,
    evaluate,
    inner_jaxpr,
    needed,
    source_line,
)

Rule = Callable[["Interpreter", Eqn, Any], Sequence[Value]]
Step = tuple[Eqn, list[Value], Sequence[Value]]

RULES: dict[str, Rule] = {}
USER_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for primitives of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


class Interpreter:
    """One interpretation of a program.

    Attributes:
        moments: the answers about its values.
        uses: how each parameter has been used so far.
        inner_products: "error", or "mean" for the law of large numbers in inner products of wide
            vectors.
        dropout: "error", or "expectation" for the mean over masks.
        checked: equations whose custom derivatives are known to be right.
        log: if not None, gets (equation, values, results) of every step.
    """

    def __init__(
        self,
        moments: Answers,
        *,
        inner_products: str = "error",
        dropout: str = "error",
        checked: dict[int, Eqn],
        log: list[Step] | None = None,
    ):
        self.moments, self.uses, self.checked = moments, Uses(), checked
        self.inner_products, self.dropout, self.log = inner_products, dropout, log

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Value]) -> list[Value]:
        """The values of the results."""
        known = [c if isinstance(c, Value) else self.constant(c) for c in consts]
        # Statistics that a model updates, but does not return, need no rule.
        equations = needed(jaxpr, jaxpr.outvars)
        step, constant = self._logged, self.constant
        return evaluate(jaxpr, known, args, step, constant=constant, equations=equations)

    def _logged(self, eqn: Eqn, values: list[Value]) -> Sequence[Value]:
        try:
            results = self.step(eqn, values)
        except NoLimitError as error:
            _locate(error, eqn)
            raise
        if self.log is not None:
            self.log.append((eqn, values, results))
        return results

    def related(self, g: Field, h: Field) -> bool:
        """Whether two random Gaussians are not independent, as the first example alone tells."""
        return self.moments.related(g, h, (0, 0))

    def constant(self, value: Any) -> Det | Noise:
        """A constant of the trace: known now unless someone else's tracer."""
        if isinstance(value, jax.core.Tracer):
            return Det((value, value), (1,) * value.ndim)
        if is_key(value):
            return Noise() if is_sampled_key(value.dtype) else fixed_key(value)
        if jnp.issubdtype(jnp.result_type(value), jnp.floating):
            value = np.asarray(value if np.ndim(value) else float(value)).astype(self.moments.dtype)
        return static_det(value)

    def step(self, eqn: Eqn, values: list[Value]) -> Sequence[Value]:
        """The values of one equation's results."""
        name, met = eqn.primitive.name, {type(v) for v in values}
        if name in USER_RULES:
            return USER_RULES[name](self, eqn, values)
        # Programs inside are walked whatever they are given: their own operations tell.
        if Noise in met and name not in INNER and name != "scan":
            return RULES["noise"](self, eqn, values)
        inside = any(isinstance(v, Wide) and v.interleaved for v in values)
        if inside and not (name == "dot_general" and Param in met):
            raise NoLimitError(
                "entries within each unit (patches, repeated keys and values of attention) are "
                "used other than in a product with a weight,",
                "Keep them on an axis of their own, as in einsum('bihgd,bjhd->bhgij').",
            )
        if name in ("dot_general", "conv_general_dilated") and any(map(_has_gain, values)):
            return RULES["gain"](self, eqn, values)
        if Joined in met and name not in INNER:
            return RULES["joined"](self, eqn, values)
        if Squares in met and name not in INNER:
            return RULES["squares"](self, eqn, values)
        fixed = [v for v in values if isinstance(v, Det)]
        random = len(fixed) < len(values)
        if name in RULES and (random or name == "scan"):
            return RULES[name](self, eqn, values)
        if name in INNER and not random and _draws(inner_jaxpr(eqn)[0]):
            # One program for all steps of the drawing.
            return deterministic(eqn, fixed, self.moments.dtype)
        if name in INNER:
            if random and name in CUSTOM_CALLS:
                check_custom_derivative(eqn, self.checked)
            return self.run(*inner_jaxpr(eqn), values)
        if not random:
            sampled = any(is_sampled_key(dtype_of(v)) for v in eqn.outvars)
            if sampled:
                return RULES["noise"](self, eqn, values)
            return deterministic(eqn, fixed, self.moments.dtype)
        groups = {"elementwise": ELEMENTWISE, "layout": LAYOUTS}
        for group, names in groups.items():
            if name in names:
                return RULES[group](self, eqn, values)
        raise NoLimitError(
            f"there is no rule for the operation `{name}` on random values,", REGISTER
        )


def _has_gain(value: Value) -> bool:
    return isinstance(value, Param) and value.gain is not None


def _draws(jaxpr: Jaxpr) -> bool:
    """Whether numbers are drawn inside, all from fixed keys."""
    found = list(_equations(jaxpr))
    keys = [dtype_of(v) for eqn in found for v in eqn.outvars]
    return any(eqn.primitive.name == "random_bits" for eqn in found) and not any(
        map(is_sampled_key, keys)
    )


def _equations(jaxpr: Jaxpr) -> Iterator[Eqn]:
    """All of them, with those of programs inside."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name in INNER:
            yield from _equations(inner_jaxpr(eqn)[0])


def _locate(error: NoLimitError, eqn: Eqn) -> None:
    """Say where: the innermost operation, and the line of the outermost call that JAX may have
    traced before.
    """
    error.operation = error.operation or eqn.primitive.name
    # What a function was traced to is kept, with the lines of its first caller: later callers are
    # found by the lines of the call.
    called_inside = eqn.primitive.name in CALLS or eqn.primitive.name in CUSTOM_CALLS
    if (line := source_line(eqn)) is not None and (not error.where or called_inside):
        error.where = f" at `{error.operation}` in {line}."


REGISTER = (
    "Teach it one with ntk_jax.register_rule, write the model with operations that have one, or "
    "estimate with ntk_jax.monte_carlo_kernels."
)
