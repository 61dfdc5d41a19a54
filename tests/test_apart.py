"""Programs of two examples taken apart: all pairs against the function itself, and what is shared
counted.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.architectures import lenient
from cases.deep import Deep
from ntk_jax.infinite.flax import batch
from ntk_jax.loops.apart import OF_BOTH, OF_FIRST, OF_NEITHER, OF_SECOND, apart
from ntk_jax.loops.loop import Loop
from ntk_jax.loops.packing import Packing
from ntk_jax.loops.rolled import rolled

DEPTH = 5
SQUARES = np.random.default_rng(0).standard_normal((DEPTH, 3, 3)) / 2
MARKS = (OF_FIRST, OF_SECOND, OF_BOTH, OF_NEITHER)


def layers_of_each(a, b, same, c):
    """Every layer of a pair reads that layer of its examples."""
    u, v, k, theta = a, b, jnp.sum(a * b), jnp.sum(c)
    for w in SQUARES:
        u, v = jnp.tanh(w @ u) * c, jnp.tanh(w @ v) * c
        k = jnp.where(same, 1.0, jnp.sin(k) + jnp.dot(u, v))
        theta = theta * jnp.cos(k) + k
    return k, theta


def all_weights_equal(a, b, same, c):
    u, v, k = a, b, jnp.sum(a * b)
    for _ in range(DEPTH):
        u, v = jnp.tanh(SQUARES[0] @ u) + c, jnp.tanh(SQUARES[0] @ v) + c
        k = jnp.sin(k) * jnp.max(u) * jnp.max(v) + same.astype(float)
    return k, jnp.sum(u) * jnp.sum(v)


def only_rearranged(a, b, same, c):
    outer = jnp.broadcast_to(a[:, None], (3, 3)) * jnp.broadcast_to(b[None, :], (3, 3)).T
    return jnp.sum(outer * c[None, :]), jnp.sum(outer) + same.astype(float)


def unlike_sides(a, b, same, c):
    return jnp.dot(jnp.sin(a), jnp.exp(b)) + same.astype(float), jnp.max(jnp.cos(b) * c) * jnp.min(
        a
    )


def results_of_one_or_none(a, b, same, c):
    return jnp.sum(jnp.sin(a)), jnp.sum(jnp.cos(c))


def constants(a, b, same, c):
    return jnp.float64(2.0), jnp.where(same, 1.0, 0.5)


PROGRAMS = {
    layers_of_each: (1, 1), all_weights_equal: (1, 1), only_rearranged: (0, 0),
    unlike_sides: (0, 0), results_of_one_or_none: (0, 0), constants: (0, 0),
}  # fmt: skip


def of_all_pairs(program, x, y, c):
    """The three programs as the kernels use them."""
    shared = program.of_neither(c)
    one = jax.vmap(lambda a: program.of_one(*shared, a))
    pair = lambda a, i, b, j: program.of_both(*shared, *a, *b, i == j)
    rows = lambda a: jnp.arange(len(a))
    of_row = jax.vmap(pair, (None, None, 0, 0))
    return jax.vmap(of_row, (0, 0, None, None))(one(x), rows(x), one(y), rows(y))


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_three_programs_of_all_pairs_are_the_function(f, on_cpu, draw, short_loops):
    x, y, c = map(jnp.asarray, (draw((4, 3)), draw((2, 3)), draw(3)))
    closed = jax.make_jaxpr(f)(x[0], y[0], jnp.asarray(True), c)
    program = apart(closed, (0, 1), (0,), MARKS, on_cpu=on_cpu)
    loops = [sum(isinstance(p, Loop) for p in part.parts) for part in program[1:3]]
    assert tuple(loops) == PROGRAMS[f]
    rows = jnp.arange
    plain = lambda x, y, c: jax.vmap(
        jax.vmap(lambda a, i, b, j: f(a, b, i == j, c), (None, None, 0, 0)), (0, 0, None, None)
    )(x, rows(len(x)), y, rows(len(y)))
    taken = lambda x, y, c: tuple(of_all_pairs(program, x, y, c))

    @jax.jit
    def both(x, y, c):
        weights = jnp.cos(jnp.arange(8.0)).reshape(4, 2)
        of = lambda g: lambda *args: sum(jnp.sum(weights * k) for k in g(*args))
        return [(g(x, y, c), jax.grad(of(g), (0, 1, 2))(x, y, c)) for g in (taken, plain)]

    compare = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
    jax.tree.map(compare, *both(x, y, c))


def test_both_examples_take_the_same_steps(short_loops):
    vector, flag = jnp.ones(3), jnp.asarray(True)
    closed = jax.make_jaxpr(layers_of_each)(vector, vector, flag, vector)
    program = apart(closed, (0, 1), (0,), MARKS, on_cpu=True)
    steps = lambda parts: sum(len(p.turn) * p.turns if isinstance(p, Loop) else 1 for p in parts)
    alone, together = steps(program.of_one.parts), steps(program.of_both.parts)
    whole = rolled(closed, (0, 1), (0,), on_cpu=True)
    assert 0 < alone == steps(whole.parts) - together - alone - steps(program.of_neither.parts)
    # a layer's row of each example, on one axis for all layers
    assert [a.shape for a in program.of_one.like].count((DEPTH, 3)) == 1
    # of one example given twice, nothing is done twice
    observed = rolled(closed, (0,), on_cpu=True, same=(0, 0, 2, 3))
    assert steps(observed.parts) < steps(rolled(closed, (0,), on_cpu=True).parts)
    found, expected = (
        observed(vector, vector, flag, vector),
        layers_of_each(vector, vector, flag, vector),
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_packed_arrays_are_cut_as_they_are(on_cpu, draw):
    n = 7
    arrays = [
        jnp.asarray(a)
        for a in (
            draw(n), draw((n, 2, 3)), draw((n, 1, 1)), np.arange(n), draw((n, 4)) > 0,
            draw((n, 5)).astype(np.float32), np.zeros((n, 0)),
        )
    ]  # fmt: skip
    packing = Packing([jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in arrays])
    packs = jax.vmap(packing.packed)(arrays)
    assert len(packs) == 5  # numbers and rows of float64, numbers, flags, rows of float32
    same = partial(jax.tree.map, np.testing.assert_array_equal)
    same(packing.unpacked(packs), arrays)
    cut = jax.jit(packing.cutter(packs, on_cpu), static_argnums=1)
    for start, size in ((0, 7), (2, 3), (6, 1)):
        same(cut(start, size), [a[start : start + size] for a in arrays])


class Pooled(nn.Module):
    """Its pixels are correlated within an example, too."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Conv(8, (3,))(nn.relu(nn.Conv(8, (1,))(x)))).mean(1))


