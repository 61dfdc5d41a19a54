"""`tile` computes in blocks what a kernel function computes at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.compilations import compilations, optimized
from ntk_jax import Kernels, empirical_ntk, infinite_width, mlp_kernels, tile
from ntk_jax.scale import blocks
from ntk_jax.scale.grid import Grid, grid_of, needed_bytes, symmetrized
from ntk_jax.tiling import mirror_upper, swap_sides

N = 45
relu = functools.partial(mlp_kernels, depth=2, W_std=1.4, b_std=0.1)


def network(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params["W"]) @ params["V"]


def finite(draw, **options):
    params = {"W": jnp.asarray(draw((6, 7))), "V": jnp.asarray(draw((7, 2)))}
    return functools.partial(empirical_ntk, network, params, **options)


def of_numpy(x1, x2=None):
    x1, x2 = np.asarray(x1), np.asarray(x1 if x2 is None else x2)
    return np.exp(-np.square(x1[:, None] - x2[None]).sum(-1))


KERNELS = {
    "a partial of mlp_kernels": lambda draw: relu,
    "a lambda of one kernel": lambda draw: lambda x1, x2=None: relu(x1, x2).nngp,
    "infinite_width": lambda draw: infinite_width(ntk_jax.MLP((64,), 1, "erf", 1.5)),
    "mean over outputs": finite,
    "per output": lambda draw: finite(draw, outputs="diagonal"),
    "all outputs": lambda draw: finite(draw, outputs="full", memory_limit=10**6),
    "a function of NumPy": lambda draw: of_numpy,
}


def budget_for(kernel_fn, x, rows):
    """A memory limit with which tiles have so many rows."""
    pair = sum(np.asarray(k[:1, :1]).nbytes for k in jax.tree.leaves(kernel_fn(x[:2])))
    took = needed_bytes(Grid(1, 1, rows, rows, True), pair, x[:1].nbytes)
    limited = isinstance(kernel_fn, functools.partial) and kernel_fn.func is empirical_ntk
    return 2 * took if limited and "memory_limit" not in kernel_fn.keywords else took


@pytest.mark.parametrize("name", KERNELS)
def test_tiles_are_the_kernel(draw, name):
    x, kernel_fn = draw((N, 6)), KERNELS[name](draw)
    found = tile(kernel_fn, memory_limit=budget_for(kernel_fn, x, 16), progress=False)(x)
    expected = kernel_fn(x)
    assert isinstance(found, Kernels) == isinstance(expected, Kernels)
    for k, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(k, np.ndarray) and k.shape == other.shape and k.dtype == other.dtype
        np.testing.assert_allclose(k, other, rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(k, swap_sides(k))


@pytest.mark.parametrize("name", ["a partial of mlp_kernels", "all outputs"])
def test_tiles_of_two_sets_are_the_kernel(draw, name):
    x1, x2, kernel_fn = draw((N, 6)), draw((21, 6)), KERNELS[name](draw)
    found = tile(kernel_fn, memory_limit=budget_for(kernel_fn, x1, 8), progress=False)(x1, x2)
    for k, other in zip(*map(jax.tree.leaves, (found, kernel_fn(x1, x2))), strict=True):
        np.testing.assert_allclose(k, other, rtol=1e-10, atol=1e-12)


def test_single_precision_agrees_to_rounding(draw):
    x = draw((300, 20)).astype(np.float32)
    found = tile(relu, memory_limit=budget_for(relu, x, 100), progress=False)(x)
    for k, other in zip(found, relu(x), strict=True):
        assert k.dtype == np.float32
        np.testing.assert_allclose(k, other, rtol=2e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_all_tiles_have_one_shape_and_only_upper_ones_are_computed(draw, symmetric):
    seen = []

    def kernel_fn(x1, x2=None):
        seen.append((x1.shape, None if x2 is None else x2.shape))
        return of_numpy(x1, x2)

    x = draw((N, 3))
    other = None if symmetric else draw((37, 3))
    k = tile(kernel_fn, memory_limit=16 * 8 * 16**2 + 4 * 24 * 16, progress=False)(x, other)
    np.testing.assert_array_equal(k, of_numpy(x, other))
    shapes = seen[1:]  # after a few examples
    assert set(shapes) <= {((16, 3), None), ((16, 3), (16, 3))}
    assert len(shapes) == (6 if symmetric else 9)


def test_no_tile_has_an_example_twice(draw):
    """Equal rows are a near pair, which would compile another program."""
    doubled = []

    def kernel_fn(x1, x2=None):
        x2_ = x1 if x2 is None else x2
        equal = (np.asarray(x1)[:, None] == np.asarray(x2_)[None]).all(-1)
        doubled.append(equal.sum() - (len(x1) if x2 is None else 0))
        return of_numpy(x1, x2)

    for n in (33, 40, 47):
        x = draw((n, 3))
        tile(kernel_fn, memory_limit=16 * 8 * 16**2 + 4 * 24 * 16, progress=False)(x)
    assert not any(doubled)


def test_a_second_call_compiles_nothing(draw):
    x = draw((N, 4))
    tiled = tile(relu, memory_limit=budget_for(relu, x, 16), progress=False)
    tiled(x)
    with compilations() as compiled:
        tiled(draw((N, 4)))
        tiled(draw((N - 2, 4)))  # the last tile is smaller
    assert not compiled


def test_the_next_tile_is_dispatched_before_the_last_one_is_read(draw):
    order = []

    def kernel_fn(x1, x2=None):
        order.append("dispatched")
        return of_numpy(x1, x2)

    sides = blocks.as_sides(draw((32, 3)), None)
    grid = Grid(32, 32, 16, 16, True)
    for _ in blocks.tiles(kernel_fn, sides, grid, grid.corners):
        order.append("read")
    assert order == ["dispatched", *["dispatched", "read"] * 2, "read"]


def test_half_the_budget_is_for_a_kernel_function_that_takes_a_limit(draw):
    limits = []

    def kernel_fn(x1, x2=None, *, memory_limit=None):
        limits.append(memory_limit)
        return of_numpy(x1, x2)

    tile(kernel_fn, memory_limit=10**5, progress=False)(draw((N, 3)))
    tile(functools.partial(kernel_fn, memory_limit=7), progress=False)(draw((5, 3)))
    assert set(limits[:-2]) == {50_000} and set(limits[-2:]) == {7}


def test_tiles_fit_the_budget():
    for budget in (10**4, 10**6, 10**8, 10**10):
        grid = grid_of(10_000, None, 8, 400, budget, on_cpu=True)
        assert needed_bytes(grid, 8, 400) <= budget and grid.rows1 == grid.rows2
    with pytest.raises(ValueError, match=r"memory_limit: expected at least 1\.7 KiB.*one pair"):
        grid_of(10, None, 8, 400, 1000, on_cpu=True)


@pytest.mark.parametrize("shape", [(70, 70), (70, 70, 2), (70, 70, 2, 2)])
def test_mirrors_on_the_host_are_those_on_the_device(draw, shape):
    k = draw(shape)
    np.testing.assert_array_equal(symmetrized(k), mirror_upper(jnp.asarray(k)))
    np.testing.assert_array_equal(swap_sides(k), swap_sides(jnp.asarray(k)))


def not_a_kernel(x1, x2=None):
    return jnp.zeros(3)


def of_wrong_shape(x1, x2=None):
    return jnp.zeros((1, 1))


BAD = {
    "examples": (lambda: tile(relu)(np.zeros(3)), "x1: expected examples in rows"),
    "features": (lambda: tile(relu)(np.ones((3, 2)), np.ones((3, 1))), "x2: expected examples"),
    "no function": (lambda: tile(3), "kernel_fn: expected a function"),
    "no kernel": (lambda: tile(not_a_kernel)(np.ones((3, 2))), "kernel_fn: expected a kernel"),
    "shape": (lambda: tile(of_wrong_shape)(np.ones((3, 2))), "kernel_fn: expected kernels"),
    "limit": (lambda: tile(relu, memory_limit=0), "memory_limit: expected finite and above 0"),
    "low limit": (lambda: tile(relu, memory_limit=9)(np.ones((3, 2))), "at least .* one pair"),
    "traced": (lambda: jax.jit(tile(of_numpy))(np.ones((3, 2))), "tile: expected examples whose"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(unchecked_shapes, name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_tiles_of_whole_blocks_are_the_kernel_to_the_bit(draw):
    """Products of full blocks of rows have the same sums wherever they stand."""
    x = draw((1024, 64)).astype(np.float32)
    with optimized(True):
        found = tile(relu, memory_limit=budget_for(relu, x, 512), progress=False)(x)
        expected = relu(x)
    for k, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(k, other)
