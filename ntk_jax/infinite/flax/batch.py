"""From one pair of examples to all of them: mapped twice, in tiles where memory asks for it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_jax.infinite.flax.traced_model import Duals, Program
from ntk_jax.jaxprs import Jaxpr, dtype_of, open_jaxpr, shape_of
from ntk_jax.memory import memory_budget
from ntk_jax.tiling import corners, even, mirror_upper, pad_rows, tile_size, write_both
from ntk_jax.types import Kernels

UNTILED = 512  # examples up to which all pairs are one tile, if memory allows
COSTLY = 1024  # bytes of a pair from which computing the upper tiles only pays for few examples too
LIVE = 4  # arrays of the largest size that are held at once
MOST_BYTES = 2**30


class Pairs:
    """The kernels of all pairs of examples by one program. What is compiled for it is its own, and
    goes when it goes.
    """

    def __init__(self, program: Program):
        self.program = program
        self.compiled = jax.jit(partial(_all_pairs, program), static_argnums=(3, 4))
        self.sizes: dict[Any, int] = {}

    def __call__(
        self,
        x1: Array,
        x2: Array | None,
        duals: Duals,
        memory_limit: int | None,
        key: Array | None = None,
    ) -> Kernels:
        """Kernels (n1, n2); with x2 = None the upper tiles only, mirrored, with an exact
        diagonal.
        """
        limit = memory_budget(memory_limit, most=MOST_BYTES)
        per_pair = self.pair_bytes(x1.shape[1:], x1.dtype, duals, key is not None)
        most = max(1, int((limit / (LIVE * per_pair)) ** 0.5))
        if x2 is None and per_pair >= COSTLY:
            most = min(most, -(-len(x1) // 4))  # ten tiles of sixteen
        out, exact = self.compiled(x1, x2, key, duals, most)
        if exact is None:
            return cast(Kernels, out)
        tiled = len(x1) > max(1, min(UNTILED, most))
        return (_with_diagonal if tiled else _mirrored)(out, exact)

    def pair_bytes(self, shape: tuple[int, ...], dtype: Any, duals: Duals, sampled: bool) -> int:
        """The largest array of one pair, in bytes: those that grow with both sides of a small
        trace.
        """
        if (shape, dtype, duals, sampled) not in self.sizes:
            rows, columns = 5, 7  # told apart from the sizes of most models' axes
            shapes = [jax.ShapeDtypeStruct((n, *shape), dtype) for n in (rows, columns)]
            key = jax.random.key(0) if sampled else None
            closed = jax.make_jaxpr(lambda a, b: block(self.program, duals, a, b, key))(*shapes)
            self.sizes[shape, dtype, duals, sampled] = max(_largest(closed.jaxpr, rows, columns), 8)
        return self.sizes[shape, dtype, duals, sampled]


def _largest(jaxpr: Jaxpr, rows: int, columns: int) -> int:
    largest = 0
    for eqn in jaxpr.eqns:
        for v in eqn.outvars:
            shape = shape_of(v) if hasattr(v.aval, "shape") else ()
            if rows in shape and columns in shape:
                entries = math.prod(shape) // (rows * columns)
                largest = max(largest, entries * dtype_of(v).itemsize)
        for p in eqn.params.values():
            for inner in p if isinstance(p, tuple | list) else (p,):
                if hasattr(inner, "eqns"):
                    largest = max(largest, _largest(open_jaxpr(inner)[0], rows, columns))
    return largest


def block(
    program: Program, duals: Duals, x1: Array, x2: Array, key: Array | None = None
) -> Kernels:
    """All pairs at once."""
    pair = lambda a, b: program.kernels((a, b), dict(duals), (0, 1), key=key)
    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(x1, x2)


def with_itself(
    program: Program, duals: Duals, x: Array, at_once: int, key: Array | None = None
) -> Kernels:
    """Of every example with itself, exactly."""
    one = lambda a: program.kernels((a, a), dict(duals), (0, 0), key=key)
    return lax.map(one, x, batch_size=min(len(x), at_once))


def _all_pairs(
    program: Program, x1: Array, x2: Array | None, key: Array | None, duals: Duals, most: int
) -> tuple[Kernels, Kernels | None]:
    """All pairs, symmetric or for one tile right above the diagonal; with x2 = None each example
    with itself.
    """
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    t1, t2 = (min(tile_size(n), even(n, most)) if n > UNTILED else min(n, most) for n in (n1, n2))

    def tile(a: Array, b: Array) -> Array:
        # XLA's fusion on CPU has one output: as two arrays, the kernels would be computed twice.
        return lax.complex(*block(program, duals, a, b, key=key))

    if n1 <= t1 and n2 <= t2:
        both = tile(x1, x1 if x2 is None else x2)
        out = Kernels(both.real, both.imag)
    else:
        out = _tiled(tile, pad_rows(x1, t1), None if x2 is None else pad_rows(x2, t2), t1, t2)
        out = Kernels(*(k[:n1, :n2] for k in out)) if out.ntk.shape != (n1, n2) else out
    return out, None if x2 is not None else with_itself(program, duals, x1, most, key)


@partial(jax.jit, donate_argnums=0)
def _with_diagonal(out: Kernels, exact: Kernels) -> Kernels:
    """Another diagonal."""
    i = jnp.arange(len(out.ntk))
    return Kernels(
        *(k.at[i, i].set(d, unique_indices=True) for k, d in zip(out, exact, strict=True))
    )


@jax.jit
def _mirrored(out: Kernels, exact: Kernels) -> Kernels:
    """Symmetric, with an exact diagonal; on its own, because in one loop with the kernels all would
    be computed twice.
    """
    diagonal = jnp.eye(len(out.ntk), dtype=bool)
    return Kernels(
        *(jnp.where(diagonal, d, mirror_upper(k)) for k, d in zip(out, exact, strict=True))
    )


def _tiled(
    tile: Callable[[Array, Array], Array], x1: Array, x2: Array | None, t1: int, t2: int
) -> Kernels:
    """Tile by tile, each computed again for its derivative; the upper ones if x2 is None."""
    symmetric = x2 is None
    x2 = x1 if x2 is None else x2
    shape = (len(x1), len(x2))
    cut = lambda x, i, t: lax.dynamic_slice_in_dim(x, i, t)
    compute = jax.checkpoint(lambda i, j: tile(cut(x1, i, t1), cut(x2, j, t2)))

    write = partial(write_both, symmetric)

    def step(carry: Any, here: tuple[Array, Array]) -> tuple[Any, None]:
        # A tile is written one step after it was computed: fused into its writes, it would be
        # computed for each of them.
        state, done, before = carry
        return (write(state, done, before), compute(*here), here), None

    like = jax.eval_shape(compute, 0, 0)
    zero = jnp.zeros((), like.dtype).real
    state = tuple(jnp.zeros(shape, zero.dtype) for _ in Kernels._fields)
    at = jnp.asarray(corners(*shape, t1, t2, symmetric=symmetric))
    first = (state, jnp.zeros(like.shape, like.dtype), (at[0, 0], at[0, 1]))
    (state, done, before), _ = lax.scan(step, first, (at[:, 0], at[:, 1]))
    return Kernels(*write(state, done, before))