@pytest.mark.parametrize(
    ("at_once", "order"), [(1, 0), *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (1, 2**9))]
)
def test_kernels_do_not_depend_on_how_many_examples_are_prepared_at_once(
    at_once, order, draw, monkeypatch
):
    x, y = map(jnp.asarray, (draw((5, 4, 2)), draw((3, 4, 2))))

    def of(tag, **limit):
        kernel = ntk_jax.infinite_width(nn.Sequential([Pooled(name=tag), lambda x: x]), **limit)
        values = lenient(lambda x, y: (*kernel(x), *kernel(x, y)))
        total = lambda x, y: sum(jnp.sum(jnp.sin(k)) for k in values(x, y))
        return jax.grad(total, (0, 1))(x, y) if order else values(x, y)

    expected = of("whole")
    monkeypatch.setattr(batch, "BYTES_ALONE", at_once)
    compare = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
    jax.tree.map(compare, of(f"of {at_once}"), expected)
    # what is not held is computed for each tile
    jax.tree.map(compare, of(f"in tiles {at_once}", memory_limit=2000), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["residual", "attention"])
def test_a_program_of_all_pairs_is_smaller_than_that_of_both_sides(kind):
    kernel = ntk_jax.infinite_width(Deep(kind, 4, "apart"), inner_products="mean")
    trace = lenient(
        lambda: kernel.program(np.ones((2, 5) if kind == "residual" else (2, 4, 2))).pair((), None)
    )()
    program = trace.kernels((0, 1), on_cpu=True)
    whole = rolled(trace.closed, (0, 1), (0,), on_cpu=True, inner=trace.inner)
    count = lambda *programs: sum(
        len(p.turn) if isinstance(p, Loop) else 1 for program in programs for p in program.parts
    )
    assert count(*program[:3]) < count(whole)
