"""What the limit of a model is made of: one line for each operation that makes or shapes a random
value.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ntk_jax.checks import as_examples
from ntk_jax.compat import CALLS, CUSTOM_CALLS
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.infinite.flax.limit import infinite_width
from ntk_jax.infinite.flax.moments.factors import Function
from ntk_jax.infinite.flax.values.fields import Combination, Field, InnerProduct
from ntk_jax.infinite.flax.values.values import Det, Joined, Param, Wide
from ntk_jax.jaxprs import source_line

HEADER = ("operation", "becomes", "dual", "shape", "variance", "line of the model")


def explain_limit(model: Any, x: Any, **options: Any) -> str:
    """A table of what each operation of a model became in the limit of infinite width, for the
    first row of `x`.

    Columns: the operation; what its result is (a Gaussian, a function of Gaussians, a number); the
    dual that its moments take: a closed form, or a series with its terms and the bound on its
    relative error at unit variance; its shape, with infinite axes as ∞; E[z²] over units and
    positions; and the line of the model.

    Args:
        model: what `infinite_width` takes.
        x: examples in rows; the first is used.
        **options: those of `infinite_width`.

    Raises:
        NoLimitError: as `infinite_width`.
    """
    x = as_examples("x", x)
    kernel = infinite_width(model, **options)
    compiled = kernel.model.program(x)
    duals = dict(compiled.observer.duals(x, None))
    found: list[tuple[str, Any, str]] = []

    def moments_of(row):
        log: list[Any] = []
        moments, _ = compiled.program.interpret((row, row), duals, log=log, key=kernel.key)
        found.clear()
        seconds = []
        for eqn, values, outs in log:
            name = eqn.primitive.name
            line = source_line(eqn) or ""
            if name in CALLS or name in CUSTOM_CALLS:  # what is inside came before
                found[:] = [(n, v, at or line) for n, v, at in found]
                continue
            if not _interesting(values, outs) or not jnp.issubdtype(
                eqn.outvars[0].aval.dtype, jnp.floating
            ):
                continue
            found.append((name, outs[0], line))
            seconds.append(_second(moments, outs[0]))
        return seconds

    seconds = jax.jit(moments_of)(x[0])
    rows = [HEADER]
    for (name, value, line), second in zip(found, seconds, strict=True):
        dual = _dual(value, duals, kernel.num_samples)
        rows.append((name, _kind(value), dual, _shape(value), f"{float(second):.4g}", line))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _interesting(values: list[Any], outs: list[Any]) -> bool:
    """A result is random, or the first number made of random values."""
    random = any(isinstance(v, Wide | Param) for v in values)
    return (
        random
        and not isinstance(outs[0], Param)
        and (isinstance(outs[0], Wide | Det) or isinstance(outs[0], Joined))
    )


def _second(moments: Any, value: Any) -> Any:
    if isinstance(value, Det):
        return jnp.mean(jnp.asarray(value.sides[0], moments.dtype) ** 2)
    if isinstance(value, Joined) or value.terms is None:
        return jnp.nan
    k = moments.second(value, value, (0, 0), True)
    return jnp.zeros(()) if k is None else jnp.mean(k)


def _kind(value: Any) -> str:
    if isinstance(value, Det):
        return "number"
    if isinstance(value, Joined):
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
    return getattr(g, "leaf", None) or _names(g.source)  # type: ignore[attr-defined]


def _dual(value: Any, duals: dict[Function, DualRule], num_samples: int | None) -> str:
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


def _shape(value: Any) -> str:
    if isinstance(value, Joined):
        return f"joined along axis {value.axis}"
    sizes = []
    for size, wide in zip(value.shape, value.wide, strict=True):
        sizes.append(
            str(size)
            if wide == 1
            else "∞"
            if size == 1 and isinstance(value, Wide)
            else f"{size}·{wide}"
        )
    return f"({', '.join(sizes)})"
