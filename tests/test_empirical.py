"""The finite-width kernel against the dense Jacobian, for every method and output mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ntk_jax
from cases.networks import dense_ntk

METHODS = ["jacobian", "vector_products"]


def mlp(key, num_outputs=3):
    model = ntk_jax.MLP((6, 5), num_outputs, activation="tanh", b_std=0.2)
    return ntk_jax.from_linen(model, model.init(key, jnp.ones((1, 4))))


def pytree(key):
    """A network with parameters in odd places: nested, scalar, unused, shared, inside a
    nonlinearity.
    """
    w = jax.random.normal(key, (4, 3))
    params = {"w": (w, [w[0]]), "scale": jnp.asarray(0.7), "unused": jnp.ones(2)}

    def apply_fn(params, x):
        w, [b] = params["w"]
        h = jnp.sin(x @ w + jnp.broadcast_to(b, (x.shape[0], 3))) * jnp.exp(params["scale"])
        return (h @ w.T)[:, :2] + h[:, :2]

    return apply_fn, params


def image(key):
    """Images in, a grid of outputs out: more axes than two on either side."""
    params = jax.random.normal(key, (2, 2, 1, 2))

    def apply_fn(params, x):
        return jax.nn.softplus(
            jax.lax.conv_general_dilated(
                x, params, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )

    return apply_fn, params


CASES = {
    "mlp": (mlp, (4,)),
    "one output": (lambda key: mlp(key, 1), (4,)),
    "pytree": (pytree, (4,)),
    "no output axis": (
        lambda key: (lambda p, x: jnp.sum(jnp.cos(x @ p), axis=1), jax.random.normal(key, (4, 2))),
        (4,),
    ),
    "image": (image, (3, 3, 1)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_jacobian(case, method, getkey):
    make, shape = CASES[case]
    apply_fn, params = make(getkey())
    # another number of rows is another program: two cases have one
    x1, x2 = (
        jax.random.normal(getkey(), (n, *shape)) for n in (5, 3 if case in ("mlp", "image") else 5)
    )
    for other in (x2, None):
        truth = dense_ntk(apply_fn, params, x1, x1 if other is None else other)
        for outputs, expected in truth.items():
            k = ntk_jax.empirical_ntk(apply_fn, params, x1, other, outputs=outputs, method=method)
            np.testing.assert_allclose(k, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory_limit", [1, 4_000])
def test_blocks_change_nothing_and_symmetry_is_exact(memory_limit, method, getkey):
    apply_fn, params = mlp(getkey())
    x1, x2 = (jax.random.normal(getkey(), (n, 4)) for n in (7, 4))
    for other in (x2, None):
        truth = dense_ntk(apply_fn, params, x1, x1 if other is None else other)
        for outputs, expected in truth.items():
            options = {"outputs": outputs, "method": method, "memory_limit": memory_limit}
            k = np.asarray(ntk_jax.empirical_ntk(apply_fn, params, x1, other, **options))
            np.testing.assert_allclose(k, expected, rtol=1e-10, atol=1e-12)
            if other is None:
                np.testing.assert_array_equal(
                    k, k.swapaxes(0, 1) if k.ndim < 4 else k.transpose(1, 0, 3, 2)
                )


@pytest.mark.parametrize("method", METHODS)
def test_float32_stays_float32(method, getkey):
    apply_fn, params = mlp(getkey())
    x = jax.random.normal(getkey(), (6, 4))
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    k = ntk_jax.empirical_ntk(apply_fn, single, x.astype(jnp.float32), method=method)
    assert k.dtype == jnp.float32
    # one matrix product and a backward pass: errors of some tens of ulps, 1e-5 of the largest entry
    np.testing.assert_allclose(
        k, ntk_jax.empirical_ntk(apply_fn, params, x), atol=1e-5 * float(k.max())
    )


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_parameters_are_accumulated_in_single(method, getkey):
    w = jax.random.normal(getkey(), (4, 2)).astype(jnp.bfloat16)
    x = jax.random.normal(getkey(), (3, 4)).astype(jnp.bfloat16)
    k = ntk_jax.empirical_ntk(lambda p, x: x @ p, w, x, method=method)
    assert k.dtype == jnp.float32
    # the kernel of a linear model is x.x' whatever the weights; bfloat16 keeps 8 bits
    wide = np.asarray(x, np.float32)
    np.testing.assert_allclose(k, wide @ wide.T, rtol=2**-6, atol=2**-6)


def test_linear_model_has_kernel_one_plus_product(getkey):
    x = jax.random.normal(getkey(), (5, 1))
    apply_fn = lambda p, x: p[0] * x + p[1]
    for params in ([0.0, 0.0], [2.0, -1.0]):
        k = ntk_jax.empirical_ntk(apply_fn, [jnp.asarray(p) for p in params], x)
        np.testing.assert_allclose(k, x @ x.T + 1, rtol=1e-14)


def test_works_inside_jit_and_under_grad(getkey):
    apply_fn, params = mlp(getkey())
    x = jax.random.normal(getkey(), (4, 4))
    kernel = lambda p: ntk_jax.empirical_ntk(apply_fn, p, x)
    np.testing.assert_allclose(jax.jit(kernel)(params), kernel(params), rtol=1e-12)
    trace = lambda p: jnp.trace(kernel(p))
    direction = jax.tree.map(jnp.ones_like, params)
    step = 1e-5
    moved = [jax.tree.map(lambda p, d, s=s: p + s * d, params, direction) for s in (step, -step)]
    numerical = (trace(moved[0]) - trace(moved[1])) / (2 * step)
    exact = jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, jax.grad(trace)(params)))
    np.testing.assert_allclose(exact, numerical, rtol=1e-7)


SHARED = mlp(jax.random.key(0))


@given(st.permutations(range(6)), st.sampled_from([1, 4]))
def test_permuting_rows_permutes_and_blocks_are_slices(order, cut):
    apply_fn, params = SHARED
    x = jax.random.normal(jax.random.key(1), (6, 4))
    order = np.asarray(order)
    k = np.asarray(ntk_jax.empirical_ntk(apply_fn, params, x))
    permuted = ntk_jax.empirical_ntk(apply_fn, params, x[order])
    np.testing.assert_allclose(permuted, k[np.ix_(order, order)], rtol=1e-12, atol=1e-12)
    block = ntk_jax.empirical_ntk(apply_fn, params, x[:cut], x[cut:])
    np.testing.assert_allclose(block, k[:cut, cut:], rtol=1e-12, atol=1e-12)
    assert np.linalg.eigvalsh(k).min() > -1e-12 * k.max()


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full"])
def test_empirical_nngp_is_the_product_of_outputs(outputs, getkey):
    apply_fn, params = mlp(getkey())
    x1, x2 = (jax.random.normal(getkey(), (n, 4)) for n in (5, 3))
    for other in (x2, None):
        f1, f2 = (
            np.asarray(apply_fn(params, x1)),
            np.asarray(apply_fn(params, x1 if other is None else other)),
        )
        full = np.einsum("io,jq->ijoq", f1, f2)
        diagonal = np.einsum("ijoo->ijo", full)
        expected = {"full": full, "diagonal": diagonal, "mean": diagonal.mean(axis=2)}[outputs]
        k = ntk_jax.empirical_nngp(apply_fn, params, x1, other, outputs=outputs)
        np.testing.assert_allclose(k, expected, rtol=1e-12)


def test_linearize_has_the_value_and_the_kernel_of_the_network(getkey):
    apply_fn, params = mlp(getkey())
    x = jax.random.normal(getkey(), (5, 4))
    linear = ntk_jax.linearize(apply_fn, params)
    np.testing.assert_allclose(linear(params, x), apply_fn(params, x), rtol=1e-14)
    elsewhere = jax.tree.map(lambda p: p + 0.3, params)
    k = ntk_jax.empirical_ntk(apply_fn, params, x)
    for point in (params, elsewhere):
        np.testing.assert_allclose(ntk_jax.empirical_ntk(linear, point, x), k, rtol=1e-12)
    halfway = jax.tree.map(lambda p, q: (p + q) / 2, params, elsewhere)
    middle = (linear(params, x) + linear(elsewhere, x)) / 2
    np.testing.assert_allclose(linear(halfway, x), middle, rtol=1e-12)
