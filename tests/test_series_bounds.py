"""Functions without a closed form that grow, oscillate or jump: a value within the bound, or an
error; families that have one.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from ntk_jax import duals, mlp_kernels
from ntk_jax.duals.hermite_series.series import Series

F64 = jnp.dtype("float64")


def cos_of_squares(q, rho):
    """E[exp(i (a u² + b v²))] is D^(-1/2), D = det(I - 2 i Sigma diag(a, b)); k_dot is the
    derivative of k by q12 (Price).
    """
    c, pairs = rho * q, ((1j, 1j), (1j, -1j))
    D = [(1 - 2 * a * q) * (1 - 2 * b * q) - 4 * a * b * c * c for a, b in pairs]
    k = sum(d**-0.5 for d in D)
    k_dot = sum(4 * a * b * c * d**-1.5 for d, (a, b) in zip(D, pairs, strict=True))
    return float(np.real(k)) / 2, float(np.real(k_dot)) / 2


def exp_and_identity(q, rho, b=0.5):
    e = np.exp(b * b * q * (1 + rho))
    return e + 2 * b * rho * q * np.exp(b * b * q / 2) + rho * q, b * b * e + 2 * b * np.exp(
        b * b * q / 2
    ) + 1


def growing_square(q, rho, a=0.1):
    D = (1 - 2 * a * q) ** 2 - (2 * a * rho * q) ** 2
    return D**-0.5, 4 * a * a * rho * q * D**-1.5


def seventh_power(q, rho):
    z, w = np.polynomial.hermite_e.hermegauss(20)
    w = w / w.sum()
    u, v = np.sqrt(q) * z[:, None], np.sqrt(q) * (rho * z[:, None] + np.sqrt(1 - rho * rho) * z)
    return float(w @ (u**7 * v**7) @ w), float(w @ (49 * u**6 * v**6) @ w)


def fast_and_slow(q, rho):
    together, apart, cross = (
        np.exp(-2500 * q * (1 + rho)),
        np.exp(-2500 * q * (1 - rho)),
        np.exp(-1250 * q),
    )
    k = (apart - together) / 2 + 0.01 * rho * q + 2 * 0.1 * 50 * rho * q * cross
    return k, 1250 * (apart + together) + 0.01 + 2 * 0.1 * 50 * cross


def with_jumps(base, positions, jumps):
    """E[f(u) f(v)] of a step function: E[f(v) | u] is a sum of normal distribution functions."""

    def moments(q, rho):
        s, (x, w) = np.sqrt(q), np.polynomial.legendre.leggauss(40)
        ends = np.concatenate([[-9 * s], positions[abs(positions) < 9 * s], [9 * s]])
        half = np.diff(ends)[:, None] / 2
        u = ends[:-1, None] + half * (1 + x)
        f = base + np.sum(jumps * (u[..., None] > positions), axis=-1)
        mean = base + np.sum(
            jumps * ndtr((rho * u[..., None] - positions) / (s * np.sqrt(1 - rho * rho))), axis=-1
        )
        return float(
            np.sum(half * w * np.exp(-u * u / (2 * q)) / np.sqrt(2 * np.pi * q) * f * mean)
        ), 0.0

    return moments


SQUARE_WAVE = np.arange(-300, 301) * np.pi / 10
STEPS = np.arange(-200.0, 201.0)
TRUTHS = {
    "sinh": (jnp.sinh, lambda q, r: (np.exp(q) * np.sinh(r * q), np.exp(q) * np.cosh(r * q))),
    "cosh": (jnp.cosh, lambda q, r: (np.exp(q) * np.cosh(r * q), np.exp(q) * np.sinh(r * q))),
    "exp and identity": (lambda u: jnp.exp(0.5 * u) + u, exp_and_identity),
    "seventh power": (lambda u: u**7, seventh_power),
    "growing square": (lambda u: jnp.exp(0.1 * u * u), growing_square),
    "fast and slow": (lambda u: jnp.sin(50 * u) + 0.1 * u, fast_and_slow),
    "cos of the square": (lambda u: jnp.cos(u * u), cos_of_squares),
    "floor": (jnp.floor, with_jumps(-201.0, STEPS, np.ones(401))),
    "square wave": (
        lambda u: jnp.sign(jnp.sin(10 * u)),
        with_jumps(-1.0, SQUARE_WAVE, 2.0 * (-1.0) ** np.arange(601)),
    ),
}
VARIANCES = (0.04, 1.0, 4.0, 16.0, 400.0)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_value_is_within_its_bound_or_is_refused(name):
    phi, truth = TRUTHS[name]
    rule, kept = duals.series(phi), 0
    for q in VARIANCES:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                dual = rule(q, q * np.array([-0.9, 0.3, 0.999]), q)
            except ValueError as error:
                assert "expected a" in str(error) and "nan" not in str(error)
                continue
        kept += 1
        exact = np.array([truth(q, rho) for rho in (-0.9, 0.3, 0.999)])
        bound = rule.fitted(q, F64).bound(q, q)
        for value, right, most, own in zip(
            dual, exact.T, bound, rule.fitted(q, F64).diagonal(jnp.asarray(q)), strict=True
        ):
            error = np.max(np.abs(value - right))
            assert error <= most + 1e-12 * own, (q, error, most)
            if not warned:
                assert error <= (1e-6 if rule.kinks else 1e-9) * own, (q, error, own)
    assert kept >= 2


def test_the_named_numbers():
    phi = lambda u: jnp.exp(0.5 * u)
    np.testing.assert_allclose(duals.rule(phi)(400.0, 400.0, 400.0).k, np.exp(200.0), rtol=1e-12)
    np.testing.assert_allclose(
        duals.series(phi)(400.0, 400.0, 400.0).k, np.exp(200.0), rtol=1e-10
    )  # nodes go far out
    x = 20 * jnp.eye(2)
    np.testing.assert_allclose(
        mlp_kernels(x, depth=1, activation=phi, W_std=2**0.5).nngp[0, 0],
        2 * np.exp(200.0),
        rtol=1e-12,
    )


def test_bounds_hold_at_unequal_variances():
    rule = duals.Series(jnp.tanh, terms=16)
    q11, q22 = np.array([[0.5], [4.0]]), np.array([1.0, 9.0])
    bound = rule.bound(q11, q22)
    for rho in (0.97, -0.6):
        c = rho * np.sqrt(q11 * q22)
        for a, b, most in zip(rule(q11, c, q22), duals.tanh(q11, c, q22), bound, strict=True):
            assert np.all(np.abs(a - b) <= most) and np.max(np.abs(a - b)) > 1e-9
    with pytest.raises(ValueError, match="bound: expected variances that are known"):
        jax.jit(rule.bound)(1.0, 1.0)


NO_MOMENT = {
    "log": (jnp.log, r"number on the whole real line; .* is NaN at u = -4.*log\(1 \+ \|u\|\)"),
    "1 / u": (lambda u: 1 / u, r"finite E\[phi\(u\)²\] at variance 1; that of .* is infinite"),
    "exp(u²)": (
        lambda u: jnp.exp(u * u),
        r"finite E\[phi\(u\)²\] at variance 1; that of .* is infinite",
    ),
    "exp(u⁴ / 1000)": (lambda u: jnp.exp(u**4 / 1000), r"finite E\[phi\(u\)²\] at variance 1"),
    "sqrt|u|": (
        lambda u: jnp.sqrt(jnp.abs(u)),
        r"finite E\[phi'\(u\)²\] at variance 1; that of .* is infinite",
    ),
    "tan": (jnp.tan, r"expected a function that varies little"),
    "1 / (u - 1)": (lambda u: 1 / (u - 1.01), r"expected a function that varies little"),
}


@pytest.mark.parametrize("name", NO_MOMENT)
def test_what_has_no_moments_is_refused(name):
    phi, message = NO_MOMENT[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        duals.series(phi)(1.0, 0.5, 1.0)


MIXING = {
    "softmax": jax.nn.softmax,
    "norm": lambda u: u / jnp.linalg.norm(u),
    "sort": jnp.sort,
    "cumsum": jnp.cumsum,
    "reversed": lambda u: u[::-1],
    "batch norm": lambda u: (u - jnp.mean(u)) / jnp.std(u),
    "maxout": lambda u: jnp.maximum(u, jnp.roll(u, 1)),
    "dropout": lambda u: u * jax.random.bernoulli(jax.random.key(0), 0.5, u.shape).astype(u.dtype),
}


@pytest.mark.parametrize("name", MIXING)
def test_functions_that_mix_units_are_refused(name):
    for call in (duals.rule, duals.series, lambda f: mlp_kernels(np.eye(2), depth=1, activation=f)):
        with pytest.raises(
            ValueError,
            match="activation: expected a function applied element by element; the value of",
        ):
            call(MIXING[name])


def test_a_constant_is_its_own_dual():
    constant = lambda u: jnp.full_like(u, -3.0)
    for rule in (duals.rule(constant), duals.series(constant)):
        for q in (1.0, 400.0):
            np.testing.assert_allclose(np.stack(rule(q, 0.5, q)), [9.0, 0.0], rtol=1e-12)


def test_where_a_function_jumps_the_slope_is_that_of_a_network():
    # phi' = 1 almost everywhere; E[phi(u) phi(v)] has the arcsine of the jump and its covariance
    # with the line
    rule = duals.series(lambda u: jnp.where(u > 0, u + 1, u))
    for rho in (0.9, 0.999999, 1.0):
        step = 0.25 + np.arcsin(rho) / (2 * np.pi)
        np.testing.assert_allclose(
            rule(4.0, 4 * rho, 4.0),
            (4 * rho + step + 4 * rho / (2 * np.pi) ** 0.5, 1.0),
            rtol=1e-12,
        )


FAMILIES = {
    "exp": (lambda u: -3 * jnp.exp(0.7 * u), lambda q, c: 9 * np.exp(0.49 * (q + c))),
    "falling exp": (lambda u: jnp.exp(2 - u / 3), lambda q, c: np.exp(4 + (q + c) / 9)),
    "sin": (
        lambda u: jnp.sin(50 * u),
        lambda q, c: (np.exp(2500 * (c - q)) - np.exp(-2500 * (c + q))) / 2,
    ),
    "slow sin": (
        lambda u: 2 * jnp.sin(0.01 * u + 0.3),
        lambda q, c: 2 * (np.exp(-1e-4 * (q - c)) - np.cos(0.6) * np.exp(-1e-4 * (q + c))),
    ),
    "cos": (
        lambda u: 0.5 * jnp.cos(jnp.pi * u),
        lambda q, c: np.exp(-(np.pi**2) * q) * np.cosh(np.pi**2 * c) / 4,
    ),
    "bump": (
        lambda u: 4 * jnp.exp(-u * u / 7),
        lambda q, c: 16 * ((1 + 2 * q / 7) ** 2 - (2 * c / 7) ** 2) ** -0.5,
    ),
    "bowl": (
        lambda u: jnp.exp(0.15 * u * u),
        lambda q, c: ((1 - 0.3 * q) ** 2 - (0.3 * c) ** 2) ** -0.5,
    ),
    "cubic": (
        lambda u: 1 - u + 0.3 * u**3,
        lambda q, c: 1 + c - 0.6 * 3 * q * c + 0.09 * (9 * q * q * c + 6 * c**3),
    ),
    "line": (lambda u: 2 * u + 5, lambda q, c: 4 * c + 25),
    "step": (
        lambda u: jnp.where(u > 0, 4.0, -1.0),
        lambda q, c: 2.25 + 6.25 * 2 / np.pi * np.arcsin(c / q),
    ),
    "scaled erf": (
        lambda u: 0.3 * jax.scipy.special.erf(u),
        lambda q, c: 0.09 * 2 / np.pi * np.arcsin(2 * c / (1 + 2 * q)),
    ),
    "square": (
        lambda u: -2 * jnp.maximum(u, 0) ** 2,
        lambda q, c: 4 * duals.rectified_monomial(q, c, q, order=2).k,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_found_with_any_constants(name):
    phi, k = FAMILIES[name]
    rule = duals.rule(phi)
    assert not isinstance(rule, Series)
    for q, c in ((0.9, 0.4), (0.9, -0.9), (1.5, 0.7)):
        dual = rule(q, c, q)
        np.testing.assert_allclose(dual.k, k(q, c), rtol=1e-11, atol=1e-14)
        h = 1e-4
        if abs(c) < q:  # Price
            numeric = (k(q, c - 2 * h) - 8 * k(q, c - h) + 8 * k(q, c + h) - k(q, c + 2 * h)) / (
                12 * h
            )
            np.testing.assert_allclose(
                dual.k_dot, 0.0 if name == "step" else numeric, rtol=1e-7, atol=1e-9
            )


def test_a_bowl_without_moment_is_infinite():
    rule = duals.rule(lambda u: jnp.exp(0.15 * u * u))
    assert np.all(np.isinf(np.stack(rule(2.0, 2.0, 2.0)))) and np.all(
        np.isfinite(np.stack(rule(2.0, 1.0, 2.0)))
    )


def test_what_only_looks_like_a_member_is_not_taken_for_one():
    for phi in (
        lambda u: jnp.exp(0.5 * u) + 1e-6 * u,
        lambda u: jnp.sin(jnp.clip(3 * u, -40, 40)),
        lambda u: jnp.where(jnp.abs(u) < 5, 1.0 + u, 6.0),
    ):
        assert isinstance(duals.rule(phi), Series)


def test_families_are_found_in_single_precision():
    with jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64():
        for phi in (
            lambda u: jnp.exp(0.5 * u),
            lambda u: jnp.sin(50 * u),
            lambda u: jnp.exp(0.15 * u * u),
        ):
            assert not isinstance(duals.rule(phi), Series)
