"""Operator integrals: the derivatives of a function of a matrix, as a primitive of JAX.

In the basis of its modes K is a matrix M with the value diag(s) and the derivative Ω = Uᵀ dK U. Of
f(M), the derivative along k directions A, B, ... is (Daleckii, Krein 1965; Higham 2008, theorem
3.11)

    dᵏ f(M) = Σ T[A, B, ..] over all orders of A, B, ..,
    T[A, B, ..]_il = Σ_jk.. f[s_i, s_j, s_k, .., s_l] A_ij B_jk ..

with the divided differences of f. T is called a multiple operator integral (Skripka, Tomskova
2019). Its derivative in M is the sum of the integrals with Ω put in at every place, and its
transpose in one of its matrices is an integral of the others, read around. So sums of operator
integrals of the same matrices in several orders, which share their divided differences, are closed
under differentiation: forward, reverse, of any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import PyTreeDef

from ntk_jax.compat import is_undefined, is_zero, new_primitive
from ntk_jax.matrix_functions.basis import (
    Constants,
    Parameters,
    SpectralFunction,
    divided_difference,
    einsum,
    matmul,
)
from ntk_jax.platforms import by_platform

AT_ONCE = 2**28
"""Divided differences that an accelerator holds at a time."""

Operand: TypeAlias = Any
"""An array, or what JAX puts in its place: a tangent that is known to be 0, an undefined primal."""

Orders: TypeAlias = tuple[tuple[int, ...], ...]
"""In which orders an integral takes its matrices: each is one term of a sum."""


def operator_integral(
    f: SpectralFunction,
    s: Array,
    M: Array,
    columns: Array,
    of_f: tuple[Parameters, Constants],
) -> Array:
    """T[] columns = f(M) columns, for M of the value diag(s)."""
    leaves, tree = jax.tree.flatten(of_f)
    params = {"f": f, "tree": tree, "orders": ((),), "batch": 0}
    return _bind(_Operands(s, M, leaves, (), columns), params)


@dataclass(frozen=True)
class _Along:
    """The derivative of `f` along its parameters: parameters are pairs (p, dp)."""

    f: SpectralFunction

    def value(self, s: Array, parameters: Parameters, constants: Constants) -> Array:
        at, moved = parameters
        return jax.jvp(lambda p: self.f.value(s, p, constants), (at,), (moved,))[1]

    def reach(self, s: Array, parameters: Parameters, constants: Constants) -> Array:
        return self.f.reach(s, parameters[0], constants)


class _Operands(NamedTuple):
    """The operands of a sum of T[matrices] columns over orders of the matrices, by name; without
    columns, of T[matrices] itself.

    M is never read, as its value is diag(s): it carries derivatives, and the compiler drops it.
    """

    s: Operand
    M: Operand
    leaves: list[Operand]  # of (parameters, constants)
    matrices: tuple[Operand, ...]
    columns: Operand | None


def _named(operands: Sequence[Operand], tree: PyTreeDef, orders: Orders) -> _Operands:
    s, M, *rest = operands
    at, num_matrices = tree.num_leaves, len(orders[0])
    matrices, last = tuple(rest[at : at + num_matrices]), rest[at + num_matrices :]
    return _Operands(s, M, rest[:at], matrices, last[0] if last else None)


def _bind(o: _Operands, params: dict[str, Any], **changed: Any) -> Array:
    flat = [o.s, o.M, *o.leaves, *o.matrices, *(() if o.columns is None else (o.columns,))]
    params = {**params, "closed": o.columns is None, **changed}
    orders = tuple(sorted(params["orders"]))  # equal sums are one program
    return _primitive.bind(*flat, **{**params, "orders": orders})


@partial(jax.jit, static_argnames=("f", "tree", "orders", "closed", "batch"))
def _evaluate(
    *operands: Array,
    f: SpectralFunction,
    tree: PyTreeDef,
    orders: Orders,
    closed: bool,
    batch: int,
) -> Array:
    one = partial(_evaluate_one, f, tree, orders)
    for _ in range(batch):
        one = jax.vmap(one)
    return one(operands)


def _evaluate_one(
    f: SpectralFunction, tree: PyTreeDef, orders: Orders, operands: tuple[Array, ...]
) -> Array:
    o, k = _named(operands, tree, orders), len(orders[0])
    parameters, constants = jax.tree.unflatten(tree, o.leaves)
    if not k and o.columns is not None:
        return f.value(o.s, parameters, constants)[:, None] * o.columns
    # Row i sums f[s_i, s_b, s_c, ..] A_ib B_bc .. over b, c, ..: "bc,b,bc,cm->m" for two matrices.
    letters = "bcdefghijk"[:k]
    factors = [letters, letters[0], *(letters[i : i + 2] for i in range(k - 1))]
    last, out = ((), letters[-1]) if o.columns is None else ((o.columns,), "m")
    sums = ",".join([*factors, *(letters[-1] + "m" for _ in last)]) + "->" + out
    others = [o.s.reshape(*(1,) * i, -1, *(1,) * (k - 1 - i)) for i in range(k)]

    def row(a: Array, first: tuple[Array, ...]) -> Array:
        points = tuple(jnp.broadcast_to(p, (o.s.size,) * k) for p in (a, *others))
        differences = divided_difference(f, points, parameters, constants)
        each = [(first[i], *(o.matrices[j] for j in rest)) for i, *rest in orders]
        terms = [einsum(sums, differences, *factors, *last) for factors in each]
        return sum(terms[1:], terms[0])

    if k == 1:
        return jax.vmap(row)(o.s, o.matrices)
    # One row after the other: n^3 numbers at once would fill the memory.
    each = lambda few: lambda rows: jax.lax.map(lambda one: row(*one), rows, batch_size=few)
    few = min(o.s.size, max(1, AT_ONCE // o.s.size**k))
    return by_platform(each(None), each(few), (o.s, o.matrices))


def _jvp(
    primals: Sequence[Operand], tangents: Sequence[Operand], **params: Any
) -> tuple[Array, Array]:
    o, d = (_named(part, params["tree"], params["orders"]) for part in (primals, tangents))
    terms = []
    if not is_zero(d.M):
        new = (len(o.matrices),)
        orders = tuple(p[:i] + new + p[i:] for p in params["orders"] for i in range(len(p) + 1))
        terms.append(_bind(o._replace(matrices=(*o.matrices, d.M)), params, orders=orders))
    for i, tangent in enumerate(d.matrices):
        if not is_zero(tangent):
            matrices = (*o.matrices[:i], tangent, *o.matrices[i + 1 :])
            terms.append(_bind(o._replace(matrices=matrices), params))
    if d.columns is not None and not is_zero(d.columns):
        terms.append(_bind(o._replace(columns=d.columns), params))
    at, constants = jax.tree.unflatten(params["tree"], o.leaves)
    num = len(jax.tree.leaves(at))
    if not all(map(is_zero, d.leaves[:num])):
        pairs = zip(o.leaves[:num], d.leaves, strict=False)
        moved = [jnp.zeros_like(leaf) if is_zero(tangent) else tangent for leaf, tangent in pairs]
        leaves, tree = [*o.leaves[:num], *moved, *o.leaves[num:]], ((at, at), constants)
        along = {"f": _Along(params["f"]), "tree": jax.tree.structure(tree)}
        terms.append(_bind(o._replace(leaves=leaves), params, **along))
    out = _bind(o, params)
    return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)


def _transpose(ct: Operand, *operands: Operand, **params: Any) -> list[Array | None]:
    o, orders = _named(operands, params["tree"], params["orders"]), params["orders"]
    out: list[Array | None] = [None] * len(operands)
    unknown = [i for i, operand in enumerate(operands) if is_undefined(operand)]
    if is_zero(ct):
        return out
    T = lambda A: jnp.swapaxes(A, -1, -2)
    at = unknown[0] - 2 - len(o.leaves)
    if at < 0:
        for i in unknown:
            out[i] = _parameter_cotangent(ct, o, i - 2, params)
    elif at == len(o.matrices):
        back, turned = tuple(p[::-1] for p in orders), tuple(map(T, o.matrices))
        out[unknown[0]] = _bind(o._replace(matrices=turned, columns=ct), params, orders=back)
    else:
        # <ct, T[A, X, C] c> = tr(X T[C, c ctᵀ, A]): the trace is cyclic, and f[..] symmetric.
        closing = T(ct) if o.columns is None else matmul(o.columns, T(ct))
        matrices = (*o.matrices[:at], closing, *o.matrices[at + 1 :])
        around = tuple((*p[p.index(at) + 1 :], at, *p[: p.index(at)]) for p in orders)
        out[unknown[0]] = T(
            _bind(o._replace(matrices=matrices, columns=None), params, orders=around)
        )
    return out


def _parameter_cotangent(ct: Array, o: _Operands, i: int, params: dict[str, Any]) -> Array:
    """Of the i-th leaf, a tangent of `_Along`: the integral is linear in it."""
    leaves = [
        jnp.zeros(leaf.aval.shape, leaf.aval.dtype) if is_undefined(leaf) else leaf
        for leaf in o.leaves
    ]
    # `_Along` is linear in each tangent: its coefficient is the value with 1 in its place.
    leaves[i] = jnp.ones_like(leaves[i])
    return jnp.sum(ct * _bind(o._replace(leaves=leaves), params), axis=(-2, -1))


def _batch(
    operands: Sequence[Array | np.ndarray], axes: Sequence[int | None], **params: Any
) -> tuple[Array, int]:
    both = list(zip(operands, axes, strict=True))
    (size,) = {x.shape[axis] for x, axis in both if isinstance(axis, int)}
    moved = [
        jnp.moveaxis(x, axis, 0)
        if isinstance(axis, int)
        else jnp.broadcast_to(x[None], (size, *x.shape))
        for x, axis in both
    ]
    return _primitive.bind(*moved, **{**params, "batch": params["batch"] + 1}), 0


def _abstract(*operands: Any, **params: Any) -> Any:
    s = operands[0]
    num_columns = s.shape[-1] if params["closed"] else operands[-1].shape[-1]
    return s.update(shape=(*s.shape, num_columns), weak_type=False)


_primitive = new_primitive("operator_integral", _evaluate, _abstract, _jvp, _transpose, _batch)
