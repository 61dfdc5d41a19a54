"""What every front door of finite width does with its arguments first."""

import math

import jax
import jax.numpy as jnp

from ntk_jax.checks import as_example_trees, check_integer, check_option, check_params
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
