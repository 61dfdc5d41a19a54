"""What the tapped evaluation does at each kind of equation that a weight or its product reaches.

A `Rule` gets the evaluation, the equation and its operands, and returns the results, or None where
it does not apply.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from ntk_jax.compat import REMATS, bind, scan_counts
from ntk_jax.finite.uses.canonical import BiasUse, Use, conv_use, dot_use
from ntk_jax.finite.uses.convolution import convolve
from ntk_jax.finite.uses.taps import Inputs, Rule, TappedEvaluation
from ntk_jax.finite.uses.tracked import PendingUse, Product, Reindexed, Scale, Value, raw, times
from ntk_jax.jaxprs import Eqn, inner_jaxpr, open_jaxpr, shape_of


def _dot(run: TappedEvaluation, eqn: Eqn, values: list[Value]) -> list[Value] | None:
    sides = [isinstance(v, Reindexed) for v in values]
    if sides.count(True) != 1:
        return None
    side = sides.index(True)
    leaf = values[side]
    if not isinstance(leaf, Reindexed) or leaf.repeats:
        return None
    # The layer input is recorded as it is, so that a product in it needs its own tap first.
    (h,) = run.settle([values[1 - side]])
    (out,) = bind(eqn, [leaf.array, h] if side == 0 else [h, leaf.array])
    return [Product(out, (_pending(leaf, dot_use(eqn, side, h.ndim), h),))]


def _conv(run: TappedEvaluation, eqn: Eqn, values: list[Value]) -> list[Value] | None:
    h, leaf = values
    use = conv_use(eqn)
    if isinstance(h, Reindexed) or not isinstance(leaf, Reindexed) or leaf.repeats or use is None:
        return None
    (h,) = run.settle([h])
    return [Product(convolve(eqn, h, leaf.array), (_pending(leaf, use, h),))]


def _pending(leaf: Reindexed, use: Use, h: ArrayLike) -> PendingUse:
    return PendingUse(leaf.leaf, use, leaf.path, leaf.stacked, h, leaf.scale)


def _add(run: TappedEvaluation, eqn: Eqn, values: list[Value]) -> list[Value] | None:
    """A product plus a product, a bias, or anything: one tap after the sum serves them all."""
    shape = shape_of(eqn.outvars[0])
    products = [v for v in values if isinstance(v, Product) and v.array.shape == shape]
    if not products:
        return None
    uses = sum((p.uses for p in products), ())
    others = [v for v in values if v is not products[0]] if len(products) == 1 else []
    for other in others:
        bias = _bias(products[0], other, shape) if isinstance(other, Reindexed) else None
        if bias is None:
            values = [v if v is not other else run.settle([other])[0] for v in values]
        else:
            uses += (bias,)
    (out,) = bind(eqn, [raw(v) for v in values])
    return [Product(out, uses)]


def _bias(product: Product, leaf: Reindexed, shape: tuple[int, ...]) -> PendingUse | None:
    """The bias as a use at the product's tap, if it differs along blocks and features alone."""
    first = product.uses[0]
    out, sizes = first.use.axes, leaf.array.shape
    if leaf.axes is None or len(leaf.axes) != len(shape) or leaf.stacked != first.stacked:
        return None
    owned = [i for i in out.blocks + out.features if shape[i] != 1]
    varying = [i for i, axis in enumerate(leaf.axes) if axis is not None and sizes[i] != 1]
    if sorted(varying) != sorted(owned) or any(sizes[i] != shape[i] for i in owned):
        return None
    signature = ("bias", tuple(leaf.axes[i] for i in owned), len(out.blocks), out.groups)
    one = jnp.ones((), product.array.dtype)
    use = BiasUse(out, signature)
    return PendingUse(leaf.leaf, use, (("bias",),), leaf.stacked, one, leaf.scale)


def _scale(run: TappedEvaluation, eqn: Eqn, values: list[Value]) -> list[Value] | None:
    """A leaf or product times (or over) a scalar."""
    over = eqn.primitive.name == "div"
    tracked, other = values if isinstance(values[0], Reindexed | Product) else values[::-1]
    if isinstance(other, Reindexed | Product) or jnp.ndim(other) or (over and other is values[0]):
        return None
    (out,) = bind(eqn, [raw(v) for v in values])
    if out.shape != raw(tracked).shape:
        return None
    return [_rescaled(tracked, out, jnp.reciprocal(jnp.asarray(other)) if over else other)]


def _neg(run: TappedEvaluation, eqn: Eqn, values: list[Value]) -> list[Value]:
    return [_rescaled(values[0], bind(eqn, [raw(values[0])])[0], -1.0)]


