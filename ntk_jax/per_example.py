"""Rows must not depend on each other: a kernel between examples has no meaning where they do."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxpr_as_fun

from ntk_jax.checks import working_dtype
from ntk_jax.compat import UNFOLDED, is_concrete, open_jaxpr
from ntk_jax.types import ApplyFn, Params


def check_per_example(apply_fn: ApplyFn, params: Params, x: Array) -> None:
    """Raise if the outputs of an example change with the other rows of its batch.

    The first row is evaluated alone and in two batches with other rows, once per network and shape. Inside jit, vmap
    and grad nothing can be compared: there the check is skipped.

    Raises:
        ValueError: the rows depend on each other, as in batch normalization in training mode.
    """
    leaves, structure = jax.tree.flatten(params)
    if not is_concrete(x) or not all(is_concrete(leaf) for leaf in leaves):
        return
    shapes = tuple((tuple(jnp.shape(leaf)), jnp.result_type(leaf)) for leaf in leaves)
    memory = _memory(apply_fn, structure, shapes, x.shape[1:], x.dtype)
    if "passed" not in memory:
        passed = _is_per_example(apply_fn, params, x)
        if passed is None:
            return
        memory["passed"] = passed
    if not memory["passed"]:
        raise ValueError(
            "apply_fn: expected row i of the output to depend on row i of x alone; the first row changed with the "
            "other rows. Batch normalization in training mode or x - x.mean(0) does this: use running averages "
            "(train=False, use_running_average=True, module.eval()), or normalize the data beforehand."
        )


@functools.lru_cache(maxsize=256)
def _memory(apply_fn: ApplyFn, structure: Any, shapes: Any, x_shape: Any, x_dtype: Any) -> dict[str, bool]:
    """A place to remember the answer for one network and shape."""
    return {}


def _is_per_example(apply_fn: ApplyFn, params: Params, x: Array) -> bool | None:
    """The answer, or None where values cannot be compared: under someone's jit even constants are traced."""
    ends = x[:1], x[-1:]
    if not all(is_concrete(row) for row in ends):
        return None
    row, other = map(np.asarray, ends)
    # Shifted entries of the row itself are valid inputs whatever x holds.
    shifted = np.roll(row.reshape(1, -1), 1, axis=1).reshape(row.shape)
    batches = np.concatenate([row, shifted, other]), np.concatenate([row, row[..., ::-1], shifted])
    outs = [*_first_rows(apply_fn, params, [row]), *_first_rows(apply_fn, params, batches)]
    if not outs:
        return None
    alone, first, second = outs
    # Rounding depends on the batch size; real dependence changes outputs by a good part of their size.
    eps = _coarsest_eps(jax.make_jaxpr(apply_fn)(params, x[:1]))
    tolerance = 10 * eps**0.5 * max(np.max(np.abs(alone)), np.max(np.abs(first)))
    close = functools.partial(np.allclose, alone, rtol=0, atol=tolerance, equal_nan=True)
    return bool(close(first) and close(second))


def _first_rows(apply_fn: ApplyFn, params: Params, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Row 0 of the outputs of each batch; nothing if `apply_fn` closes over what someone traces."""
    closed = jax.make_jaxpr(functools.partial(_first_row, apply_fn))(params, batches[0])
    if not all(map(is_concrete, closed.consts)):
        return []
    run = jax.jit(jaxpr_as_fun(closed), compiler_options=UNFOLDED)
    return [np.asarray(run(*jax.tree.leaves(params), batch)[0]) for batch in batches]


def _first_row(apply_fn: ApplyFn, params: Params, x: Array) -> Array:
    """Row 0 at scaled parameters, because a network minus itself at initialization is pure rounding where it starts."""
    params = jax.tree.map(lambda p: (1.1 * p).astype(p.dtype), params)
    with jax.default_matmul_precision("highest"):
        out = apply_fn(params, x)[0]
    return out.astype(working_dtype(out.dtype))


def _coarsest_eps(jaxpr: Any) -> float:
    """The rounding unit of the least precise float in the computation."""
    eps = [0.0]
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        eps += [float(jnp.finfo(v.aval.dtype).eps) for v in eqn.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
        eps += [_coarsest_eps(p) for p in eqn.params.values() if hasattr(p, "eqns")]
    return max(eps)
