"""Programs of few entries by NumPy: what XLA makes of them, and nothing where NumPy does not know
how.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose

import ntk_jax
from cases.architectures import CASES, lenient
from cases.compilations import compilations
from ntk_jax.closures.programs import forget
from ntk_jax.host import few
from ntk_jax.host.arrangements import UnknownOperationError
from ntk_jax.host.few import by_numpy_if_few
from ntk_jax.host.program import HostProgram
from ntk_jax.infinite.flax import batch
from ntk_jax.infinite.mlp import diagonal, tiles
from ntk_jax.small_programs import LESS, jit_by_size

RNG = np.random.default_rng(0)
A = RNG.standard_normal((3, 4, 5))
M = RNG.standard_normal((4, 4))
WHOLE = RNG.integers(-9, 9, (3, 4)).astype(np.int32)
OUTSIDE = np.array([[-2, 1], [4, 7]], np.int32)


@pytest.fixture(autouse=True)
def few_are_by_numpy(monkeypatch):
    """Also in runs of the tests that leave nothing to it."""
    monkeypatch.setattr(few, "FEW", 2**14)


def windows(dims, strides, padding, dilation=None, base=None):
    return lambda a: lax.reduce_window(
        a, 0.0, lax.add, dims, strides, padding, window_dilation=dilation, base_dilation=base
    )


def looped(reverse, a):
    """One carry that is read, one that it needs, one that nobody reads, and rows."""

    def step(carry, row):
        total, weight, unread = carry
        new = total + weight * row, weight * 0.5, unread + jnp.sum(row)
        return new, (total, jnp.full_like(row, 2.0))

    start = jnp.zeros(a.shape[1:]), jnp.float64(1.0), jnp.float64(0.0)
    (total, _, _), (rows, twos) = lax.scan(step, start, a, reverse=reverse)
    return total, rows, twos


def held(a):
    """As `ntk_jax.platforms.held_by_a_loop`: nothing but its constant."""
    return lax.fori_loop(0, 2, lambda *_: jnp.sin(a), jnp.zeros_like(a))


def exchanged(a):
    return lax.fori_loop(0, 3, lambda _, pair: (pair[1], pair[0]), (a, a + 1))


OPERATIONS = {
    "rows by number": (lambda a: a[np.array([2, 0, 2])], A),
    "rows and columns": (lambda a: a[np.array([[2], [0]]), :, np.array([1, 3, 4])], A),
    "numbers beyond the end, filled": (lambda m, i: m.at[i].get(mode="fill"), M, OUTSIDE),
    "numbers beyond the end, with": (
        lambda m, i: m.at[i].get(mode="fill", fill_value=7.0),
        M,
        OUTSIDE,
    ),
    "numbers beyond the end, clipped": (lambda m, i: m.at[i].get(mode="clip"), M, OUTSIDE),
    "whole numbers beyond the end": (lambda m, i: m.at[i].get(mode="fill"), WHOLE, OUTSIDE),
    "of each row another": (
        lambda a, i: jax.vmap(lambda row, i: row[i])(a, i),
        A,
        np.array([[1, 3], [0, 0], [2, 1]]),
    ),
    "a piece": (lambda a, i: lax.dynamic_slice(a, (i, i - 7, i), (2, 4, 2)), A, np.int32(7)),
    "the same piece of each": (
        jax.vmap(lambda m, i: lax.dynamic_slice(m, (i, i - 7), (2, 3)), (0, None)),
        A,
        np.int32(1),
    ),
    "a row beyond the end, filled": (
        lambda m, i: m.at[i].get(mode="fill"),
        M,
        np.int32(7),
    ),
    "a piece replaced": (
        lambda a, i: lax.dynamic_update_slice(a, a[:2, :1] + 1, (i, i, i - 1)),
        A,
        np.int32(1),
    ),
    "padded": (lambda a: lax.pad(a, 2.0, ((1, 0, 2), (0, 3, 0), (0, 0, 1))), A),
    "reversed": (lambda a: a[::-1, ::2], A),
    "transposed": (lambda a: a.transpose(2, 0, 1) + jnp.ones((5, 3, 4)), A),
    "of ones transposed and reshaped": (
        lambda a: a + jnp.ones((4, 3, 5)).transpose(1, 0, 2) + jnp.ones((5, 3, 4)).reshape(3, 4, 5),
        A,
    ),
    "product of matrices": (lambda a, b: a @ b, M, M),
    "products over several axes": (lambda a, b: jnp.einsum("ijk,ljk->il", a, b), A, A + 1),
    "products in batches": (lambda a, b: jnp.einsum("ijk,ilk->ijl", a, b), A, A[:, :2]),
    "outer product": (lambda a: jnp.einsum("ij,kl->ijkl", a, a), M),
    "product of numbers alike": (lambda a: jnp.ones((2, 4)) @ a, M),
    "sums": (lambda a: (a.sum((0, 2)), a.max(1), a.min(), a.prod(-1)), A),
    "sums of whole numbers": (lambda a: (a.sum(0), a.prod(1), jnp.cumsum(a, 1)), WHOLE),
    "places": (lambda a: (a.argmax(1), a.argmin(0)), A),
    "any and all": (lambda a: ((a > 0).any(1), (a > -1).all(0)), A),
    "running sums": (lambda a: (jnp.cumsum(a, 1), jnp.cumprod(a, 0), lax.cummax(a, 1)), A),
    "running sums backwards": (lambda a: lax.cumsum(a, 1, reverse=True), A),
    "windows": (windows((1, 2, 3), (1, 2, 1), "VALID"), A),
    "windows beyond the edges": (windows((2, 3, 1), (1, 1, 2), ((1, 0), (2, 1), (0, 0))), A),
    "windows with holes": (windows((1, 2, 2), (1, 1, 1), "SAME", (1, 2, 3)), A),
    "a loop": (functools.partial(looped, False), A),
    "a loop backwards": (functools.partial(looped, True), A),
    "what a loop holds": (held, A),
    "what a loop exchanges": (exchanged, A),
    "one of two": (lambda a, i: lax.cond(i > 0, jnp.sin, lambda a: a * 2, a), A, np.int32(1)),
    "one of two pairs": (
        lambda a, i: lax.cond(i > 0, lambda a: (a, a + 1), lambda a: (a + 1, a), a),
        A,
        np.int32(0),
    ),
    "one of three that is known": (
        lambda a: lax.switch(1, [jnp.sin, jnp.cos, jnp.sort], a),
        A,
    ),
    "by platform": (lambda a: lax.platform_dependent(a, cpu=jnp.sin, default=jnp.sort), A),
    "by platform, of others": (
        lambda a: lax.platform_dependent(a, tpu=jnp.sort, default=jnp.sin),
        A,
    ),
    "computed again": (jax.checkpoint(lambda a: jnp.sin(a) * 2), A),
    "complex": (lambda a: ((c := lax.complex(a, a + 1)).real, (c * c).imag), A),
    "kinds of numbers": (
        lambda a: (a > 0).astype(float) + jnp.floor(a).astype(jnp.int32).astype(a.dtype),
        A,
    ),
    "an argument": (lambda a: (a, a.reshape(-1), 2.0), A),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_xla(name):
    f, *args = OPERATIONS[name]
    expected = jax.jit(f)(*args)
    found = HostProgram(jax.make_jaxpr(f)(*args))(*args)
    for a, b in zip(found, jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert_allclose(a, b, rtol=1e-13, atol=1e-15)


UNKNOWN = {
    "sort": (jnp.sort, A),
    "a loop without a number of turns": (
        lambda a: lax.while_loop(lambda a: a.sum() < 9, lambda a: a + 1, a),
        A,
    ),
    "convolution": (lambda m: jnp.convolve(m[0], m[1]), M),
    "padded by less than nothing": (lambda a: lax.pad(a, 0.0, ((-1, 0, 0),) * 3), A),
    "windows of a dilated array": (windows((1, 2, 2), (1, 1, 1), "VALID", base=(1, 2, 1)), A),
    "bits": (lambda a: lax.reduce(a, np.int32(0), lax.bitwise_or, (0,)), WHOLE),
    "half precision, entry by entry": (lambda m: m.astype(jnp.bfloat16) * 3, M),
    "half precision": (lambda m: m.astype(jnp.bfloat16) @ m.astype(jnp.bfloat16), M),
    "random numbers": (lambda m: m + jax.random.normal(jax.random.key(0), (4, 4), m.dtype), M),
    "a loop of nothing": (lambda a: lax.scan(lambda c, _: (c + 1, None), a, None, 0)[0], A),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_numpy_does_not_know_is_not_computed_otherwise(name):
    f, *args = UNKNOWN[name]
    with pytest.raises(UnknownOperationError):
        HostProgram(jax.make_jaxpr(f)(*args))
    program = by_numpy_if_few(jit_by_size(f, options=LESS))
    assert_allclose(*(np.asarray(g(*args), float) for g in (program, jax.jit(f))), rtol=1e-13)


def counted(f, **options):
    """`f` by NumPy if few, and how often it was traced."""
    traces = []

    def body(*args):
        traces.append(None)
        return f(*args)

    return by_numpy_if_few(jit_by_size(body, options=LESS, **options)), traces


def test_few_entries_compile_nothing_and_many_are_compiled():
    program, traces = counted(lambda a, power: jnp.sum(jnp.abs(a) ** power), static_argnums=1)
    for size, most in ((2**14, 0), (2**14 + 1, 1)):
        a = np.linspace(-2, 2, size)
        for _ in range(2):
            with compilations() as compiled:
                found = program(a, 2)
            assert len(compiled) <= most and isinstance(found, jax.Array)
            assert_allclose(found, np.sum(np.abs(a) ** 2), rtol=1e-12)
            most = 0
    assert len(traces) == 2
    assert_allclose(program(a[:9], 3), np.sum(np.abs(a[:9]) ** 3), rtol=1e-12)


def test_what_is_left_to_xla_is_traced_once():
    program, traces = counted(jnp.sort)
    assert_allclose(program(jnp.asarray(A)), np.sort(A))
    assert len(traces) == 1


def test_loops_of_many_turns_are_left_to_xla():
    many = lambda turns: lambda a: lax.fori_loop(0, turns, lambda _, a: jnp.cos(a), a)
    for turns, most in ((3, 0), (10_000, 1)):
        with compilations() as compiled:
            by_numpy_if_few(jit_by_size(many(turns), options=LESS))(M)
        assert len(compiled) == most


def test_traces_and_meshes_take_the_program_of_xla(monkeypatch):
    program, _ = counted(lambda a: jnp.sum(jnp.sin(a)))
    assert_allclose(jax.grad(program)(M), np.cos(M), rtol=1e-13)
    assert_allclose(jax.vmap(program)(M), np.sin(M).sum(1), rtol=1e-13)
    assert_allclose(jax.jit(program)(M), np.sin(M).sum(), rtol=1e-13)
    inside = jax.jit(lambda b: program(M) + b)  # values that are known, in someone's program
    assert_allclose(inside(1.0), np.sin(M).sum() + 1, rtol=1e-13)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with compilations() as compiled:
        program(M)
    assert len(compiled) == 1


def test_kernels_of_mlps_stay_on_their_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    _, took, _ = both_ways(monkeypatch, ntk_jax.mlp_kernels, A[0], depth=1)
    assert took == {"tiled"}


def test_results_are_no_views_of_arrays_that_may_change():
    a = A.copy()
    found = by_numpy_if_few(jit_by_size(lambda a: a.reshape(-1)))(a)
    a[:] = 0
    assert_allclose(found, A.ravel())


def both_ways(monkeypatch, f, *args, **options):
    """By NumPy, which of XLA's programs of all pairs that took, and by XLA."""
    called, programs = jit_by_size.__call__, set()

    def call(self, *args):
        programs.add(getattr(self.__wrapped__, "func", self.__wrapped__).__name__)
        return called(self, *args)

    monkeypatch.setattr(jit_by_size, "__call__", call)
    found, took = f(*args, **options), programs & {"_all_pairs", "in_tiles", "tiled"}
    with monkeypatch.context() as m:
        m.setattr(few, "FEW", 0)
        expected = f(*args, **options)
    assert programs & {"_all_pairs", "in_tiles", "tiled"}
    return found, took, expected


