"""From one pair of examples to all of them: what belongs to one example is computed once for each,
the rest mapped twice, in tiles where memory asks for it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.examples import Examples, num_rows
from ntk_jax.host import by_numpy_if_few, few
from ntk_jax.infinite.flax.alone import Alone, Packs, Side
from ntk_jax.infinite.flax.traced_model import Duals, Program
from ntk_jax.loops.apart import Apart
from ntk_jax.loops.packing import Packing
from ntk_jax.memory import memory_budget
from ntk_jax.platforms import by_platform, is_on_cpu
from ntk_jax.small_programs import LESS, OF_NETWORKS, jit_by_size
from ntk_jax.tiling import (
    corners,
    even,
    is_small_on_host,
    mirror_upper,
    mirrored_on_host,
    tile_size,
    write_both,
    write_each,
)
from ntk_jax.types import BOTH, Which

UNTILED = 512  # examples up to which all pairs are one tile, if memory allows
COSTLY = 1024  # bytes of a pair from which computing the upper tiles only pays for few examples too
LIVE = 4  # arrays of the largest size that are held at once
MOST_BYTES = 2**30
BYTES_ALONE = 2**20  # of what is held at once of single examples, on a CPU: it stays in a cache

Results: TypeAlias = tuple[Array, ...]  # NNGP, NTK or both


class Schedule(NamedTuple):
    """How many examples a tile may have, of how many what belongs to one is computed at once, how
    many bytes that has for all of them, whether it is held or computed anew for every tile, and
    whether a CPU does it: XLA's fusion there has one output, so that both kernels are one complex
    number; as two arrays they would be computed twice.
    """

    most: int
    most_alone: int
    bytes_alone: int
    held: bool
    on_cpu: bool

    def tile(self, n: int) -> int:
        """Examples of a tile of n."""
        if self.on_cpu and n <= UNTILED:
            return min(n, self.most)
        return min(tile_size(n) if self.on_cpu else n, even(n, self.most))


class Pairs:
    """The kernels of all pairs of examples by one program. What is compiled for it is its own, and
    goes when it goes.
    """

    def __init__(self, program: Program, which: Which):
        self.program, self.which = program, which
        every, alone = (partial(f, program, which) for f in (_all_pairs, _all_alone))
        entries = partial(_entries, program)
        entries_alone = lambda *arguments: arguments[-1].bytes_alone // program.dtype.itemsize
        self.compiled = jit_by_size(every, (4, 5), LESS, entries, times=OF_NETWORKS)
        self.run = by_numpy_if_few(self.compiled, self._given_rows)
        rows = jit_by_size(alone, (3, 4), LESS, entries_alone)
        self.alone = by_numpy_if_few(rows, lambda *_: None)

    def __call__(
        self,
        x1: Examples,
        x2: Examples | None,
        duals: Duals,
        memory_limit: int | None,
        key: Array | None = None,
    ) -> tuple[Results, Array | None]:
        """Kernels (n1, n2), and whether they are finite, where that is known; with x2 = None
        mirrored, with an exact diagonal.
        """
        # As an argument: XLA would compare all rows while it compiles.
        rows = np.arange(num_rows(x1)) if x2 is None else None
        arguments = x1, x2, rows, key

        def run(on_cpu: bool, *arguments: Any) -> tuple[Results, Array | None]:
            n2 = None if x2 is None else num_rows(x2)
            schedule = self._schedule(num_rows(x1), n2, duals, memory_limit, key, on_cpu)
            out = self.run(*arguments, duals, schedule)
            if x2 is not None or num_rows(x1) > schedule.tile(num_rows(x1)):
                return out, None
            if is_small_on_host(out[0]):
                return tuple(mirrored_on_host(out)), None
            return cast(tuple[Results, Array], _mirrored(out))

        on_cpu = is_on_cpu(x1, x2, key)
        if on_cpu is not None:
            return run(on_cpu, *arguments)
        kernels = lambda on_cpu: lambda *arguments: run(on_cpu, *arguments)[0]
        return by_platform(kernels(True), kernels(False), *arguments), None

    def _given_rows(
        self,
        x1: Examples,
        x2: Examples | None,
        rows: np.ndarray | Array | None,
        key: Array | None,
        duals: Duals,
        schedule: Schedule,
    ) -> Results:
        """By XLA; what belongs to one example by NumPy, if it is little: half of what there is to
        compile.
        """
        packs = self.alone(x1, x2, key, duals, schedule) if schedule.held else None
        return self.compiled(x1, x2, rows, key, duals, schedule, packs)

    def _schedule(
        self,
        n1: int,
        n2: int | None,
        duals: Duals,
        memory_limit: int | None,
        key: Array | None,
        on_cpu: bool,
    ) -> Schedule:
        trace = self.program.pair(duals, key)
        per_pair, alone = trace.bytes, LIVE * trace.bytes_of_one
        at_once = LIVE * per_pair * max(n1, n2 or 0) ** 2
        limit = memory_budget(memory_limit, most=MOST_BYTES, on_cpu=on_cpu, needed=at_once)
        most = max(1, int((limit / (LIVE * per_pair)) ** 0.5))
        by_numpy = per_pair * n1**2 <= few.FEW * self.program.dtype.itemsize
        if on_cpu and n2 is None and per_pair >= COSTLY and not by_numpy:
            most = min(most, -(-n1 // 4))  # ten tiles of sixteen
        limit_alone = min(limit, BYTES_ALONE) if on_cpu else limit
        held = trace.kernels(self.which, on_cpu=on_cpu).bytes_of_one * (n1 + (n2 or 0))
        return Schedule(most, max(1, int(limit_alone / alone)), held, held <= limit, on_cpu)


def _entries(
    program: Program,
    x1: Examples,
    x2: Examples | None,
    rows: object,
    key: Array | None,
    duals: Duals,
    *_: object,
) -> int:
    """Of the moments of all pairs."""
    per_pair = program.pair(duals, key).bytes // program.dtype.itemsize
    return per_pair * num_rows(x1) * num_rows(x1 if x2 is None else x2)


def _block(program: Apart, shared: list[Array], one: Side, two: Side) -> Results:
    def pair(a: list[Array], i: Array | None, b: list[Array], j: Array | None) -> Results:
        same = jnp.asarray(False if i is None else i == j)
        return tuple(program.of_both(*shared, *a, *b, same))

    return jax.vmap(jax.vmap(pair, (None, None, 0, 0)), (0, 0, None, None))(*one, *two)


def _alone(
    program: Program, which: Which, key: Array | None, duals: Duals, schedule: Schedule
) -> tuple[Apart, Alone]:
    """The program of pairs, and what of it belongs to one example."""
    apart = program.pair(duals, key).kernels(which, on_cpu=schedule.on_cpu)
    shared = apart.of_neither(*([] if key is None else [key]))
    return apart, Alone(apart.of_one, shared, Packing(apart.of_one.like))


def _all_alone(
    program: Program,
    which: Which,
    x1: Examples,
    x2: Examples | None,
    key: Array | None,
    duals: Duals,
    schedule: Schedule,
) -> Packs:
    """What belongs to each example of both sides."""
    _, alone = _alone(program, which, key, duals, schedule)
    return alone.of_all(x1, x2, schedule.most_alone)


def _all_pairs(
    program: Program,
    which: Which,
    x1: Examples,
    x2: Examples | None,
    rows: Array | None,
    key: Array | None,
    duals: Duals,
    schedule: Schedule,
    packs: Packs | None = None,
) -> Results:
    """All pairs, of one tile neither symmetric to the bit; `packs` if they are known."""
    apart, alone = _alone(program, which, key, duals, schedule)
    n1, n2 = num_rows(x1), num_rows(x1 if x2 is None else x2)
    t1, t2 = schedule.tile(n1), schedule.tile(n2)

    def tile(a: Side, b: Side) -> Results:
        kernels = _block(apart, alone.shared, a, b)
        return (lax.complex(*kernels),) if schedule.on_cpu and which == BOTH else kernels

    packs = packs or (alone.of_all(x1, x2, schedule.most_alone) if schedule.held else None)
    packs1, packs2 = (None, None) if packs is None else (packs[0], packs[-1])
    if n1 <= t1 and n2 <= t2 and packs1 is not None and packs2 is not None:
        tiles = tile(*((alone.packing.unpacked(p), rows) for p in (packs1, packs2)))
        return tiles if len(tiles) == len(which) else (tiles[0].real, tiles[0].imag)
    cut1 = alone.cut(x1, packs1, rows, t1, schedule.on_cpu)
    cut2 = cut1 if x2 is None else alone.cut(x2, packs2, rows, t2, schedule.on_cpu)
    compute = jax.checkpoint(lambda i, j: tile(cut1(i, t1), cut2(j, t2)))
    like = jax.ShapeDtypeStruct((len(which), -(-n1 // t1) * t1, -(-n2 // t2) * t2), program.dtype)
    out = _tiled(compute, t1, t2, like, symmetric=x2 is None)
    return tuple(k[:n1, :n2] for k in out) if out[0].shape[:2] != (n1, n2) else out


@jax.jit
def _mirrored(out: Results) -> tuple[Results, Array]:
    """Symmetric, and whether all is finite; on its own, because in one loop with the kernels all
    would be computed twice.
    """
    out = lax.optimization_barrier(out)  # under someone's jit, too
    finite = jnp.stack([jnp.isfinite(k).all() for k in out])
    return tuple(map(mirror_upper, out)), finite.all()


def _tiled(
    compute: Callable[[Array, Array], Results],
    t1: int,
    t2: int,
    like: jax.ShapeDtypeStruct,
    *,
    symmetric: bool,
) -> Results:
    """(kernels, rows, columns) `like` these, tile by tile; the upper ones if symmetric."""
    num_kernels, *shape = like.shape

    def write(state: Any, tiles: Results, at: tuple[Array, Array]) -> Any:
        if len(tiles) == 1:
            return write_both(symmetric, state, tiles[0], at)
        return write_each(symmetric, state, tiles, at)

    def step(carry: Any, here: tuple[Array, Array]) -> tuple[Any, None]:
        # A tile is written one step after it was computed: fused into its writes, it would be
        # computed for each of them.
        state, done, before = carry
        return (write(state, done, before), compute(*here), here), None

    at = jnp.asarray(corners(shape[0], shape[1], t1, t2, symmetric=symmetric))
    nothing = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(compute, at[0, 0], at[0, 1])
    )
    shape += nothing[0].shape[2:]
    state = (jnp.zeros(shape, like.dtype),) * num_kernels
    (state, done, before), _ = lax.scan(
        step, (state, nothing, (at[0, 0], at[0, 1])), (at[:, 0], at[:, 1])
    )
    return cast(Results, write(state, done, before))
