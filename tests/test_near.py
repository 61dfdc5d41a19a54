"""Nearly parallel inputs of activations with a kink at 0: their kernels are exact, so that those of clusters stay definite."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from ntk_jax import mlp_kernels, mlp_kernels_by_layer

EPS = {np.float32: float(np.finfo(np.float32).eps), np.float64: float(np.finfo(np.float64).eps)}
EDGE = {
    np.float32: [1e-2, 2e-3, 1e-3, 7e-4, 3e-4, 1e-5, 1e-7, 0.0],
    np.float64: [1e-2, 1e-4, 1e-6, 6e-8, 4e-8, 3e-8, 1e-8, 0.0],
}
both_precisions = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def cluster(n, distance, dtype, d=50, seed=0):
    """Rows around one another, every third on the other side of 0."""
    x = np.random.default_rng(seed).standard_normal((n, d))
    x = x[:1] + distance * x
    x[2::3] *= -1.5
    return x.astype(dtype)


@both_precisions
@pytest.mark.parametrize("activation", ["relu", *(pytest.param(a, marks=pytest.mark.slow) for a in ("abs", "sign"))])
def test_clusters_are_positive_semidefinite_at_every_distance(dtype, activation):
    for n in (8, 64):
        for distance in EDGE[dtype]:
            x = cluster(n, distance, dtype)
            for k in mlp_kernels(x, depth=3, W_std=2**0.5, activation=activation):
                values = np.linalg.eigvalsh(np.asarray(k, np.float64))
                assert values[0] >= -EPS[dtype] * n * values[-1], (n, distance)


def relu_dual(q1, c, q2):
    """The dual of ReLU at 60 digits."""
    cosine = c / mpmath.sqrt(q1 * q2)
    angle = mpmath.acos(max(min(cosine, mpmath.mpf(1)), mpmath.mpf(-1)))
    k = mpmath.sqrt(q1 * q2) * (mpmath.sin(angle) + (mpmath.pi - angle) * cosine) / (2 * mpmath.pi)
    return k, (mpmath.pi - angle) / (2 * mpmath.pi)


def exact_kernels(x, y, depth, W_std, b_std=0.0, residual=False, layer_norm=False):
    """The recursion of `mlp_kernels`' docstring on the moments (xx, xy, yy), at 60 digits."""
    with mpmath.workdps(60):
        W, b = mpmath.mpf(W_std) ** 2, mpmath.mpf(b_std) ** 2
        rows = [[mpmath.mpf(float(v)) for v in row] for row in (x, y)]
        pairs = ((0, 0), (0, 1), (1, 1))
        K = [W * mpmath.fsum(u * v for u, v in zip(rows[i], rows[j], strict=True)) / len(x) + b for i, j in pairs]
        T = list(K)
        for layer in range(depth):
            own = [mpmath.sqrt(K[0]), mpmath.sqrt(K[2])] if layer_norm else [1, 1]
            seen = [k / own[i] / own[j] for k, (i, j) in zip(K, pairs, strict=True)]
            turned = [t / own[i] / own[j] for t, (i, j) in zip(T, pairs, strict=True)]
            duals = [(seen[0] / 2, 0.5), relu_dual(*seen), (seen[2] / 2, 0.5)]
            skip = residual and layer < depth - 1
            T = [W * k + b + W * k_dot * t + skip * old for (k, k_dot), t, old in zip(duals, turned, T, strict=True)]
            K = [W * k + b + skip * old for (k, _), old in zip(duals, K, strict=True)]
        return [float(v) for v in K], [float(v) for v in T]


OPTIONS = [
    {"W_std": 2**0.5},
    {"W_std": 1.3, "b_std": 0.5},
    {"W_std": 1.1, "b_std": 0.2, "residual": True},
    {"W_std": 1.2, "residual": True, "layer_norm": True},
]


@both_precisions
@pytest.mark.parametrize("options", OPTIONS)
def test_pairs_at_every_distance_equal_the_recursion_at_sixty_digits(dtype, options):
    x = cluster(1, 0.0, dtype, d=20)[0]
    away = np.random.default_rng(1).standard_normal(20)
    y = np.stack([s * (x + t * away) for s in (1, -1, 3) for t in EDGE[dtype]]).astype(dtype)
    depth = 4
    for row, *ours in zip(y, *(k[0] for k in mlp_kernels(x[None], y, depth=depth, **options)), strict=True):
        for k, (xx, xy, yy) in zip(ours, exact_kernels(x, row, depth, **options), strict=True):
            # an angle known to a few eps, once per layer
            assert abs(float(k) - xy) <= 8 * depth * EPS[dtype] * (xx * yy) ** 0.5


@pytest.mark.slow
@both_precisions
def test_permuted_and_cut_to_the_bit(dtype):
    x, p = cluster(300, 1e-3 if dtype == np.float32 else 5e-8, dtype), np.random.default_rng(0).permutation(300)
    whole = mlp_kernels(x, depth=2)
    for a, b in zip(whole, mlp_kernels(x[p], depth=2), strict=True):
        assert np.array_equal(np.asarray(a)[np.ix_(p, p)], np.asarray(b))
    for a, b in zip(whole, mlp_kernels(x[:150], x[150:], depth=2), strict=True):
        np.testing.assert_allclose(a[:150, 150:], b, rtol=8 * EPS[dtype])


@pytest.mark.slow
def test_differentiated_code_has_the_same_values_and_finite_derivatives():
    x = jnp.asarray(cluster(12, 1e-3, np.float32))
    k = mlp_kernels(x, depth=3, W_std=1.2, b_std=0.1)
    layers = mlp_kernels_by_layer(x, depth=3, W_std=1.2, b_std=0.1)
    primal, tangent = jax.jvp(lambda x: mlp_kernels(x, depth=3, W_std=1.2, b_std=0.1), (x,), (jnp.ones_like(x),))
    for a, every, b, d in zip(k, layers, primal, tangent, strict=True):
        np.testing.assert_allclose(every[-1], a, rtol=1e-5)
        np.testing.assert_allclose(b, a, rtol=1e-5)
        assert jnp.all(jnp.isfinite(d))
