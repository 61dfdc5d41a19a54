"""The finite-width kernel against the dense Jacobian, for every method and output mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ntk_jax
from cases.draws import drawn, normal
from cases.networks import dense_ntk

METHODS = ["jacobian", "vector_products"]


def mlp(seed, num_outputs=3):
    model = ntk_jax.MLP((6, 5), num_outputs, activation="tanh", b_std=0.2)
    return drawn(model, np.ones((1, 4)), seed)


def pytree(seed):
    """A network with parameters in odd places: nested, scalar, unused, shared, inside a
    nonlinearity.
    """
    w = normal(seed, (4, 3))
    params = {"w": (w, [w[0]]), "scale": np.float64(0.7), "unused": np.ones(2)}

    def apply_fn(params, x):
        w, [b] = params["w"]
        h = jnp.sin(x @ w + jnp.broadcast_to(b, (x.shape[0], 3))) * jnp.exp(params["scale"])
        return (h @ w.T)[:, :2] + h[:, :2]

    return apply_fn, params


def image(seed):
    """Images in, a grid of outputs out: more axes than two on either side."""
    params = normal(seed, (2, 2, 1, 2))

    def apply_fn(params, x):
        return jax.nn.softplus(
            jax.lax.conv_general_dilated(
                x, params, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )

    return apply_fn, params


SHARED = mlp(7)

CASES = {
    "mlp": (mlp, (4,)),
    "one output": (lambda seed: mlp(seed, 1), (4,)),
    "pytree": (pytree, (4,)),
    "no output axis": (
        lambda seed: (lambda p, x: jnp.sum(jnp.cos(x @ p), axis=1), normal(seed, (4, 2))),
        (4,),
    ),
    "image": (image, (3, 3, 1)),
}


@functools.cache
def problem(case):
    """A network, two sets of examples, and the kernels of both and of the first."""
    make, shape = CASES[case]
    apply_fn, params = make(7)
    # another number of rows is another program: two cases have one
    n2 = 3 if case in ("mlp", "image") else 5
    x1, x2 = normal(0, (5, *shape)), normal(1, (n2, *shape))
    return apply_fn, params, x1, x2, *truths(apply_fn, params, x1, x2)


def truths(apply_fn, params, x1, x2):
    """Of both sets of examples, and of the first: from one Jacobian of all of them."""
    x, n = np.concatenate([x1, x2]), len(x1)
    dense = dense_ntk(apply_fn, params, x, x)
    return {o: k[:n, n:] for o, k in dense.items()}, {o: k[:n, :n] for o, k in dense.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_jacobian(case, method):
    apply_fn, params, x1, x2, between, own = problem(case)
    for other, truth in ((x2, between), (None, own)):
        for outputs, expected in truth.items():
            k = ntk_jax.empirical_ntk(apply_fn, params, x1, other, outputs=outputs, method=method)
            np.testing.assert_allclose(k, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def rows():
    """7 and 4 examples of one network, and their kernels."""
    x1, x2 = normal(0, (7, 4)), normal(1, (4, 4))
    return x1, x2, *truths(*SHARED, x1, x2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory_limit", [1, 4_000])
def test_blocks_change_nothing_and_symmetry_is_exact(memory_limit, method, rows):
    (apply_fn, params), (x1, x2, between, own) = SHARED, rows
    for other, truth in ((x2, between), (None, own)):
        for outputs, expected in truth.items():
            options = {"outputs": outputs, "method": method, "memory_limit": memory_limit}
            k = np.asarray(ntk_jax.empirical_ntk(apply_fn, params, x1, other, **options))
            np.testing.assert_allclose(k, expected, rtol=1e-10, atol=1e-12)
            if other is None:
                np.testing.assert_array_equal(
                    k, k.swapaxes(0, 1) if k.ndim < 4 else k.transpose(1, 0, 3, 2)
                )


@pytest.mark.parametrize("method", METHODS)
def test_float32_stays_float32(method, draw):
    apply_fn, params = SHARED
    x = draw((6, 4))
    single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    k = ntk_jax.empirical_ntk(apply_fn, single, x.astype(np.float32), method=method)
    assert k.dtype == jnp.float32
    # one matrix product and a backward pass: errors of some tens of ulps, 1e-5 of the largest entry
    np.testing.assert_allclose(
        k, ntk_jax.empirical_ntk(apply_fn, params, x), atol=1e-5 * float(k.max())
    )


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_parameters_are_accumulated_in_single(method, draw):
    w = draw((4, 2)).astype(jnp.bfloat16)
    x = draw((3, 4)).astype(jnp.bfloat16)
    k = ntk_jax.empirical_ntk(lambda p, x: x @ p, w, x, method=method)
    assert k.dtype == jnp.float32
    # the kernel of a linear model is x.x' whatever the weights; bfloat16 keeps 8 bits
    wide = np.asarray(x, np.float32)
    np.testing.assert_allclose(k, wide @ wide.T, rtol=2**-6, atol=2**-6)


def test_linear_model_has_kernel_one_plus_product(draw):
    x = draw((5, 1))
    apply_fn = lambda p, x: p[0] * x + p[1]
    for params in ([0.0, 0.0], [2.0, -1.0]):
        k = ntk_jax.empirical_ntk(apply_fn, [jnp.asarray(p) for p in params], x)
        np.testing.assert_allclose(k, x @ x.T + 1, rtol=1e-14)


def test_works_inside_jit_and_under_grad(draw):
    apply_fn, params = SHARED
    x = draw((4, 4))
    kernel = lambda p: ntk_jax.empirical_ntk(apply_fn, p, x)
    compiled, step = jax.jit(kernel), 1e-5
    np.testing.assert_allclose(compiled(params), kernel(params), rtol=1e-12)
    ahead, behind = (
        compiled(jax.tree.map(lambda p, s=s: np.asarray(p) + s, params)) for s in (step, -step)
    )
    numerical = (np.trace(ahead) - np.trace(behind)) / (2 * step)
    slopes = jax.jit(jax.grad(lambda p: jnp.trace(kernel(p))))(params)
    exact = sum(np.sum(slope) for slope in jax.tree.leaves(slopes))
    np.testing.assert_allclose(exact, numerical, rtol=1e-7)


@given(st.permutations(range(6)), st.sampled_from([1, 4]))
def test_permuting_rows_permutes_and_blocks_are_slices(order, cut):
    apply_fn, params = SHARED
    x = normal(1, (6, 4))
    order = np.asarray(order)
    k = np.asarray(ntk_jax.empirical_ntk(apply_fn, params, x))
    permuted = ntk_jax.empirical_ntk(apply_fn, params, x[order])
    np.testing.assert_allclose(permuted, k[np.ix_(order, order)], rtol=1e-12, atol=1e-12)
    block = ntk_jax.empirical_ntk(apply_fn, params, x[:cut], x[cut:])
    np.testing.assert_allclose(block, k[:cut, cut:], rtol=1e-12, atol=1e-12)
    assert np.linalg.eigvalsh(k).min() > -1e-12 * k.max()


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full"])
def test_empirical_nngp_is_the_product_of_outputs(outputs, draw):
    apply_fn, params = SHARED
    x1, x2 = (draw((n, 4)) for n in (5, 3))
    forward = jax.jit(apply_fn)
    for other in (x2, None):
        f1, f2 = (
            np.asarray(forward(params, x1)),
            np.asarray(forward(params, x1 if other is None else other)),
        )
        full = np.einsum("io,jq->ijoq", f1, f2)
        diagonal = np.einsum("ijoo->ijo", full)
        expected = {"full": full, "diagonal": diagonal, "mean": diagonal.mean(axis=2)}[outputs]
        k = ntk_jax.empirical_nngp(apply_fn, params, x1, other, outputs=outputs)
        np.testing.assert_allclose(k, expected, rtol=1e-12)


def test_linearize_has_the_value_and_the_kernel_of_the_network(draw):
    apply_fn, params = SHARED
    x = draw((5, 4))
    linear = ntk_jax.linearize(apply_fn, params)
    forward, line = jax.jit(apply_fn), jax.jit(linear)
    np.testing.assert_allclose(line(params, x), forward(params, x), rtol=1e-14)
    elsewhere = jax.tree.map(lambda p: np.asarray(p) + 0.3, params)
    k = ntk_jax.empirical_ntk(apply_fn, params, x)
    for point in (params, elsewhere):
        np.testing.assert_allclose(ntk_jax.empirical_ntk(linear, point, x), k, rtol=1e-12)
    halfway = jax.tree.map(lambda p, q: (np.asarray(p) + q) / 2, params, elsewhere)
    middle = (np.asarray(line(params, x)) + line(elsewhere, x)) / 2
    np.testing.assert_allclose(line(halfway, x), middle, rtol=1e-12)
