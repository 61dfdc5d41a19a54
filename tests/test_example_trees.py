"""Examples that are pytrees, through every door of finite width, against dense Jacobians."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.sparse import BCOO

import ntk_jax
from cases.compilations import compilations
from cases.example_trees import CASES, N
from ntk_jax.examples import take_rows

FEW = slice(0, 2)
QUICK = ("tokens_and_mask",)
pytestmark = pytest.mark.usefixtures("unoptimized")


MARKS = {name: () if name in QUICK else pytest.mark.slow for name in CASES}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=marks) for name, marks in MARKS.items()]
)
def case(request):
    """A network, its parameters and examples, and its Jacobian (n, O, P)."""
    apply_fn, params, x = CASES[request.param](0)

    def one(p, i):
        return apply_fn(p, take_rows(x, slice(i, i + 1)))[0].reshape(-1)

    rows = [jax.jit(jax.jacrev(one), static_argnums=1)(params, i) for i in range(N)]
    flat = [
        np.concatenate([np.asarray(j).reshape(len(j), -1) for j in jax.tree.leaves(row)], axis=1)
        for row in rows
    ]
    return apply_fn, params, x, np.stack(flat)


def close(a, b, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


def full(j1, j2):
    return np.einsum("iap,jbp->ijab", j1, j2)


@pytest.mark.parametrize("method", ["auto", "layerwise", "jacobian", "vector_products"])
def test_kernels_by_every_method_are_those_of_dense_jacobians(case, method):
    f, params, x, j = case
    close(ntk_jax.empirical_ntk(f, params, x, outputs="full", method=method), full(j, j))
    k = ntk_jax.empirical_ntk(f, params, take_rows(x, FEW), x, outputs="full", method=method)
    close(k, full(j[FEW], j))


def test_tiles_are_cut_and_filled_leaf_by_leaf(case):
    f, params, x, j = case
    for limit in (1, 4000):
        k = ntk_jax.empirical_ntk(f, params, x, memory_limit=limit)
        close(k, np.einsum("iap,jap->ij", j, j) / j.shape[1])
    k = ntk_jax.empirical_ntk(f, params, take_rows(x, FEW), x, memory_limit=1)
    close(k, np.einsum("iap,jap->ij", j[FEW], j) / j.shape[1])


def test_layers_features_projections_and_output_covariances_are_exact(case):
    f, params, x, j = case
    close(sum(ntk_jax.empirical_ntk_by_layer(f, params, x, outputs="full").values()), full(j, j))
    features = ntk_jax.tangent_features(f, params, x)
    close(features.matrix(), j.reshape(-1, j.shape[2]))
    close(ntk_jax.contract(features, outputs="full"), full(j, j))
    outputs = np.asarray(f(params, x)).reshape(N, -1)
    nngp = ntk_jax.empirical_nngp(f, params, x, outputs="full")
    close(nngp, np.einsum("ia,jb->ijab", outputs, outputs))
    options = {"projection": 64, "key": jax.random.key(0)}
    some = ntk_jax.tangent_features(f, params, take_rows(x, FEW), **options)
    every = ntk_jax.tangent_features(f, params, x, memory_limit=1, **options)
    close(every.matrix()[: some.matrix().shape[0]], np.asarray(some.matrix()))
    assert "pair" in str(ntk_jax.explain_ntk(f, params, x))


def test_the_operator_multiplies_with_the_dense_kernel(case, draw):
    f, params, x, j = case
    flat = j.reshape(-1, j.shape[2])
    op = ntk_jax.ntk_operator(f, params, x, block_size=3)
    v = draw(op.shape[1])
    close(op @ v, flat @ (flat.T @ v))
    close(op.diagonal(), np.sum(flat**2, axis=1))
    close(op.columns(np.array([1, -1])), (flat @ flat.T)[:, [1, -1]])
    rectangle = ntk_jax.ntk_operator(f, params, take_rows(x, FEW), x)
    close(rectangle @ v, j[FEW].reshape(-1, j.shape[2]) @ (flat.T @ v))
    close(jax.jit(lambda op, v: op @ v)(rectangle, v), rectangle @ v)


def test_expansions_and_laziness_are_those_of_the_rows(case):
    f, params, x, j = case
    moved = jax.tree.map(lambda p: p + 0.1, params)
    linear = np.asarray(f(params, x)).reshape(N, -1) + 0.1 * j.sum(2)
    close(np.asarray(ntk_jax.linearize(f, params)(moved, x)).reshape(N, -1), linear)
    gap = ntk_jax.taylor_gap(f, moved, params, x)
    close(gap.absolute, np.linalg.norm(np.asarray(f(moved, x)).reshape(N, -1) - linear))
    lazy = ntk_jax.laziness(f, params, x, f(params, x) + 1, num_starts=1)
    close(lazy.jacobian, np.linalg.norm(j.reshape(-1, j.shape[2]), 2), 1e-8)
    shifted = jax.tree.map(lambda p: 1e-6 * np.ones_like(p) + p, params)
    assert ntk_jax.jacobian_change(f, shifted, params, x) < 1e-3


def test_training_takes_batches_of_every_leaf(case):
    f, params, x, j = case
    y = np.asarray(f(params, x)) + 1
    options = {"optimizer": optax.sgd(0.05), "progress": False, "record_every": [0]}
    once = ntk_jax.train(f, params, x, y, num_steps=1, x_kernel=x, x_test=x, y_test=y, **options)
    step = jax.tree.leaves(jax.tree.map(jnp.subtract, once.params, params))
    flat = np.concatenate([np.asarray(s).reshape(-1) for s in step])
    close(flat, 0.05 * j.reshape(-1, j.shape[2]).mean(0))
    chosen = jax.random.permutation(jax.random.fold_in(jax.random.key(0), 0), N)[:2]
    batch = {"batch_size": 2, "key": jax.random.key(0)}
    part = ntk_jax.train(f, params, x, y, num_steps=1, **batch, **options)
    step = jax.tree.leaves(jax.tree.map(jnp.subtract, part.params, params))
    flat = np.concatenate([np.asarray(s).reshape(-1) for s in step])
    close(flat, 0.05 * j[np.asarray(chosen)].reshape(-1, j.shape[2]).mean(0))


def test_monte_carlo_averages_the_kernels_of_its_draws():
    f, params, x = CASES["tokens_and_mask"](0)

    def init(key):
        return jax.tree.map(lambda p: p * (1 + jax.random.uniform(key, (), p.dtype)), params)

    key = jax.random.key(1)
    found = ntk_jax.monte_carlo_kernels(init, f, x, take_rows(x, FEW), key=key, num_samples=3)
    each = [
        ntk_jax.empirical_ntk(f, init(k), x, take_rows(x, FEW)) for k in jax.random.split(key, 3)
    ]
    close(found.mean.ntk, np.mean(each, axis=0))


def test_a_tuple_is_no_array_and_a_list_of_rows_is_one():
    f, params, x = CASES["branch_and_trunk"](0)
    k = ntk_jax.empirical_ntk(f, params, x)
    assert k.shape == (N, N)
    linear, w = lambda w, x: x @ w, np.ones((3, 1))
    rows = [np.asarray(row) for row in x[0]]
    close(ntk_jax.empirical_ntk(linear, w, rows), np.asarray(x[0] @ x[0].T))
    nested_rows = tuple(tuple(map(float, row)) for row in rows)
    close(ntk_jax.empirical_ntk(linear, w, nested_rows), np.asarray(x[0] @ x[0].T))


# Of NumPy arrays, as `BCOO.fromdense` compiles forty programs.
SPARSE = BCOO(jax.device_put((np.ones(3), np.arange(3)[:, None].repeat(2, 1))), shape=(3, 3))


@pytest.mark.parametrize(
    ("x1", "x2", "message"),
    [
        ({}, None, "x1: expected an array or a pytree of arrays .* got dict without any"),
        ((), None, "x1: expected an array or a pytree of arrays .* got tuple without any"),
        ({"a": np.ones((3, 2)), "b": np.ones((4, 2))}, None, r"x1\['b'\]: expected 3 examples"),
        ({"a": np.ones((3, 2)), "b": 1.0}, None, r"x1\['b'\]: .* got a scalar. Close over"),
        ((np.ones((3, 2)), {"c": np.float64(1)}), None, r"x1\[1\]\['c'\]: .* got a scalar"),
        ({"a": np.ones((3, 0))}, None, r"x1\['a'\]: expected at least one entry"),
        ({"a": np.full((3, 1), np.nan)}, None, r"x1\['a'\]: expected finite values"),
        ({"a": np.ones((3, 1)) * 1j}, None, r"x1\['a'\]: expected real values"),
        (SPARSE, None, "x1: expected a dense array; got a sparse BCOO"),
        ({"a": SPARSE}, None, r"x1\['a'\]: expected a dense array"),
        ({"a": np.ones((3, 1))}, {"b": np.ones((3, 1))}, "x2: expected examples of the structure"),
        ({"a": np.ones((3, 1))}, {"a": np.ones((3, 2))}, r"x2\['a'\]: expected examples shaped"),
    ],
)
def test_errors_name_the_leaf(x1, x2, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        ntk_jax.empirical_ntk(lambda p, x: x["a"] @ p, np.ones((1, 1)), x1, x2)


def test_rows_that_depend_on_each_other_are_refused_in_trees():
    def centered(w, x):
        return (x["a"] - x["a"].mean(0)[None]) @ w

    with pytest.raises(ValueError, match="row i of the output to depend on row i"):
        ntk_jax.empirical_ntk(centered, np.ones((2, 1)), {"a": np.eye(2), "b": np.ones(2)})


def test_trees_compile_what_arrays_do():
    w, a = jnp.ones((3, 2)), jnp.eye(5, 3)
    network = lambda: lambda w, x: jnp.tanh(jax.tree.leaves(x)[0] @ w)
    ntk_jax.empirical_ntk(lambda w, x: x @ w, w, a)  # compiles what every call shares
    with compilations() as of_array:
        ntk_jax.empirical_ntk(network(), w, a)
    with compilations() as of_tree:
        ntk_jax.empirical_ntk(network(), w, {"a": a})
    with compilations() as again:
        ntk_jax.empirical_ntk(network(), w, {"a": a})
    assert len(of_tree) <= len(of_array) == 1 and not again


def single(a):
    return np.asarray(a, np.float32)


class TwoInputs(nn.Module):
    """Of a tuple, or of one array that holds both parts."""

    width: int = 64

    @nn.compact
    def __call__(self, x):
        left, right = x if isinstance(x, tuple) else (x[:, :3], x[:, 3:])
        return nn.Dense(1)(nn.relu(nn.Dense(self.width)(left) + nn.Dense(self.width)(right)))


class Sentences(nn.Module):
    """Of tokens and a mask, or of both in one array of integers."""

    @nn.compact
    def __call__(self, x):
        tokens, mask = (x["tokens"], x["mask"]) if isinstance(x, dict) else (x[:, 0], x[:, 1])
        hidden = nn.relu(nn.Dense(64)(nn.Embed(7, 64)(tokens)))
        kept = mask[..., None].astype(jnp.float32)
        return nn.Dense(1)(jnp.sum(hidden * kept, 1) / jnp.sum(kept, 1))


def test_limits_of_trees_are_those_of_their_parts_in_one_array(draw):
    a, b = single(draw((6, 3))), single(draw((6, 3)))
    x1, whole = (a, b), np.concatenate([a, b], axis=1)
    of_tuple, of_array = (ntk_jax.infinite_width(TwoInputs()) for _ in range(2))
    for mine, theirs in zip(of_tuple(x1), of_array(whole), strict=True):
        close(mine, np.asarray(theirs), 1e-6)
        np.testing.assert_array_equal(mine, mine.T)
    few = of_tuple(take_rows(x1, FEW), x1)
    close(few.ntk, np.asarray(of_array(whole[FEW], whole).ntk), 1e-6)
    tiled = ntk_jax.infinite_width(TwoInputs(), memory_limit=1)(x1)
    close(tiled.ntk, np.asarray(of_array(whole).ntk), 1e-6)
    assert "Gaussian" in ntk_jax.explain_limit(TwoInputs(), x1)


def test_limits_take_tokens_with_masks():
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 7, (5, 4)), np.tri(5, 4, 1, dtype=int)
    x = {"tokens": tokens, "mask": mask}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = ntk_jax.infinite_width(Sentences())(x)
        want = ntk_jax.infinite_width(Sentences())(np.stack([tokens, mask], axis=1))
    for mine, theirs in zip(found, want, strict=True):
        close(mine, np.asarray(theirs), 1e-12)


@pytest.mark.slow
def test_networks_of_trees_approach_their_limit(draw):
    x, options = (single(draw((3, 3))), single(draw((3, 3)))), {"widths": (16, 64)}
    options |= {"key": jax.random.key(0), "num_samples": 8}
    found = ntk_jax.check_limit(lambda width: TwoInputs(width), x, **options)
    want = ntk_jax.check_limit(lambda width: TwoInputs(width), np.concatenate(x, 1), **options)
    close(found.errors, np.asarray(want.errors), 1e-5)
