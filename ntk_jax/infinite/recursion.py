"""The layer recursion: on one side (variances), on pairs layer by layer (reference), and on pairs in fused tiles (fast).

The fast path visits tiles of the kernel, each in one loop per group of layers that holds covariance and tangent kernel in
registers; with x2 = None only the upper triangle is visited and mirrored. XLA's CPU fusion has one output, so the two travel
as the real and the imaginary part of one complex number: as two arrays, the recursion was computed twice per layer, and
the time grew exponentially with depth. Derivatives are those of the reference path.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.infinite.dual import DualRule, ratio, root
from ntk_jax.linalg import matmul

TILE = 256


class Layers(NamedTuple):
    """The coefficients of each Dense layer: its covariance is W k + b, its own part of the tangent kernel W_eta k + b_eta."""

    W: Array
    b: Array
    W_eta: Array
    b_eta: Array


class Architecture(NamedTuple):
    """What is static: the activation's dual, skip connections around hidden layers, normalization before activations."""

    rule: DualRule
    residual: bool = False
    layer_norm: bool = False


class Side(NamedTuple):
    """One data set: inputs' second moments; variances and tangent kernels entering each hidden layer (depth, n); the kernels of
    every example with itself after the last layer."""

    q0: Array
    variances: Array
    tangents: Array
    nngp: Array
    ntk: Array
    largest: Array


def dense(layer: Layers, k: Array, k_dot: Any, theta: Array) -> tuple[Array, Array]:
    """A Dense layer after an activation."""
    return layer.W * k + layer.b, layer.W_eta * k + layer.b_eta + layer.W * (k_dot * theta)


def first_dense(layer: Layers, q: Array) -> tuple[Array, Array]:
    """The Dense layer on the inputs."""
    return layer.W * q + layer.b, layer.W_eta * q + layer.b_eta


def _add_skip(arch: Architecture, last: Any, new: tuple[Array, Array], old: tuple[Array, Array]) -> tuple[Array, Array]:
    if not arch.residual:
        return new
    return jax.tree.map(lambda a, b: a + jnp.where(last, jnp.zeros_like(b), b), new, old)


def split_layers(layers: Layers) -> tuple[Layers, tuple[Layers, Array]]:
    """The first layer; the others, each with whether it is the readout."""
    depth = layers.W.shape[0] - 1
    rest = jax.tree.map(lambda c: c[1:], layers)
    return jax.tree.map(lambda c: c[0], layers), (rest, jnp.arange(depth) == depth - 1)


def side(q0: Array, layers: Layers, arch: Architecture) -> Side:
    """Everything about examples alone: costs n, not n²."""
    first, rest = split_layers(layers)

    def step(carry, layer_and_last):
        layer, last = layer_and_last
        (q, theta), largest = carry
        qn, thetan = (q, theta)
        if arch.layer_norm:
            qn, thetan = jnp.where(q > 0, jnp.ones_like(q), 0), ratio(theta, q)
        k, k_dot = arch.rule.own(qn)
        new = _add_skip(arch, last, dense(layer, k, k_dot, thetan), (q, theta))
        return (new, jnp.maximum(largest, _largest(new))), (q, theta)

    start = first_dense(first, q0)
    (out, largest), (variances, tangents) = lax.scan(step, (start, _largest(start)), rest)
    return Side(q0, variances, tangents, *out, largest)


def _largest(kernels: tuple[Array, Array]) -> Array:
    """The largest entry: infinite or NaN if any is, as maxima propagate both."""
    return jnp.maximum(*(jnp.max(jnp.abs(k)) for k in kernels))


def rows(arch: Architecture, q: Array) -> tuple[Any, Array | None]:
    """What a pair needs of one side at one layer: the dual's rows, and the scale that LayerNorm divides by."""
    if not arch.layer_norm:
        return arch.rule.rows(q), None
    return arch.rule.rows(jnp.where(q > 0, jnp.ones_like(q), 0)), ratio(jnp.ones_like(q), root(q))


def pair_step(arch: Architecture, layer: Layers, last: Any, rows1: Any, moments: tuple[Array, Array], rows2: Any):
    """One hidden layer and the Dense after it, for (covariance, tangent kernel) of pairs."""
    (dual1, r1), (dual2, r2) = rows1, rows2
    q12, theta = moments
    if arch.layer_norm:
        scale = r1 * r2
        q12, theta = q12 * scale, theta * scale
    k, k_dot = arch.rule.pair(dual1, q12, dual2)
    return _add_skip(arch, last, dense(layer, k, k_dot, theta), moments)


