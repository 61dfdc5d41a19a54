"""Programs of small arrays are compiled with less effort: the same results, in every context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import ntk_jax
from cases.architectures import lenient
from cases.compilations import compilations, optimized
from cases.deep import Deep
from ntk_jax import small_programs
from ntk_jax.small_programs import LESS, LITTLE, OF_MATRICES, jit_by_size

LARGEST = 128 * 128
RNG = np.random.default_rng(0)
SMALL = jnp.asarray(RNG.standard_normal((6, 6)))


@pytest.fixture(autouse=True)
def with_less_effort(monkeypatch):
    """Also in runs of the tests that compile all alike."""
    monkeypatch.setattr(small_programs, "LARGEST", LARGEST)
    with optimized(True):
        yield


def program(f, **options):
    """`f`, and with which options its programs ran: None are those of large arrays."""
    made, ran = jit_by_size(f, **options), []
    small, large = made.small, made.large
    made.small = lambda options, *args: (ran.append(options), small(options, *args))[1]
    made.large = lambda *args: (ran.append(None), large(*args))[1]
    return made, ran


def test_the_largest_array_decides():
    made, ran = program(lambda a, b: jnp.sum(jnp.exp(a)) + b, options=LESS)
    edge = np.zeros(LARGEST + 1)
    for a in (SMALL, np.asarray(SMALL), edge[1:], edge):
        assert_allclose(made(a, np.float64(1)), np.exp(a).sum() + 1, rtol=1e-13)
    assert ran == [LESS, LESS, LESS, None]


def test_programs_of_matrices_are_optimized_little_and_then_less():
    made, ran = program(jnp.sum)
    for size in (LARGEST, LARGEST + 1, OF_MATRICES * LARGEST, OF_MATRICES * LARGEST + 1):
        assert made(np.ones(size)) == size
    assert ran == [LITTLE, LESS, LESS, None]


def test_what_is_said_of_the_arguments_decides():
    made, ran = program(lambda a, n: a + n, static_argnums=1, entries=lambda a, n: n)
    made(SMALL, 2)
    made(SMALL, LARGEST + 1)
    assert ran == [LITTLE, LESS]


def test_traces_take_the_one_that_can_be_inlined():
    made, ran = program(lambda a: jnp.sum(jnp.sin(a)))
    assert_allclose(jax.grad(made)(SMALL), np.cos(SMALL), rtol=1e-13)
    assert_allclose(jax.vmap(made)(SMALL), np.sin(SMALL).sum(1), rtol=1e-13)
    assert_allclose(jax.jit(made)(SMALL), np.sin(SMALL).sum(), rtol=1e-13)
    held = lambda s: jit_by_size(lambda a: jnp.sum(s * a))(SMALL)  # a traced value in a closure
    assert_allclose(jax.grad(held)(2.0), np.asarray(SMALL).sum(), rtol=1e-13)
    inside = jax.jit(lambda b: made(SMALL) + b)  # values that are known, in someone's program
    assert_allclose(inside(1.0), np.sin(SMALL).sum() + 1, rtol=1e-13)
    assert set(ran) == {None}


def test_meshes_take_the_one_for_large_arrays():
    mesh = jax.make_mesh((1,), ("rows",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    made, ran = program(lambda a: a + 1)
    made(jax.device_put(SMALL, where))
    assert ran == [None]


def test_options_that_a_version_does_not_know_are_left_out():
    made = jit_by_size(lambda a: a + 1, options=LITTLE | {"xla_of_another_version": 1})
    with compilations() as programs:
        assert_allclose(made(SMALL), np.asarray(SMALL) + 1)
        assert_allclose(made(SMALL), np.asarray(SMALL) + 1)
    refused = small_programs._UNKNOWN & {*made.options}
    assert "xla_of_another_version" in refused
    assert len(programs) <= len(refused) + 1  # and the one that ran


def test_errors_are_those_of_the_function():
    def fail(_):
        raise RuntimeError("of the function")

    with pytest.raises(RuntimeError, match="of the function"):
        jit_by_size(fail)(SMALL)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_kernels_and_dynamics_are_the_same_with_any_effort(activation, monkeypatch):
    x, y = RNG.standard_normal((12, 5)), RNG.standard_normal((12, 1))

    def results():
        _, theta = ntk_jax.mlp_kernels(x, depth=2, activation=activation)
        modes = ntk_jax.diagonalize(theta)
        flow = ntk_jax.gradient_flow_mse(modes, y, 3.0, diag_reg=0.1)
        posterior = ntk_jax.gp_posterior(theta, y, theta[:3], theta[:3, :3], noise=0.1)
        return theta, modes.eigenvalues, flow.train, posterior.mean

    small = results()
    monkeypatch.setattr(small_programs, "LARGEST", 0)
    for a, b in zip(small, results(), strict=True):
        assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_programs_of_networks_are_optimized_less_up_to_more_entries(monkeypatch):
    small, ran = jit_by_size.small, []
    recorded = lambda self, options, *args: (ran.append(options), small(self, options, *args))[1]
    monkeypatch.setattr(jit_by_size, "small", recorded)
    kernel_fn = lenient(ntk_jax.infinite_width(Deep("residual", 1)))
    x = RNG.standard_normal((140, 5))
    found = kernel_fn(x)
    assert LESS in ran and len(x) ** 2 > LARGEST
    ran.clear()
    monkeypatch.setattr(small_programs, "LARGEST", 0)
    assert_allclose(found, kernel_fn(x), rtol=1e-11)
    assert not ran
