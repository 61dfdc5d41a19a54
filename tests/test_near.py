"""Nearly parallel inputs of activations with kinks: their kernels are exact, so that those of
clusters stay definite.
"""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.special import ndtr

from cases.compilations import optimized
from cases.sixty_digits import dual, normal_density
from ntk_jax import memory, mlp_kernels, mlp_kernels_by_layer, small_programs
from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.duals.dual_rule import PoleGaps
from ntk_jax.duals.hermite_series.nearly_parallel import pole_gaps
from ntk_jax.duals.kinks.half_gaussian import MixedOrders
from ntk_jax.duals.kinks.near_pole import PoleDeficit
from ntk_jax.duals.kinks.orthant import threshold
from ntk_jax.infinite.mlp import tiles
from ntk_jax.infinite.mlp.kernels import _DEFAULTS, _network
from ntk_jax.infinite.mlp.layers import Architecture
from ntk_jax.types import BOTH

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


DTYPES = (np.float32, np.float64)
KINKS = [
    (a, dtype)
    for a in ("abs", "sign", "relu6", "hard_sigmoid", "hard_swish", "selu")
    for dtype in DTYPES
]


@pytest.mark.parametrize(
    "activation, dtype",
    [
        *((activation, dtype) for activation in ("relu", "hard_tanh") for dtype in DTYPES),
        *KINKS,
    ],
)
def test_clusters_are_positive_semidefinite_at_every_distance(activation, dtype):
    for distance in EDGE[dtype]:
        for k in mlp_kernels(
            cluster(64, distance, dtype), depth=3, W_std=2**0.5, activation=activation
        ):
            for n in (8, 24, 64):  # blocks are the kernels of fewer rows
                values = np.linalg.eigvalsh(np.asarray(k, np.float64)[:n, :n])
                assert values[0] >= -EPS[dtype] * n * values[-1], (n, distance)


def relu_dual(q1, c, q2):
    """The dual of ReLU at 60 digits."""
    cosine = c / mpmath.sqrt(q1 * q2)
    angle = mpmath.acos(max(min(cosine, mpmath.mpf(1)), mpmath.mpf(-1)))
    k = mpmath.sqrt(q1 * q2) * (mpmath.sin(angle) + (mpmath.pi - angle) * cosine) / (2 * mpmath.pi)
    return k, (mpmath.pi - angle) / (2 * mpmath.pi)


def mean_beyond(order, x):
    """E[relu(z - x)^order] / order! of a standard normal z."""
    before, mean = normal_density(x), mpmath.erfc(x / mpmath.sqrt(2)) / 2
    for n in range(1, order + 1):
        before, mean = mean, (before - x * mean) / n
    return mean


def around(centres, width, low, high):
    """Where to break an integral of something that varies within `width` of the centres."""
    near = {c + k * width for c in centres for k in (-12, -6, -2, 0, 2, 6, 12)}
    return sorted(
        {
            low,
            *(b for b in near if low < b < high),
            *(b for b in range(-12, 13, 3) if low < b < high),
            high,
        }
    )


def exact_kernels(
    x,
    y,
    depth,
    W_std,
    b_std=0.0,
    residual=False,
    layer_norm=False,
    dual=relu_dual,
    digits=60,
    rounded=True,
):
    """The recursion of `mlp_kernels`' docstring on the moments (xx, xy, yy), at 60 digits."""
    with mpmath.workdps(digits):
        W, b = mpmath.mpf(W_std) ** 2, mpmath.mpf(b_std) ** 2
        rows = [
            [v if isinstance(v, mpmath.mpf) else mpmath.mpf(float(v)) for v in row]
            for row in (x, y)
        ]
        pairs = ((0, 0), (0, 1), (1, 1))
        K = [
            W * mpmath.fsum(u * v for u, v in zip(rows[i], rows[j], strict=True)) / len(x) + b
            for i, j in pairs
        ]
        T = list(K)
        for layer in range(depth):
            own = [mpmath.sqrt(K[0]), mpmath.sqrt(K[2])] if layer_norm else [1, 1]
            seen = [k / own[i] / own[j] for k, (i, j) in zip(K, pairs, strict=True)]
            turned = [t / own[i] / own[j] for t, (i, j) in zip(T, pairs, strict=True)]
            duals = [dual(seen[0], seen[0], seen[0]), dual(*seen), dual(seen[2], seen[2], seen[2])]
            skip = residual and layer < depth - 1
            T = [
                W * k + b + W * k_dot * t + skip * old
                for (k, k_dot), t, old in zip(duals, turned, T, strict=True)
            ]
            K = [W * k + b + skip * old for (k, _), old in zip(duals, K, strict=True)]
        return ([float(v) for v in K], [float(v) for v in T]) if rounded else (K, T)


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
    for row, *ours in zip(
        y, *(k[0] for k in mlp_kernels(x[None], y, depth=depth, **options)), strict=True
    ):
        for k, (xx, xy, yy) in zip(ours, exact_kernels(x, row, depth, **options), strict=True):
            # an angle known to a few eps, once per layer
            assert abs(float(k) - xy) <= 8 * depth * EPS[dtype] * (xx * yy) ** 0.5


