"""What every front door of finite width does with its arguments first."""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.checks import as_example_pair, check_integer, check_option, check_params
from ntk_jax.closures.programs import remembered
from ntk_jax.networks.apply_fn import check_apply_fn
from ntk_jax.networks.per_example import check_per_example
from ntk_jax.types import ApplyFn, Params

OUTPUTS = ("mean", "diagonal", "full")
PRECISIONS = ("highest", "high", "default")

ShapeAndDtype: TypeAlias = tuple[tuple[int, ...], Any]


def check_inputs(
    apply_fn: ApplyFn,
    params: Params,
    x1: object,
    x2: object,
    outputs: str = "mean",
    precision: str = "highest",
    memory_limit: int | None = None,
) -> tuple[Array, Array | None]:
    """Both sets of examples as arrays, after every check that the finite-width functions share."""
    check_option("outputs", outputs, OUTPUTS)
    check_option("precision", precision, PRECISIONS)
    if memory_limit is not None:
        check_integer("memory_limit", memory_limit, minimum=1)
    check_apply_fn(apply_fn, params)
    check_params(params)
    a1, a2 = as_example_pair(x1, x2)
    # Shapes first: they cost nothing, and the rows of what is no array cannot be compared.
    _check_outputs_are_rows(apply_fn, params, a1)
    check_per_example(apply_fn, params, a1)
    return a1, a2


def output_axes(outputs: str) -> int:
    """How many output axes the kernel has."""
    return OUTPUTS.index(outputs)


def shapes_of(params: Params) -> tuple[jax.tree_util.PyTreeDef, tuple[ShapeAndDtype, ...]]:
    """The structure of a pytree, shape and dtype of every leaf: what plans are remembered by."""
    leaves, structure = jax.tree.flatten(params)
    dtype = lambda leaf: getattr(leaf, "dtype", None) or jnp.result_type(leaf)
    return structure, tuple((jnp.shape(leaf), dtype(leaf)) for leaf in leaves)


@remembered
def _output_shapes(
    apply_fn: ApplyFn,
    structure: jax.tree_util.PyTreeDef,
    shapes: tuple[ShapeAndDtype, ...],
    x: ShapeAndDtype,
) -> Any:
    params = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*s) for s in shapes])
    return jax.eval_shape(apply_fn, params, jax.ShapeDtypeStruct(*x))


def _check_outputs_are_rows(apply_fn: ApplyFn, params: Params, x: Array) -> None:
    """Raise unless the network returns one real array with one row per example."""
    out = _output_shapes(apply_fn, *shapes_of(params), (x.shape, x.dtype))
    shape = getattr(out, "shape", ())
    if not shape or shape[0] != x.shape[0] or math.prod(shape) == 0:
        got = jax.tree.map(lambda leaf: leaf.shape, out)
        raise ValueError(
            f"apply_fn: expected one array with a row per example, ({x.shape[0]}, ...); got {got}. "
            "Wrap it: lambda params, x: apply_fn(params, x)[0] picks one of several results."
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
