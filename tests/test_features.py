"""Tangent features and their contraction against the dense Jacobian, over every kind of network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.compilations import compilations
from cases.draws import UNOPTIMIZED, normal
from cases.networks import CASES, N
from ntk_jax.finite.features.tangents import plan_features
from ntk_jax.types import Params

NAMES = [case.name for case in CASES]
MODES = ("mean", "diagonal", "full")


def dense_jacobian(apply_fn, params: Params, x) -> np.ndarray:
    """J (n, O, P): the slow twin."""
    jacobian = jax.jit(jax.jacrev(apply_fn), compiler_options=UNOPTIMIZED)(params, x)
    blocks = jax.tree.map(
        lambda j, p: np.asarray(j, np.float64).reshape(len(x), -1, p.size), jacobian, params
    )
    return np.concatenate(jax.tree.leaves(blocks), axis=2)


def dense_ntk(j1, j2, outputs):
    """The kernel, from Jacobians, in the three modes."""
    full = np.einsum("iap,jbp->ijab", j1, j2)
    diagonal = np.einsum("ijaa->ija", full)
    return {"full": full, "diagonal": diagonal, "mean": diagonal.mean(2)}[outputs]


def close(a, b, tolerance):
    np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("index", range(len(CASES)), ids=NAMES)
def test_every_network_is_exact(index):
    apply_fn, params, x = CASES[index].build(index)
    assert len(plan_features(apply_fn, params, x).tracked) == CASES[index].factored
    k = ntk_jax.contract(ntk_jax.tangent_features(apply_fn, params, x), outputs="full")
    jacobian = dense_jacobian(apply_fn, params, x)
    close(k, dense_ntk(jacobian, jacobian, "full"), 1e-10)
    np.testing.assert_array_equal(k, k.transpose(1, 0, 3, 2))


SMALL = [NAMES.index(name) for name in ("mlp", "conv_groups", "scanned_layers", "unused")]


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(i, id=NAMES[i], marks=[] if NAMES[i] == "conv_groups" else pytest.mark.slow)
        for i in SMALL
    ],
)
@pytest.mark.parametrize("form", ["factors", "gradients"])
def test_both_forms_of_every_layer_agree(index, form, monkeypatch):
    monkeypatch.setattr("ntk_jax.finite.strategy.cost.choose_form", lambda block, problem: form)
    apply_fn, params, x = CASES[index].build(index)
    jacobian = dense_jacobian(apply_fn, params, x)
    for outputs in MODES:
        k = ntk_jax.empirical_ntk(apply_fn, params, x[:2], x, outputs=outputs, method="layerwise")
        close(k, dense_ntk(jacobian[:2], jacobian, outputs), 1e-10)


@pytest.fixture(scope="module")
def mlp():
    """Eleven examples of an MLP with biases, and its Jacobian."""
    _, params, x = CASES[0].build(0)
    apply_fn, _ = ntk_jax.from_linen(ntk_jax.MLP((5, 4), 2, "relu", 1.3, 0.4), {"params": params})
    x = jax.device_put(np.random.default_rng(1).standard_normal((11, 6)))
    return apply_fn, params, x, dense_jacobian(apply_fn, params, x)


@pytest.mark.parametrize("method", ["auto", "layerwise", "jacobian", "vector_products"])
@pytest.mark.parametrize("outputs", MODES)
def test_methods_agree(mlp, method, outputs):
    apply_fn, params, x, jacobian = mlp
    k = ntk_jax.empirical_ntk(apply_fn, params, x, outputs=outputs, method=method)
    close(k, dense_ntk(jacobian, jacobian, outputs), 1e-12)
    k = ntk_jax.empirical_ntk(apply_fn, params, x[:4], x, outputs=outputs, method=method)
    close(k, dense_ntk(jacobian[:4], jacobian, outputs), 1e-12)


@pytest.mark.parametrize("outputs", MODES)
@pytest.mark.parametrize(
    "memory_limit",
    [20_000, 1, 60_000],
)
def test_blocks_of_any_size_give_the_same_symmetric_kernel(mlp, memory_limit, outputs):
    apply_fn, params, x, jacobian = mlp
    k = ntk_jax.empirical_ntk(
        apply_fn, params, x, outputs=outputs, memory_limit=memory_limit, method="layerwise"
    )
    close(k, dense_ntk(jacobian, jacobian, outputs), 1e-12)
    np.testing.assert_array_equal(
        k, k.transpose(1, 0, 3, 2) if outputs == "full" else jnp.swapaxes(k, 0, 1)
    )
    k = ntk_jax.empirical_ntk(
        apply_fn, params, x[:7], x, outputs=outputs, memory_limit=memory_limit, method="layerwise"
    )
    close(k, dense_ntk(jacobian[:7], jacobian, outputs), 1e-12)


def test_by_layer_adds_up(mlp):
    apply_fn, params, x, jacobian = mlp
    parts = ntk_jax.empirical_ntk_by_layer(apply_fn, params, x)
    assert list(parts) == [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    sizes = np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])[:-1]
    for part, j in zip(parts.values(), np.split(jacobian, sizes, axis=2), strict=True):
        close(part, dense_ntk(j, j, "mean"), 1e-12)
    close(sum(parts.values()), dense_ntk(jacobian, jacobian, "mean"), 1e-12)


def test_by_layer_names_unread_leaves_too():
    apply_fn, params, x = CASES[NAMES.index("unused")].build(0)
    parts = ntk_jax.empirical_ntk_by_layer(apply_fn, params, x, x[:2], outputs="diagonal")
    assert parts["['layers'][0]['dead']"].shape == (N, 2, 2)
    assert not parts["['layers'][0]['dead']"].any()
    close(
        sum(parts.values()),
        np.asarray(ntk_jax.empirical_ntk(apply_fn, params, x, x[:2], outputs="diagonal")),
        1e-12,
    )


def test_single_precision(mlp):
    apply_fn, params, x, jacobian = mlp
    cast = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
    k = ntk_jax.empirical_ntk(apply_fn, cast(params), cast(x))
    assert k.dtype == jnp.float32
    close(k, dense_ntk(jacobian, jacobian, "mean"), 1e-5)


def test_half_precision_parameters_accumulate_in_single(mlp):
    _, params, x, _ = mlp

    def apply_fn(p, x):
        h = jnp.tanh(x @ p["Dense_0"]["kernel"].astype(jnp.float32))
        return h @ p["Dense_1"]["kernel"].astype(jnp.float32)

    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    x = x.astype(jnp.float32)
    k = ntk_jax.empirical_ntk(apply_fn, half, x)
    assert k.dtype == jnp.float32
    jacobian = dense_jacobian(apply_fn, single, x)
    # Cotangents of a converted weight are never rounded to the weight's own precision.
    close(k, dense_ntk(jacobian, jacobian, "mean"), 1e-5)


def test_inside_jit_grad_and_vmap(mlp):
    apply_fn, params, x, jacobian = mlp
    truth = dense_ntk(jacobian, jacobian, "mean")
    close(
        jax.jit(lambda p, x: ntk_jax.empirical_ntk(apply_fn, p, x, memory_limit=30_000))(params, x),
        truth,
        1e-12,
    )
    close(
        jax.vmap(lambda p: ntk_jax.empirical_ntk(apply_fn, p, x))(
            jax.tree.map(lambda a: a[None], params)
        )[0],
        truth,
        1e-12,
    )

    def trace(s, method):
        scaled = jax.tree.map(lambda a: s * a, params)
        return jnp.trace(ntk_jax.empirical_ntk(apply_fn, scaled, x, method=method))

    expected = jax.grad(trace)(1.0, "jacobian")
    np.testing.assert_allclose(jax.grad(trace)(1.0, "layerwise"), expected, rtol=1e-10)


def test_second_call_compiles_nothing(mlp):
    apply_fn, params, x, _ = mlp
    call = lambda: ntk_jax.empirical_ntk(apply_fn, params, x, memory_limit=30_000)
    first = call()
    with compilations() as later:
        second = call()
    assert not later
    np.testing.assert_array_equal(first, second)


def test_features_of_other_networks_are_refused(mlp, unchecked_shapes):
    apply_fn, params, x, _ = mlp
    f1 = ntk_jax.tangent_features(apply_fn, params, x)
    f2 = ntk_jax.tangent_features(lambda p, x: x @ p, jnp.ones((6, 2)), x)
    with pytest.raises(ValueError, match="features of the same network"):
        ntk_jax.contract(f1, f2)
    with pytest.raises(ValueError, match="outputs"):
        ntk_jax.contract(f1, outputs="sum")


@pytest.mark.parametrize(
    "normalize",
    [lambda x: x - x.mean(0, keepdims=True), lambda x: x / jnp.linalg.norm(x), lambda x: x[::-1]],
)
def test_rows_that_depend_on_each_other_are_refused(normalize, unchecked_shapes):
    x = normal(0, (4, 3))
    with pytest.raises(ValueError, match="depend on row i of x alone"):
        ntk_jax.empirical_ntk(lambda p, x: normalize(jnp.tanh(x @ p)), jnp.ones((3, 2)), x)


def test_dependence_is_found_inside_jit_and_after_it(unchecked_shapes):
    x, p = normal(0, (4, 3)), jnp.ones((3, 2))
    apply_fn = lambda p, x: jnp.tanh((x - x.mean(0, keepdims=True)) @ p)
    with pytest.raises(ValueError, match="depend on row i of x alone"):
        jax.jit(lambda p, x: ntk_jax.empirical_ntk(apply_fn, p, x))(p, x)
    with pytest.raises(ValueError, match="depend on row i of x alone"):
        ntk_jax.empirical_ntk(apply_fn, p, x)


def test_result_that_cannot_fit_is_refused_before_computing(unchecked_shapes, monkeypatch):
    monkeypatch.setattr("ntk_jax.memory.free_bytes", lambda: 2**16)
    x = normal(0, (100, 3))
    with pytest.raises(ValueError, match=r"free memory.*takes 78.1 KiB"):
        ntk_jax.empirical_ntk(lambda p, x: x @ p, jnp.ones((3, 2)), x)


X, W = np.arange(12.0).reshape(4, 3) / 8, np.ones((3, 2))
NAN_IN_ROW_1 = {
    "outputs": (
        lambda p, x: jnp.sqrt(x @ p + 1.0),
        r"apply_fn: expected finite outputs.*1 of the 4 examples in x1.*row 1",
    ),
    "derivatives": (
        lambda p, x: (
            x @ p["b"] + jnp.sqrt(jnp.maximum((x[:, :1] - 0.375) ** 2 * jnp.sum(p["a"] ** 2), 0.0))
        ),
        r"finite derivatives with respect to params\['a'\].*for 1 of the 4 examples in x1, the "
        r"first in row 1",
    ),
    "products": (
        lambda p, x: 1e200 * (x @ p),
        r"products of derivatives within the range of float64; they overflow",
    ),
}


@pytest.mark.parametrize("kind", NAN_IN_ROW_1)
def test_kernels_that_are_not_finite_are_refused(kind, unchecked_shapes):
    apply_fn, message = NAN_IN_ROW_1[kind]
    params = {"a": W, "b": W} if kind == "derivatives" else W
    x = X.copy()
    x[1, 0] = -9.0 if kind == "outputs" else X[1, 0]
    calls = [
        lambda: ntk_jax.empirical_ntk(apply_fn, params, x),
        lambda: ntk_jax.empirical_ntk_by_layer(apply_fn, params, x),
    ]
    if kind != "products":
        calls.append(
            lambda: ntk_jax.tangent_features(
                apply_fn, params, x, projection=4, key=jax.random.key(0)
            )
        )
    if kind == "outputs":
        calls.append(lambda: ntk_jax.empirical_nngp(apply_fn, params, x))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    features = ntk_jax.tangent_features(apply_fn, params, x)
    with pytest.raises(
        ValueError, match=message if kind == "products" else "finite derivatives.*features1.*row 1"
    ):
        ntk_jax.contract(features)
    with pytest.raises(ValueError, match="in x2" if kind == "outputs" else "expected"):
        ntk_jax.empirical_ntk(apply_fn, params, X[3:], x)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_networks(dtype):
    """Parameters and examples in half precision give kernels in single, within the rounding of the
    network itself.
    """

    def apply_fn(p, x):
        return jnp.tanh(x @ p["a"] + p["b"][None]) @ p["c"]

    rng = np.random.default_rng(0)
    shapes = {"a": (4, 5), "b": (5,), "c": (5, 2)}
    half = jax.tree.map(
        lambda s: jnp.asarray(rng.standard_normal(s), dtype),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    x = jnp.asarray(rng.standard_normal((3, 4)), dtype)
    double = jax.tree.map(lambda a: a.astype(jnp.float64), half)
    jacobian = dense_jacobian(apply_fn, double, x.astype(jnp.float64))
    exact, tolerance = dense_ntk(jacobian, jacobian, "mean"), 8 * float(jnp.finfo(dtype).eps)
    features = ntk_jax.tangent_features(apply_fn, half, x)
    projected = ntk_jax.tangent_features(apply_fn, half, x, projection=16, key=jax.random.key(0))
    z = ntk_jax.tangent_features(
        apply_fn, double, x.astype(jnp.float64), projection=16, key=jax.random.key(0)
    ).matrix()
    for k, truth in [
        (ntk_jax.empirical_ntk(apply_fn, half, x), exact),
        (ntk_jax.contract(features), exact),
        (ntk_jax.contract(features, ntk_jax.tangent_features(apply_fn, half, x[:2])), exact[:, :2]),
        (sum(ntk_jax.empirical_ntk_by_layer(apply_fn, half, x).values()), exact),
        (projected.matrix(), np.asarray(z)),
    ]:
        assert k.dtype == jnp.float32
        close(k, truth, tolerance)