def _transpose(run: TappedEvaluation, eqn: Eqn, values: list[Value]) -> list[Value] | None:
    (product,) = values
    if not isinstance(product, Product):
        return None
    return [product.transposed(bind(eqn, [product.array])[0], tuple(eqn.params["permutation"]))]


def _rescaled(tracked: Value, out: Array, scale: Scale) -> Value:
    if isinstance(tracked, Product):
        return tracked.scaled(out, scale)
    assert isinstance(tracked, Reindexed)
    return replace(tracked, array=out, scale=times(tracked.scale, scale))


def _remat(run: TappedEvaluation, eqn: Eqn, values: list[Value]) -> list[Value]:
    """The segment again under `jax.checkpoint`, with its policy: taps go in, inputs come out."""
    p, (jaxpr, consts) = eqn.params, inner_jaxpr(eqn)
    arrays = run.settle([v for v in values if not isinstance(v, Reindexed)])

    def segment(inner: TappedEvaluation, plain: list[Array]) -> list[Array]:
        left = iter(plain)
        args = [v if isinstance(v, Reindexed) else next(left) for v in values]
        return inner.settle(inner.run(jaxpr, consts, args))

    # Looked through once for its taps: they are arguments of what is rematerialized.
    found = run.child()
    jax.eval_shape(lambda plain: segment(found, plain), arrays)
    taps = run.enter(found)

    def again(plain: list[Array], taps: list[Array] | None) -> tuple[list[Array], list[Inputs]]:
        inner = run.child(taps)
        return segment(inner, plain), inner.inputs

    rematerialized = jax.checkpoint(again, prevent_cse=p["prevent_cse"], policy=p["policy"])
    outs, inputs = rematerialized(arrays, taps)
    run.leave(found.taps, inputs)
    return outs


def _scan(run: TappedEvaluation, eqn: Eqn, values: list[Value]) -> list[Value]:
    """The loop again, a tap per step: weights among constants are reused, among xs stacked."""
    p, (jaxpr, jaxpr_consts) = eqn.params, open_jaxpr(eqn.params["jaxpr"])
    nc, nk = scan_counts(p)
    depth = run.depth + 1
    settled = lambda v, kept: v if kept else run.settle([v])[0]
    consts = [settled(v, isinstance(v, Reindexed)) for v in values[:nc]]
    carry = run.settle(values[nc : nc + nk])
    xs = [settled(v, _sliceable(v)) for v in values[nc + nk :]]

    def step(inner: TappedEvaluation, carry: list[Array], slices: list[Array]) -> list[Array]:
        now = [
            _sliced(x, s, depth) if isinstance(x, Reindexed) else s
            for x, s in zip(xs, slices, strict=True)
        ]
        return inner.settle(inner.run(jaxpr, jaxpr_consts, [*consts, *carry, *now]))

    # Looked through once for its taps: the loop must slice them, one per step.
    found = run.child(deeper=1)
    slices = [jax.ShapeDtypeStruct(raw(x).shape[1:], raw(x).dtype) for x in xs]
    jax.eval_shape(lambda c, s: step(found, c, s), carry, slices)
    taps = run.enter(found)

    def body(carry: list[Array], x: Any) -> tuple[list[Array], Any]:
        inner = run.child(x[1], deeper=1)
        out = step(inner, carry, x[0])
        return out[:nk], (out[nk:], inner.inputs)

    options = {"length": p["length"], "reverse": p["reverse"], "unroll": p["unroll"]}
    carry, (ys, inputs) = lax.scan(body, carry, ([raw(x) for x in xs], taps), **options)
    run.leave([tap.inside(depth, p["length"]) for tap in found.taps], inputs)
    return [*carry, *ys]


def _sliceable(leaf: Value) -> bool:
    """Whether a scan slices whole weights: the first axis must be the leaf's own first axis."""
    if not isinstance(leaf, Reindexed) or leaf.stacked or leaf.repeats:
        return False
    return leaf.axes is not None and leaf.axes[:1] == (0,)


def _sliced(leaf: Reindexed, array: Array, depth: int) -> Reindexed:
    axes = None if leaf.axes is None else leaf.axes[1:]
    return replace(leaf, array=array, path=(*leaf.path, ("slice",)), axes=axes, stacked=depth)


RULES: dict[str, Rule] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    **dict.fromkeys(("add", "add_any"), _add),
    **dict.fromkeys(("mul", "div"), _scale),
    "neg": _neg,
    "transpose": _transpose,
    "scan": _scan,
    **dict.fromkeys(REMATS, _remat),
}
