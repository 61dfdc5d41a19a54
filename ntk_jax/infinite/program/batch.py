"""From one pair of examples to all of them: mapped twice, in tiles where memory asks for it."""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_jax.compat import free_bytes, open_jaxpr
from ntk_jax.infinite.program.trace import Program
from ntk_jax.linalg import mirror_upper
from ntk_jax.types import Kernels

LIVE = 4  # arrays of the largest size that are held at once
MOST_BYTES = 2**30
Table = tuple[tuple[Any, Any], ...]


class _Static:
    """A program as a static argument of jit: equal only to itself."""

    def __init__(self, program: Program):
        self.program = program


_STATIC: dict[tuple[int, int | None], _Static] = {}


def _static(program: Program) -> _Static:
    key = (id(program.jaxpr), program.num_samples)
    if key not in _STATIC or _STATIC[key].program.jaxpr is not program.jaxpr:
        _STATIC[key] = _Static(program)
    return _STATIC[key]


def batched_kernels(
    program: Program, x1: Array, x2: Array | None, table: Table, memory_limit: int | None, key: Any = None
) -> Kernels:
    """Kernels (n1, n2) of all pairs; with x2 = None the upper tiles only, mirrored, with an exact diagonal."""
    limit = memory_limit or min(MOST_BYTES, (free_bytes() or 4 * MOST_BYTES) // 4)
    per_pair = pair_bytes(_static(program), x1.shape[1:], x1.dtype, table, key is not None)
    most = max(1, int((limit / (LIVE * per_pair)) ** 0.5))
    out, exact = _all_pairs(x1, x2, key, _static(program), table, most)
    return out if exact is None else _mirrored(out, exact)


@lru_cache(maxsize=256)
def pair_bytes(static: _Static, shape: tuple[int, ...], dtype: Any, table: Table, sampled: bool = False) -> int:
    """The largest array of one pair, in bytes: those that grow with both sides of a small trace."""
    rows, columns = 5, 7
    shapes = [jax.ShapeDtypeStruct((n, *shape), dtype) for n in (rows, columns)]
    key = jax.random.key(0) if sampled else None
    closed = jax.make_jaxpr(lambda a, b: block(static.program, table, a, b, key))(*shapes)
    return max(_largest(closed.jaxpr, rows, columns), 8)


def _largest(jaxpr: Any, rows: int, columns: int) -> int:
    largest = 0
    for eqn in jaxpr.eqns:
        for v in eqn.outvars:
            shape = getattr(v.aval, "shape", ())
            if rows in shape and columns in shape:
                largest = max(largest, int(np.prod(shape)) * v.aval.dtype.itemsize // (rows * columns))
        for p in eqn.params.values():
            for inner in p if isinstance(p, tuple | list) else (p,):
                if hasattr(inner, "eqns"):
                    largest = max(largest, _largest(open_jaxpr(inner)[0], rows, columns))
    return largest


def block(program: Program, table: Table, x1: Array, x2: Array, key: Any = None) -> Kernels:
    """All pairs at once."""
    pair = lambda a, b: program.kernels((a, b), dict(table), (0, 1), key=key)[1]  # noqa: E731
    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(x1, x2)


def own(program: Program, table: Table, x: Array, at_once: int, key: Any = None) -> Kernels:
    """Of every example with itself, exactly."""
    one = lambda a: program.kernels((a, a), dict(table), (0, 0), key=key)[1]  # noqa: E731
    return lax.map(one, x, batch_size=min(len(x), at_once))


@partial(jax.jit, static_argnums=(3, 4, 5))
def _all_pairs(x1: Array, x2: Array | None, key: Any, static: _Static, table: Table, most: int) -> tuple[Kernels, Any]:
    """All pairs, of which the upper ones are right; with x2 = None each example with itself."""
    program = static.program
    tile = partial(block, program, table, key=key)
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    t1, t2 = (-(-n // -(-n // most)) for n in (n1, n2))
    if n1 <= t1 and n2 <= t2:
        out = tile(x1, x1 if x2 is None else x2)
    else:
        out = _tiled(tile, _padded(x1, t1), None if x2 is None else _padded(x2, t2))
        out = Kernels(*(k[:n1, :n2] for k in out))
    return out, None if x2 is not None else own(program, table, x1, most, key)


@jax.jit
def _mirrored(out: Kernels, exact: Kernels) -> Kernels:
    """Symmetric, with an exact diagonal; on its own, because in one loop with the kernels all would be computed twice."""
    diagonal = jnp.eye(len(out.ntk), dtype=bool)
    return Kernels(*(jnp.where(diagonal, d, mirror_upper(k)) for k, d in zip(out, exact, strict=True)))


def _padded(x: Array, t: int) -> Array:
    """(tiles, t, ...), the last ones repeated."""
    n = len(x)
    at = np.minimum(np.arange(-(-n // t) * t), n - 1)
    return x[at].reshape(-1, t, *x.shape[1:])


def _tiled(tile: Any, x1: Array, x2: Array | None) -> Kernels:
    """Tile by tile, each forgotten for its derivative; the upper ones if x2 is None."""
    symmetric = x2 is None
    x2 = x1 if x2 is None else x2
    pairs = [(i, j) for i in range(len(x1)) for j in range(i if symmetric else 0, len(x2))]
    i, j = (jnp.asarray(p) for p in zip(*pairs, strict=True))
    body = jax.checkpoint(lambda ij: tile(x1[ij[0]], x2[ij[1]]))
    tiles = lax.map(body, (i, j))

    def assemble(k):
        full = jnp.zeros((len(x1), len(x2), *k.shape[1:]), k.dtype).at[i, j].set(k)
        if symmetric:
            full = full.at[j, i].set(jnp.where((i == j)[:, None, None], k, jnp.swapaxes(k, 1, 2)))
        return full.transpose(0, 2, 1, 3).reshape(len(x1) * k.shape[1], len(x2) * k.shape[2])

    return Kernels(*map(assemble, tiles))
