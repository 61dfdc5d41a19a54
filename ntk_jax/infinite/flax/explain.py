"""What the limit of a model is made of: one line for each operation on random values."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.checks import as_example_tree
from ntk_jax.compat import CALLS, CUSTOM_CALLS, is_concrete, outside_traces
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.examples import Examples
from ntk_jax.host import by_numpy_if_few
from ntk_jax.infinite.flax.limit import infinite_width
from ntk_jax.infinite.flax.moments.duals import answered
from ntk_jax.infinite.flax.moments.moments import Moments
from ntk_jax.infinite.flax.traced_model import Duals, Program
from ntk_jax.infinite.flax.values import (
    Combination,
    Det,
    Entries,
    Field,
    InnerProduct,
    Joined,
    Opened,
    Param,
    Segment,
    Value,
    Weight,
    Wide,
)
from ntk_jax.infinite.flax.values.expression import Function
from ntk_jax.jaxprs import Eqn, dtype_of, source_line
from ntk_jax.small_programs import LESS, jit_by_size

Logged: TypeAlias = tuple[Eqn, list[Value], list[Value]]

HEADER = ("operation", "becomes", "dual", "shape", "variance", "line of the model")


def explain_limit(model: Any, x: Any, **options: Any) -> str:
    """A table of what each operation of a model became in the limit of infinite width.

    Example:
        >>> x = np.ones((1, 4), np.float32)
        >>> table = ntk_jax.explain_limit(ntk_jax.MLP((8,), 1, "relu", 2**0.5), x)
        >>> print(*(line[:36].strip() for line in table.splitlines() if "max" in line))
        max          function of 1 Gaussian

    Columns: the operation; what its result is (a Gaussian, a function of Gaussians, a number); the
    dual that its moments take: a closed form, or a series with its terms and the bound on its
    relative error at unit variance; its shape, with infinite axes as ∞; E[z²] over units and
    positions; and the line of the model.

    Args:
        model: a Flax Linen or NNX module, or a pair of functions, as `infinite_width` takes it.
        x: examples in rows; the first is used, or all of them with `batch_coupled=True`.
        **options: those of `infinite_width`.

    Raises:
        NoLimitError: as `infinite_width`.

    Returns:
        The table, to be printed.

    Reference: Yang 2020 (Tensor Programs II).
    """
    kernel = infinite_width(model, **options)
    x = kernel.examples(as_example_tree("x", x))
    compiled = kernel.model.program(x)
    duals = compiled.observer.duals(x, None, kernel.key)
    row = jax.tree.map(lambda a: np.asarray(a)[0] if is_concrete(a) else a[0], x)
    # Remembered with the program, so that equal models are explained without compiling anything.
    if duals not in compiled.explained:
        compiled.explained[duals] = _Explained(compiled.program, duals)
    explained = compiled.explained[duals]
    seconds = explained.run(row, kernel.key)
    rows = [HEADER]
    for (name, kind, dual, shape, line), second in zip(explained.steps, seconds, strict=True):
        rows.append((name, kind, dual, shape, f"{float(second):.4g}", line))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


class _Explained:
    """What is said of each step, and the program of their variances."""

    def __init__(self, program: Program, duals: Duals):
        self.program, self.duals = program, dict(duals)
        self.steps: list[tuple[str, ...]] = []
        self.run = by_numpy_if_few(jit_by_size(self._second_moments, options=LESS))

    def _second_moments(self, row: Examples, key: Array | None) -> list[Array]:
        log: list[Logged] = []
        moments, _ = self.program.interpret((row, row), answered(self.duals), log=log, key=key)
        found = _steps(log)
        num_samples = self.program.num_samples
        dual = lambda value: outside_traces(_dual, value, self.duals, num_samples)
        # Words cannot leave a trace as its results do.
        self.steps = [(name, _kind(v), dual(v), _shape(v), line) for name, v, line in found]
        return [_second(moments, value) for _, value, _ in found]


def _steps(log: list[Logged]) -> list[tuple[str, Value, str]]:
    """(operation, result, line of the model) of those that make or shape a random value."""
    found: list[tuple[str, Value, str]] = []
    for eqn, values, outs in log:
        name, line = eqn.primitive.name, source_line(eqn) or ""
        if name in CALLS or name in CUSTOM_CALLS:
            # A call is logged after what is inside it, of which JAX may know no line.
            found = [(n, v, at or line) for n, v, at in found]
        elif _interesting(values, outs) and jnp.issubdtype(dtype_of(eqn.outvars[0]), jnp.floating):
            found.append((name, outs[0], line))
    return found


def _interesting(values: list[Value], outs: list[Value]) -> bool:
    """A result is random, or the first number made of random values."""
    return any(isinstance(v, Wide | Param) for v in values) and isinstance(
        outs[0], Wide | Det | Joined
    )


def _second(moments: Moments, value: Value) -> Array:
    if isinstance(value, Det):
        return jnp.mean(jnp.asarray(value.sides[0], moments.dtype) ** 2)
    if not isinstance(value, Wide) or value.terms is None:
        return jnp.asarray(jnp.nan)
    k = moments.second(value, value, (0, 0), True)
    return jnp.zeros(()) if k is None else jnp.mean(k)


def _kind(value: Value) -> str:
    if isinstance(value, Det):
        return "number"
    if not isinstance(value, Wide):
        return "joined"
    if value.terms is None:
        return "product (for a mean)"
    if value.gaussian is not None:
        return f"Gaussian: {_names(value.gaussian)}"
    if any(t.masked for t in value.terms):
        return "value after dropout"
    several = max(len(f.nondegenerate) for t in value.terms for f in t.factors)
    terms = f"{len(value.terms)} terms, " if len(value.terms) > 1 else ""
    return f"{terms}function of {several} Gaussian{'s' if several > 1 else ''}"


def _names(g: Field) -> str:
    if isinstance(g, Combination):
        inner = list(dict.fromkeys(_names(part) for _, part in g.parts))
        return " + ".join(inner) if len(inner) <= 3 else f"{inner[0]} + .. + {inner[-1]}"
    if isinstance(g, InnerProduct):
        sides = (_names(v.gaussian) if v.gaussian else "functions" for v in (g.left, g.right))
        return f"scores of {' and '.join(sides)}"
    if isinstance(g, Segment | Opened):
        return _names(g.source)
    assert isinstance(g, Weight | Entries)
    return g.leaf


def _dual(value: Value, duals: dict[Function, DualRule], num_samples: int | None) -> str:
    """The duals of the functions in a value."""
    if (
        not isinstance(value, Wide)
        or value.product is not None
        or value.terms is None
        or value.gaussian is not None
    ):
        return ""
    names = []
    for t in value.terms:
        for f in t.factors:
            if f.sampled is not None:
                names.append(f"sampled: {num_samples} draws")
            if f.node is None:
                continue
            rule = next(
                (r for function, r in duals.items() if getattr(function, "node", None) is f.node),
                None,
            )
            names.append("(part of what follows)" if rule is None else rule.description)
    return ", ".join(dict.fromkeys(names))


def _shape(value: Value) -> str:
    if isinstance(value, Joined):
        return f"joined along axis {value.axis}"
    assert isinstance(value, Wide | Det)
    infinite = isinstance(value, Wide)
    sizes = [
        str(size) if wide == 1 else "∞" if size == 1 and infinite else f"{size}·{wide}"
        for size, wide in zip(value.shape, value.wide, strict=True)
    ]
    return f"({', '.join(sizes)})"