@both_precisions
@pytest.mark.parametrize("depth", [12, 30])
def test_pairs_that_ordered_layers_bring_together_equal_the_recursion_at_sixty_digits(dtype, depth):
    x = np.random.default_rng(0).standard_normal((24, 10)).astype(dtype)
    x[1] = x[0] + dtype(1e-3) * x[2]  # one pair is near from the start
    options = {"W_std": 0.8, "b_std": 1.0}
    k = mlp_kernels(x, depth=depth, **options)
    assert float(jnp.min(k.nngp[0] ** 2 / (k.nngp[0, 0] * jnp.diag(k.nngp)))) > 1 - 2.0**-13
    for j in range(1, 6):
        for ours, (xx, xy, yy) in zip(k, exact_kernels(x[0], x[j], depth, **options), strict=True):
            assert (
                abs(float(ours[0, j]) - xy) <= 8 * EPS[dtype] * (xx * yy) ** 0.5
            )  # earlier layers' errors contract
    for ours in k:
        values = np.linalg.eigvalsh(np.asarray(ours, np.float64))
        assert values[0] >= -EPS[dtype] * len(x) * values[-1]


@both_precisions
def test_features_of_small_and_large_kernels_are_compared_alike(dtype, monkeypatch):
    """Small ones in one sum over features, others in blocks of these: with a rest, here."""
    x = cluster(9, 1e-4, dtype, d=37)
    found = mlp_kernels(x, depth=2, W_std=1.3, b_std=0.4)
    monkeypatch.setattr(small_programs, "LARGEST", 0)
    jax.clear_caches()
    for k, in_blocks in zip(found, mlp_kernels(x, depth=2, W_std=1.3, b_std=0.4), strict=True):
        np.testing.assert_allclose(k, in_blocks, rtol=8 * EPS[dtype])


@pytest.mark.slow
@both_precisions
def test_hard_tanh_of_nearly_parallel_pairs_equals_the_recursion_at_sixty_digits(dtype):
    x = cluster(1, 0.0, dtype, d=20)[0]
    away, distances = np.random.default_rng(1).standard_normal(20), EDGE[dtype][:7:2]
    y = np.stack([s * (x + t * away) for s in (1, -2) for t in distances]).astype(dtype)
    ours = [
        k[0] for k in mlp_kernels(x[None], y, depth=2, W_std=1.3, b_std=0.3, activation="hard_tanh")
    ]
    once = cache(partial(dual, "hard_tanh"))  # of x and itself, and of rows of equal length
    for i, row in enumerate(y):
        exact = exact_kernels(x, row, 2, 1.3, 0.3, dual=once)
        for k, (xx, xy, yy) in zip(ours, exact, strict=True):
            assert abs(float(k[i]) - xy) <= 40 * EPS[dtype] * (xx * yy) ** 0.5


KINKED = json.loads((Path(__file__).parent / "references" / "kinked_duals.json").read_text())


@pytest.mark.parametrize("activation", KINKED)
def test_duals_at_sixty_digits_are_those_of_another_integral(activation):
    for q11, q12, q22, *expected in KINKED[activation][:7]:
        with mpmath.workdps(60):
            found = dual(activation, *map(mpmath.mpf, (q11, q12, q22)))
        np.testing.assert_allclose(np.array(found, float), expected, rtol=4e-16)


@pytest.mark.parametrize("rho", ["0.3", "-0.8", "0.99"])
def test_duals_at_sixty_digits_of_relu_and_selu_are_formula_and_integral(rho):
    with mpmath.workdps(60):
        q11, q22 = mpmath.mpf("1.3"), mpmath.mpf("0.6")
        s1, s2, rho = mpmath.sqrt(q11), mpmath.sqrt(q22), mpmath.mpf(rho)
        moments = q11, rho * s1 * s2, q22
        for a, b in zip(dual("relu", *moments), relu_dual(*moments), strict=True):
            assert abs(a - b) < 1e-58
        found = [float(k) for k in dual("selu", *moments)]
    np.testing.assert_allclose(found, selu_by_quadrature(s1, s2, rho), rtol=1e-12)


