"""The kernel between two functions of the same parameters, against dense Jacobians of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax

pytestmark = pytest.mark.usefixtures("unoptimized")
SHAPES = {"W": (2, 6), "b": (6,), "V": (6, 6), "c": (6,), "u": (6, 1), "heads": (6, 3)}
RNG = np.random.default_rng(0)
PARAMS = {name: jax.device_put(0.6 * RNG.standard_normal(s)) for name, s in SHAPES.items()}
X1, X2 = (jax.device_put(RNG.standard_normal((n, 2))) for n in (5, 4))


def trunk(p, x):
    h = jnp.tanh(x @ p["W"] + p["b"])
    return jnp.tanh(h @ p["V"] + p["c"])


def value(p, x):
    return jnp.sum(trunk(p, x) @ p["u"])


def by_rows(f):
    return lambda p, x: jax.vmap(f, (None, 0))(p, x)


def laplacian(p, x):
    along = lambda i, t: jax.grad(lambda s: value(p, x.at[i].set(s)))(t)
    return sum(jax.grad(lambda t, i=i: along(i, t))(x[i]) for i in range(2))


FUNCTIONS = {
    "value": by_rows(value),
    "laplacian": by_rows(laplacian),
    "heads": by_rows(lambda p, x: trunk(p, x) @ p["heads"]),
    "gradient": by_rows(jax.grad(value, 1)),
    "other layers": by_rows(lambda p, x: jnp.sin(x @ p["W"])[:2] * jnp.sum(p["V"])),
    "of a dict": by_rows(lambda p, x: value(p, x["at"]) * x["sign"].astype(float)),
}
OF_DICT = {"at": X2, "sign": jnp.array([1, -1, 1, -1])}


def jacobian(f, x):
    found = jax.jit(jax.jacrev(f))(PARAMS, x)
    n = len(jax.tree.leaves(x)[0])
    return [np.asarray(found[name]).reshape(n, -1, PARAMS[name].size) for name in sorted(PARAMS)]


def dense(f, g, x1, x2):
    """By leaf, with all outputs."""
    pairs = zip(jacobian(f, x1), jacobian(g, x2), strict=True)
    return np.stack([np.einsum("iap,jbp->ijab", j1, j2) for j1, j2 in pairs])


def close(k, expected, tolerance=1e-10):
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(k), expected, rtol=0, atol=tolerance * scale)


SLOW = pytest.mark.slow
PAIRS = [
    pytest.param("value", "laplacian"),
    ("laplacian", "value"),
    ("laplacian", "laplacian"),
    pytest.param("heads", "gradient"),
    pytest.param("value", "other layers"),
    ("gradient", "other layers"),
    pytest.param("heads", "of a dict"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_kernels_of_two_functions_are_those_of_their_jacobians(one, other):
    f, g, x2 = FUNCTIONS[one], FUNCTIONS[other], OF_DICT if other == "of a dict" else X2
    by_leaf = dense(f, g, X1, x2)
    k = ntk_jax.empirical_ntk(f, PARAMS, X1, x2, apply_fn2=g, outputs="full")
    close(k, by_leaf.sum(0))
    layers = ntk_jax.empirical_ntk_by_layer(f, PARAMS, X1, x2, apply_fn2=g, outputs="full")
    assert list(layers) == [f"['{name}']" for name in sorted(PARAMS)]
    for k_l, expected in zip(layers.values(), by_leaf, strict=True):
        close(k_l, expected)
    f1, f2 = ntk_jax.tangent_features(f, PARAMS, X1), ntk_jax.tangent_features(g, PARAMS, x2)
    close(ntk_jax.contract(f1, f2, outputs="full"), by_leaf.sum(0))


@pytest.mark.parametrize(
    "method", ["vector_products", *(pytest.param(m, marks=SLOW) for m in ("layerwise", "jacobian"))]
)
@pytest.mark.parametrize("memory_limit", [None, 1])
def test_methods_and_tiles_agree(method, memory_limit):
    f, g = FUNCTIONS["heads"], FUNCTIONS["gradient"]
    options = {"method": method, "memory_limit": memory_limit, "outputs": "full"}
    k = ntk_jax.empirical_ntk(f, PARAMS, X1, X2, apply_fn2=g, **options)
    close(k, dense(f, g, X1, X2).sum(0))


def test_means_are_of_equal_outputs_alone(unchecked_shapes):
    two_heads = by_rows(lambda p, x: trunk(p, x) @ p["heads"][:, :2])
    full = dense(two_heads, FUNCTIONS["gradient"], X1, X2).sum(0)
    both = {"apply_fn2": FUNCTIONS["gradient"]}
    diagonal = np.einsum("ijaa->ija", full)
    for memory_limit in (None, 1):
        some = {**both, "memory_limit": memory_limit}
        k = ntk_jax.empirical_ntk(two_heads, PARAMS, X1, X2, outputs="diagonal", **some)
        close(k, diagonal)
        close(ntk_jax.empirical_ntk(two_heads, PARAMS, X1, X2, **some), diagonal.mean(2))
    with pytest.raises(ValueError, match="apply_fn2: expected 3 outputs, like apply_fn; got 2"):
        ntk_jax.empirical_ntk(FUNCTIONS["heads"], PARAMS, X1, X2, **both)


def test_without_more_examples_both_are_at_the_same():
    f, g = FUNCTIONS["value"], FUNCTIONS["laplacian"]
    k = ntk_jax.empirical_ntk(f, PARAMS, X1, apply_fn2=g)
    close(k, dense(f, g, X1, X1).sum((0, 3, 4)))
    close(ntk_jax.empirical_ntk(g, PARAMS, X1, apply_fn2=f), k.T)


def test_projections_of_two_functions_meet():
    options = {"projection": 20_000, "key": jax.random.key(0)}
    f, g = FUNCTIONS["value"], FUNCTIONS["laplacian"]
    f1 = ntk_jax.tangent_features(f, PARAMS, X1, **options)
    f2 = ntk_jax.tangent_features(g, PARAMS, X2, **options)
    expected = dense(f, g, X1, X2).sum((0, 3, 4))
    close(ntk_jax.contract(f1, f2), expected, 0.05)


def test_errors_name_the_second_function(unchecked_shapes):
    f = FUNCTIONS["value"]
    with pytest.raises(ValueError, match="apply_fn2: expected row i of the output"):
        ntk_jax.empirical_ntk(f, PARAMS, X1, apply_fn2=lambda p, x: (x - x.mean(0)[None]) @ p["W"])
    with pytest.raises(ValueError, match=r"apply_fn2: expected finite outputs; .* in x2, .* row 1"):
        rooted = by_rows(lambda p, x: jnp.log(x[0]) * value(p, x))
        ntk_jax.empirical_ntk(f, PARAMS, X1, jnp.array([[1.0, 1], [-1, 1]]), apply_fn2=rooted)
