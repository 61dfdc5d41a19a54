"""Duals of elu, selu and celu at every variance and correlation against an integral of 40 digits,
values and derivatives, and what finds them.
"""

import itertools
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mpmath import mpf

from cases import sixty_digits
from ntk_jax import infinite_width, mlp_kernels
from ntk_jax.duals import rule
from ntk_jax.duals.dual_rule import Gap
from ntk_jax.duals.exponential_linear import ExponentialLinear
from ntk_jax.duals.mills import mills
from ntk_jax.duals.scaled import Scaled

DTYPES = (np.float32, np.float64)
EPS = {dtype: float(np.finfo(dtype).eps) for dtype in DTYPES}
FUNCTIONS = {"selu": rule("selu"), "elu": rule("elu"), "celu": ExponentialLinear(3.0, 3.0, 1 / 3)}
DEVIATIONS = [(1.0, 1.0), (1.5, 0.5), (2.0**-10, 2.0**-9), (6.0, 8.0), (100.0, 40.0)]
GAPS = [2.0**-40, 2.0**-12, 0.25, -0.75, -(2.0**-12)]
CASES = [(*s, g) for s in DEVIATIONS for g in GAPS]


def beyond(mean, s):
    """Of v with that mean and deviation: P(v > 0), E[v] and E[exp(v)], the last below 0."""
    above = mpmath.erfc(-mean / s / mpmath.sqrt(2)) / 2
    decayed = mpmath.exp(mean + s**2 / 2) * mpmath.erfc((mean + s**2) / s / mpmath.sqrt(2)) / 2
    return above, mean * above + s * sixty_digits.normal_density(mean / s), decayed


@cache
def exact(name, s1, s2, gap):
    """k, k_dot and 1 less the correlation of phi, of deviations and a gap: of v given u in closed
    form, over u by panels that halve towards 0.
    """
    with mpmath.workdps(40):
        return tuple(float(v) for v in moments(name, mpf(s1), mpf(s2), mpf(gap)))


def moments(name, s1, s2, gap):
    (k, k_dot), (own1, _), (own2, _) = (
        integral(name, *of) for of in ((s1, s2, gap), (s1, s1, mpf(0)), (s2, s2, mpf(0)))
    )
    return k, k_dot, 1 - k / mpmath.sqrt(own1 * own2)


@cache
def integral(name, s1, s2, gap):
    a, c, rate = (mpf(v) for v in (FUNCTIONS[name].a, FUNCTIONS[name].c, FUNCTIONS[name].rate))
    s1, s2, rho = rate * s1, rate * s2, 1 - gap if gap >= 0 else -1 - gap
    sine = mpmath.sqrt((1 - rho) * (1 + rho))
    low = min(mpf(1), 1 / s1, 1 / s2, sine or 1, sine / s2 if sine else 1) / 8
    breaks = [mpf(0), low]
    while breaks[-1] < 14:
        breaks.append(2 * breaks[-1])
    k = k_dot = mpf(0)
    for sign in (-1, 1):
        for start, end in itertools.pairwise(breaks):
            for x, weight in sixty_digits._rule(mpmath.mp.prec):
                z = sign * ((end + start) / 2 + (end - start) / 2 * x)
                weight = weight * (end - start) / 2 * sixty_digits.normal_density(z)
                u, mean = s1 * z, s2 * rho * z
                if sine:
                    above, first, decayed = beyond(mean, s2 * sine)
                else:
                    above, first = mpf(mean > 0), max(mean, 0)
                    decayed = mpmath.exp(mean) * (mean < 0)
                value = a * first + c * (decayed - 1 + above)
                slope = a * above + c * decayed
                k += weight * value * (a * u if sign > 0 else c * mpmath.expm1(u))
                k_dot += weight * slope * (a if sign > 0 else c * mpmath.exp(u))
    return k, rate**2 * k_dot


