"""Sums over an infinite axis are numbers: means of features, inner products of wide values."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.layouts import reduce_sum as summed
from ntk_jax.infinite.flax.rules.attention import check_apart, scores, weighted_sum
from ntk_jax.infinite.flax.values.linear import Linear
from ntk_jax.infinite.flax.values.slots import chain
from ntk_jax.infinite.flax.values.values import Det, Param, Wide, static_det

FEW = 3  # fewer units of an axis, beside others that stay, are not meant to be infinitely many


@rule("reduce_sum")
def reduce_sum(program: Interpreter, eqn: Any, values: list[Any]) -> list[Any]:
    """A sum over finite axes is a linear map; over a wide axis the law of large numbers makes it
    deterministic.
    """
    (value,) = values
    if isinstance(value, Param):
        raise NoLimitError(f"the entries of parameter {value.leaf} are summed,")
    axes = eqn.params["axes"]
    units = math.prod(value.wide[a] for a in axes)
    layout = summed(eqn, value.shape, value.wide)
    if units == 1:
        return [
            algebra.mapped(
                value, Linear(lambda _, z: layout.apply(z), layout.shape, None), layout.wide
            )
        ]
    if units < FEW and any(w > 1 for w in layout.wide):
        raise NoLimitError(
            f"a mean over {units} units of each group is not deterministic, and not Gaussian,"
        )
    if any(w > 1 for w in layout.wide):
        check_apart(value)
    sides = [_mean(program, value, side) for side in (0, 1)]
    of_two = value.product is not None and value.product[0] is not value.product[1]
    if all(s is None for s in sides) and not of_two:
        zero = static_det(np.zeros(layout.shape, program.moments.dtype))
        return [Det(zero.sides, layout.wide, zero.literal, True)]
    full = [
        jnp.zeros(value.shape, program.moments.dtype)
        if s is None
        else jnp.broadcast_to(s, value.shape)
        for s in sides
    ]
    sums = [units * layout.apply(s) for s in full]
    pending = units if of_two and program.inner_products == "error" else None
    return [Det((sums[0], sums[1]), layout.wide, pending=pending)]


def _mean(program: Interpreter, value: Wide, side: int) -> Any:
    if value.product is None:
        return program.moments.mean_of(value, side)
    x, y = (
        algebra.mapped(v, algebra.broadcasting(v.shape, value.shape), value.wide)
        for v in value.product
    )
    if value.product[0] is value.product[1]:
        y = x
    return program.moments.second(x, y, (side, side), True)


def inner_product(program: Interpreter, eqn: Any, values: list[Any]) -> Det | Wide:
    """The product of two wide values, contracted over a wide axis: the sum of their second
    moments.
    """
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    x, y = values
    units = math.prod(x.wide[a] for a in lc)
    pairs = sorted([*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)])
    partners = [b for a, b in pairs if x.wide[a] > 1]
    if partners != sorted(partners):
        raise NoLimitError(
            "infinite axes meet in a different order: which unit meets which is lost,"
        )
    if units == 1 and program.moments.sampling is not None:
        return weighted_sum(program, eqn, values)
    if units == 1 or any(
        x.wide[a] != y.wide[b] for a, b in [*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)]
    ):
        raise NoLimitError(
            "two random values are multiplied and summed over a finite axis: the result is not "
            "Gaussian,"
        )
    rank = len(x.shape)
    left, right = list(range(rank)), list(range(rank, rank + len(y.shape)))
    for a, b in [*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)]:
        right[b] = left[a]
    rest = (
        [a for a in range(rank) if a not in (*lc, *lb)],
        [b for b in range(len(right)) if b not in (*rc, *rb)],
    )
    if any(x.wide[a] > 1 for a in rest[0]) or any(y.wide[b] > 1 for b in rest[1]):
        raise NoLimitError(
            "an inner product leaves an infinite axis of one factor: it is no number,"
        )
    out = [left[a] for a in lb] + [left[a] for a in rest[0]] + [right[b] for b in rest[1]]
    wide = tuple(x.wide[a] for a in lb) + (1,) * (len(out) - len(lb))
    settled = program.inner_products == "mean" or _divided(x, units) or _divided(y, units)
    random = None if settled else scores(program, x, y, (left, right, out), units, wide)
    if random is not None:
        return random
    sides = []
    for side in (0, 1):
        k = program.moments.second(x, y, (side, side), False)
        if k is None:
            k = jnp.zeros(x.shape + y.shape, program.moments.dtype)
        sides.append(units * jnp.einsum(k, left + right, out))
    return Det((sides[0], sides[1]), wide, pending=None if settled else units)


def _divided(value: Wide, units: int) -> bool:
    """Whether the value was divided by the width just before."""
    terms = value.terms or []
    scales = []
    for t in terms:
        g = t.factors[0].gaussians[0] if t.is_gaussian else None
        links = chain(g) if g is not None else []
        factors = (
            [f for _, f in links]
            if g is not None
            else [t.map.factor if t.map is not None else None]
        )
        scales.append(
            any(
                f is not None and f.literal is not None and abs(f.literal * units - 1) < 1e-4
                for f in factors
            )
        )
    return bool(scales) and all(scales)