def selu_by_quadrature(s1, s2, rho):
    """k and k_dot: of v given u in closed form, over u by Gauss and Legendre."""
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    s1, s2, rho = map(float, (s1, s2, rho))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    total = np.zeros(2)
    sine = s2 * np.sqrt(1 - rho**2)
    for low, high, value, slope in (
        (-12, 0, lambda u: scale * alpha * np.expm1(u), lambda u: scale * alpha * np.exp(u)),
        (0, 12, lambda u: scale * u, lambda u: scale + 0 * u),
    ):
        z = (high + low) / 2 + 6 * nodes
        w = 6 * weights * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
        mean = s2 * rho * z
        above, density = ndtr(mean / sine), np.exp(-((mean / sine) ** 2) / 2) / np.sqrt(2 * np.pi)
        decayed = np.exp(mean + sine**2 / 2) * ndtr(-(mean + sine**2) / sine)
        first = mean * above + sine * density
        given = scale * first + scale * alpha * (decayed - 1 + above)
        given_slope = scale * above + scale * alpha * decayed
        total += [np.sum(w * value(s1 * z) * given), np.sum(w * slope(s1 * z) * given_slope)]
    return total


ORDERS = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (0, 3), (3, 2)]


@jax.jit
def lacking_of(u, *thresholds):
    ours = PoleDeficit(MixedOrders(1 - u, *(threshold(t) for t in thresholds), pole_gap=u), u)
    return [ours(p, q) for p, q in ORDERS]


@pytest.mark.slow
def test_what_moments_lack_of_the_pole_is_known_to_a_rounding_of_the_angle():
    lacks = np.array([6e-5, 1e-9])
    angles = (2 * lacks) ** 0.5
    first, second = np.array([(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 1.5)]).T[
        :, :, None
    ] + np.zeros((2, 4, 2))
    first[2] += 3 * angles
    second[1] += angles / 2
    u = jnp.asarray(np.tile(lacks, (4, 1)))
    for (p, q), kinked, plain in zip(
        ORDERS, lacking_of(u, first, second), lacking_of(u[0]), strict=True
    ):
        for j, lack in enumerate(lacks):
            for ours, a, b in zip(
                [*kinked[:, j], plain[j]], [*first[:, j], 0.0], [*second[:, j], 0.0], strict=True
            ):
                assert (
                    abs(float(ours) - lacking(p, q, a, b, lack)) <= 4 * EPS[np.float64] * angles[j]
                ), (a, b, p, q)


def lacking(p, q, a, b, lack):
    """E[relu(z - a)^p relu(z - b)^q] / (p! q!) less E[relu(u - a)^p relu(v - b)^q] / (p! q!), at 40
    digits.
    """
    with mpmath.workdps(40):
        a, b, cosine = mpmath.mpf(a), mpmath.mpf(b), 1 - mpmath.mpf(lack)
        sine, scale = mpmath.sqrt(1 - cosine**2), mpmath.sqrt(2 * mpmath.pi) * mpmath.factorial(q)
        seen = lambda y: mpmath.exp(-y * y / 2) * (y - b) ** q
        same = lambda y: seen(y) * (y - a) ** p
        apart = lambda y: seen(y) * mean_beyond(p, (a - cosine * y) / sine)
        integral = partial(mpmath.quad, method="gauss-legendre")  # smooth between the breaks
        whole = integral(same, around([], 1, max(a, b), 14)) / mpmath.factorial(p)
        beyond = integral(apart, around([a, b], sine, b, mpmath.mpf(14))) * sine**p
        return float((whole - beyond) / scale)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu6", "hard_swish"])
