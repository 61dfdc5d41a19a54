"""Equal layers as a loop: programs of every kind of layer against their equations one by one, and
the limits of deep networks against the same without loops.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ntk_jax
from cases.architectures import lenient
from cases.deep import SHAPES, Deep, deep_examples
from ntk_jax.infinite.flax.moments.gaussians import Gaussians
from ntk_jax.loops import repeats
from ntk_jax.loops.loop import Loop
from ntk_jax.loops.rolled import rolled

DEPTH = 6
RNG = np.random.default_rng(0)
SQUARES = RNG.standard_normal((DEPTH, 3, 3)) / 2


def same_weights(x, y):
    for _ in range(DEPTH):
        x = jnp.tanh(SQUARES[0] @ x) + y
    return x


def weights_of_each_layer(x, y):
    for w in SQUARES:
        x = jnp.tanh(w @ x) * y
    return x


def all_layers_are_read_later(x, y):
    seen = []
    for _ in range(DEPTH):
        x = jnp.tanh(SQUARES[0] @ x) + y
        seen.append(x)
    return sum(jnp.sin(k * s) for k, s in enumerate(seen))


def a_loop_on_what_another_kept(x, y):
    seen = []
    for _ in range(DEPTH):
        x = jnp.tanh(SQUARES[0] @ x)
        seen.append(x)
    for s in seen[::-1]:  # backwards: rows of the stack are taken one by one
        y = jnp.cos(y) * jnp.exp(s)
    for s in seen:
        y = jnp.sin(y) + jnp.exp(s) / 2
    return y


def two_chains(x, y):
    for _ in range(DEPTH):
        slope = 1 - jnp.tanh(x) ** 2
        x = jnp.tanh(x @ SQUARES[0])
        y = x + y * slope
    return y, x


def only_the_last_turn_is_read(x, y):
    for _ in range(DEPTH):
        inner = jnp.tanh(x * y)
        x = inner @ SQUARES[0] + x
    return x + inner


def switches(x, y):
    on = x > 0
    for _ in range(DEPTH):
        x = jnp.where(on, jnp.tanh(SQUARES[0] @ x), y)
        on = (x > y) & ~on
    return x


def inside_other_layers(x, y):
    x = jnp.exp(-(x**2))
    x = same_weights(x, y)
    return jnp.log(1 + weights_of_each_layer(x, y) ** 2)


def two_turns_back(x, y):
    for _ in range(2 * DEPTH):
        x, y = jnp.tanh(SQUARES[0] @ x) + y, x
    return x


def nothing_alike(x, y):
    return jnp.sin(x) + jnp.exp(y) * jnp.tanh(x * y)


def two_turns(x, y):
    for _ in range(2):
        x = jnp.tanh(SQUARES[0] @ x) + y
    return x


LOOPS = {
    same_weights: 1, weights_of_each_layer: 1, all_layers_are_read_later: 1,
    a_loop_on_what_another_kept: 3, two_chains: 1, only_the_last_turn_is_read: 1, switches: 1,
    inside_other_layers: 2, two_turns_back: 1, nothing_alike: 0, two_turns: 0,
}  # fmt: skip


@partial(jax.jit, static_argnums=0)
def values_and_derivatives(f, x, y):
    pairs = jax.vmap(jax.vmap(jax.jacfwd(f), (0, None)), (None, 0))
    second = jax.jacfwd(jax.jacrev(f))
    return (
        f(x, y),
        jax.jacrev(f, (0, 1))(x, y),
        second(x, y),
        pairs(jnp.stack([x, 2 * x]), jnp.stack([y, -y])),
    )


@pytest.mark.parametrize("f", LOOPS, ids=lambda f: f.__name__)
def test_a_loop_is_its_steps_one_by_one(f, short_loops):
    args = jnp.asarray(RNG.standard_normal((2, 3)))
    closed = jax.make_jaxpr(f)(*args)
    wanted = range(len(closed.jaxpr.outvars))
    program, on_accelerators = (
        rolled(closed, wanted, first=wanted[1:], on_cpu=on_cpu) for on_cpu in (True, False)
    )
    assert sum(isinstance(part, Loop) for part in program.parts) == LOOPS[f]
    flat = lambda *args: jnp.stack(jax.tree.leaves(f(*args)))
    loops = lambda *args: jnp.stack(program(*args))
    found, expected = (values_and_derivatives(g, *args) for g in (loops, flat))
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    jax.tree.map(compare, found, expected)
    compare(jnp.stack(on_accelerators(*args)), expected[0])


def test_branches_of_other_platforms_are_left_out():
    def double(a):
        return lax.platform_dependent(a, cpu=lambda a: 2 * a, default=lambda a: a + a)

    def by_accelerator(a):
        return lax.platform_dependent(a, cpu=jnp.sin, tpu=jnp.cos, default=jnp.tan)

    closed = jax.make_jaxpr(lambda a: (double(a), by_accelerator(a)))(1.5)
    of_cpu, of_accelerator = (rolled(closed, (0, 1), on_cpu=on_cpu) for on_cpu in (True, False))
    names = lambda program: {part.eqn.primitive.name for part in program.parts}
    assert names(of_cpu) == {"mul", "sin"}
    assert {"add", "cond"} <= names(of_accelerator) and "mul" not in names(of_accelerator)
    np.testing.assert_allclose(of_cpu(jnp.asarray(1.5)), (3.0, np.sin(1.5)), rtol=1e-15)


def test_keys_are_carried_and_split(short_loops):
    def draws(key):
        x = 0.0
        for _ in range(DEPTH):
            key, sub = jax.random.split(key)
            x = jnp.tanh(x + jax.random.normal(sub))
        return x, key

    key = jax.random.key(3)
    closed = jax.make_jaxpr(draws)(key)
    program = rolled(closed, (0, 1), on_cpu=True)
    assert any(isinstance(part, Loop) for part in program.parts)
    x, last = program(key)
    np.testing.assert_allclose(x, draws(key)[0], rtol=1e-12)
    assert (jax.random.key_data(last) == jax.random.key_data(draws(key)[1])).all()


@pytest.mark.parametrize("kind", SHAPES)
def test_deep_limits_are_those_without_loops(kind, monkeypatch):
    x = deep_examples(kind, np.float64)
    direction = x[::-1]

    def of(tag):
        kernel_fn = ntk_jax.infinite_width(Deep(kind, 5, tag=tag), inner_products="mean")
        kernels = lenient(lambda x: tuple(kernel_fn(x)))
        return kernels(x), jax.jvp(kernels, (x,), (direction,))

    found = of("")
    monkeypatch.setattr(repeats, "LEAST_TURNS", 10**6)
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    jax.tree.map(compare, found, of("without loops"))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_deeper_network_is_no_larger_program(kind):
    x = deep_examples(kind)

    def equations(depth):
        kernel_fn = ntk_jax.infinite_width(Deep(kind, depth), inner_products="mean")
        text = jax.jit(lenient(lambda x: tuple(kernel_fn(x)))).lower(x).as_text()
        return text.count("\n")

    assert equations(9) < 1.1 * equations(6)


@pytest.mark.parametrize("kind", ["residual", "attention"])
def test_questions_grow_with_depth_and_no_faster(kind, monkeypatch):
    """The sums of a residual network have as many parts as it has blocks, most of them apart."""
    asked, answer = [], Gaussians._of
    count = lambda *query, **how: asked.append(query) or answer(*query, **how)
    monkeypatch.setattr(Gaussians, "_of", count)

    def questions(depth):
        asked.clear()
        kernel = ntk_jax.infinite_width(Deep(kind, depth, "asked"), inner_products="mean")
        lenient(lambda: kernel.program(deep_examples(kind)).pair((), None))()
        return len(asked)

    few, more, most = map(questions, (2, 4, 6))
    assert 0 < most - more == more - few
