"""From one pair of examples to all of them: mapped twice, in tiles where memory asks for it."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.infinite.flax.traced_model import Duals, Program
from ntk_jax.memory import memory_budget
from ntk_jax.tiling import corners, even, mirror_upper, pad_rows, tile_size, write_both
from ntk_jax.types import Kernels

UNTILED = 512  # examples up to which all pairs are one tile, if memory allows
COSTLY = 1024  # bytes of a pair from which computing the upper tiles only pays for few examples too
LIVE = 4  # arrays of the largest size that are held at once
MOST_BYTES = 2**30


Side: TypeAlias = tuple[Array, Array | None]  # examples, and numbers that tell equal rows, if any


class Pairs:
    """The kernels of all pairs of examples by one program. What is compiled for it is its own, and
    goes when it goes.
    """

    def __init__(self, program: Program):
        self.program = program
        self.compiled = jax.jit(partial(_all_pairs, program), static_argnums=(4, 5))

    def __call__(
        self,
        x1: Array,
        x2: Array | None,
        duals: Duals,
        memory_limit: int | None,
        key: Array | None = None,
    ) -> tuple[Kernels, Array | None]:
        """Kernels (n1, n2), and whether they are finite, where that is known; with x2 = None the
        upper tiles only, mirrored, with an exact diagonal.
        """
        limit = memory_budget(memory_limit, most=MOST_BYTES)
        per_pair = self.program.pair(duals, key).bytes
        most = max(1, int((limit / (LIVE * per_pair)) ** 0.5))
        if x2 is None and per_pair >= COSTLY:
            most = min(most, -(-len(x1) // 4))  # ten tiles of sixteen
        # As an argument: XLA would compare all rows while it compiles.
        rows = np.arange(len(x1)) if x2 is None else None
        out = self.compiled(x1, x2, rows, key, duals, most)
        if x2 is not None or len(x1) > max(1, min(UNTILED, most)):
            return out, None
        return cast(tuple[Kernels, Array], _mirrored(out))


def block(
    program: Program, duals: Duals, x1: Array, x2: Array, key: Array | None = None
) -> Kernels:
    """All pairs at once, of different examples."""
    return _block(program, duals, (x1, None), (x2, None), key)


def _block(program: Program, duals: Duals, one: Side, two: Side, key: Array | None) -> Kernels:
    trace = program.pair(duals, key)

    def pair(a: Array, i: Array | None, b: Array, j: Array | None) -> Kernels:
        return trace.kernels(a, b, False if i is None else i == j, key)

    return jax.vmap(jax.vmap(pair, (None, None, 0, 0)), (0, 0, None, None))(*one, *two)


def _all_pairs(
    program: Program,
    x1: Array,
    x2: Array | None,
    rows: Array | None,
    key: Array | None,
    duals: Duals,
    most: int,
) -> Kernels:
    """All pairs, of one tile neither symmetric to the bit."""
    one: Side = (x1, rows)
    two: Side = one if x2 is None else (x2, None)
    n1, n2 = len(one[0]), len(two[0])
    t1, t2 = (min(tile_size(n), even(n, most)) if n > UNTILED else min(n, most) for n in (n1, n2))

    def tile(a: Side, b: Side) -> Array:
        # XLA's fusion on CPU has one output: as two arrays, the kernels would be computed twice.
        return lax.complex(*_block(program, duals, a, b, key))

    if n1 <= t1 and n2 <= t2:
        both = tile(one, two)
        return Kernels(both.real, both.imag)
    one, two = (
        jax.tree.map(partial(pad_rows, multiple=t), side) for side, t in ((one, t1), (two, t2))
    )
    out = _tiled(tile, one, two, t1, t2, dtype=program.dtype, symmetric=x2 is None)
    return Kernels(*(k[:n1, :n2] for k in out)) if out.ntk.shape != (n1, n2) else out


@jax.jit
def _mirrored(out: Kernels) -> tuple[Kernels, Array]:
    """Symmetric, and whether all is finite; on its own, because in one loop with the kernels all
    would be computed twice.
    """
    finite = [jnp.isfinite(k).all() for k in out]
    return Kernels(*map(mirror_upper, out)), finite[0] & finite[1]


def _tiled(
    tile: Callable[[Side, Side], Array],
    one: Side,
    two: Side,
    t1: int,
    t2: int,
    *,
    dtype: np.dtype,
    symmetric: bool,
) -> Kernels:
    """Tile by tile, each computed again for its derivative; the upper ones if symmetric."""
    shape = (len(one[0]), len(two[0]))
    cut = lambda x, i, t: jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i, t), x)
    compute = jax.checkpoint(lambda i, j: tile(cut(one, i, t1), cut(two, j, t2)))

    write = partial(write_both, symmetric)

    def step(carry: Any, here: tuple[Array, Array]) -> tuple[Any, None]:
        # A tile is written one step after it was computed: fused into its writes, it would be
        # computed for each of them.
        state, done, before = carry
        return (write(state, done, before), compute(*here), here), None

    zero = lax.complex(*jnp.zeros((2,), dtype))
    state = tuple(jnp.zeros(shape, dtype) for _ in Kernels._fields)
    at = jnp.asarray(corners(*shape, t1, t2, symmetric=symmetric))
    first = (state, jnp.broadcast_to(zero, (t1, t2)), (at[0, 0], at[0, 1]))
    (state, done, before), _ = lax.scan(step, first, (at[:, 0], at[:, 1]))
    return Kernels(*write(state, done, before))