def test_gaps_say_the_same_as_the_dual_where_that_is_exact_too(activation):
    rule = dual_rule(activation).fitted(9.0, jnp.dtype(jnp.float64))
    q1, q2 = jnp.repeat(jnp.asarray([[1.0, 1.0, 9.0], [1.0, 1.3, 4.0]]), 5, axis=1)
    cosine = jnp.tile(jnp.asarray([0.99, 0.5, 0.0, -0.5, -0.99]), 3)

    @jax.jit
    def both():
        dual = rule.pair(rule.rows(q1), cosine * jnp.sqrt(q1 * q2), rule.rows(q2))
        gap = PoleGaps(1 - cosine, 1 + cosine).nearer
        sides = [rule.gap_rows(q, rule.diagonal(q).k) for q in (q1, q2)]
        near, by_gap = pole_gaps(rule.kinks, gap, *sides), rule.of_gap(gap, *sides)
        return dual, near, by_gap, dual.k / jnp.sqrt(rule.diagonal(q1).k * rule.diagonal(q2).k)

    dual, near, by_gap, rho = both()
    np.testing.assert_allclose(near, (1 - rho, 1 + rho), atol=1e-13)
    np.testing.assert_allclose(by_gap.gaps, (1 - rho, 1 + rho), atol=1e-13)
    np.testing.assert_allclose(by_gap.correlation, rho, atol=1e-13)
    np.testing.assert_allclose(by_gap.k_dot, dual.k_dot, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@both_precisions
def test_permuted_and_cut_to_the_bit(dtype):
    x, p = (
        cluster(300, 1e-3 if dtype == np.float32 else 5e-8, dtype),
        np.random.default_rng(0).permutation(300),
    )
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
    primal, tangent = jax.jvp(
        lambda x: mlp_kernels(x, depth=3, W_std=1.2, b_std=0.1), (x,), (jnp.ones_like(x),)
    )
    for a, every, b, d in zip(k, layers, primal, tangent, strict=True):
        np.testing.assert_allclose(every[-1], a, rtol=1e-5)
        np.testing.assert_allclose(b, a, rtol=1e-5)
        assert jnp.all(jnp.isfinite(d))


def moderate_and_near(dtype):
    """An example, and others at every distance from it and from its mirror image."""
    x, away = np.random.default_rng(0).standard_normal((2, 20))
    away -= x * (away @ x) / (x @ x)
    angles = [0.0, 1e-8, 1e-6, 1e-4, 1e-3, 5e-3, 0.02, 0.05, 0.1, 0.5, np.pi / 2]
    y = [s * (np.cos(a) * x + np.sin(a) * away) for s in (1, -1, 1.7) for a in angles]
    return x.astype(dtype), np.array(y, dtype)


@both_precisions
@pytest.mark.parametrize("depth", [3, 30])
@pytest.mark.parametrize("b_std", [0.0, 0.1])
def test_at_moderate_distances_too_an_angle_is_known_to_its_rounding(dtype, depth, b_std):
    x, y = moderate_and_near(dtype)
    options = {"W_std": 2**0.5, "b_std": b_std}
    k = mlp_kernels(x[None], y, depth=depth, **options)
    for j, row in enumerate(y):
        exact = exact_kernels(x, row, depth, **options)
        # some roundings per layer; above `NEAR`, products leave the eps of a gap that 1/64 divides
        for ours, (xx, xy, yy), most in zip(k, exact, (4 + depth, 50 + 4 * depth), strict=True):
            assert abs(float(ours[0, j]) - xy) <= most * EPS[dtype] * (xx * yy) ** 0.5


@pytest.mark.parametrize("activation", ["relu", "sign", "hard_tanh", "tanh"])
def test_blocks_of_accelerators_are_the_tiles_of_a_cpu(activation):
    x = cluster(40, 0.5, np.float64, d=6)
    x[3], x[4], x[6] = x[0], -x[1], 0
    x[7] = x[8] + 1e-7 * x[9]
    options = {"depth": 2, "W_std": 1.3, "b_std": 0.2, "activation": activation}
    whole = mlp_kernels(x, **options)
    network, known, _ = _network(x, None, **{**_DEFAULTS, **options})
    compiled = jax.jit(tiles.in_blocks, static_argnums=(3, 5, 6))
    for rows in (8192, 16):  # in one block, in nine of which six are computed
        with optimized(True):  # symmetric to the bit, as all entries go through the same code
            blocks = compiled(*network[:4], known, BOTH, rows)
        for a, b in zip(whole, blocks, strict=True):
            b = np.asarray(b)[:40, :40]
            assert np.array_equal(b, b.T)
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)


def test_blocks_of_accelerators_are_sized_by_their_memory(monkeypatch):
    """The memory is made up; 50,000 rows are two results, their cropped copies, and one block."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    relu, hard_tanh, found = (*(Architecture(dual_rule(a)) for a in ("relu", "hard_tanh")), {})
    for free in (2**30, 2**34, 60 * 2**30):
        monkeypatch.setattr(memory, "free_bytes", lambda free=free: free)
        found[free] = rows = tiles.block_rows(relu, np.float32)
        assert rows**2 == pytest.approx(2 * tiles.block_rows(relu, np.float64) ** 2, rel=1e-3)
        assert tiles.LIVE * 4 * rows**2 <= free / 4
        assert tiles.LIVE_NEAR * 4 * tiles.block_rows(hard_tanh, np.float32) ** 2 <= free / 4
    assert found[2**34] == 8192
    n, most = 50_000, found[60 * 2**30]
    blocks = -(-n // most)
    padded = blocks * -(-n // blocks)
    assert 4 * (2 * n**2 + 2 * padded**2 + tiles.LIVE * most**2) < 60 * 2**30
