"""Functions f(K) of a symmetric matrix, in the basis of its modes, with derivatives that hold where
eigenvalues meet.

f(K) = U diag(f(s)) Uᵀ is smooth in K wherever f is; U alone is not, since 1 / (s_i - s_j) enters
its derivative. Everything here is written in the basis U of the modes, held fixed, where K is a
matrix M with the value diag(s) and the derivative Ω = Uᵀ dK U. Along directions A, B, ...
(Daleckii, Krein 1965; Higham 2008, theorem 3.11)

    dᵏ f(M) = Σ chain(A, B, ...) over all orders,    chain(A, B, ...)_il = Σ_j... f[s_i, s_j, ...,
    s_l] A_ij B_j. ...,

with the divided differences f[a, b] = (f(a) - f(b)) / (a - b), f'(a) where a = b. The derivative of
a chain in M is the sum of the chains with Ω put in at every place, and its transpose in one of its
matrices is a chain of the others, read around. So chains are a primitive of JAX, closed under
differentiation: forward, reverse, of any order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ntk_jax.compat import is_undefined, is_zero, new_primitive

NULL = 5
"""Eigenvalues up to this many eps of the largest are rounding.

Of 180 kernels of up to 1,000 examples (ReLU, erf, GELU; uniform, normal, repeated and nearly
repeated rows), computed and diagonalized in float32, no eigenvalue that small was off by more than
3.5 eps of the largest, whatever the number of examples.
"""

# TF32 and bfloat16 products make kernels indefinite: full precision unless the caller says
# otherwise.
matmul = partial(jnp.matmul, precision="highest")
einsum = partial(jnp.einsum, precision="highest")
fixed = jax.lax.stop_gradient


class Basis(NamedTuple):
    """The modes of a symmetric matrix, and the matrix itself where it is traced: what derivatives
    go through.
    """

    eigenvalues: Float[Array, " n"]
    eigenvectors: Float[Array, "n n"]
    kernel: Float[Array, "n n"] | None


class Function(NamedTuple):
    """A function of eigenvalues s, and of parameters and constants: pytrees of scalars, and of any
    arrays.

    Attributes:
        value: (s, parameters, constants) -> values shaped like s, differentiable in s and
            parameters.
        reach: (s, parameters, constants) -> how far from s the function is a short polynomial.
    """

    value: Callable[[Array, Any, Any], Array]
    reach: Callable[[Array, Any, Any], Array]


def apply(
    f: Any, basis: Basis, columns: Float[Array, "n m"], parameters: Any, constants: Any = ()
) -> Float[Array, "n m"]:
    """f(M) times columns, both in the basis of the modes; differentiable in the kernel, the columns
    and the parameters.

    Args:
        f: a `Function`, hashable.
        basis: the modes; derivatives by the kernel go through `basis.kernel`.
        columns: Uᵀ v, with U held fixed.
        parameters: of f, scalars; for several times or ridges use `jax.vmap`.
        constants: of f, what it is not differentiated by.
    """
    M = jnp.zeros((0, 0), columns.dtype) if basis.kernel is None else _in_basis(basis.kernel, basis)
    leaves, tree = jax.tree.flatten((parameters, constants))
    operands = _Operands(fixed(basis.eigenvalues), M, leaves, (), columns)
    return _bind(operands, {"f": f, "tree": tree, "batch": 0})


def _in_basis(k: Array, basis: Basis) -> Array:
    """Uᵀ K U with U held fixed, of the symmetric part, which is all that a decomposition sees."""
    U = fixed(basis.eigenvectors)
    M = matmul(U.T, matmul(k, U))
    return (M + M.T) / 2


def diagonal_blocks(
    f: Any, basis: Basis, rows: Float[Array, "N g n"], parameters: Any, constants: Any = ()
) -> Float[Array, "N g g"]:
    """R f(M) Rᵀ of every group R of rows; arguments and derivatives as for `apply`."""
    if basis.kernel is None:  # of all groups in one product
        return einsum(
            "Ngn,Nhn,n->Ngh", rows, rows, f.value(basis.eigenvalues, parameters, constants)
        )
    N, g, n = rows.shape
    products = apply(f, basis, rows.reshape(N * g, n).T, parameters, constants)
    return einsum("Ngn,nNh->Ngh", rows, products.reshape(n, N, g))


def trace(f: Any, basis: Basis, parameters: Any, constants: Any = ()) -> Float[Array, ""]:
    """The trace of f(M), the sum of f over the eigenvalues; arguments and derivatives as for
    `apply`.
    """
    s = basis.eigenvalues
    if basis.kernel is None:
        return jnp.sum(f.value(s, parameters, constants))
    return jnp.trace(apply(f, basis, jnp.eye(len(s), dtype=s.dtype), parameters, constants))


@dataclass(frozen=True)
class _Along:
    """The derivative of `f` along its parameters: parameters are pairs (p, dp)."""

    f: Any

    def value(self, s: Array, parameters: Any, constants: Any) -> Array:
        at, moved = parameters
        return jax.jvp(lambda p: self.f.value(s, p, constants), (at,), (moved,))[1]

    def reach(self, s: Array, parameters: Any, constants: Any) -> Array:
        return self.f.reach(s, parameters[0], constants)


# Gauss-Legendre on [-1/2, 1/2]: of a function that varies on the scale of twice the interval, the
# mean to 1e-16.
_NODES, _WEIGHTS = (part / 2 for part in np.polynomial.legendre.leggauss(8))


def divided_difference(
    f: Any, points: tuple[Array, ...], parameters: Any, constants: Any = ()
) -> Array:
    """f[a, b, ...] of points that broadcast: a quotient of differences, or the mean of the
    derivative where points are near.
    """
    a, *others = jnp.broadcast_arrays(*points)
    g = lambda s: f.value(s, parameters, constants)
    for b in others:
        g = partial(_slope, g, b, lambda low: f.reach(low, parameters, constants))
    return g(a)


def _slope(
    g: Callable[[Array], Array], b: Array, reach: Callable[[Array], Array], a: Array
) -> Array:
    """g[a, b]."""
    gap = a - b
    near = jnp.abs(gap) <= reach(jnp.minimum(a, b)) / 2
    derivative = lambda u: jax.jvp(g, (u,), (jnp.ones_like(u),))[1]
    nodes, weights = (jnp.asarray(part, a.dtype) for part in (_NODES, _WEIGHTS))
    mean = jnp.tensordot(
        weights,
        jax.vmap(lambda x: derivative((a + b) / 2 + x * gap))(nodes),
        1,
        precision="highest",
    )
    return jnp.where(near, mean, (g(a) - g(b)) / jnp.where(near, 1, gap))


# The primitive, "chain". It never reads M, whose value is diag(s): M carries derivatives, and is
# dropped by the compiler.


class _Operands(NamedTuple):
    """The operands of a chain, by name: its matrix is multiplied with the columns, or is itself the
    result without any.
    """

    s: Any
    M: Any
    leaves: list[Any]  # of (parameters, constants)
    matrices: tuple[Any, ...]
    columns: Any


def _named(operands: Any, tree: Any, num_matrices: int) -> _Operands:
    s, M, *rest = operands
    at = tree.num_leaves
    return _Operands(
        s, M, rest[:at], tuple(rest[at : at + num_matrices]), (*rest[at + num_matrices :], None)[0]
    )


def _flat(o: _Operands) -> list[Any]:
    return [o.s, o.M, *o.leaves, *o.matrices, *(() if o.columns is None else (o.columns,))]


def _bind(o: _Operands, params: dict[str, Any], **changed: Any) -> Array:
    changed = {"num_matrices": len(o.matrices), "closed": o.columns is None, **changed}
    return _chain_p.bind(*_flat(o), **{**params, **changed})


@partial(jax.jit, static_argnames=("f", "tree", "num_matrices", "closed", "batch"))
def _evaluate(
    *operands: Array, f: Any, tree: Any, num_matrices: int, closed: bool, batch: int
) -> Array:
    one = partial(_evaluate_one, f, tree, num_matrices)
    for _ in range(batch):
        one = jax.vmap(one)
    return one(operands)


def _evaluate_one(f: Any, tree: Any, k: int, operands: Any) -> Array:
    o = _named(operands, tree, k)
    parameters, constants = jax.tree.unflatten(tree, o.leaves)
    if not k:
        return f.value(o.s, parameters, constants)[:, None] * o.columns
    letters = "abcdefghijk"[1 : k + 1]
    factors = [letters[0], *(letters[i : i + 2] for i in range(k - 1))]
    last = [] if o.columns is None else [o.columns]
    sums = (
        ",".join([letters, *factors, *([letters[-1] + "m"] if last else [])])
        + "->"
        + ("m" if last else letters[-1])
    )
    others = [o.s.reshape(*(1,) * i, -1, *(1,) * (k - 1 - i)) for i in range(k)]

    def row(a: Array, first: Array) -> Array:
        points = [jnp.broadcast_to(p, (o.s.size,) * k) for p in (a, *others)]
        return einsum(
            sums,
            divided_difference(f, tuple(points), parameters, constants),
            first,
            *o.matrices[1:],
            *last,
        )

    if k == 1:
        return jax.vmap(row)(o.s, o.matrices[0])
    return jax.lax.map(
        lambda one: row(*one), (o.s, o.matrices[0])
    )  # n^3 numbers at once would fill the memory


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Array, Array]:
    o, d = (_named(part, params["tree"], params["num_matrices"]) for part in (primals, tangents))
    terms = []
    if not is_zero(d.M):
        places = ((*o.matrices[:i], d.M, *o.matrices[i:]) for i in range(len(o.matrices) + 1))
        terms += [_bind(o._replace(matrices=matrices), params) for matrices in places]
    for i, tangent in enumerate(d.matrices):
        if not is_zero(tangent):
            matrices = (*o.matrices[:i], tangent, *o.matrices[i + 1 :])
            terms.append(_bind(o._replace(matrices=matrices), params))
    if d.columns is not None and not is_zero(d.columns):
        terms.append(_bind(o._replace(columns=d.columns), params))
    moved, constants = jax.tree.unflatten(params["tree"], list(map(_Leaf, o.leaves, d.leaves)))
    if not all(is_zero(leaf.tangent) for leaf in jax.tree.leaves(moved)):
        parameters = (
            jax.tree.map(lambda leaf: leaf.value, moved),
            jax.tree.map(_Leaf.known_tangent, moved),
        )
        constants = jax.tree.map(lambda leaf: leaf.value, constants)
        leaves, tree = jax.tree.flatten((parameters, constants))
        terms.append(_bind(o._replace(leaves=leaves), params, f=_Along(params["f"]), tree=tree))
    out = _bind(o, params)
    return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)


class _Leaf:
    """A parameter and its tangent."""

    def __init__(self, value: Any, tangent: Any) -> None:
        self.value, self.tangent = value, tangent

    def known_tangent(self) -> Array:
        return jnp.zeros_like(self.value) if is_zero(self.tangent) else self.tangent


def _transpose(ct: Any, *operands: Any, **params: Any) -> list[Any]:
    o = _named(operands, params["tree"], params["num_matrices"])
    out: list[Any] = [None] * len(operands)
    unknown = [i for i, operand in enumerate(operands) if is_undefined(operand)]
    if is_zero(ct):
        return out
    T = lambda A: jnp.swapaxes(A, -1, -2)
    at = unknown[0] - 2 - len(o.leaves)
    if at < 0:
        for i in unknown:
            out[i] = _parameter_cotangent(ct, o, i - 2, params)
    elif at == len(o.matrices):
        out[unknown[0]] = _bind(
            o._replace(matrices=tuple(map(T, reversed(o.matrices))), columns=ct), params
        )
    else:
        back = T(ct) if o.columns is None else matmul(o.columns, T(ct))
        around = (*o.matrices[at + 1 :], back, *o.matrices[:at])
        out[unknown[0]] = T(_bind(o._replace(matrices=around, columns=None), params))
    return out


def _parameter_cotangent(ct: Array, o: _Operands, i: int, params: dict[str, Any]) -> Array:
    """Of the i-th leaf, a tangent of `_Along`: the chain is linear in it."""
    leaves = [
        jnp.zeros(leaf.aval.shape, leaf.aval.dtype) if is_undefined(leaf) else leaf
        for leaf in o.leaves
    ]
    leaves[i] = jnp.ones_like(leaves[i])
    return jnp.sum(ct * _bind(o._replace(leaves=leaves), params), axis=(-2, -1))


def _batch(operands: Any, axes: Any, **params: Any) -> tuple[Array, int]:
    (size,) = {
        x.shape[axis] for x, axis in zip(operands, axes, strict=True) if isinstance(axis, int)
    }
    moved = [
        jnp.moveaxis(x, axis, 0)
        if isinstance(axis, int)
        else jnp.broadcast_to(x[None], (size, *x.shape))
        for x, axis in zip(operands, axes, strict=True)
    ]
    return _chain_p.bind(*moved, **{**params, "batch": params["batch"] + 1}), 0


def _abstract(*operands: Any, **params: Any) -> Any:
    s = operands[0]
    num_columns = s.shape[-1] if params["closed"] else operands[-1].shape[-1]
    return s.update(shape=(*s.shape, num_columns), weak_type=False)


_chain_p = new_primitive("chain", _evaluate, _abstract, _jvp, _transpose, _batch)
