"""Rows must not depend on each other: a kernel between examples has no meaning where they do."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.checks import working_dtype
from ntk_jax.closures.programs import program_of, remember
from ntk_jax.compat import UNFOLDED, is_concrete
from ntk_jax.jaxprs import open_jaxpr
from ntk_jax.types import ApplyFn, Params

# Rows of a pool, in batches of one size: in other places, after other rows, among rows that are not
# in the first batch.
BATCHES = ((0, 1, 2, 3), (3, 4, 1, 0), (0, 5, 4, 1))


def check_per_example(apply_fn: ApplyFn, params: Params, x: Array) -> None:
    """Raise if the outputs of an example change with the other rows of its batch, with their
    number, or with its place.

    Some rows are evaluated in several batches, once per network and shape. Independence is a
    property of the program: inside jit, vmap and grad, drawn numbers stand for values that are not
    there.

    Raises:
        ValueError: the rows depend on each other, as in batch normalization in training mode.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple((tuple(jnp.shape(leaf)), jnp.result_type(leaf)) for leaf in leaves)
    key = "per example", structure, shapes, x.shape[1:], x.dtype
    if not remember(apply_fn, key, lambda reading: _is_per_example(reading, params, x)):
        raise ValueError(
            "apply_fn: expected row i of the output to depend on row i of x alone; a row changed "
            "with the other rows or "
            "with its place among them. Batch normalization in training mode, x - x.mean(0) and "
            "dropout with a fixed key "
            "do this: use running averages (train=False, use_running_average=True, module.eval()), "
            "turn dropout off "
            "(deterministic=True), or normalize the data beforehand."
        )


def _is_per_example(apply_fn: ApplyFn, params: Params, x: Array) -> bool:
    pool = _pool(x)
    params = jax.tree.map(_value, params)
    alone = _evaluate(apply_fn, params, pool[:1])
    outs = [_evaluate(apply_fn, params, pool[list(batch)]) for batch in BATCHES]
    # Rounding depends on the batch size; real dependence changes outputs by a good part of their
    # size.
    eps = _coarsest_eps(jax.make_jaxpr(apply_fn)(params, pool[:1]))
    tolerance = (
        10
        * eps**0.5
        * max(np.max(np.abs(out), where=np.isfinite(out), initial=0) for out in (alone, *outs))
    )
    first = {0: alone[0]}
    for batch, out in zip(BATCHES, outs, strict=True):
        for row, values in zip(batch, out, strict=True):
            if not np.allclose(
                first.setdefault(row, values), values, rtol=0, atol=tolerance, equal_nan=True
            ):
                return False
    return True


def _pool(x: Array) -> np.ndarray:
    """Six rows: examples with shifted entries, which are valid inputs whatever x holds; drawn where
    x is traced.
    """
    if not is_concrete(x):
        return _drawn((6, *x.shape[1:]), x.dtype)
    places = np.linspace(0, x.shape[0] - 1, 6).astype(int)
    rows = np.asarray(x)[places]
    rows = np.stack([np.roll(row.reshape(-1), k).reshape(row.shape) for k, row in enumerate(rows)])
    if jnp.issubdtype(rows.dtype, jnp.floating) and (rows == rows[:1]).all():
        rows = (rows * np.linspace(1, 0.5, 6).reshape(-1, *(1,) * (rows.ndim - 1))).astype(
            rows.dtype
        )
    return rows


def _value(leaf: Any) -> Any:
    return (
        leaf
        if is_concrete(leaf)
        else _drawn(leaf.shape, leaf.dtype, float(max(1, math.prod(leaf.shape[:-1]))))
    )


def _drawn(shape: tuple[int, ...], dtype: Any, fan_in: float = 1.0) -> np.ndarray:
    """Numbers of the size of inputs, or of weights."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(np.resize([0, 1, 1, 0, 1], shape), dtype)
    values = np.random.default_rng(0).normal(size=4099)  # a prime: rows and columns differ
    return np.asarray(np.resize(values, shape) / fan_in**0.5, dtype)


def _evaluate(apply_fn: ApplyFn, params: Params, x: np.ndarray) -> np.ndarray:
    """Outputs now, although a trace may be under way: what a closure took from it is drawn, too."""
    program, consts, leaves = program_of(_moved_outputs, apply_fn, params, x)
    args = [_value(c) for c in consts], leaves
    (out,) = (
        jax.jit(program.run).lower(*args).compile(UNFOLDED)(*args)
    )  # compiled now, whatever is being traced
    return np.asarray(out)


def _moved_outputs(apply_fn: ApplyFn, params: Params, x: Array) -> Array:
    """Outputs at other parameters, because a network minus itself, or with a readout of zeros,
    hides what it does.
    """

    def moved(p: Array) -> Array:
        return (
            1.1 * p + 0.01 + 0.005 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)
        ).astype(p.dtype)

    with jax.default_matmul_precision("highest"):
        out = apply_fn(jax.tree.map(moved, params), x)
    return out.astype(working_dtype(out.dtype))


def _coarsest_eps(jaxpr: Any) -> float:
    """The rounding unit of the least precise float in the computation."""
    eps = [0.0]
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        eps += [
            float(jnp.finfo(v.aval.dtype).eps)
            for v in eqn.outvars
            if jnp.issubdtype(v.aval.dtype, jnp.floating)
        ]
        eps += [_coarsest_eps(p) for p in eqn.params.values() if hasattr(p, "eqns")]
    return max(eps)
