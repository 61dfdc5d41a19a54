"""Checks of the network as a function: it is one, it has derivatives, it returns numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr

from ntk_jax.checks import all_finite, as_array, as_example_tree, as_targets_like
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import traced
from ntk_jax.compat import flax_modules, is_concrete, on_device
from ntk_jax.examples import Examples
from ntk_jax.losses import as_probabilities
from ntk_jax.types import ApplyFn, Params

ShapeAndDtype: TypeAlias = tuple[tuple[int, ...], Any]


def check_apply_fn(apply_fn: object, params: object) -> None:
    """Raise unless `apply_fn` is a function of parameters and examples, and `params` is none."""
    function = apply_fn.function if isinstance(apply_fn, Reading) else apply_fn
    name = type(function).__name__
    if isinstance(function, flax_modules("linen")):
        raise ValueError(
            f"apply_fn: expected a function apply_fn(params, x); got a Flax Linen model, {name}. "
            "Use apply_fn, params = ntk_jax.from_linen(model, variables)."
        )
    if isinstance(function, flax_modules("nnx")):
        raise ValueError(
            f"apply_fn: expected a function apply_fn(params, x); got a Flax NNX module, {name}. "
            "Use apply_fn, params = ntk_jax.from_nnx(module)."
        )
    if _is_equinox(function):
        raise ValueError(
            f"apply_fn: expected a function apply_fn(params, x); got an Equinox module, {name}. "
            "Split it, params, rest = eqx.partition(module, eqx.is_inexact_array), and use "
            "lambda p, x: jax.vmap(eqx.combine(p, rest))(x)."
        )
    if not callable(function):
        swapped = "These two are swapped: the function comes first."
        is_swapped = callable(params) and not _is_equinox(params)
        way_out = swapped if is_swapped else "Pass the function itself."
        raise ValueError(
            f"apply_fn: expected a function apply_fn(params, x); got {name}. {way_out}"
        )


def examples_and_targets(
    apply_fn: ApplyFn,
    params: Params,
    x: object,
    y: object,
    suffix: str = "",
    loss: object = None,
) -> tuple[Examples, Array]:
    """Examples, and targets of exactly the shape that the network returns for them; class labels
    too, for cross-entropy.
    """
    a = as_example_tree(f"x{suffix}", x)
    out = trace_of(apply_fn, params, a)[1]
    if len(getattr(out, "shape", ())) == 2:
        y = as_probabilities(f"y{suffix}", as_array(f"y{suffix}", y), loss, out.shape[1])
    return a, as_targets_like(f"y{suffix}", y, out.shape, out.dtype)


def as_arrays(params: Params) -> Params:
    """The leaves as arrays of JAX; what is none yet is taken over without a program."""
    take = lambda leaf: on_device(leaf) if isinstance(leaf, np.ndarray) else jnp.asarray(leaf)
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, Array) else take(leaf), params)


def shapes_of(params: Params) -> tuple[jax.tree_util.PyTreeDef, tuple[ShapeAndDtype, ...]]:
    """The structure of a pytree, shape and dtype of every leaf: what plans are remembered by."""
    leaves, structure = jax.tree.flatten(params)
    return structure, tuple(map(_shape_and_dtype, leaves))


def _shape_and_dtype(leaf: Any) -> ShapeAndDtype:
    if hasattr(leaf, "dtype"):
        return leaf.shape, leaf.dtype
    return jnp.shape(leaf), jnp.result_type(leaf)


def shapes_of_example(
    x: Examples,
) -> tuple[jax.tree_util.PyTreeDef, tuple[ShapeAndDtype, ...]]:
    """`shapes_of` one of the examples."""
    leaves, structure = jax.tree.flatten(x)
    return structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)


def trace_of(apply_fn: ApplyFn, params: Params, x: Examples) -> tuple[ClosedJaxpr, Any]:
    """The network at x as a traced program, and what it returns, as shapes; traced once."""
    like = lambda tree: as_structs(*shapes_of(tree))
    return traced(_outputs, apply_fn, like(params), like(x))


def as_structs(
    structure: jax.tree_util.PyTreeDef, shapes: tuple[ShapeAndDtype, ...]
) -> Params | Examples:
    """The pytree that `shapes_of` describes, with shapes in place of arrays."""
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*s) for s in shapes])


def _outputs(apply_fn: ApplyFn, params: Params, x: Examples) -> object:
    return apply_fn(params, x)


def _is_equinox(value: object) -> bool:
    return any(base.__module__.startswith("equinox.") for base in type(value).__mro__)


@contextmanager
def forward_mode(name: str) -> Iterator[None]:
    """Say what to do where a network has no forward derivative."""
    try:
        yield
    except (TypeError, NotImplementedError) as error:
        if not any(name in str(error) for name in ("custom_vjp", "custom_lin")):
            raise
        raise ValueError(
            f"{name}: expected a network with a forward-mode derivative; got one with a "
            "jax.custom_vjp function, which has a rule for reverse mode alone. Write its rule with "
            "jax.custom_jvp, which serves both, or use what needs reverse mode only: "
            "empirical_ntk(method='layerwise' or 'jacobian'), tangent_features."
        ) from error


def is_finite(result: Array | dict[str, Array]) -> bool:
    """Whether a pytree has no NaN or infinity; inside jit that is not known, and taken for true."""
    return all(all_finite([a]) for a in jax.tree.leaves(result) if is_concrete(a))


def check_outputs(values: Array, what: str = "outputs") -> Array:
    """`values`, or an error if they can be looked at and are not finite."""
    if not is_finite(values):
        bad = int(np.sum(~np.isfinite(np.asarray(values).astype(float))))
        raise ValueError(
            f"apply_fn: expected finite {what} at these parameters and examples; got {bad} NaN or "
            f"infinite of {values.size}. Look for logarithms, roots and quotients outside their "
            "domain, or for overflow."
        )
    return values
