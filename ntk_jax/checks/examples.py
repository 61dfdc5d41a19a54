"""Checks of examples: one array, or a dict, a tuple or a NamedTuple of arrays."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import keystr

from ntk_jax.checks.values import as_array, check_finite
from ntk_jax.examples import Examples


def as_examples(name: str, x: object) -> Array:
    """`x` as a real and finite array of two axes or more, whose rows are examples."""
    x = as_array(name, x)
    if x.ndim < 2:
        raise ValueError(
            f"{name}: expected examples in rows, shape (n, ...) with at least two axes; got shape "
            f"{x.shape}. Use {name}[:, None] for n examples of one feature, {name}[None] for one "
            "example."
        )
    if x.size == 0:
        raise ValueError(
            f"{name}: expected at least one example with at least one feature; got shape {x.shape}."
        )
    return _real(name, x)


def as_example_pair(x1: object, x2: object) -> tuple[Array, Array | None]:
    """Both sets of examples, of equal feature shape; `x2` may be None."""
    x1 = as_examples("x1", x1)
    if x2 is None:
        return x1, None
    x2 = as_examples("x2", x2)
    if x1.shape[1:] != x2.shape[1:]:
        raise ValueError(
            f"x2: expected examples shaped like those of x1, {x1.shape[1:]}; got {x2.shape[1:]}. "
            "Both sets must go through the same preprocessing."
        )
    return x1, x2


def as_example_tree(name: str, x: object) -> Examples:
    """`x` as real and finite arrays that all have the examples on their first axis.

    An array and what NumPy makes one of, such as a list, is one array with at least two axes.
    """
    if isinstance(x, Array) or not _is_tree(x):
        return as_examples(name, x)
    found, structure = jax.tree_util.tree_flatten_with_path(x, is_leaf=_is_one)
    if not found:
        raise ValueError(
            f"{name}: expected an array or a pytree of arrays with the examples on the first axis; "
            f"got {type(x).__name__} without any array."
        )
    leaves = [_leaf(f"{name}{keystr(path)}", leaf) for path, leaf in found]
    n = leaves[0].shape[0]
    for (path, _), leaf in zip(found, leaves, strict=True):
        if leaf.shape[0] != n:
            raise ValueError(
                f"{name}{keystr(path)}: expected {n} examples on the first axis, like "
                f"{name}{keystr(found[0][0])}; got shape {leaf.shape}."
            )
    return jax.tree.unflatten(structure, leaves)


def as_example_trees(x1: object, x2: object) -> tuple[Examples, Examples | None]:
    """Both sets of examples, of equal structure and feature shapes; `x2` may be None."""
    a1 = as_example_tree("x1", x1)
    if x2 is None:
        return a1, None
    a2 = as_example_tree("x2", x2)
    structure1, structure2 = (str(jax.tree.structure(a)) for a in (a1, a2))
    if structure1 != structure2:
        raise ValueError(
            f"x2: expected examples of the structure of x1, {structure1}; got {structure2}."
        )
    found = jax.tree_util.tree_leaves_with_path(a1)
    for (path, leaf1), leaf2 in zip(found, jax.tree.leaves(a2), strict=True):
        if leaf1.shape[1:] != leaf2.shape[1:]:
            raise ValueError(
                f"x2{keystr(path)}: expected examples shaped like those of x1, {leaf1.shape[1:]}; "
                f"got {leaf2.shape[1:]}. Both sets must go through the same preprocessing."
            )
    return a1, a2


def _is_tree(x: object) -> bool:
    """Whether x is a pytree of arrays, and not what NumPy takes for one array."""
    if isinstance(x, list) or _is_sparse(x) or jax.tree_util.all_leaves([x]):
        return False
    # A tuple of numbers, or of lists or tuples of them, is one array; one that holds an array is
    # never stacked.
    return type(x) is not tuple or not x or _holds_arrays(x)


def _is_one(x: object) -> bool:
    """Whether a node is for `as_array`: a list of numbers, or sparse, which is a pytree to JAX."""
    return _is_sparse(x) or (isinstance(x, list) and bool(x) and not _holds_arrays(x))


def _is_sparse(x: object) -> bool:
    return hasattr(x, "todense")


def _holds_arrays(x: object) -> bool:
    return any(hasattr(leaf, "shape") and leaf.shape for leaf in jax.tree.leaves(x))


def _leaf(name: str, value: object) -> Array:
    a = as_array(name, value)
    if not a.ndim:
        raise ValueError(
            f"{name}: expected an array with the examples on its first axis; got a scalar. Close "
            "over what all examples share: lambda params, x: apply_fn(params, x, shared)."
        )
    if not a.size:
        raise ValueError(f"{name}: expected at least one entry per example; got shape {a.shape}.")
    return _real(name, a)


def _real(name: str, a: Array) -> Array:
    """Real and finite values."""
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name}: expected real values; got {a.dtype}. Stack real and imaginary parts as "
            "features."
        )
    check_finite(name, a)
    return a
