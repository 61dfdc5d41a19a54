"""From one pair of examples to all of them: mapped twice, in tiles where memory asks for it."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.infinite.flax.pair_trace import PairTrace, trace_of
from ntk_jax.infinite.flax.traced_model import Duals, Program
from ntk_jax.memory import memory_budget
from ntk_jax.tiling import corners, even, mirror_upper, pad_rows, tile_size, write_both
from ntk_jax.types import Kernels

UNTILED = 512  # examples up to which all pairs are one tile, if memory allows
COSTLY = 1024  # bytes of a pair from which computing the upper tiles only pays for few examples too
LIVE = 4  # arrays of the largest size that are held at once
MOST_BYTES = 2**30


Values: TypeAlias = list[Array]
# Examples or what they need, and numbers that tell which are the same, if any.
Side: TypeAlias = tuple[Any, Array | None]


class Pairs:
    """The kernels of all pairs of examples by one program. What is compiled for it is its own, and
    goes when it goes.
    """

    def __init__(self, program: Program):
        self.program = program
        self.compiled = jax.jit(partial(_all_pairs, program), static_argnums=(4, 5, 6))

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
        trace = trace_of(self.program, duals, key)
        per_pair = trace.bytes
        most = max(1, int((limit / (LIVE * per_pair)) ** 0.5))
        if x2 is None and per_pair >= COSTLY:
            most = min(most, -(-len(x1) // 4))  # ten tiles of sixteen
        # As an argument: XLA would compare all rows while it compiles.
        rows = np.arange(len(x1)) if x2 is None else None
        num_rows = len(x1) + (0 if x2 is None else len(x2))
        once = num_rows * trace.row_bytes <= limit
        out = self.compiled(x1, x2, rows, key, duals, most, once)
        if x2 is not None or len(x1) > max(1, min(UNTILED, most)):
            return out, None
        return cast(tuple[Kernels, Array], _mirrored(out))


def block(
    program: Program, duals: Duals, x1: Array, x2: Array, key: Array | None = None
) -> Kernels:
    """All pairs at once, of different examples."""
    trace = trace_of(program, duals, key)
    (first, _), (_, second) = (_own(trace, key, x) for x in (x1, x2))
    return _of_pairs(trace, key, (first, None), (second, None))


def _own(trace: PairTrace, key: Array | None, x: Array) -> tuple[Values, Values]:
    """What each example needs to meet others, as first and as second of a pair."""
    return jax.vmap(lambda a: trace.own(a, key))(x)


def _of_pairs(trace: PairTrace, key: Array | None, one: Side, two: Side) -> Kernels:
    def pair(a: Values, i: Array | None, b: Values, j: Array | None) -> Kernels:
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
    once: bool,
) -> Kernels:
    """All pairs, of one tile neither symmetric to the bit; what one example needs is computed
    `once`, or in every tile.
    """
    trace = trace_of(program, duals, key)
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    t1, t2 = (min(tile_size(n), even(n, most)) if n > UNTILED else min(n, most) for n in (n1, n2))
    one_tile = n1 <= t1 and n2 <= t2
    x1 = pad_rows(x1, t1)
    x2 = None if x2 is None else pad_rows(x2, t2)
    rows = None if rows is None else pad_rows(rows, t1)

    def tile(one: Side, two: Side) -> Array:
        # XLA's fusion on CPU has one output: as two arrays, the kernels would be computed twice.
        return lax.complex(*_of_pairs(trace, key, one, two))

    def of_examples(one: Side, two: Side) -> Array:
        first, second = _met(trace, key, one[0], two[0])
        return tile((first, one[1]), (second, two[1]))

    if once or one_tile:
        first, second = _met(trace, key, x1, x2, 0 if one_tile else max(t1, t2))
        one, two, of_tile = (first, rows), (second, rows), tile
    else:
        one, two, of_tile = (x1, rows), (x1 if x2 is None else x2, rows), of_examples
    if one_tile:
        both = tile(one, two)
        return Kernels(both.real, both.imag)
    zero = jnp.zeros((), program.dtype)
    out = _tiled(of_tile, one, two, lax.complex(zero, zero), t1, t2, symmetric=x2 is None)
    return Kernels(*(k[:n1, :n2] for k in out)) if out.ntk.shape != (n1, n2) else out


def _met(
    trace: PairTrace, key: Array | None, x1: Array, x2: Array | None, at_once: int = 0
) -> tuple[Values, Values]:
    """What x1 need as first of a pair, and x2 (None: x1) as second: by one piece of code for
    both.
    """
    x = x1 if x2 is None else jnp.concatenate([x1, x2])
    if at_once:
        chunks = pad_rows(x, at_once).reshape(-1, at_once, *x.shape[1:])
        found = lax.map(partial(_own, trace, key), chunks)
        first, second = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)
    else:
        first, second = _own(trace, key, x)
    n1, n = len(x1), len(x)
    return [a[:n1] for a in first], [b[n1 if x2 is not None else 0 : n] for b in second]


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
    zero: Array,
    t1: int,
    t2: int,
    *,
    symmetric: bool,
) -> Kernels:
    """Tile by tile, each computed again for its derivative; the upper ones if symmetric."""
    shape = tuple(len(jax.tree.leaves(side)[0]) for side in (one, two))
    cut = lambda x, i, t: jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i, t), x)
    compute = jax.checkpoint(lambda i, j: tile(cut(one, i, t1), cut(two, j, t2)))
    write = partial(write_both, symmetric)

    def step(carry: Any, here: tuple[Array, Array]) -> tuple[Any, None]:
        # A tile is written one step after it was computed: fused into its writes, it would be
        # computed for each of them.
        state, done, before = carry
        return (write(state, done, before), compute(*here), here), None

    state = tuple(jnp.zeros(shape, zero.real.dtype) for _ in Kernels._fields)
    at = jnp.asarray(corners(*shape, t1, t2, symmetric=symmetric))
    first = (state, jnp.broadcast_to(zero, (t1, t2)), (at[0, 0], at[0, 1]))
    (state, done, before), _ = lax.scan(step, first, (at[:, 0], at[:, 1]))
    return Kernels(*write(state, done, before))
