"""Operations on deterministic values alone: done for both examples of a pair, or once and now if
they are constants.

An inner product of two wide vectors is a number only after its division by their width (the law of
large numbers); until then its value is pending, and may pass through what leaves entries alone.
"""

import contextlib
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import bind
from ntk_jax.host.program import host_program
from ntk_jax.infinite.flax.errors import SAMPLES, NoLimitError
from ntk_jax.infinite.flax.layouts import LAYOUTS, lazy_broadcast
from ntk_jax.infinite.flax.values import (
    ELEMENTWISE,
    PASSING,
    REDUCTIONS,
    AnyArray,
    Det,
    Shape,
    bind_elementwise,
    fixed_key,
    is_key,
    joint_wide,
    static_det,
)
from ntk_jax.jaxprs import Eqn, dtype_of, shape_of

Evaluation = Callable[[list[AnyArray]], Sequence[jax.Array]]

# Between a scale that a model wrote, such as (1 / sqrt(width))**2 in float32, and 1 / width.
CLOSE = 1e-4


def deterministic(eqn: Eqn, values: Sequence[Det], dtype: np.dtype) -> list[Det]:
    """The results of an operation on deterministic values."""
    static = all(v.static for v in values)
    check_pending(eqn, values)
    evaluate, wide = _evaluation(eqn, values, dtype)
    sides = []
    for side in (0,) if static else (0, 1):
        floating = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
        arrays = [v.sides[side] for v in values]
        outs: Sequence[AnyArray] = _now(evaluate, arrays) if static else evaluate(arrays)
        sides.append([o.astype(dtype) if floating(o) else o for o in outs])
    pending = None if static else _still_pending(eqn, values)
    results = []
    for pair in zip(*sides, strict=True):
        if static:
            d = fixed_key(pair[0]) if is_key(pair[0]) else static_det(pair[0])
        else:
            d = Det(pair, (1,) * pair[0].ndim, pending=pending)
        results.append(d if wide is None else Det(d.sides, wide, d.literal, d.static, d.pending))
    return results


def _now(evaluate: Evaluation, arrays: list[AnyArray]) -> Sequence[AnyArray]:
    """Of constants: by NumPy, where it knows how, for which nothing is compiled."""
    if not any(map(is_key, arrays)):
        program = host_program(jax.make_jaxpr(lambda *a: evaluate([*a]))(*arrays))
        if program is not None:
            return program(*arrays)
    with jax.ensure_compile_time_eval():
        return [o if is_key(o) else np.asarray(o) for o in evaluate(arrays)]


def _evaluation(
    eqn: Eqn, values: Sequence[Det], dtype: np.dtype
) -> tuple[Evaluation, Shape | None]:
    """(arrays -> results, multiplicities of each result): on stored shapes where possible; else in
    full, and all multiplicities are 1 (None).
    """
    name, axes = eqn.primitive.name, eqn.params.get("axes", ())
    full = [shape_of(a) for a in eqn.invars]
    if name in ELEMENTWISE:
        joint = joint_wide(values)
        ones = (1,) * (len(shape_of(eqn.outvars[0])) - len(joint))
        elementwise = lambda arrays: [bind_elementwise(eqn.primitive, eqn.params, arrays, dtype)]
        return elementwise, ones + joint
    # Only what is stored as it is in full needs no layout; a broadcast repeats nothing yet.
    if name in LAYOUTS and (values[0].shape != full[0] or name == "broadcast_in_dim"):
        with contextlib.suppress(NoLimitError):
            layout_of = lazy_broadcast if name == "broadcast_in_dim" else LAYOUTS[name]
            layout = layout_of(eqn, values[0].shape, values[0].wide)
            if name == "reduce_sum":  # over repeated entries too, of which one is stored
                times = math.prod(values[0].wide[a] for a in axes)
                return lambda arrays: [times * layout.apply(jnp.asarray(arrays[0]))], layout.wide
            if not layout.interleaved and (name != "pad" or values[1].is_zero):
                return lambda arrays: [layout.apply(jnp.asarray(arrays[0]))], layout.wide
    if name in REDUCTIONS:
        wide = tuple(w for i, w in enumerate(values[0].wide) if i not in axes)
        return lambda arrays: bind(eqn, [jnp.asarray(a) for a in arrays]), wide

    def evaluate(arrays: list[AnyArray]) -> list[jax.Array]:
        spread = [jnp.broadcast_to(jnp.asarray(a), s) for a, s in zip(arrays, full, strict=True)]
        dtypes = [dtype_of(v) for v in eqn.invars]
        floats = [jnp.issubdtype(d, jnp.floating) for d in dtypes]
        return bind(
            eqn, [a.astype(d) if f else a for a, d, f in zip(spread, dtypes, floats, strict=True)]
        )

    return evaluate, None


def check_pending(eqn: Eqn, values: Sequence[object]) -> None:
    """Raise where a sum of products of wide vectors is used before it is divided by its width."""
    name = eqn.primitive.name
    found = [v for v in values if isinstance(v, Det)]
    for v in found:
        by_number = any(o.literal is not None for o in found if o is not v)
        if v.pending and name not in PASSING and not (name in ("mul", "div") and by_number):
            raise NoLimitError(
                f"an inner product of two wide vectors of width {v.pending} is used without "
                "division by the width: with the standard 1/sqrt(width) it stays random, and has "
                "no closed form (Hron et al. 2020, arXiv:2006.10540),",
                "Scale attention by 1/width, or pass inner_products='mean' to accept the law of "
                "large numbers. For attention of several heads with independent queries and keys, "
                f"{SAMPLES}",
            )


def _still_pending(eqn: Eqn, values: Sequence[Det]) -> int | None:
    """The pending width of the result: none after a division by that width."""
    pending = next((v.pending for v in values if v.pending), None)
    if pending is None or eqn.primitive.name not in ("mul", "div"):
        return pending
    literal = float(next(v.literal for v in values if v.literal is not None))
    scale = 1 / literal if eqn.primitive.name == "div" else literal
    return None if abs(scale * pending - 1) < CLOSE else pending
