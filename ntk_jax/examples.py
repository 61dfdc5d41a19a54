"""Examples: one array with examples in rows, or a pytree of arrays with the examples in front."""

from typing import Any, TypeAlias

import jax
import numpy as np
from jax import Array

Examples: TypeAlias = Any
"""An array (n, ...), or a dict, tuple or NamedTuple of arrays (n, ...): leaf[i] is of example i.

Leaves may be integers, such as tokens, masks or adjacency; no derivative by them is taken.
"""


def num_rows(x: Examples) -> int:
    """How many examples there are."""
    return int(jax.tree.leaves(x)[0].shape[0])


def take_rows(x: Examples, rows: slice | np.ndarray | Array) -> Examples:
    """Some of the examples."""
    return jax.tree.map(lambda leaf: leaf[rows], x)


def as_batch(one: Examples) -> Examples:
    """A batch of one example."""
    return jax.tree.map(lambda leaf: leaf[None], one)


def shapes_of_rows(x: Examples, n: int | None = None) -> Examples:
    """Shapes and dtypes of n examples like those of x; of one without an axis for None."""
    lead = () if n is None else (n,)
    shape = lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape[1:]), leaf.dtype)
    return jax.tree.map(shape, x)
