"""All layers on pairs, tile by tile: each tile in one loop per group of layers, kernel and tangent
kernel in registers.

With x2 = None only the upper triangle is visited, and mirrored. XLA's CPU fusion has one output, so
the two kernels travel as the real and the imaginary part of one complex number: as two arrays, the
recursion was computed twice per layer, and the time grew exponentially with depth.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ntk_jax.infinite.mlp.diagonal import Diagonals
from ntk_jax.infinite.mlp.layers import (
    Moments,
    Network,
    first_pairs,
    has_cusp,
    pair_step,
    rows,
    split_layers,
)
from ntk_jax.infinite.mlp.nearly_parallel import directions, is_near, near_kernels
from ntk_jax.linalg import matmul
from ntk_jax.tiling import corners, tile_size, write_both

Index = Array | int


class TiledLayers:
    """The fast path: K and Theta in place, a few layers at a time, padded to whole tiles.

    `from_covariances` is the recursion; `corrected` replaces the pairs that are nearly parallel at
    its start or its end.
    """

    def __init__(self, network: Network, known: Diagonals):
        x1, x2, self.layers, self.arch = network
        t1, t2 = (tile_size(x.shape[0]) for x in (x1, x1 if x2 is None else x2))
        self.depth = self.layers.W.shape[0] - 1
        self.cusp = has_cusp(self.layers, self.arch)
        self.first, _ = split_layers(self.layers)
        self.x1, self.x2 = _pad(x1, t1), _pad(x1 if x2 is None else x2, t2)
        # examples are the last axis of what they have with themselves
        self.diagonals = self.diagonal1, self.diagonal2 = [
            jax.tree.map(lambda a, t=t: _pad(a, t, -1), d)
            for d, t in ((known[0], t1), (known[-1], t2))
        ]
        self.visit = _Tiles(len(self.x1) // t1, len(self.x2) // t2, t1, t2, symmetric=x2 is None)
        # variances after the first layer and after the last
        before = [(d.variances if self.depth else d.nngp[None])[0] for d in self.diagonals]
        self.ends = before, [d.nngp for d in self.diagonals]

    def from_covariances(self) -> tuple[Moments, Array]:
        """Both kernels, and how many pairs of every tile are to be followed, as seen at the start
        and at the end: none if the dual has no cusp.
        """
        visit, arch = self.visit, self.arch
        side1 = rows(arch, self.diagonal1.variances)
        side2 = side1 if visit.symmetric else rows(arch, self.diagonal2.variances)

        def near(end: int, i: Array, j: Array, moments: Moments) -> Array | int:
            return jnp.count_nonzero(visit.near(self.ends[end], i, j, moments)) if self.cusp else 0

        def tile(i: Array, j: Array, state: Moments) -> tuple[Array, Array]:
            def layer(m: Array, both: Array) -> Array:
                at = jax.tree.map(lambda c: c[m + 1], self.layers)
                of = lambda r: lax.dynamic_index_in_dim(r, m, -2, keepdims=False)
                left = jax.tree.map(lambda r: visit.left(of(r), i, -1)[..., :, None], side1)
                right = jax.tree.map(lambda r: visit.right(of(r), j, -1)[..., None, :], side2)
                moments = both.real, both.imag
                return lax.complex(*pair_step(arch, at, m == self.depth - 1, left, moments, right))

            start = self._start(i, j, state)
            both = lax.complex(*start)
            if self.depth:
                both = lax.fori_loop(0, self.depth, layer, both)
            counts = near(0, i, j, start), near(-1, i, j, (both.real, both.imag))
            return self._with_diagonal(i, j, both), jnp.stack(counts).astype(jnp.int32)

        return visit.update(tile, self.x1.dtype)

    def corrected(self, state: Moments, near: Array) -> Moments:
        """The kernels of `from_covariances`, with nearly parallel pairs from their gaps."""
        if not self.cusp:
            return state
        visit = self.visit

        def exact(i: Array, j: Array, state: Moments) -> tuple[Array, Moments]:
            moments = self._start(i, j, state)
            q1, q2 = (
                visit.left(self.diagonal1.variances, i, -1),
                visit.right(self.diagonal2.variances, j, -1),
            )
            left = directions(visit.left(self.x1, i), q1[0], self.first), q1
            right = directions(visit.right(self.x2, j), q2[0], self.first), q2
            at_start = visit.near(self.ends[0], i, j, moments)
            at_end = visit.near(self.ends[-1], i, j, visit.load(i, j, state))
            wanted = at_start | at_end
            return wanted, near_kernels(left, moments, right, wanted, self.layers, self.arch)

        return visit.correct(state, jnp.any(near > 0, axis=1), exact)

    def _with_diagonal(self, i: Array, j: Array, both: Array) -> Array:
        """A tile with what examples have with themselves: exact."""
        if not self.visit.symmetric:
            return both
        known = lax.complex(
            *(self.visit.left(k, i) for k in (self.diagonal1.nngp, self.diagonal1.ntk))
        )
        own = (i == j) & jnp.eye(len(known), dtype=bool)
        return jnp.where(own, known[:, None], both)

    def _start(self, i: Array, j: Array, _: Moments) -> Moments:
        products = (
            matmul(self.visit.left(self.x1, i), self.visit.right(self.x2, j).T) / self.x1.shape[1]
        )
        left = lambda q: self.visit.left(q, i)[:, None]
        right = lambda q: self.visit.right(q, j)[None, :]
        variances1 = left(self.diagonal1.q0), left(self.ends[0][0])
        variances2 = right(self.diagonal2.q0), right(self.ends[0][1])
        return first_pairs(self.first, products, variances1, variances2)


def _pad(a: Array, tile: int, axis: int = 0) -> Array:
    """Zero rows up to a multiple of the tile."""
    if a.ndim == 0 or a.shape[axis] % tile == 0:
        return a
    return jnp.pad(a, [(0, -s % tile if i == axis % a.ndim else 0) for i, s in enumerate(a.shape)])


class _Tiles:
    """A walk over the tiles of an (n1, n2) kernel; the upper ones only if it is symmetric."""

    def __init__(self, num1: int, num2: int, t1: int, t2: int, *, symmetric: bool):
        self.starts = jnp.asarray(corners(num1 * t1, num2 * t2, t1, t2, symmetric=symmetric))
        self.t1, self.t2, self.symmetric = t1, t2, symmetric
        self.shape = num1 * t1, num2 * t2

    def left(self, x: Array, i: Array, axis: int = 0) -> Array:
        return lax.dynamic_slice_in_dim(x, i, self.t1, axis)

    def right(self, x: Array, j: Array, axis: int = 0) -> Array:
        return lax.dynamic_slice_in_dim(x, j, self.t2, axis)

    def load(self, i: Index, j: Index, state: Moments) -> Moments:
        k, theta = (lax.dynamic_slice(k, (i, j), (self.t1, self.t2)) for k in state)
        return k, theta

    def near(self, variances: list[Array], i: Array, j: Array, moments: Moments) -> Array:
        """The pairs of a tile that are nearly parallel, given the variances of either side; an
        example and itself are none.
        """
        near = is_near(
            self.left(variances[0], i)[:, None], moments[0], self.right(variances[1], j)[None, :]
        )
        if not self.symmetric:
            return near
        return near & (i + jnp.arange(self.t1)[:, None] < j + jnp.arange(self.t2)[None, :])

    def update(
        self, tile: Callable[[Array, Array, Moments], tuple[Array, Array]], dtype: DTypeLike
    ) -> tuple[Moments, Array]:
        """Both kernels from `tile(i, j, state)`, and the two numbers it counts, (tiles, 2)."""

        def body(m: Array, carry: tuple[Moments, Array]) -> tuple[Moments, Array]:
            state, counts = carry
            both, count = tile(self.starts[m, 0], self.starts[m, 1], state)
            return self._write(state, both, m), counts.at[m].set(count)

        zero = jnp.zeros(self.shape, dtype)
        nothing = jnp.zeros((len(self.starts), 2), jnp.int32)
        return lax.fori_loop(0, len(self.starts), body, ((zero, zero), nothing))

    def correct(
        self,
        state: Moments,
        tiles: Array,
        exact: Callable[[Array, Array, Moments], tuple[Array, Moments]],
    ) -> Moments:
        """`state` with some pairs of the `tiles` replaced: which, and by what, says `exact(i, j,
        state)`.
        """
        count = jnp.count_nonzero(tiles)
        listed = jnp.flatnonzero(tiles, size=len(self.starts), fill_value=0)

        # written one step later, as in `update`
        def body(m: Array, carry: tuple[Moments, Array]) -> tuple[Moments, Array]:
            state = self._write(carry[0], carry[1], listed[jnp.maximum(m - 1, 0)])
            i, j = self.starts[listed[m]]
            wanted, new = exact(i, j, state)
            both = (
                jnp.where(wanted, k, old)
                for k, old in zip(new, self.load(i, j, state), strict=True)
            )
            return state, lax.complex(*both)

        i, j = self.starts[listed[0]]
        unchanged = lax.complex(*self.load(i, j, state))
        state, done = lax.fori_loop(0, count, body, (state, unchanged))
        return self._write(state, done, listed[jnp.maximum(count - 1, 0)])

    def _write(self, state: Moments, both: Array, m: Index) -> Moments:
        k, theta = write_both(self.symmetric, state, both, (self.starts[m, 0], self.starts[m, 1]))
        return k, theta