@pytest.mark.parametrize(
    "name", ["selu", *(pytest.param(n, marks=pytest.mark.slow) for n in ("elu", "celu"))]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_known_by_their_gaps_are_exact_at_every_variance(name, dtype):
    fitted = FUNCTIONS[name].fitted(1e4, np.dtype(dtype))
    s1, s2, gap = np.array(CASES).T.astype(dtype)

    @jax.jit
    def both(q1, q2, gap):
        sides = [fitted.gap_rows(q, fitted.diagonal(q).k) for q in (q1, q2)]
        found = fitted.of_gap(Gap(gap), *sides)
        return (
            found.gaps.minus,
            found.k_dot,
            fitted.pair(sides[0], jnp.sqrt(q1 * q2) * Gap(gap).rho, sides[1]).k,
        )

    minus, k_dot, k = (np.asarray(v, float) for v in both(s1**2, s2**2, gap))
    for j, case in enumerate(zip(s1, s2, gap, strict=True)):
        values = exact(name, *(float(v) for v in case))
        norms, m = abs(values[0] / (1 - values[2])), values[2]
        largest = FUNCTIONS[name].rate ** 2 * max(FUNCTIONS[name].a, FUNCTIONS[name].c) ** 2
        # the angle of two functions is known to a rounding; that of equal ones relative to itself
        most = 40 * m if case[0] == case[1] else 8 * m**0.5 + 8 * m
        assert abs(minus[j] - m) <= most * EPS[dtype], case
        assert abs(k_dot[j] - values[1]) <= 10 * EPS[dtype] * largest, case
        assert abs(k[j] - values[0]) <= 16 * EPS[dtype] * norms, case


def jacobians(name):
    dual = FUNCTIONS[name].fitted(1e4, np.dtype(np.float64))
    of_pairs = lambda *q: jnp.stack(dual.pair(dual.rows(q[0]), q[1], dual.rows(q[2])))
    own = lambda q: jnp.stack(dual.diagonal(q))
    return jax.jit(
        lambda *q: (of_pairs(*q), jax.jacfwd(of_pairs, (0, 1, 2))(*q), jax.jacfwd(own)(q[0]))
    )


@pytest.mark.parametrize("name", ["selu", pytest.param("celu", marks=pytest.mark.slow)])
def test_derivatives_at_generic_and_degenerate_moments(name):
    jacobian = jacobians(name)
    for q11, rho, q22 in [(1.1, 0.4, 0.7), (1e-4, -0.6, 2e-4), (900.0, 0.9, 400.0)]:
        q = np.array([q11, rho * (q11 * q22) ** 0.5, q22])
        for i, found in enumerate(jacobian(*q)[1]):
            step = 1e-5 * q[i] * np.eye(3)[i]
            numeric = (jacobian(*(q + step))[0] - jacobian(*(q - step))[0]) / (2 * step[i])
            rounding = 8 * EPS[np.float64] / abs(step[i])
            np.testing.assert_allclose(found, numeric, rtol=1e-6, atol=1e-8 + rounding)
    for q in (1e-6, 0.3, 2.0, 1e3):  # along equal inputs, a pair is one input
        value, found, own = jacobian(q, q, q)
        np.testing.assert_allclose(found[1][0], value[1], rtol=1e-15)
        np.testing.assert_allclose(sum(found)[0], own[0], rtol=1e-12)
        if not FUNCTIONS[name].cusp:
            np.testing.assert_allclose(sum(found)[1], own[1], rtol=1e-9, atol=1e-13)
    for q in ((1.0, -1.0, 1.0), (1.0, 2.0, 4.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)):
        assert all(np.all(np.isfinite(d)) for d in jax.tree.leaves(jacobian(*q)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_deep_kernels_of_selu_equal_the_recursion_at_sixty_digits(dtype):
    x, w = np.random.default_rng(0).standard_normal((2, 20))
    y = np.stack([x + 1e-5 * w, -1.75 * x + 0.1 * w, w])
    x, y = x.astype(np.float32), y.astype(np.float32)
    depth, W_std, b_std = 2, 1.25, 0.25
    options = {"depth": depth, "W_std": W_std, "b_std": b_std, "activation": nn.selu}
    found = mlp_kernels(x[None].astype(dtype), y.astype(dtype), **options)
    for j, row in enumerate(y):
        exact_layers = sixty_digits.by_depth("selu", x, row, depth, W_std, b_std)
        for ours, (xx, xy, yy) in zip(found, exact_layers[depth], strict=True):
            assert abs(float(ours[0, j]) - float(xy)) <= 20 * EPS[dtype] * float(xx * yy) ** 0.5


@pytest.mark.parametrize(
    "function, expected",
    [
        (nn.elu, rule("elu")),
        (nn.celu, rule("elu")),
        (nn.selu, rule("selu")),
        (lambda u: nn.elu(u, alpha=0.5), ExponentialLinear(1.0, 0.5)),
        (lambda u: nn.celu(u, alpha=2.0), ExponentialLinear(2.0, 2.0, 0.5)),
        (lambda u: 2 * nn.elu(u), Scaled(rule("elu"), 2.0)),
    ],
)
def test_functions_are_recognized(function, expected):
    assert rule(function) == expected


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.celu(nn.Dense(8)(x), alpha=2.0))


def test_a_model_with_an_alpha_has_the_kernel_of_its_function():
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    expected = mlp_kernels(
        x, depth=1, activation=lambda u: nn.celu(u, alpha=2.0), width=8, parameterization="standard"
    )
    np.testing.assert_allclose(infinite_width(Model())(x).nngp, expected.nngp, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mills_ratio_to_a_few_roundings(dtype):
    c = np.geomspace(1e-4, 1e2, 50).astype(dtype)
    with mpmath.workdps(40):
        exact_ratio = [
            float(beyond(mpf(0), mpf(float(v)))[2] * mpmath.sqrt(2 * mpmath.pi)) for v in c
        ]
    np.testing.assert_allclose(mills(jnp.asarray(c)), exact_ratio, rtol=4 * EPS[dtype])
