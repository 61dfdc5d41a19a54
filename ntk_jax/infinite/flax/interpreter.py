"""The walk over a traced network, for a pair of examples: each operation's rule turns values into
values.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import CALLS, CUSTOM_CALLS, REMATS, Literal, bind
from ntk_jax.infinite.flax.derivatives import check_custom_derivative
from ntk_jax.infinite.flax.errors import SAMPLES, NoLimitError
from ntk_jax.infinite.flax.layouts import LAYOUTS, lazy_broadcast
from ntk_jax.infinite.flax.moments.moments import Moments
from ntk_jax.infinite.flax.parameter_uses import Uses
from ntk_jax.infinite.flax.values.expression import bind_elementwise
from ntk_jax.infinite.flax.values.values import (
    Det,
    Joined,
    Noise,
    Param,
    Wide,
    joint_wide,
    static_det,
)
from ntk_jax.jaxprs import open_jaxpr, source_line

Rule = Callable[["Interpreter", Any, list[Any]], list[Any]]

RULES: dict[str, Rule] = {}
USER_RULES: dict[str, Rule] = {}

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy cos cosh div "
    "eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt "
    "max min mul ne "
    "neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square "
    "stop_gradient "
    "sub tan tanh xor".split()
)
REDUCTIONS = ("reduce_max", "reduce_min", "reduce_and", "reduce_or")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for primitives of these names."""

    def register(function):
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
        log: if not None, gets (equation, values) of every step.
    """

    def __init__(
        self,
        moments: Moments,
        *,
        inner_products: str = "error",
        dropout: str = "error",
        checked: dict[int, Any],
        log: list[Any] | None = None,
    ):
        self.moments, self.uses, self.checked = moments, Uses(), checked
        self.inner_products, self.dropout, self.log = inner_products, dropout, log

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The values of the results."""
        env: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = (
                const if isinstance(const, Det | Param | Wide | Noise) else self.constant(const)
            )
        for eqn in jaxpr.eqns:
            values = [
                self.constant(a.val) if isinstance(a, Literal) else env[a] for a in eqn.invars
            ]
            try:
                outs = self.step(eqn, values)
            except NoLimitError as error:
                self._locate(error, eqn)
                raise
            if self.log is not None:
                self.log.append((eqn, values, outs))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [self.constant(a.val) if isinstance(a, Literal) else env[a] for a in jaxpr.outvars]

    def _locate(self, error: NoLimitError, eqn: Any) -> None:
        """Say where: the innermost operation, and the line of the outermost call that JAX may have
        traced before.
        """
        if not error.operation:
            error.operation = eqn.primitive.name
        line = source_line(eqn)
        called_inside = eqn.primitive.name in CALLS or eqn.primitive.name in CUSTOM_CALLS
        if line is not None and (not error.where or called_inside):
            error.where = f" at `{error.operation}` in {line}."

    def constant(self, value: Any) -> Any:
        """A constant of the trace: known now unless someone else's tracer."""
        if isinstance(value, jax.core.Tracer):
            return Det((value, value), (1,) * value.ndim)
        if jnp.issubdtype(
            value.dtype if hasattr(value, "dtype") else type(value), jax.dtypes.prng_key
        ):
            return Noise()
        if jnp.issubdtype(jnp.result_type(value), jnp.floating):
            value = (
                np.asarray(value).astype(self.moments.dtype)
                if np.ndim(value)
                else np.asarray(float(value), self.moments.dtype)
            )
        return static_det(value)

    def step(self, eqn: Any, values: list[Any]) -> list[Any]:
        """The values of one equation's results."""
        name = eqn.primitive.name
        if name in USER_RULES:
            return USER_RULES[name](self, eqn, values)
        if any(isinstance(v, Noise) for v in values) and name not in (
            *CALLS,
            *CUSTOM_CALLS,
            *REMATS,
            "scan",
        ):
            return RULES["noise"](self, eqn, values)
        random = any(not isinstance(v, Det) for v in values)
        if any(isinstance(v, Wide) and v.interleaved for v in values) and name != "dot_general":
            raise NoLimitError(
                "patches of a wide value are used other than in a product with a weight,"
            )
        if any(isinstance(v, Joined) for v in values) and name not in (
            *CALLS,
            *CUSTOM_CALLS,
            *REMATS,
        ):
            return RULES["joined"](self, eqn, values)
        if name in RULES and (random or name in ALWAYS):
            return RULES[name](self, eqn, values)
        if name in CALLS or name in REMATS:
            return self.run(*open_jaxpr(eqn.params[CALLS.get(name, "jaxpr")]), values)
        if name in CUSTOM_CALLS:
            if random:
                check_custom_derivative(eqn, self.checked)
            return self.run(*open_jaxpr(eqn.params[CUSTOM_CALLS[name]]), values)
        if not random:
            return deterministic(self, eqn, values)
        if name in ELEMENTWISE:
            return RULES["elementwise"](self, eqn, values)
        if name in LAYOUTS:
            return RULES["layout"](self, eqn, values)
        raise NoLimitError(
            f"there is no rule for the operation `{name}` on random values,", REGISTER
        )


REGISTER = (
    "Teach it one with ntk_jax.register_rule, write the model with operations that have one, or "
    "estimate with "
    "ntk_jax.monte_carlo_kernels."
)
ALWAYS: set[str] = {"scan"}


