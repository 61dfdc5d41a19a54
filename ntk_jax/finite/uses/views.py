"""Values that the walk tracks: views of a parameter leaf, and products with one that wait for their
tap.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import Array

Scale = Any
"""A scalar factor, as an array or as a literal of the traced program; None is 1."""


@dataclass(frozen=True, eq=False)
class View:
    """`array` = scale x a re-indexing of the parameter leaf number `leaf`."""

    array: Any
    leaf: int
    path: tuple[
        Any, ...
    ] = ()  # the steps of the re-indexing: two uses can be joined if these agree
    axes: tuple[int | None, ...] | None = (
        None  # the leaf axis behind each axis (None: repeated); None: mixed up
    )
    scale: Scale = None
    repeats: bool = False  # some entry appears more than once
    stacked: int = 0  # depth of the scan that slices it, 0 if none

    def moved(
        self, array: Array, step: tuple[Any, ...], axes: Any, repeats: bool = False
    ) -> "View":
        """The view after one more step of re-indexing."""
        return replace(
            self, array=array, path=(*self.path, step), axes=axes, repeats=self.repeats or repeats
        )


@dataclass(frozen=True, eq=False)
class Entry:
    """One use of one leaf in a product: what is recorded is scale x input."""

    leaf: int
    use: Any
    path: tuple[Any, ...]
    stacked: int
    input: Any
    scale: Scale = None

    def record(self) -> Any:
        """The layer input, with every scalar factor between the weight and the tap."""
        return self.input if self.scale is None else self.input * as_scalar(self.scale, self.input)


@dataclass(frozen=True, eq=False)
class Product:
    """A sum of products with weights, and of terms that the tap does not change; its tap is not yet
    added.
    """

    array: Any
    entries: tuple[Entry, ...]

    def scaled(self, array: Array, scale: Scale) -> "Product":
        """The product after multiplication by a scalar."""
        return Product(array, tuple(replace(e, scale=times(e.scale, scale)) for e in self.entries))

    def transposed(self, array: Array, permutation: tuple[int, ...]) -> "Product":
        """The product after a transpose."""
        move = lambda use: replace(use, layout=use.layout.transposed(permutation))
        return Product(array, tuple(replace(e, use=move(e.use)) for e in self.entries))


def raw(value: Any) -> Any:
    """The plain array of a tracked value."""
    return value.array if isinstance(value, View | Product) else value


def times(a: Scale, b: Scale) -> Scale:
    """The product of two scalar factors."""
    if a is None or b is None:
        return b if a is None else a
    return as_scalar(a, b) * as_scalar(b, a)


def as_scalar(scale: Scale, like: Any) -> Any:
    """`scale` in the dtype of `like`: half-precision factors must not promote what they multiply,
    nor be refused.
    """
    dtype = jnp.result_type(like)
    return jnp.asarray(scale).reshape(()).astype(dtype)


def initial_view(array: Array, leaf: int) -> View:
    """The leaf itself."""
    return View(array, leaf, axes=tuple(range(jnp.ndim(array))))


def _transpose(view: View, out: Array, params: dict[str, Any]) -> View:
    permutation = tuple(params["permutation"])
    axes = None if view.axes is None else tuple(view.axes[i] for i in permutation)
    return view.moved(out, ("transpose", permutation), axes)


def _reshape(view: View, out: Array, params: dict[str, Any]) -> View:
    """Axes survive if only axes of size 1 come or go."""
    old = [(size, i) for i, size in enumerate(view.array.shape) if size != 1]
    axes = None
    if view.axes is not None and [size for size, _ in old] == [
        size for size in out.shape if size != 1
    ]:
        kept = iter(view.axes[i] for _, i in old)
        axes = tuple(None if size == 1 else next(kept) for size in out.shape)
    return view.moved(out, ("reshape", view.array.shape, out.shape), axes)


def _broadcast(view: View, out: Array, params: dict[str, Any]) -> View:
    dims = tuple(params["broadcast_dimensions"])
    axes = None
    if view.axes is not None:
        grown = {d: view.axes[i] for i, d in enumerate(dims) if view.array.shape[i] == out.shape[d]}
        axes = tuple(grown.get(d) for d in range(out.ndim))
    repeats = math.prod(out.shape) != math.prod(view.array.shape)
    return view.moved(out, ("broadcast", out.shape, dims), axes, repeats)


def _same(view: View, out: Array, params: dict[str, Any]) -> View:
    return replace(view, array=out)


RESHAPES = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _same,
    "copy": _same,
    "copy_p": _same,
}
"""Primitives that only re-index: a change of float type is linear, too."""


def reindex(view: View, name: str, params: dict[str, Any], out: Array) -> View | None:
    """The view that primitive `name` makes of `view`; None if it is not a view any more."""
    if name == "reshape" and params.get("dimensions") is not None:
        return None
    if name not in RESHAPES or not jnp.issubdtype(out.dtype, jnp.floating):
        return None
    return RESHAPES[name](view, out, params)
