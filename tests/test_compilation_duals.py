"""How much is compiled for fully connected networks: little at first, then nothing."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.compilations import compilations
from ntk_jax import duals, kernel_diagonal, mlp_kernels, mlp_kernels_by_layer
from ntk_jax.closures.programs import forget
from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.host import host_values, on_host
from ntk_jax.infinite.mlp import diagonal, tiles
from ntk_jax.infinite.mlp import kernels as front
from ntk_jax.infinite.mlp.diagonal import diagonals
from ntk_jax.infinite.mlp.layers import Architecture, Layers
from ntk_jax.infinite.mlp.tiles import in_tiles
from ntk_jax.tiling import TILE, bucket, padded, tile_size
from ntk_jax.types import BOTH


def rows(n, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def function_of(factor):
    return lambda u: factor * jnp.tanh(u) * u


ACTIVATIONS = {
    "relu": lambda: "relu",
    "tanh": lambda: "tanh",
    "gelu_tanh": lambda: "gelu_tanh",
    "own": lambda: lambda u: jnp.tanh(u) * u,
    "own relu": lambda: lambda u: jnp.maximum(u, 0.0),
}


CASES = [
    (mlp_kernels, "own"),
    *((mlp_kernels, name) for name in ACTIVATIONS if name != "own"),
    (mlp_kernels_by_layer, "own"),
    (kernel_diagonal, "own"),
]


@pytest.mark.parametrize("door, name", CASES)
def test_three_programs_at_first_and_none_for_equal_functions_scales_and_sizes(name, door):
    few = rows(19)
    x = [jax.device_put(some) for some in (few, np.concatenate([few, rows(3, seed=1) / 3]))]
    jax.clear_caches()
    forget()
    with compilations() as first:
        door(x[0], depth=2, activation=ACTIVATIONS[name](), W_std=1.1)
    with compilations() as later:
        door(x[0], depth=2, activation=ACTIVATIONS[name](), W_std=1.1)
        door(x[0], depth=2, activation=ACTIVATIONS[name](), W_std=[1.1, 1.08, 1.2], b_std=0.05)
        door(x[1], depth=2, activation=ACTIVATIONS[name](), W_std=1.1)
    assert len(first) <= 3
    assert not later


def test_rows_that_are_in_both_sets_take_no_further_program():
    x = jax.device_put(rows(20))
    twice, part = jax.device_put(np.concatenate([rows(20), rows(3)])), jax.device_put(rows(20)[:4])
    jax.clear_caches()
    with compilations() as first:
        k = mlp_kernels(part, x, depth=3)
    assert len(first) == 1
    own = mlp_kernels(x, depth=3)
    # two programs round a layer in two ways (JAX 0.6)
    np.testing.assert_allclose(jnp.diagonal(k.ntk), jnp.diagonal(own.ntk)[:4], rtol=3e-7)
    np.testing.assert_allclose(k.ntk, own.ntk[:4], rtol=1e-6)
    k = mlp_kernels(twice, depth=3)
    np.testing.assert_allclose(k.ntk[20:, :3], own.ntk[:3, :3], rtol=3e-7)
    np.testing.assert_array_equal(k.ntk, k.ntk.T)


def test_a_changed_closure_is_another_function():
    x, factor = rows(6), 1.0

    def phi(u):
        return factor * jnp.tanh(u) * u

    def kernel():
        return mlp_kernels(x, depth=1, activation=phi).nngp

    def expected():
        return mlp_kernels(x, depth=1, activation=function_of(factor)).nngp

    one = kernel()
    np.testing.assert_array_equal(one, expected())
    factor = 2.0
    np.testing.assert_array_equal(kernel(), expected())
    np.testing.assert_allclose(kernel(), 4 * one, rtol=1e-5)
    dual = duals.rule(function_of(2.0))
    assert dual == duals.rule(function_of(2.0)) != duals.rule(function_of(1.0))


FEW = [("relu", (45, None))]
MANY = itertools.product(
    ["relu", "tanh", "gelu", "gelu_tanh"], [(11, None), (45, None), (270, None), (7, 30)]
)


@pytest.mark.parametrize(("name", "sizes"), [*FEW, *MANY])
def test_padded_programs_give_the_values_of_the_unpadded_one(name, sizes, monkeypatch):
    x1, x2 = rows(sizes[0]), None if sizes[1] is None else rows(sizes[1], seed=1)
    options = {"depth": 2, "activation": name, "W_std": 1.3, "b_std": 0.2}
    found = mlp_kernels(x1, x2, **options)
    # other rows in place of the padding: the same program, so the same bits
    full = [
        x if x is None else np.concatenate([x, rows(bucket(len(x)) - len(x), seed=2)])
        for x in (x1, x2)
    ]
    for a, b in zip(found, mlp_kernels(*full, **options), strict=True):
        np.testing.assert_array_equal(a, b[: a.shape[0], : a.shape[1]])
    layer = mlp_kernels_by_layer(x1, x2, **options)
    own = kernel_diagonal(x1, **options)
    fitted = front.fitted

    def unpadded(network, *options):
        (chosen, _), sides = fitted(network, *options), (network.x1, network.x2)
        network = network._replace(arch=chosen.arch)
        assert sides[0].shape == x1.shape
        return network, diagonals(network)

    monkeypatch.setattr(front, "fitted", unpadded)
    n1, n2 = found.nngp.shape
    assert (n1, n2) == (sizes[0], sizes[1] or sizes[0])
    network, known, _ = front._network(
        x1, x2, *options.values(), "ntk", None, residual=False, layer_norm=False
    )
    out, near = jax.jit(in_tiles, static_argnums=(3, 5))(*network[:4], known, BOTH)
    assert not np.any(near)
    # rows at the end of a product, of no full block, are summed in another order
    close = partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6)
    for a, b in zip(found, out, strict=True):
        close(a, b[:n1, :n2])
    for a, b in zip(layer, mlp_kernels_by_layer(x1, x2, **options), strict=True):
        close(a, b)
    for a, b in zip(own, kernel_diagonal(x1, **options), strict=True):
        close(a, b)


def test_buckets_are_whole_tiles_that_nearly_equal_sizes_share():
    for n in [*range(1, 1100, 7), 303, 304, 1000, 2000, 4999, 5120, 10_000]:
        assert n <= bucket(n) and bucket(n) % tile_size(n) == 0 and tile_size(n) <= 2 * TILE
        assert bucket(bucket(n)) == bucket(n) and tile_size(bucket(n)) == tile_size(n)
        assert bucket(n) - n < 16 * -(-n // TILE)
    assert bucket(303) == bucket(304) and bucket(2000) == 2000
    x = jnp.ones((3, 2))
    np.testing.assert_array_equal(padded(x, 5), [[1, 1]] * 3 + [[0, 0]] * 2)


@pytest.mark.parametrize(
    ("f", "most"),
    [
        # its coefficients are read by a loop or by slices
        (lambda u: jnp.polyval(np.array([0.5, -1.0, 0.25]), u), 1),
        (lambda u: jnp.log2(1 + u**2) * jnp.arctanh(jnp.tanh(u) / 2), 0),
        (lambda u: jnp.where(u > 0, jax.nn.silu(u), jnp.expm1(u)) + jnp.sqrt(jnp.abs(u)), 0),
    ],
    ids=["polynomial", "logarithm", "cases"],
)
def test_what_is_looked_at_beforehand_compiles_nothing(f, most):
    x = np.linspace(-2.0, 2.0, 41)
    both = lambda u: (f(u), jax.vmap(jax.grad(f))(u))
    with compilations() as compiled:
        found = host_values(both, x)
    assert len(compiled) <= most
    for a, b in zip(found, jax.jit(both)(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"layer_norm": True}], ids=str)
@pytest.mark.parametrize("activation", ["relu", "abs", "step", "erf", "gelu", "cos", "identity"])
def test_what_single_examples_bring_is_alike_by_numpy_and_by_xla(activation, options):
    x = np.random.default_rng(0).normal(size=(16, 3)) * np.geomspace(1e-3, 10, 16)[:, None]
    x[5] = 0
    arch = Architecture(dual_rule(activation), **options)
    layers = Layers(*np.random.default_rng(1).uniform(0.5, 1.5, (4, 4)))
    given = (np.sum(x * x, axis=1) / 3,), layers, (None, None)
    diagonals_by_numpy = on_host(diagonal._of_second_moments, arch, *given)
    rows_by_numpy = on_host(tiles._without_examples, arch, diagonals_by_numpy, layers)
    close = partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-14)
    jax.tree.map(close, diagonals_by_numpy, diagonal._by_xla(arch, *given))
    by_xla = jax.jit(tiles._without_examples, static_argnums=0)(arch, diagonals_by_numpy, layers)
    jax.tree.map(close, rows_by_numpy, by_xla)


def of_many_shapes(power, x):
    """Operations that change shapes, and a loop that goes backwards."""

    def step(carry, row):
        return carry + row**power, jnp.stack([carry, jnp.full_like(carry, 2.0)])

    carry, rows = jax.lax.scan(step, jnp.zeros(3), x, reverse=True)
    first = jax.lax.index_in_dim(rows, 0, 1, keepdims=False)  # `rows[:, 0]` gathers in JAX 0.6
    joined = jnp.concatenate([first, jnp.arange(4.0)[:, None] * carry[None]])
    return (
        carry,
        joined.max(axis=1),
        jax.lax.slice(joined, (1, 1), (6, 3), (2, 1))[:, None],
        jnp.broadcast_to(carry[:, None], (3, 2)),
    )


def test_operations_that_change_shapes_are_alike_by_numpy_and_by_xla():
    x = np.random.default_rng(0).normal(size=(5, 3))
    found = on_host(of_many_shapes, 3, x)
    for a, b in zip(found, of_many_shapes(3, x), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_what_numpy_does_not_know_or_would_be_slow_at_is_left_to_xla():
    x = np.ones((4, 3))
    assert on_host(lambda _, x: jnp.sort(x), None, x) is None
    assert (
        on_host(lambda _, x: jnp.sum(x[..., None] * jnp.ones((1, 1, 20_000)), axis=-1), None, x)
        is None
    )