NETWORKS = {
    "relu": {"activation": "relu"},
    "residual": {"activation": "relu", "residual": True, "kernels": "nngp"},
    "normalized": {"activation": "leaky_relu", "layer_norm": True, "kernels": "ntk"},
    "standard": {"activation": "step", "parameterization": "standard", "width": 9},
    "smooth": {"activation": "erf", "trainable_from": 1},
    "smooth and residual": {"activation": "sin", "residual": True},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_of_mlps_are_alike_by_numpy_and_by_xla(monkeypatch, name, dtype):
    x = RNG.standard_normal((7, 5)).astype(dtype)
    x[3], x[4], x[5] = x[0], -x[1], 0  # the same example, the opposite one, nothing
    x[6] = x[2] * dtype(1 + 1e-3)
    kernels = functools.partial(ntk_jax.mlp_kernels, depth=3, W_std=1.3, b_std=0.2)
    for pair in ((x,), (x, x[1:4])):
        found, took, expected = both_ways(monkeypatch, kernels, *pair, **NETWORKS[name])
        assert not took
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert isinstance(a, jax.Array) and a.dtype == b.dtype == dtype
            assert_allclose(a, b, **TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["relu", "erf", "elu", "tanh", "sigmoid", "swish"])
def test_numpy_is_asked_for_what_it_is_quick_with(monkeypatch, name):
    """Of sums over pairs of scales it would be told by a trace of all layers, which takes as long
    as all else.
    """
    quick, on_host = {}, tiles.on_host

    def noted(f, *args, **options):
        quick[f.__name__] = (found := on_host(f, *args, **options)) is not None
        return found

    monkeypatch.setattr(tiles, "on_host", noted)
    monkeypatch.setattr(diagonal, "on_host", noted)
    x = RNG.standard_normal((7, 5)).astype(np.float32)
    ntk_jax.mlp_kernels(x, depth=2, activation=name)
    by_terms = ntk_jax.duals.rule(name).by_terms
    assert by_terms == (name in ("tanh", "sigmoid", "swish"))
    assert ("_whole" in quick) == ("_of_second_moments" in quick) == (not by_terms)
    assert by_terms or all(quick.values())
    if by_terms:  # and it would have been slow
        monkeypatch.setattr(type(ntk_jax.duals.rule(name)), "by_terms", False)
        ntk_jax.mlp_kernels(x, depth=2, activation=name)
        assert not quick["_whole"] and not quick["_of_second_moments"]


TOLERANCE = {np.float32: {"rtol": 3e-6, "atol": 3e-6}, np.float64: {"rtol": 1e-12, "atol": 1e-13}}

# With many entries, or series of many terms; a convolution, of which NumPy knows nothing.
BY_XLA = set(
    "mlp_biases mlp_deep_tanh mlp_standard mlp_swish_by_hand "
    "cnn_dilated flax_mnist rnn_unrolled rnn_scanned local".split()
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_limits_are_alike_by_numpy_and_by_xla(monkeypatch, case):
    dtype = np.float32 if case.name == "rnn_scanned" else np.float64  # Flax's carry is of float32
    x1, x2 = case.inputs(3, dtype=dtype), case.inputs(2, seed=1, dtype=dtype)
    kernel_fn = lenient(ntk_jax.infinite_width(case.build(64, 2)))
    for pair in ((x1,), (x1, x2)):
        found, took, expected = both_ways(monkeypatch, kernel_fn, *pair)
        assert not took or case.name in BY_XLA
        for a, b in zip(found, expected, strict=True):
            assert_allclose(a, b, **TOLERANCE[a.dtype.type])


@pytest.fixture
def packs_given(monkeypatch):
    """Of every trace of all pairs, which are too many for NumPy: whether examples were its own."""
    given, all_pairs = [], batch._all_pairs

    @functools.wraps(all_pairs)
    def noted(*args):
        given.append(len(args) > 8 and args[8] is not None)
        return all_pairs(*args)

    forget()
    monkeypatch.setattr(batch, "_all_pairs", noted)
    monkeypatch.setattr(batch, "_entries", lambda *_: 2**15)
    yield given
    forget()


@pytest.mark.parametrize("name", ["pooled", "flax_mnist", "wide_resnet", "attention", "mlp_nnx"])
def test_limits_are_alike_with_single_examples_by_numpy(monkeypatch, packs_given, name):
    (case,) = (case for case in CASES if case.name == name)
    x1, x2 = case.inputs(3), case.inputs(2, seed=1)
    kernel_fn = lenient(ntk_jax.infinite_width(case.build(64, 2)))
    for pair in ((x1,), (x1, x2)):
        packs_given.clear()
        found, took, expected = both_ways(monkeypatch, kernel_fn, *pair)
        assert took == {"_all_pairs"} and packs_given == [True, False]
        for a, b in zip(found, expected, strict=True):
            assert_allclose(a, b, **TOLERANCE[a.dtype.type])


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3,))(x))
        return nn.Dense(1)(nn.relu(nn.Dense(8)(x)).reshape(len(x), -1))


def test_answers_of_networks_are_alike_by_numpy_and_by_xla(monkeypatch):
    x = RNG.standard_normal((5, 6, 2)).astype(np.float32)
    x[3] = x[0]
    kernel_fn = lenient(ntk_jax.infinite_width(Net()))
    by_numpy = kernel_fn(x), ntk_jax.explain_limit(Net(), x)
    monkeypatch.setattr(few, "FEW", 0)
    expected = kernel_fn(x), ntk_jax.explain_limit(Net(), x)
    for a, b in zip(by_numpy[0], expected[0], strict=True):
        assert a.dtype == np.float32 and isinstance(a, jax.Array)
        assert_allclose(a, b, rtol=1e-5)
        assert (a == a.T).all()
    assert by_numpy[1] == expected[1]
