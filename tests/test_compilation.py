"""What the library does so that less is compiled: once for any number, and draws along one axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ntk_jax
from cases.compilations import compilations
from ntk_jax.compat import bind
from ntk_jax.draws import draw_flat
from ntk_jax.jaxprs import evaluate
from ntk_jax.loops.steps import Once
from ntk_jax.networks.per_example import check_per_example
from ntk_jax.tiling import mirrored


@pytest.mark.parametrize("sampler", [jax.random.normal, jax.random.uniform, jax.random.rademacher])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 1, 4)])
def test_flat_draws_are_the_same_draws(sampler, shape, getkey):
    key = getkey()
    np.testing.assert_array_equal(
        draw_flat(sampler, key, shape, jnp.float32), sampler(key, shape, jnp.float32)
    )


@pytest.mark.parametrize("shape", [(5, 5), (4, 4, 3), (3, 3, 2, 2)])
def test_small_kernels_are_mirrored_without_a_program(shape, draw):
    k = jax.device_put(draw(shape).astype(np.float32))
    with compilations() as made:
        whole = mirrored(k)
        again = mirrored(whole)
    assert not made and again is whole
    expected = np.array(k)
    for i, j in np.ndindex(*shape[:2]):
        if i > j:
            expected[i, j] = expected[j, i].T
        elif i == j and len(shape) == 4:
            expected[i, i] = np.triu(expected[i, i]) + np.triu(expected[i, i], 1).T
    np.testing.assert_array_equal(whole, expected)
    zeros = mirrored(jax.device_put(np.array([[0.0, -0.0], [0.0, 0.0]])))
    assert np.signbit(zeros)[1, 0]


def regression(ridge):
    k = jnp.eye(6) + 0.1
    return ntk_jax.kernel_regression(k, jnp.ones((6, 1)), k[:2], diag_reg=ridge)


def learning(ridge):
    return ntk_jax.eigenlearning(1 / jnp.arange(1.0, 7.0), jnp.ones(6), [2, 3], diag_reg=ridge)


@pytest.mark.parametrize("function", [regression, learning])
def test_another_ridge_compiles_nothing(function):
    with compilations() as first:
        function(0.1)
    assert first
    with compilations() as later:
        function(0.2)
    assert not later


def test_what_a_network_makes_of_nothing_is_not_computed_by_the_compiler(capfd):
    def pooled(p, x):
        counts = jax.lax.reduce_window(
            jnp.ones((1, 256, 256)), 0.0, jax.lax.add, (1, 3, 3), (1, 1, 1), "SAME"
        )
        return p * jnp.sum(x / counts, axis=(1, 2))

    check_per_example(pooled, jnp.ones(1), jnp.ones((2, 256, 256)))
    assert "Constant folding" not in capfd.readouterr().err


def test_equal_operations_on_the_same_operands_are_computed_once():
    def answer(x):
        return lax.scan(lambda total, _: (total + jnp.sin(x), None), x, None, 3)[0] * 2

    def program(x, y):
        return answer(x) + jax.jit(answer)(x) + answer(y)

    x, y = np.float32(0.3), np.float32(0.7)
    closed, met = jax.make_jaxpr(program)(x, y), []

    def step(eqn, values):
        met.append(eqn.primitive.name)
        return bind(eqn, values)

    (found,) = evaluate(closed.jaxpr, closed.consts, [x, y], Once(step, on_cpu=True))
    assert met.count("scan") == 2 and met.count("mul") == 2 and "jit" not in met
    truth = 2 * (2 * (x + 3 * np.sin(x))) + 2 * (y + 3 * np.sin(y))
    np.testing.assert_allclose(found, truth, rtol=1e-6)
