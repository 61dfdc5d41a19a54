"""`mlp_kernels`: structure to the bit, consistency, gradients, extremes."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax import duals, kernel_diagonal, mlp_kernels, mlp_kernels_by_layer

CASES = [
    {},
    {"W_std": 2**0.5, "b_std": 0.3, "activation": "gelu"},
    {"activation": "tanh", "residual": True},
    {"activation": "erf", "layer_norm": True, "b_std": None},
    {"parameterization": "standard", "width": 100},
]


def data(n, d, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("depth", [0, 3])
def test_symmetric_and_diagonal_to_the_bit(options, depth):
    x = data(40, 5)
    out, own = mlp_kernels(x, depth=depth, **options), kernel_diagonal(x, depth=depth, **options)
    for k, diagonal in zip(out, own, strict=True):
        assert k.dtype == jnp.float32
        assert jnp.array_equal(k, k.T)
        assert jnp.array_equal(jnp.diagonal(k), diagonal)


@pytest.mark.parametrize(
    "options", [CASES[1], *(pytest.param(c, marks=pytest.mark.slow) for c in CASES[:1] + CASES[2:])]
)
def test_fast_path_equals_reference_and_blocks_equal_slices(options):
    x = data(35, 6, np.float64)
    out, layers = mlp_kernels(x, depth=3, **options), mlp_kernels_by_layer(x, depth=3, **options)
    block = mlp_kernels(x[:20], x[20:], depth=3, **options)
    for k, every, part in zip(out, layers, block, strict=True):
        np.testing.assert_allclose(k, every[-1], rtol=1e-9)
        np.testing.assert_allclose(k[:20, 20:], part, rtol=1e-9)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.sampled_from([3, 50, 300]))
def test_permuting_rows_permutes_the_kernel_to_the_bit(seed, n):
    x, p = data(n, 9, seed=seed), np.random.default_rng(seed).permutation(n)
    for a, b in zip(mlp_kernels(x, depth=2), mlp_kernels(x[p], depth=2), strict=True):
        assert np.array_equal(np.asarray(a)[np.ix_(p, p)], np.asarray(b))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["selu", "hard_swish"])
@pytest.mark.filterwarnings("ignore:mlp_kernels. the series")
def test_permuting_rows_permutes_series_of_kinked_functions_to_the_bit(activation):
    x, p = data(50, 9), np.random.default_rng(0).permutation(50)
    options = {"depth": 1, "activation": activation}
    for a, b in zip(mlp_kernels(x, **options), mlp_kernels(x[p], **options), strict=True):
        assert np.array_equal(np.asarray(a)[np.ix_(p, p)], np.asarray(b))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_positive_semidefinite(dtype):
    x = data(120, 10, dtype)
    x[60:80] = x[:20]  # duplicates
    x[80:100] = -x[:20]
    # a cluster around one of them, farther apart than the angles that count as 0, sqrt(16 eps)
    apart = 1e-8 if dtype == np.float32 else 1e-6
    x[100:] = x[0] + np.geomspace(apart, 1e-1, 20)[:, None].astype(dtype) * x[100:]
    for k in mlp_kernels(x, depth=3, W_std=2**0.5):
        values = np.linalg.eigvalsh(np.asarray(k, np.float64))
        assert values[0] >= -np.finfo(dtype).eps * len(x) * values[-1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.slow
@pytest.mark.parametrize("distance", [1e-2, 3e-4, 1e-5, 1e-7, 0.0])
def test_clusters_are_positive_semidefinite(dtype, distance):
    x = data(64, 50, np.float64)
    x = (x[:1] + distance * x).astype(dtype)
    for k in mlp_kernels(x, depth=3, W_std=2**0.5):
        values = np.linalg.eigvalsh(np.asarray(k, np.float64))
        assert values[0] >= -np.finfo(dtype).eps * len(x) * values[-1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [50, 784])
def test_equal_and_parallel_rows_have_the_kernels_of_equal_and_parallel_rows(dtype, d):
    # a product of matrices and a sum of squares round differently: the root of that is 5e-4 in
    # float32
    x = np.abs(data(40, d, dtype))
    k = mlp_kernels(np.concatenate([x, x, 3 * x]), depth=3, W_std=2**0.5)
    for kernel in map(np.asarray, k):
        own, few = np.diag(kernel)[:40], 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(np.diag(kernel[:40, 40:80]), own, rtol=few)
        np.testing.assert_allclose(np.diag(kernel[:40, 80:]), 3 * own, rtol=few)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_examples_on_a_line_without_biases_have_a_kernel_of_rank_two(dtype):
    x = np.linspace(-3, 3, 9)[:, None].astype(dtype)
    values = np.linalg.eigvalsh(np.asarray(mlp_kernels(x, depth=3, W_std=1.4).ntk, np.float64))
    assert np.all(np.abs(values[:-2]) <= np.finfo(dtype).eps * len(x) * values[-1])


@pytest.mark.slow
def test_relu_diagonal_is_exact_at_depth_1000():
    x = data(5, 7)
    k = mlp_kernels(x, depth=1000, W_std=2**0.5)
    q = np.sum(x.astype(np.float64) ** 2, axis=1) / 7 * 2
    np.testing.assert_allclose(jnp.diagonal(k.nngp), q, rtol=1e-6)
    np.testing.assert_allclose(jnp.diagonal(k.ntk), q * 1001, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_float32_relu_scales_and_follows_float64(scale):
    x = data(30, 8)
    single = mlp_kernels(x * np.float32(scale), depth=100, W_std=2**0.5)
    double = mlp_kernels((x * np.float32(scale)).astype(np.float64), depth=100, W_std=2**0.5)
    for a, b in zip(single, double, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64) / np.max(b), b / np.max(b), atol=2e-5)


@partial(jax.jit, static_argnums=(1, 2))
def recursion(k, rule, W_std, b_std, roundings):
    """The kernels from the inputs' second moments, in one scan; layer l sees covariances changed by
    `roundings[l]`.
    """
    i = jnp.arange(len(k))
    cosine_scale = lambda k: jnp.sqrt(jnp.diagonal(k))[:, None] * jnp.sqrt(jnp.diagonal(k))[None, :]
    first = W_std**2 * k + b_std**2

    def layer(kernels, rounding):
        k, theta = kernels
        k = k + rounding * cosine_scale(k)
        q = jnp.diagonal(k)
        dual = rule(q[:, None], k, q[None, :])
        k, k_dot = (m.at[i, i].set(own) for m, own in zip(dual, rule.diagonal(q), strict=True))
        k = W_std**2 * k + b_std**2
        return (k, k + W_std**2 * k_dot * theta), None

    return jax.lax.scan(layer, (first, first), roundings)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "activation, W_std, depth",
    [
        *(("relu", 2**0.5, depth) for depth in (1, 10, 100)),
        *((a, 1.3, 100) for a in ("erf", "gelu", "tanh")),
    ],
)
def test_float32_is_the_exact_kernel_of_moments_perturbed_by_rounding(activation, W_std, depth):
    x, eps = data(12, 8), float(np.finfo(np.float32).eps)
    x[4:8] = (
        x[:4] + np.float32([[1e-2], [1e-3], [1e-4], [1e-6]]) * x[4:8]
    )  # correlations close to 1 and -1, and at them
    x[8:] = x[0], -x[0], 3 * x[2], -x[1] + np.float32(1e-4) * x[9]
    moments = x.astype(float) @ x.astype(float).T / 8
    from_roundings = partial(recursion, moments, duals.rule(activation), W_std, 0.1)
    exact, spread = from_roundings(np.zeros((depth, 12, 12))), [np.zeros((12, 12))] * 2
    for seed in range(11):
        e = np.triu(np.random.default_rng(seed).uniform(-4 * eps, 4 * eps, (depth, 12, 12)))
        e[0] *= 2.5  # inner products within 8 ulps of parallel count as parallel
        if (
            seed == 10
            # each time the same way, as random roundings are not in a hundred layers: nearly
            # parallel rows stay so
        ):
            first = W_std**2 * moments + 0.1**2
            rho = first / np.sqrt(np.outer(np.diag(first), np.diag(first)))
            e = np.triu(np.where(1 - np.abs(rho) < 10 * eps, np.sign(rho), 0), 1)[None] * np.full(
                (depth, 1, 1), 4 * eps
            )
            e[0] *= 2.5
        perturbed = from_roundings(e + np.triu(e, 1).swapaxes(1, 2))
        spread = [
            np.maximum(s, np.abs(p - k)) for s, p, k in zip(spread, perturbed, exact, strict=True)
        ]
    single = mlp_kernels(x, depth=depth, activation=activation, W_std=W_std, b_std=0.1)
    for k32, k, s in zip(single, exact, spread, strict=True):
        assert np.all(np.abs(np.asarray(k32, float) - k) <= s + (2 + depth) * eps * np.max(k))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu"])
def test_float32_gradients_are_finite_at_inputs_of_1e15(activation):
    x = data(3, 4)
    y = np.stack([x[0], -x[0], 2 * x[0], 0 * x[0], x[1] + 0.1]) * np.float32(1e15)
    total = lambda y: jnp.sum(
        1e-3 * mlp_kernels(1e15 * x, y, depth=2, activation=activation, W_std=1.2).ntk
    )
    assert jnp.all(jnp.isfinite(jax.grad(total)(jnp.asarray(y))))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu", "tanh", "sign", "hard_tanh"])
@pytest.mark.parametrize("scale", [1e15, 1e-15])
@pytest.mark.filterwarnings("ignore:mlp_kernels. the series")
def test_extreme_inputs_give_finite_kernels(activation, scale):
    x = data(6, 5)
    x[1], x[2], x[3] = x[0], -x[0], 0
    for k in mlp_kernels(x * np.float32(scale), depth=2, activation=activation):
        assert np.all(np.isfinite(k))


def test_overflow_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="overflow at depth 300"):
        mlp_kernels(data(3, 4), depth=300, W_std=3.0)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_gradients(activation):
    x = data(3, 4, np.float64)
    y = np.stack([x[0], -x[0], 2 * x[0], 0 * x[0], x[1] + 0.1])
    weights = np.arange(1.0, 16.0).reshape(3, 5)

    def f(y, W, b):
        k = mlp_kernels(x, y, depth=2, activation=activation, W_std=W, b_std=b)
        return jnp.sum((k.nngp + k.ntk) * weights)

    both = jax.jit(
        jax.value_and_grad(f, (0, 1, 2))
    )  # one program: compiling takes nearly all of the time
    dy, dW, db = both(y, 1.2, 0.3)[1]
    assert jnp.all(jnp.isfinite(dy))
    h, fast = 1e-5, lambda *at: both(*at)[0]
    e = np.zeros_like(y)
    e[4, 2] = h
    numeric = [
        fast(y + e, 1.2, 0.3) - fast(y - e, 1.2, 0.3),
        fast(y, 1.2 + h, 0.3) - fast(y, 1.2 - h, 0.3),
    ]
    numeric.append(fast(y, 1.2, 0.3 + h) - fast(y, 1.2, 0.3 - h))
    np.testing.assert_allclose([dy[4, 2], dW, db], np.array(numeric) / (2 * h), rtol=2e-5)


@pytest.mark.slow
def test_second_derivatives_are_finite_at_identical_rows():
    x = data(3, 4, np.float64)
    hessian = jax.jit(
        jax.hessian(lambda y: jnp.sum(mlp_kernels(x, y, depth=2, W_std=1.2, b_std=0.3).nngp))
    )
    for y in (x[:1], -x[:1], 2 * x[:1], 0 * x[:1]):
        assert jnp.all(jnp.isfinite(hessian(y)))


def test_four_nested_derivatives_are_those_of_the_recursion_at_forty_digits():
    # the kernel of a second derivative with itself, as physics-informed networks use it: it used to
    # compile for minutes
    W, b, x, y = 1.5**2, 0.1**2, 0.7, -0.4

    def ntk(x, y):
        K = [W * u * v + b for u, v in ((x, x), (x, y), (y, y))]
        T = K[1]
        for _ in range(2):
            scales = [1 + 2 * K[0], 1 + 2 * K[2]]
            k_dot = 4 / mpmath.pi / mpmath.sqrt(scales[0] * scales[1] - 4 * K[1] ** 2)
            pairs = (
                (K[0], scales[0]),
                (K[1], mpmath.sqrt(scales[0] * scales[1])),
                (K[2], scales[1]),
            )
            K = [W * 2 / mpmath.pi * mpmath.asin(2 * q / scale) + b for q, scale in pairs]
            T = K[1] + W * k_dot * T
        return T

    def ours(x, y):
        return mlp_kernels(
            x.reshape(1, 1), y.reshape(1, 1), depth=2, activation="erf", W_std=1.5, b_std=0.1
        ).ntk[0, 0]

    K_rr = jax.jit(jax.hessian(jax.hessian(ours, 0), 1))
    with mpmath.workdps(40):
        exact = float(mpmath.diff(ntk, (mpmath.mpf(x), mpmath.mpf(y)), (2, 2)))
    np.testing.assert_allclose(K_rr(jnp.asarray(x), jnp.asarray(y)), exact, rtol=1e-10)


@pytest.mark.parametrize("trainable_from", [1, 3])
@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_frozen_layers_add_nothing_to_the_tangent_kernel(trainable_from, parameterization):
    x = np.random.default_rng(0).standard_normal((7, 4))
    scales = {"W_std": [1.1, 0.9, 1.4, 1.2], "b_std": 0.3, "parameterization": parameterization}
    width = 50 if parameterization == "standard" else None
    k = mlp_kernels(x, depth=3, **scales, width=width, trainable_from=trainable_from)
    own = kernel_diagonal(x, depth=3, **scales, width=width, trainable_from=trainable_from)
    np.testing.assert_allclose(own.ntk, np.diagonal(k.ntk), rtol=1e-13)
    # by definition: the sum over trained layers of what each adds, turned by the layers after it
    q, theta = x @ x.T / 4, np.zeros((7, 7))
    for layer, W in enumerate(scales["W_std"]):
        s = np.sqrt(np.outer(np.diagonal(q), np.diagonal(q)))
        angle = np.arccos(np.clip(q / s, -1, 1))
        k_dot = (np.pi - angle) / (2 * np.pi)
        active = s * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
        active, k_dot = (q, 1.0) if layer == 0 else (active, k_dot)
        added = (4 if layer == 0 else 50) * active + 1
        added = W**2 * active + 0.09 if parameterization == "ntk" else added
        theta = W**2 * k_dot * theta + (layer >= trainable_from) * added
        q = W**2 * active + 0.09
    np.testing.assert_allclose(k.nngp, q, rtol=1e-7)  # arccos loses half of the digits near 1
    np.testing.assert_allclose(k.ntk, theta, rtol=1e-7)


def test_which_layers_are_trained_is_checked():
    with pytest.raises(ValueError, match="trainable_from"):
        mlp_kernels(np.eye(2), depth=2, trainable_from=3)
