"""What every front door of finite width does with its arguments first."""

import math

import jax
import jax.numpy as jnp

from ntk_jax.checks import (
    as_example_tree,
    as_example_trees,
    check_integer,
    check_option,
    check_params,
)
from ntk_jax.closures.programs import remember
from ntk_jax.examples import Examples, num_rows, shapes_of_rows
from ntk_jax.networks.apply_fn import check_apply_fn, shapes_of, trace_of
from ntk_jax.networks.per_example import check_per_example
from ntk_jax.networks.rows import FEW
from ntk_jax.types import ApplyFn, Params

OUTPUTS = ("mean", "diagonal", "full")
PRECISIONS = ("highest", "high", "default")


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
    check_option("outputs", outputs, OUTPUTS)
    check_option("precision", precision, PRECISIONS)
    if memory_limit is not None:
        check_integer("memory_limit", memory_limit, minimum=1)
    check_apply_fn(apply_fn, params)
    check_params(params)
    a1, a2 = as_example_trees(x1, x2)
    key = "examined", *shapes_of(params), *shapes_of(shapes_of_rows(a1))
    remember(apply_fn, key, lambda reading: _examine(reading, params, a1))
    return a1, a2


def check_two(
    functions: tuple[ApplyFn, ApplyFn],
    params: Params,
    x1: object,
    x2: object,
    outputs: str,
    precision: str,
    memory_limit: int | None = None,
) -> tuple[Examples, Examples]:
    """As `check_inputs`, of two functions, each with examples of its own; x2=None is x1 again."""
    a1, _ = check_inputs(functions[0], params, x1, None, outputs, precision, memory_limit)
    # Their examples need not be alike: each set is checked as its function's own.
    a2 = a1 if x2 is None else as_example_tree("x2", x2)
    try:
        check_inputs(functions[1], params, a2, None, outputs, precision)
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
    return a1, a2


def _examine(apply_fn: ApplyFn, params: Params, x: Examples) -> bool:
    # Shapes first: they cost nothing, and the rows of what is no array cannot be compared.
    _check_outputs_are_rows(apply_fn, params, x)
    check_per_example(apply_fn, params, x)
    return True


def output_axes(outputs: str) -> int:
    """How many output axes the kernel has."""
    return OUTPUTS.index(outputs)


def _check_outputs_are_rows(apply_fn: ApplyFn, params: Params, x: Examples) -> None:
    """Raise unless the network returns one real array with one row per example."""
    out = trace_of(apply_fn, params, shapes_of_rows(x, FEW))[1]
    shape = getattr(out, "shape", ())
    if not shape or shape[0] != FEW or math.prod(shape) == 0:
        out = trace_of(apply_fn, params, x)[1]
        got = jax.tree.map(lambda leaf: leaf.shape, out)
        raise ValueError(
            f"apply_fn: expected one array with a row per example, ({num_rows(x)}, ...); got {got}."
            " Wrap it: lambda params, x: apply_fn(params, x)[0] picks one of several results."
        )
    if jnp.issubdtype(out.dtype, jnp.complexfloating):
        raise ValueError(
            f"apply_fn: expected real outputs; got {out.dtype}. Stack real and imaginary parts as "
            "two outputs: jnp.stack([f.real, f.imag], axis=-1)."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"apply_fn: expected real floating-point outputs; got {out.dtype}. Return logits, not "
            "classes."
        )
