"""Kernels of batches whose rows interact, against dense Jacobians of all outputs at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.compilations import compilations

pytestmark = pytest.mark.usefixtures("unoptimized")
RNG = np.random.default_rng(0)
SHAPES = {"W": (3, 6), "V": (6, 2), "b": (2,)}
PARAMS = {name: jax.device_put(RNG.standard_normal(shape)) for name, shape in SHAPES.items()}
X1, X2 = (jax.device_put(RNG.standard_normal((n, 3))) for n in (5, 4))
SPECS = {"full": "iap,jbp->ijab", "diagonal": "iap,jap->ija", "mean": "iap,jap->ij"}


def normalized(p, x):
    h = x @ p["W"]
    h = (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)
    return jnp.tanh(h) @ p["V"] + p["b"][None]


def dense(f, params, x1, x2, outputs):
    def jacobian(x):
        found = jax.tree.leaves(jax.jit(jax.jacrev(f))(params, x))
        n = jax.tree.leaves(x)[0].shape[0]
        return np.concatenate(
            [np.asarray(leaf).reshape(n, -1, leaf[0, 0].size) for leaf in found], 2
        )

    j1 = jacobian(x1)
    k = np.einsum(SPECS[outputs], j1, jacobian(x2))
    return k / j1.shape[1] if outputs == "mean" else k


def close(k, expected):
    np.testing.assert_allclose(k, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize(
    "outputs", ["full", *(pytest.param(o, marks=pytest.mark.slow) for o in ("mean", "diagonal"))]
)
def test_kernels_are_those_of_the_jacobian_of_the_batch(outputs):
    coupled = {"batch_coupled": True, "outputs": outputs}
    k = ntk_jax.empirical_ntk(normalized, PARAMS, X1, **coupled)
    close(k, dense(normalized, PARAMS, X1, X1, outputs))
    swapped = k.transpose(1, 0, 3, 2) if outputs == "full" else k.swapaxes(0, 1)
    np.testing.assert_array_equal(k, swapped)
    # Another batch is normalized by its own mean and variance, and may have another size.
    other = ntk_jax.empirical_ntk(normalized, PARAMS, X1, X2, **coupled)
    close(other, dense(normalized, PARAMS, X1, X2, outputs))


@pytest.mark.parametrize(
    "method",
    [
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("layerwise", "jacobian")),
        "vector_products",
    ],
)
def test_methods_agree(method):
    k = ntk_jax.empirical_ntk(normalized, PARAMS, X1, batch_coupled=True, method=method)
    close(k, dense(normalized, PARAMS, X1, X1, "mean"))


def test_two_functions_have_batches_of_their_own():
    mean = lambda p, x: jnp.cumsum(jnp.sin(x @ p["W"]), 0)[:, :1]
    both = {"apply_fn2": mean, "batch_coupled": True}
    k = ntk_jax.empirical_ntk(normalized, PARAMS, X1, X2, outputs="full", **both)
    whole = lambda f, x: np.concatenate(
        [
            np.asarray(leaf).reshape(f(PARAMS, x).size, -1)
            for leaf in jax.tree.leaves(jax.jit(jax.jacrev(f))(PARAMS, x))
        ],
        1,
    )
    expected = (whole(normalized, X1) @ whole(mean, X2).T).reshape(5, 2, 4, 1)
    close(k, expected.transpose(0, 2, 1, 3))
    with pytest.raises(ValueError, match="apply_fn2: expected 2 outputs"):
        ntk_jax.empirical_ntk(normalized, PARAMS, X1, X2, **both)


@pytest.mark.slow
def test_nodes_of_one_graph_are_rows():
    def gcn(p, graph):
        mixing = graph["adjacency"].astype(float)
        return mixing @ jnp.tanh(mixing @ graph["nodes"] @ p["W"]) @ p["V"]

    links = RNG.integers(0, 2, (5, 5))
    graph = {"nodes": X1, "adjacency": jax.device_put(links | links.T)}
    k = ntk_jax.empirical_ntk(gcn, PARAMS, graph, batch_coupled=True)
    close(k, dense(gcn, PARAMS, graph, graph, "mean"))


@pytest.mark.slow
def test_rows_that_do_not_interact_have_the_kernel_that_they_have():
    net = lambda p, x: jnp.tanh(x @ p["W"]) @ p["V"]
    apart, coupled = (
        ntk_jax.empirical_ntk(net, PARAMS, X1, X2, batch_coupled=b) for b in (False, True)
    )
    close(coupled, np.asarray(apart))


class Net(nn.Module):
    """Batch normalization between two layers."""

    @nn.compact
    def __call__(self, x, train):
        h = nn.Dense(6, param_dtype=float)(x)
        h = nn.BatchNorm(use_running_average=not train, param_dtype=float)(h)
        return nn.Dense(2, param_dtype=float)(nn.tanh(h))


def test_flax_models_in_training_mode(unchecked_shapes):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = Net().init(jax.random.key(0), X1, train=False)
        apply_fn, params = ntk_jax.from_linen(Net(), variables, mutable=["batch_stats"], train=True)
        k = ntk_jax.empirical_ntk(apply_fn, params, X1, batch_coupled=True)
        with compilations() as found:
            again = ntk_jax.from_linen(Net(), variables, mutable=["batch_stats"], train=True)
            ntk_jax.empirical_ntk(*again, X1, batch_coupled=True)
        assert not found
        update = lambda p, x: Net().apply(
            {**variables, "params": p}, x, train=True, mutable=["batch_stats"]
        )
        close(k, dense(lambda p, x: update(p, x)[0], params, X1, X1, "mean"))
        with pytest.raises(ValueError, match=r"alone; .*empirical_ntk.*batch_coupled=True"):
            ntk_jax.empirical_ntk(apply_fn, params, X1)
        with pytest.raises(ValueError, match=r"mutable=\['batch_stats'\].*batch_coupled=True"):
            f, params = ntk_jax.from_linen(Net(), variables, train=True)
            ntk_jax.empirical_ntk(f, params, X1)


def test_what_is_no_row_per_example_is_refused(unchecked_shapes):
    with pytest.raises(ValueError, match=r"apply_fn: expected one array with a row per example"):
        ntk_jax.empirical_ntk(lambda p, x: (x @ p["W"]).sum(0), PARAMS, X1, batch_coupled=True)
