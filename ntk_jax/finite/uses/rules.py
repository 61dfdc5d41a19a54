"""What the walk does at each kind of equation that a view of a parameter, or a product with one,
reaches.

A rule gets the walk, the equation and its values, and returns the results, or None where it does
not apply.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.compat import REMATS, bind
from ntk_jax.finite.uses.convolution import convolve
from ntk_jax.finite.uses.sites import BiasUse, conv_use, dot_use
from ntk_jax.finite.uses.views import Entry, Product, View, raw, times
from ntk_jax.jaxprs import open_jaxpr


def _dot(walk: Any, eqn: Any, values: list[Any]) -> list[Any] | None:
    sides = [isinstance(v, View) for v in values]
    if sides.count(True) != 1:
        return None
    view, h = values[sides.index(True)], values[1 - sides.index(True)]
    if view.repeats:
        return None
    h = walk.settle([h])[0]
    arrays = [raw(v) if s else h for v, s in zip(values, sides, strict=True)]
    (out,) = bind(eqn, arrays)
    use = dot_use(eqn, sides.index(True), h.ndim)
    return [Product(out, (Entry(view.leaf, use, view.path, view.stacked, h, view.scale),))]


def _conv(walk: Any, eqn: Any, values: list[Any]) -> list[Any] | None:
    h, view = values
    use = conv_use(eqn)
    if isinstance(h, View) or not isinstance(view, View) or view.repeats or use is None:
        return None
    h = walk.settle([h])[0]
    out = convolve(eqn, h, view.array)
    return [Product(out, (Entry(view.leaf, use, view.path, view.stacked, h, view.scale),))]


def _add(walk: Any, eqn: Any, values: list[Any]) -> list[Any] | None:
    """A product plus another product, a bias, or anything: one tap after the sum serves them
    all.
    """
    shape = eqn.outvars[0].aval.shape
    products = [v for v in values if isinstance(v, Product) and v.array.shape == shape]
    if not products:
        return None
    entries = sum((p.entries for p in products), ())
    others = [v for v in values if v is not products[0]] if len(products) == 1 else []
    for other in others:
        bias = _bias(products[0], other, shape) if isinstance(other, View) else None
        if bias is None:
            values = [v if v is not other else walk.settle([other])[0] for v in values]
        else:
            entries += (bias,)
    (out,) = bind(eqn, [raw(v) for v in values])
    return [Product(out, entries)]


def _bias(product: Product, view: View, shape: tuple[int, ...]) -> Entry | None:
    """The bias as one more use at the product's tap: it must differ along blocks and features, and
    only there.
    """
    first = product.entries[0]
    layout = first.use.layout
    if view.axes is None or len(view.axes) != len(shape) or view.stacked != first.stacked:
        return None
    owned = [i for i in layout.blocks + layout.features if shape[i] != 1]
    varying = [
        i for i, axis in enumerate(view.axes) if axis is not None and view.array.shape[i] != 1
    ]
    if sorted(varying) != sorted(owned) or any(view.array.shape[i] != shape[i] for i in owned):
        return None
    signature = ("bias", tuple(view.axes[i] for i in owned), len(layout.blocks), layout.groups)
    one = jnp.ones((), product.array.dtype)
    return Entry(view.leaf, BiasUse(layout, signature), ("bias",), view.stacked, one, view.scale)


def _scale(walk: Any, eqn: Any, values: list[Any]) -> list[Any] | None:
    """A view or product times (or over) a scalar."""
    name = eqn.primitive.name
    tracked = values[0] if isinstance(values[0], View | Product) else values[1]
    other = values[1] if tracked is values[0] else values[0]
    if (
        isinstance(other, View | Product)
        or jnp.ndim(other) != 0
        or (name == "div" and tracked is values[1])
    ):
        return None
    (out,) = bind(eqn, [raw(v) for v in values])
    if out.shape != tracked.array.shape:
        return None
    return [_rescaled(tracked, out, jnp.reciprocal(jnp.asarray(other)) if name == "div" else other)]


def _neg(walk: Any, eqn: Any, values: list[Any]) -> list[Any]:
    return [_rescaled(values[0], bind(eqn, [raw(values[0])])[0], -1.0)]


def _transpose(walk: Any, eqn: Any, values: list[Any]) -> list[Any] | None:
    (product,) = values
    if not isinstance(product, Product):
        return None
    return [product.transposed(bind(eqn, [product.array])[0], tuple(eqn.params["permutation"]))]


def _rescaled(tracked: Any, out: Array, scale: Any) -> Any:
    if isinstance(tracked, Product):
        return tracked.scaled(out, scale)
    return replace(tracked, array=out, scale=times(tracked.scale, scale))


def _remat(walk: Any, eqn: Any, values: list[Any]) -> list[Any]:
    """The segment again under `jax.checkpoint`, with its policy: taps go in, layer inputs come
    out.
    """
    p, (jaxpr, consts) = eqn.params, open_jaxpr(eqn.params["jaxpr"])
    arrays = walk.settle([v for v in values if not isinstance(v, View)])

    def segment(inner: Any, plain: list[Any]) -> list[Any]:
        left = iter(plain)
        args = [v if isinstance(v, View) else next(left) for v in values]
        return inner.settle(inner.run(jaxpr, consts, args))

    found = walk.child()
    jax.eval_shape(lambda plain: segment(found, plain), arrays)
    taps = walk.enter(found)

    def again(plain: list[Any], taps: list[Any] | None) -> tuple[list[Any], list[Any]]:
        inner = walk.child(taps)
        return segment(inner, plain), inner.inputs

    outs, inputs = jax.checkpoint(again, prevent_cse=p["prevent_cse"], policy=p["policy"])(
        arrays, taps
    )
    walk.leave(found.taps, inputs)
    return outs


def _scan(walk: Any, eqn: Any, values: list[Any]) -> list[Any]:
    """The loop again, with one tap per step: weights among the constants are reused, among the xs
    stacked.
    """
    p, (jaxpr, jaxpr_consts) = eqn.params, open_jaxpr(eqn.params["jaxpr"])
    nc, nk = p["num_consts"], p["num_carry"]
    depth = walk.depth + 1
    consts = [v if isinstance(v, View) else walk.settle([v])[0] for v in values[:nc]]
    carry, xs = walk.settle(values[nc : nc + nk]), list(values[nc + nk :])
    xs = [v if isinstance(v, View) and _sliceable(v) else walk.settle([v])[0] for v in xs]

    def step(inner: Any, carry: list[Any], slices: list[Any]) -> list[Any]:
        views = [
            _sliced(x, s, depth) if isinstance(x, View) else s
            for x, s in zip(xs, slices, strict=True)
        ]
        return inner.settle(inner.run(jaxpr, jaxpr_consts, [*consts, *carry, *views]))

    found = walk.child(deeper=1)
    slices = [jax.ShapeDtypeStruct(raw(x).shape[1:], raw(x).dtype) for x in xs]
    jax.eval_shape(lambda c, s: step(found, c, s), carry, slices)
    taps = walk.enter(found)

    def body(carry: list[Any], x: Any) -> tuple[list[Any], Any]:
        inner = walk.child(x[1], deeper=1)
        out = step(inner, carry, x[0])
        return out[:nk], (out[nk:], inner.inputs)

    options = {"length": p["length"], "reverse": p["reverse"], "unroll": p["unroll"]}
    carry, (ys, inputs) = lax.scan(body, carry, ([raw(x) for x in xs], taps), **options)
    walk.leave([tap.inside(depth, p["length"]) for tap in found.taps], inputs)
    return [*carry, *ys]


def _sliceable(view: View) -> bool:
    """Whether a scan slices whole weights from the view: its first axis must be the leaf's own
    first axis.
    """
    return not view.stacked and not view.repeats and view.axes is not None and view.axes[:1] == (0,)


def _sliced(view: View, array: Array, depth: int) -> View:
    axes = None if view.axes is None else view.axes[1:]
    return replace(view, array=array, path=(*view.path, ("slice",)), axes=axes, stacked=depth)


RULES = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "add": _add,
    "add_any": _add,
    "mul": _scale,
    "div": _scale,
    "neg": _neg,
    "transpose": _transpose,
    "scan": _scan,
    **dict.fromkeys(REMATS, _remat),
}