def all_layers(
    q12: Array, side1: Side, side2: Side, layers: Layers, arch: Architecture, every: bool
) -> tuple[Array, Array]:
    """The reference path: a scan over layers of whole arrays; with `every`, a leading axis of depth + 1 layers."""
    first, rest = split_layers(layers)

    def step(moments, inputs):
        (layer, last), q1, q2 = inputs
        new = pair_step(arch, layer, last, rows(arch, q1[:, None]), moments, rows(arch, q2[None, :]))
        return new, new if every else None

    start = first_dense(first, q12)
    out, history = lax.scan(step, start, (rest, side1.variances, side2.variances))
    if not every:
        return out
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, history)


def tile_size(n: int) -> int:
    """A multiple of 16 near `TILE` that divides n, or else the one that pads n least.

    Rows that a matrix product treats in full blocks get the same sums wherever they stand: permuting rows permutes the kernel.
    """
    exact = [t for t in range(2 * TILE, TILE // 2, -16) if n % t == 0]
    tiles = -(-n // TILE)
    return exact[-1] if exact and n > TILE else -(-n // (16 * tiles)) * 16


def tiled_layers(x1: Array, x2: Array | None, side1: Side, side2: Side, layers: Layers, arch: Architecture):
    """The fast path: K and Theta (n1, n2) in place, a few layers at a time."""
    n1, n2 = x1.shape[0], (x1 if x2 is None else x2).shape[0]
    t1, t2 = tile_size(n1), tile_size(n2)
    x1, x2_, side1, side2 = (
        _pad(a, t) for a, t in ((x1, t1), (x1 if x2 is None else x2, t2), (side1, t1), (side2, t2))
    )
    visit = _Tiles(x1.shape[0] // t1, x2_.shape[0] // t2, t1, t2, symmetric=x2 is None)
    first, rest = split_layers(layers)
    depth, unroll = layers.W.shape[0] - 1, arch.rule.unroll
    lead = depth if depth <= unroll else depth % unroll
    head, tail = (
        jax.tree.map(lambda c, s=s: c[s], (rest, side1.variances, side2.variances))
        for s in (slice(lead), slice(lead, None))
    )

    def start(i, j, _):
        q12 = matmul(visit.left(x1, i), visit.right(x2_, j).T) / x1.shape[1]
        return first_dense(first, q12)

    zero = jnp.zeros((x1.shape[0], x2_.shape[0]), x1.dtype)
    state = visit.update((zero, zero), start, _group(arch, head, lead))

    def chunk(state, inputs):
        return visit.update(state, visit.load, _group(arch, inputs, unroll)), None

    if depth > lead:
        chunks = jax.tree.map(lambda c: c.reshape(-1, unroll, *c.shape[1:]), tail)
        state, _ = lax.scan(chunk, state, chunks)
    return jax.tree.map(lambda k: k[:n1, :n2], state) if state[0].shape != (n1, n2) else state


def _pad(tree: Any, tile: int) -> Any:
    """Zero rows up to a multiple of the tile; the examples of a `Side` are its last axis, those of x its first."""

    def pad(a):
        axis = 0 if not isinstance(tree, Side) else a.ndim - 1
        if a.ndim == 0 or a.shape[axis] % tile == 0:
            return a
        return jnp.pad(a, [(0, -a.shape[i] % tile if i == axis else 0) for i in range(a.ndim)])

    return jax.tree.map(pad, tree)


def _group(arch: Architecture, inputs: Any, count: int) -> tuple[list[Any], list[Any], Callable[..., Any]]:
    """Rows of `count` layers for either side, and the function that takes a tile through them in one loop."""
    (layer, last), q1, q2 = inputs
    each = [jax.tree.map(lambda c, i=i: c[i], (layer, last)) for i in range(count)]
    rows1, rows2 = ([rows(arch, q[i]) for i in range(count)] for q in (q1, q2))

    def through(moments, left, right):
        for (layer, last), r1, r2 in zip(each, left, right, strict=True):
            moments = pair_step(arch, layer, last, r1, moments, r2)
        return moments

    return rows1, rows2, through


class _Tiles:
    """A walk over the tiles of an (n1, n2) kernel; the upper ones only if it is symmetric."""

    def __init__(self, num1: int, num2: int, t1: int, t2: int, *, symmetric: bool):
        pairs = [(i, j) for i in range(num1) for j in range(i if symmetric else 0, num2)]
        self.starts = jnp.asarray([(i * t1, j * t2) for i, j in pairs])
        self.t1, self.t2, self.symmetric = t1, t2, symmetric

    def left(self, x: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, i, self.t1)

    def right(self, x: Array, j: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, j, self.t2)

    def load(self, i, j, state):
        return tuple(lax.dynamic_slice(k, (i, j), (self.t1, self.t2)) for k in state)

    def update(self, state, start, group):
        """`state` after `group` of layers, tile by tile from `start(i, j, state)`."""
        rows1, rows2, through = group

        def tile(m, state):
            i, j = self.starts[m, 0], self.starts[m, 1]
            left = jax.tree.map(lambda r: lax.dynamic_slice_in_dim(r, i, self.t1, axis=r.ndim - 1)[..., :, None], rows1)
            right = jax.tree.map(
                lambda r: lax.dynamic_slice_in_dim(r, j, self.t2, axis=r.ndim - 1)[..., None, :], rows2
            )
            return lax.complex(*through(start(i, j, state), left, right))

        def body(m, carry):
            state, done = (
                carry  # a tile is written one step after it was computed: fused into its writes, it would be computed
            )
            return self._write(state, done, jnp.maximum(m - 1, 0)), tile(m, state)  # once for each of the four

        nothing = lax.complex(*self.load(0, 0, state))
        state, done = lax.fori_loop(0, len(self.starts), body, (state, nothing))
        return self._write(state, done, len(self.starts) - 1)

    def _write(self, state, both, m):
        i, j = self.starts[m, 0], self.starts[m, 1]
        if self.symmetric:  # a tile on the diagonal takes its lower half from the upper one
            upper = jnp.arange(self.t1)[:, None] <= jnp.arange(self.t2)[None, :]
            both = jnp.where((i != j) | upper, both, both.T)
        state = tuple(
            lax.dynamic_update_slice(k, part, (i, j)) for k, part in zip(state, (both.real, both.imag), strict=True)
        )
        if not self.symmetric:
            return state
        return tuple(
            lax.dynamic_update_slice(k, part.T, (j, i)) for k, part in zip(state, (both.real, both.imag), strict=True)
        )


@partial(jax.jit, static_argnames=("arch",))
def sides(x1: Array, x2: Array | None, layers: Layers, arch: Architecture) -> tuple[Side, Side]:
    """Both sides; the same object twice for x2 = None."""
    side1 = side(_second_moments(x1), layers, arch)
    return side1, side1 if x2 is None else side(_second_moments(x2), layers, arch)


def _second_moments(x: Array) -> Array:
    return jnp.sum(x * x, axis=1) / x.shape[1]


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def kernels(x1: Array, x2: Array | None, layers: Layers, arch: Architecture) -> tuple[Array, Array]:
    """NNGP and NTK (n1, n2)."""
    side1, side2 = sides(x1, x2, layers, arch)
    out = tiled_layers(x1, x2, side1, side2, layers, arch)
    return _exact_diagonal(out, side1) if x2 is None else out


@kernels.defjvp
def _kernels_jvp(arch, primals, tangents):
    x1, x2, layers = primals
    if x2 is None:
        reference = lambda x1, layers: reference_kernels(x1, None, layers, arch)  # noqa: E731
        return jax.jvp(reference, (x1, layers), (tangents[0], tangents[2]))
    return jax.jvp(lambda *args: reference_kernels(*args, arch), primals, tangents)


def reference_kernels(x1: Array, x2: Array | None, layers: Layers, arch: Architecture, every: bool = False):
    """The same without tiles; with `every` layer on a leading axis."""
    side1, side2 = sides(x1, x2, layers, arch)
    q12 = matmul(x1, (x1 if x2 is None else x2).T) / x1.shape[1]
    if x2 is None:
        q12 = _with_diagonal(q12, side1.q0)
    out = all_layers(q12, side1, side2, layers, arch, every)
    if x2 is not None:
        return out
    out = jax.tree.map(_mirror, out)
    if not every:
        return _exact_diagonal(out, side1)
    own = [jnp.concatenate([h, end[None]]) for h, end in ((side1.variances, side1.nngp), (side1.tangents, side1.ntk))]
    return tuple(jax.vmap(_with_diagonal)(k, diagonal) for k, diagonal in zip(out, own, strict=True))


def _exact_diagonal(out: tuple[Array, Array], side1: Side) -> tuple[Array, Array]:
    return tuple(_with_diagonal(k, diagonal) for k, diagonal in zip(out, (side1.nngp, side1.ntk), strict=True))


def _mirror(k: Array) -> Array:
    """The lower triangle copied from the upper one."""
    upper = jnp.tri(k.shape[-1], dtype=bool).T
    return jnp.where(upper, k, jnp.swapaxes(k, -1, -2))


def _with_diagonal(k: Array, diagonal: Array) -> Array:
    i = jnp.arange(k.shape[0])
    return k.at[i, i].set(diagonal, unique_indices=True, indices_are_sorted=True)
