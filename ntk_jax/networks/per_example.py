"""Rows must not depend on each other: a kernel between examples has no meaning where they do."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.checks import working_dtype
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import program_of, remember
from ntk_jax.compat import UNFOLDED, is_concrete
from ntk_jax.examples import Examples, shapes_of_rows, take_rows
from ntk_jax.jaxprs import Jaxpr, all_equations, dtype_of
from ntk_jax.networks.apply_fn import shapes_of, trace_of
from ntk_jax.networks.rows import FEW, MORE, rows_are_apart
from ntk_jax.types import ApplyFn, Params

# Rows of a pool, in batches of one size, for one compiled program: in other places, after other
# rows, among rows that are not in the first batch.
BATCHES = ((0, 1, 2, 3), (3, 4, 1, 0), (0, 5, 4, 1))


def check_per_example(apply_fn: ApplyFn, params: Params, x: Examples) -> None:
    """Raise if the outputs of an example change with the other rows, their number, or its place.

    Once per network and shape: the traced program is read, and where it tells nothing, some rows
    are evaluated in several batches. Independence is a property of the program: inside jit, vmap
    and grad, drawn numbers stand for values that are not there.

    Raises:
        ValueError: the rows depend on each other, as in batch normalization in training mode.
    """
    key = "per example", *shapes_of(params), *shapes_of(shapes_of_rows(x))

    def is_per_example(reading: Reading) -> bool:
        return _is_proved(reading, params, x) or _is_observed(reading, params, x)

    if not remember(apply_fn, key, is_per_example):
        raise ValueError(
            "apply_fn: expected row i of the output to depend on row i of x alone; a row changed "
            "with the other rows or with its place among them. Batch normalization in training "
            "mode, x - x.mean(0) and dropout with a fixed key do this: use running averages "
            "(train=False, use_running_average=True, module.eval()), turn dropout off "
            "(deterministic=True), or normalize the data beforehand. Where the batch is meant as a "
            "whole: empirical_ntk(..., batch_coupled=True), infinite_width(..., "
            "batch_coupled=True)."
        )


def _is_proved(apply_fn: ApplyFn, params: Params, x: Examples) -> bool:
    rows = (shapes_of_rows(x, n) for n in (FEW, MORE))
    return rows_are_apart(*(trace_of(apply_fn, params, batch)[0] for batch in rows))


def _is_observed(apply_fn: ApplyFn, params: Params, x: Examples) -> bool:
    pool = jax.tree.map(_pool, x)
    params = jax.tree.map(_value, params)
    alone, outs = _evaluate(apply_fn, params, pool)
    # Rounding depends on the batch size; real dependence changes outputs by a good part of their
    # size.
    eps = _coarsest_eps(jax.make_jaxpr(apply_fn)(params, take_rows(pool, slice(1))).jaxpr)
    size = max(np.max(np.abs(out), where=np.isfinite(out), initial=0) for out in (alone, outs))
    close = partial(np.allclose, rtol=0, atol=10 * eps**0.5 * size, equal_nan=True)
    first = {0: alone[0]}
    found = (
        (row, out[i]) for rows, out in zip(BATCHES, outs, strict=True) for i, row in enumerate(rows)
    )
    return all(close(first.setdefault(row, values), values) for row, values in found)


def _pool(x: Array) -> np.ndarray:
    """Six rows: examples with shifted entries, valid inputs whatever x holds; drawn in a trace."""
    if not is_concrete(x):
        return _drawn((6, *x.shape[1:]), x.dtype)
    places = np.linspace(0, x.shape[0] - 1, 6).astype(int)
    rows = np.asarray(x)[places]
    rows = np.stack([np.roll(row.reshape(-1), k).reshape(row.shape) for k, row in enumerate(rows)])
    if jnp.issubdtype(rows.dtype, jnp.floating) and (rows == rows[:1]).all():
        scales = np.linspace(1, 0.5, 6).reshape(-1, *(1,) * (rows.ndim - 1))
        return (rows * scales).astype(rows.dtype)
    return rows


def _value(leaf: Any) -> Any:
    if is_concrete(leaf):
        return leaf
    return _drawn(leaf.shape, leaf.dtype, float(max(1, math.prod(leaf.shape[:-1]))))


def _drawn(shape: tuple[int, ...], dtype: Any, fan_in: float = 1.0) -> np.ndarray:
    """Numbers of the size of inputs, or of weights."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(np.resize([0, 1, 1, 0, 1], shape), dtype)
    values = np.random.default_rng(0).normal(size=4099)  # a prime: rows and columns differ
    return np.asarray(np.resize(values, shape) / fan_in**0.5, dtype)


def _evaluate(apply_fn: ApplyFn, params: Params, pool: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Outputs now, although a trace may be under way: what a closure took from it is drawn."""
    program, consts, leaves = program_of(_moved_outputs, apply_fn, params, pool)
    args = [_value(c) for c in consts], leaves
    # Lowered and compiled by hand: a call would only add to the trace that is under way.
    alone, batches = jax.jit(program.run).lower(*args).compile(UNFOLDED)(*args)
    return np.asarray(alone), np.asarray(batches)


def _moved_outputs(apply_fn: ApplyFn, params: Params, pool: Examples) -> tuple[Array, Array]:
    """Of the first row and of all batches, at other parameters: a network minus itself, or a zero
    readout, would hide.
    """

    def moved(p: Array) -> Array:
        wave = 0.005 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)
        return (1.1 * p + 0.01 + wave).astype(p.dtype)

    def outputs(x: Examples) -> Array:
        out = apply_fn(others, x)
        return out.astype(working_dtype(out.dtype))

    others = jax.tree.map(moved, params)
    with jax.default_matmul_precision("highest"):
        return outputs(take_rows(pool, slice(1))), jax.lax.map(
            outputs, take_rows(pool, np.array(BATCHES))
        )


def _coarsest_eps(jaxpr: Jaxpr) -> float:
    """The rounding unit of the least precise float in the computation."""
    dtypes = {dtype_of(v) for eqn in all_equations(jaxpr) for v in eqn.outvars}
    eps = [float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.floating)]
    return max([0.0, *eps])