def deterministic(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """An operation on deterministic values: done on both sides; once, and now, if they are
    constants.
    """
    name, dtype = eqn.primitive.name, program.moments.dtype
    static = all(v.static for v in values)
    if name in RANDOMNESS:
        return RULES["noise"](program, eqn, values)
    check_pending(eqn, values)
    evaluate, shape_wide = _evaluation(eqn, values, dtype)
    sides = []
    for side in (0,) if static else (0, 1):
        with jax.ensure_compile_time_eval() if static else contextlib.nullcontext():
            outs = evaluate([v.sides[side] for v in values])
            outs = [
                jnp.asarray(o).astype(dtype)
                if jnp.issubdtype(jnp.result_type(o), jnp.floating)
                else o
                for o in outs
            ]
            sides.append([np.asarray(o) for o in outs] if static else outs)
    if static:
        found = [static_det(o) for o in sides[0]]
        return [
            Det(d.sides, w, d.literal, True) for d, w in zip(found, shape_wide(found), strict=True)
        ]
    dets = [Det(pair, (1,) * np.ndim(pair[0])) for pair in zip(*sides, strict=True)]
    return [
        Det(d.sides, w, pending=_still_pending(eqn, values))
        for d, w in zip(dets, shape_wide(dets), strict=True)
    ]


RANDOMNESS = (
    "random_bits",
    "threefry2x32",
    "random_seed",
    "random_wrap",
    "random_fold_in",
    "random_split",
    "rng_bit_generator",
)


def _evaluation(eqn, values, dtype):
    """(arrays -> results, results -> their multiplicities): on stored shapes where possible, else
    in full.
    """
    name = eqn.primitive.name
    shapes = [v.shape for v in values]
    full = [a.aval.shape for a in eqn.invars]
    if name in ELEMENTWISE:
        joint = joint_wide(values)
        rank = eqn.outvars[0].aval.ndim
        return (lambda arrays: [bind_elementwise(eqn.primitive, eqn.params, arrays, dtype)]), (
            lambda outs: [
                joint if len(joint) == rank else (1,) * (rank - len(joint)) + joint for _ in outs
            ]
        )
    if name in LAYOUTS and (shapes[0] != full[0] or name == "broadcast_in_dim"):
        rule = lazy_broadcast if name == "broadcast_in_dim" else LAYOUTS[name]
        if name != "reduce_sum":
            with contextlib.suppress(NoLimitError):
                wide = values[0].wide
                found = rule(eqn, shapes[0], wide)
                if name != "pad" or values[1].is_zero:
                    return (lambda arrays: [found.apply(jnp.asarray(arrays[0]))]), (
                        lambda outs: [found.wide for _ in outs]
                    )
        else:
            axes, wide = eqn.params["axes"], values[0].wide
            found = LAYOUTS[name](eqn, shapes[0], wide)
            times = int(np.prod([wide[a] for a in axes]))
            return (lambda arrays: [times * found.apply(jnp.asarray(arrays[0]))]), (
                lambda outs: [found.wide for _ in outs]
            )
    if name in REDUCTIONS:
        wide = tuple(w for i, w in enumerate(values[0].wide) if i not in eqn.params["axes"])
        return (lambda arrays: bind(eqn, [jnp.asarray(a) for a in arrays])), (
            lambda outs: [wide for _ in outs]
        )

    def evaluate(arrays):
        arrays = [jnp.broadcast_to(jnp.asarray(a), s) for a, s in zip(arrays, full, strict=True)]
        arrays = [
            a if not jnp.issubdtype(v.aval.dtype, jnp.floating) else a.astype(v.aval.dtype)
            for a, v in zip(arrays, eqn.invars, strict=True)
        ]
        return bind(eqn, arrays)

    return evaluate, (lambda outs: [(1,) * len(o.shape) for o in outs])


PASSING = (
    "reshape",
    "transpose",
    "squeeze",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "reduce_precision",
    "slice",
)


def check_pending(eqn: Any, values: Sequence[Any]) -> None:
    """Raise where a sum of products of wide vectors is used before it is divided by its width."""
    name = eqn.primitive.name
    for v in values:
        if (
            isinstance(v, Det)
            and v.pending
            and name not in PASSING
            and not (
                name in ("mul", "div")
                and any(o.literal is not None for o in values if isinstance(o, Det) and o is not v)
            )
        ):
            raise NoLimitError(
                f"an inner product of two wide vectors of width {v.pending} is used without "
                "division by the width: with "
                "the standard 1/sqrt(width) it stays random, and has no closed form,",
                "Scale attention by 1/width, or pass inner_products='mean' to accept the law of "
                "large numbers. "
                f"For attention of several heads with independent queries and keys, {SAMPLES}",
            )


def _still_pending(eqn, values):
    """The pending width of the result: none after a division by that width."""
    pending = next((v.pending for v in values if v.pending), None)
    if pending is None or eqn.primitive.name not in ("mul", "div"):
        return pending
    literal = next(v.literal for v in values if v.literal is not None)
    scale = 1 / float(literal) if eqn.primitive.name == "div" else float(literal)
    return None if abs(scale * pending - 1) < 1e-4 else pending
