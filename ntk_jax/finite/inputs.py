"""What every front door of finite width does with its arguments first."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.checks import (
    as_example_tree,
    as_example_trees,
    check_integer,
    check_option,
    check_params,
)
from ntk_jax.closures.programs import remember
from ntk_jax.examples import Examples, num_rows, shapes_of_rows
from ntk_jax.networks.apply_fn import check_apply_fn, shapes_of, shapes_of_example, trace_of
from ntk_jax.networks.per_example import check_per_example
from ntk_jax.networks.rows import FEW
from ntk_jax.networks.views import holds_complex, in_parts, in_reals
from ntk_jax.types import ApplyFn, Params

OUTPUTS = ("mean", "diagonal", "full")
PRECISIONS = ("highest", "high", "default")


class Allowed(NamedTuple):
    """Whether rows may interact, and whether parameters and outputs may be complex."""

    coupled: bool = False
    complex: bool = False


NOTHING = Allowed()


class Checked(NamedTuple):
    """Both sets of examples as arrays, and whether parameters or outputs are complex."""

    x1: Examples
    x2: Examples | None
    is_complex: bool


def check_inputs(
    apply_fn: ApplyFn,
    params: Params,
    x1: object,
    x2: object,
    outputs: str = "mean",
    precision: str = "highest",
    memory_limit: int | None = None,
) -> tuple[Examples, Examples | None]:
    """Both sets of examples as arrays, after every check that the finite-width functions share."""
    options = outputs, precision, memory_limit, NOTHING
    return check_one(apply_fn, params, x1, x2, *options)[:2]


def check_one(
    apply_fn: ApplyFn,
    params: Params,
    x1: object,
    x2: object,
    outputs: str,
    precision: str,
    memory_limit: int | None,
    allowed: Allowed,
) -> Checked:
    """As `check_inputs`, of networks that may do what is `allowed`."""
    check_option("outputs", outputs, OUTPUTS)
    check_option("precision", precision, PRECISIONS)
    if memory_limit is not None:
        check_integer("memory_limit", memory_limit, minimum=1)
    check_apply_fn(apply_fn, params)
    check_params(params, complex_too=allowed.complex)
    a1, a2 = as_example_trees(x1, x2)
    # Whole batches are what a network of coupled rows is examined at: each of them.
    batches = [a for a in (a1, a2) if a is not None] if allowed.coupled else [a1]
    is_complex = False
    for a in batches:
        rows = num_rows(a) if allowed.coupled else None
        key = "examined", rows, *shapes_of(params), *shapes_of_example(a)
        is_complex = remember(apply_fn, key, partial(_examine, params=params, x=a, rows=rows))
    if is_complex and not allowed.complex:
        raise ValueError(
            f"apply_fn: expected real outputs; got {trace_of(apply_fn, params, a1)[1].dtype}. Stack"
            " real and imaginary parts as two outputs: jnp.stack([f.real, f.imag], axis=-1). "
            "Complex kernels are there in empirical_ntk alone."
        )
    return Checked(a1, a2, is_complex)


def check_two(
    functions: tuple[ApplyFn, ApplyFn],
    params: Params,
    x1: object,
    x2: object,
    outputs: str,
    precision: str,
    memory_limit: int | None = None,
    allowed: Allowed = NOTHING,
) -> Checked:
    """As `check_one`, of two functions, each with examples of its own; x2=None is x1 again."""
    options = outputs, precision, memory_limit, allowed
    a1, _, complex1 = check_one(functions[0], params, x1, None, *options)
    # Their examples need not be alike: each set is checked as its function's own.
    a2 = a1 if x2 is None else as_example_tree("x2", x2)
    try:
        complex2 = check_one(functions[1], params, a2, None, *options).is_complex
    except ValueError as error:
        if str(error).startswith("apply_fn:"):
            raise ValueError(f"apply_fn2{str(error).removeprefix('apply_fn')}") from error
        raise
    first, second = (
        math.prod(trace_of(f, params, a)[1].shape[1:])
        for f, a in zip(functions, (a1, a2), strict=True)
    )
    if first != second and outputs != "full":
        raise ValueError(
            f"apply_fn2: expected {first} outputs, like apply_fn; got {second}. outputs='full' "
            "pairs every output with every other."
        )
    return Checked(a1, a2, complex1 or complex2)


def _examine(apply_fn: ApplyFn, params: Params, x: Examples, rows: int | None) -> bool:
    """Whether the network is complex; `rows` that interact, or None if they must not."""
    # Shapes first: they cost nothing, and the rows of what is no array cannot be compared.
    dtype = _dtype_of_rows(apply_fn, params, x, rows or FEW)
    is_complex = holds_complex(params) or jnp.issubdtype(dtype, jnp.complexfloating)
    if rows is None:
        f, p = (in_reals(apply_fn), in_parts(params)) if is_complex else (apply_fn, params)
        check_per_example(f, p, x)
    return bool(is_complex)


def output_axes(outputs: str) -> int:
    """How many output axes the kernel has."""
    return OUTPUTS.index(outputs)


def _dtype_of_rows(apply_fn: ApplyFn, params: Params, x: Examples, rows: int) -> np.dtype:
    """The dtype of the outputs; an error unless the network returns one array of floats with one
    row per example.
    """
    out = trace_of(apply_fn, params, shapes_of_rows(x, rows))[1]
    shape = getattr(out, "shape", ())
    if not shape or shape[0] != rows or math.prod(shape) == 0:
        out = trace_of(apply_fn, params, x)[1]
        got = jax.tree.map(lambda leaf: leaf.shape, out)
        raise ValueError(
            f"apply_fn: expected one array with a row per example, ({num_rows(x)}, ...); got {got}."
            " Wrap it: lambda params, x: apply_fn(params, x)[0] picks one of several results."
        )
    if not jnp.issubdtype(out.dtype, jnp.inexact):
        raise ValueError(
            f"apply_fn: expected real floating-point outputs; got {out.dtype}. Return logits, not "
            "classes."
        )
    return out.dtype
