"""What the tapped evaluation tracks: re-indexed leaves, and products that await their tap."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ntk_jax.finite.uses.canonical import Path, Step, Use
from ntk_jax.jaxprs import Eqn

Scale: TypeAlias = ArrayLike | None
"""A scalar factor, as an array or as a literal of the traced program; None is 1."""

Axes: TypeAlias = tuple[int | None, ...] | None
"""The leaf axis behind each axis (None: repeated); None: mixed up."""


@dataclass(frozen=True, eq=False)
class Reindexed:
    """`array` = scale x a re-indexing of the parameter leaf number `leaf`.

    Attributes:
        array: the values.
        leaf: number of the leaf.
        path: the steps of the re-indexing: two uses can be joined if these agree.
        axes: which axes of the leaf are behind those of the array.
        scale: a scalar factor.
        repeats: whether some entry appears more than once.
        stacked: depth of the scan that slices it, 0 if none.
    """

    array: Any
    leaf: int
    path: Path = ()
    axes: Axes = None
    scale: Scale = None
    repeats: bool = False
    stacked: int = 0

    def moved(self, array: Array, step: Step, axes: Axes, repeats: bool = False) -> "Reindexed":
        """The leaf after one more step of re-indexing."""
        repeats |= self.repeats
        return replace(self, array=array, path=(*self.path, step), axes=axes, repeats=repeats)


@dataclass(frozen=True, eq=False)
class PendingUse:
    """One use of one leaf in a product: what is recorded at its tap is scale x input."""

    leaf: int
    use: Use
    path: Path
    stacked: int
    input: ArrayLike
    scale: Scale = None

    def scaled_input(self) -> ArrayLike:
        """The layer input, with every scalar factor between the weight and the tap."""
        return self.input if self.scale is None else self.input * as_scalar(self.scale, self.input)


@dataclass(frozen=True, eq=False)
class Product:
    """A sum of products with weights and of terms the tap does not change; its tap is not added."""

    array: Array
    uses: tuple[PendingUse, ...]

    def scaled(self, array: Array, scale: Scale) -> "Product":
        """The product after multiplication by a scalar."""
        return Product(array, tuple(replace(p, scale=times(p.scale, scale)) for p in self.uses))

    def transposed(self, array: Array, permutation: tuple[int, ...]) -> "Product":
        """The product after a transpose."""
        move = lambda use: replace(use, axes=use.axes.transposed(permutation))
        return Product(array, tuple(replace(p, use=move(p.use)) for p in self.uses))


Value: TypeAlias = ArrayLike | Reindexed | Product


def raw(value: Value) -> Any:
    """The plain array of a tracked value."""
    return value.array if isinstance(value, Reindexed | Product) else value


def times(a: Scale, b: Scale) -> Scale:
    """The product of two scalar factors."""
    if a is None or b is None:
        return b if a is None else a
    return as_scalar(a, b) * as_scalar(b, a)


def as_scalar(scale: ArrayLike, like: ArrayLike) -> Array:
    """`scale` in the dtype of `like`: half-precision factors must not promote, nor be refused."""
    return jnp.asarray(scale).reshape(()).astype(jnp.result_type(like))


def _transpose(leaf: Reindexed, out: Array, eqn: Eqn) -> Reindexed:
    permutation = tuple(eqn.params["permutation"])
    axes = None if leaf.axes is None else tuple(leaf.axes[i] for i in permutation)
    return leaf.moved(out, ("transpose", permutation), axes)


def _reshape(leaf: Reindexed, out: Array, eqn: Eqn) -> Reindexed:
    """Axes survive if only axes of size 1 come or go."""
    old = [(size, i) for i, size in enumerate(leaf.array.shape) if size != 1]
    axes = None
    if leaf.axes is not None and [n for n, _ in old] == [n for n in out.shape if n != 1]:
        kept = iter(leaf.axes[i] for _, i in old)
        axes = tuple(None if size == 1 else next(kept) for size in out.shape)
    return leaf.moved(out, ("reshape", leaf.array.shape, out.shape), axes)


def _broadcast(leaf: Reindexed, out: Array, eqn: Eqn) -> Reindexed:
    dims, shape = tuple(eqn.params["broadcast_dimensions"]), leaf.array.shape
    axes = None
    if leaf.axes is not None:
        same = {d: leaf.axes[i] for i, d in enumerate(dims) if shape[i] == out.shape[d]}
        axes = tuple(same.get(d) for d in range(out.ndim))
    repeats = math.prod(out.shape) != math.prod(shape)
    return leaf.moved(out, ("broadcast", out.shape, dims), axes, repeats)


def _same(leaf: Reindexed, out: Array, eqn: Eqn) -> Reindexed:
    return replace(leaf, array=out)


RESHAPES: dict[str, Callable[[Reindexed, Array, Eqn], Reindexed]] = {
    "transpose": _transpose,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("convert_element_type", "copy", "copy_p"), _same),
}
"""Primitives that only re-index: a change of float type is linear, too."""


def reindex(leaf: Reindexed, eqn: Eqn, out: Array) -> Reindexed | None:
    """The leaf after an equation, whose result is `out`; None if that does more than re-index."""
    name = eqn.primitive.name
    reordered = name == "reshape" and eqn.params.get("dimensions") is not None
    if reordered or name not in RESHAPES or not jnp.issubdtype(out.dtype, jnp.floating):
        return None
    return RESHAPES[name](leaf, out, eqn)
