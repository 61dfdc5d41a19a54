"""Duals: high-precision references, kinks, gradients, resolution of what users pass."""

import json
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references.quadrature import dual as quadrature

from ntk_jax import duals
from ntk_jax.duals.angle import angle
from ntk_jax.duals.catalogue import ACTIVATIONS
from ntk_jax.duals.dual_rule import derivative
from ntk_jax.duals.rectifiers import Rectifier

REFERENCES = json.loads((Path(__file__).parent / "references" / "duals.json").read_text())
KINKED = json.loads((Path(__file__).parent / "references" / "kinked_duals.json").read_text())
F64 = jnp.dtype("float64")
RULES = {name: duals.rule(name) for name in REFERENCES if name != "rectified_square"}
RULES["rectified_square"] = duals.rule("rectified_monomial", order=2)


@pytest.mark.parametrize("name", REFERENCES)
def test_closed_forms_to_twelve_digits(name):
    q11, rho, q22, *exact = np.array(REFERENCES[name]).T
    value = jax.jit(RULES[name].__call__)(q11, rho * np.sqrt(q11 * q22), q22)
    np.testing.assert_allclose(value, exact, rtol=1e-12, atol=2e-16)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINKED)
def test_kinks_away_from_zero_to_ten_digits(name):
    rows = np.array(KINKED[name])  # correlations within 1e-3 to 1e-7 of +-1, unequal variances
    moments = np.concatenate([rows[:, :3], [[4.0, 4.0, 4.0]]]).T
    rule = duals.rule(name)
    value, own = jax.jit(lambda *q: (jnp.stack(rule(*q)), jnp.stack(rule.diagonal(q[0]))))(*moments)
    np.testing.assert_allclose(value[:, :-1], rows[:, 3:].T, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(value[:, -1], own[:, -1], rtol=1e-12)


def relu_dual(q, rho):
    theta = np.arctan2(np.sqrt((1 - rho) * (1 + rho)), rho)
    return q * (np.sin(theta) + (np.pi - theta) * rho) / (2 * np.pi), (np.pi - theta) / (2 * np.pi)


def test_float32_angle_is_exact_to_four_ulps():
    u = np.concatenate([np.geomspace(1e-7, 1, 4001), np.linspace(0, 1, 4001)]).astype(np.float32)
    exact = 2 * np.arcsin(np.sqrt(u.astype(np.float64) / 2))
    got = angle(jnp.asarray(u)).to_pole
    assert got.dtype == jnp.float32
    assert (
        np.max(np.abs(np.asarray(got, float) - exact) / np.spacing(exact.astype(np.float32))) <= 4
    )


def test_relu_float32_backward_error_near_the_poles():
    rho = np.concatenate([s * (1 - np.geomspace(1e-7, 1, 500)) for s in (-1, 1)]).astype(np.float32)
    one = jnp.ones_like(rho)
    value = duals.relu(one, jnp.asarray(rho), one)
    k, k_dot = relu_dual(1.0, rho.astype(float))
    eps = float(np.finfo(np.float32).eps)
    assert np.all(np.abs(np.asarray(value.k, float) - k) <= 4 * eps * (k_dot + k))
    slope = 1 / (2 * np.pi * np.sqrt(np.maximum(1 - rho.astype(float) ** 2, 1e-14)))
    assert np.all(np.abs(np.asarray(value.k_dot, float) - k_dot) <= 4 * eps * (slope + k_dot))


SERIES = {
    "tanh": (np.tanh, lambda u: 1 / np.cosh(u) ** 2, 1e-9),
    "sigmoid": (lambda u: 1 / (1 + np.exp(-u)), lambda u: 1 / (2 + 2 * np.cosh(u)), 1e-9),
    "softplus": (lambda u: np.logaddexp(0, u), lambda u: 1 / (1 + np.exp(-u)), 1e-9),
    "elu": (
        lambda u: np.where(u > 0, u, np.expm1(u)),
        lambda u: np.where(u > 0, 1.0, np.exp(u)),
        1e-6,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SERIES)
def test_series_against_nested_quadrature(name):
    phi, slope, tolerance = SERIES[name]
    rule = duals.rule(name)
    q11, rho, q22 = np.array([(0.5, 0.3, 0.9), (0.8, -0.9, 0.8), (0.6, 0.99, 0.5)]).T
    exact = [quadrature(phi, slope, *moments) for moments in zip(q11, rho, q22, strict=True)]
    value = rule(q11, rho * np.sqrt(q11 * q22), q22)
    np.testing.assert_allclose(np.stack(value, axis=1), exact, rtol=tolerance, atol=tolerance * 0.1)


@pytest.mark.slow
def test_series_bound_holds():
    few = duals.Series(jnp.tanh, terms=16)
    many = duals.Series(jnp.tanh, terms=256)
    q = jnp.asarray(2.0)
    error = [
        abs(float(a - b)) for a, b in zip(few(q, 0.97 * q, q), many(q, 0.97 * q, q), strict=True)
    ]
    bound = [float(b) for b in few.bound(q, q)]
    assert error[0] > 1e-9  # otherwise there is nothing to bound
    assert all(e <= b for e, b in zip(error, bound, strict=True))


@pytest.mark.slow
def test_a_series_takes_the_terms_that_its_tolerance_asks_for():
    # E[tanh(u) tanh(v)] by the mixture, exact at any variance; 64 terms are off by 1e-4 at variance
    # 4
    for tolerance in (1e-4, 1e-10):
        loose = duals.series(jnp.tanh, tolerance=tolerance)
        value, exact = loose(4.0, 3.96, 4.0), duals.tanh(4.0, 3.96, 4.0)
        for a, b in zip(value, exact, strict=True):
            assert abs(a - b) <= tolerance * b
    assert (
        loose.fitted(4.0, F64).count > duals.series(jnp.tanh, tolerance=1e-4).fitted(4.0, F64).count
    )
    with pytest.warns(UserWarning, match="asked for"):
        duals.series(jnp.tanh)(1e5, 9e4, 1e5)


SMOOTH = {
    "erf": jax.scipy.special.erf,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "sin": jnp.sin,
    "cos": jnp.cos,
    "exp": jnp.exp,
    "rbf": lambda u: 2**0.5 * jnp.sin(2**0.5 * u + jnp.pi / 4),
    "gaussian": lambda u: jnp.exp(-u * u),
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "mish": ACTIVATIONS["mish"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_at_identical_and_antipodal_inputs_are_integrals_over_one_gaussian(name):
    # Price: d E[f(u) g(v)] = E[f' g'] dq12 + E[f'' g] / 2 dq11 + E[f g''] / 2 dq22, here with v =
    # +-u
    q, z = 1.7, np.linspace(-12, 12, 2401)  # the trapezoidal rule converges exponentially here
    w = np.exp(-z * z / 2)
    d = np.asarray(
        jax.jit(lambda u: jnp.stack([derivative(SMOOTH[name], order)(u) for order in range(4)]))(
            q**0.5 * z
        )
    )
    jacobian = jax.jit(jax.jacfwd(lambda *m: jnp.stack(duals.rule(name)(*m)), (0, 1, 2)))
    for sign in (1, -1):
        mean = lambda f, g, sign=sign: float(w @ (d[f] * d[g, ::sign]) / w.sum())
        exact = [
            [mean(2, 0) / 2, mean(1, 1), mean(0, 2) / 2],
            [mean(3, 1) / 2, mean(2, 2), mean(1, 3) / 2],
        ]
        found = np.stack(jacobian(q, sign * q, q), axis=1)
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=3e-9)  # mish is a series


def with_value(f):
    """The derivative of f and f itself, in one program: compiling takes nearly all of the time."""
    return jax.jit(jax.jacfwd(lambda q: (f(q),) * 2, has_aux=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu", "erf", "gelu", "sin", "gaussian", "tanh", "elu"])
def test_second_derivatives_against_finite_differences(name):
    q, h = np.array([1.1, 0.4, 0.7]), 1e-5
    gradient = with_value(jax.jacrev(lambda q: jnp.stack(duals.rule(name)(*q))))
    numeric = np.stack(
        [(gradient(q + h * e)[1] - gradient(q - h * e)[1]) / (2 * h) for e in np.eye(3)], axis=-1
    )
    np.testing.assert_allclose(gradient(q)[0], numeric, rtol=1e-5, atol=1e-7)


def test_kink_at_zero_is_exact():
    rule = duals.series(lambda u: jnp.where(u > 0, u, 0.25 * u))
    for a, b in zip(
        rule(1.0, 0.99, 1.2), duals.leaky_relu(1.0, 0.99, 1.2, slope=0.25), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize(
    "function, name",
    [
        (jax.nn.relu, "relu"),
        (jnp.sin, "sin"),
        (jax.scipy.special.erf, "erf"),
        (lambda u: jax.nn.gelu(u, approximate=False), "gelu"),
        (jax.nn.leaky_relu, "leaky_relu"),
        (lambda u: jnp.maximum(u, 0), "relu"),
        (jnp.abs, "abs"),
        (partial(jax.nn.leaky_relu, negative_slope=0.01), "leaky_relu"),
        (nnx.relu, "relu"),
        (jax.jit(jnp.tanh), "tanh"),
        (nn.gelu, "gelu_tanh"),
        (jax.jit(jax.nn.relu6), "relu6"),
        (lambda u: jnp.clip(u, -1, 1), "hard_tanh"),
        (lambda u: u * jnp.tanh(jax.nn.softplus(u)), "mish"),
    ],
)
def test_functions_find_their_closed_form(function, name):
    assert duals.rule(function) == duals.rule(name)


def test_tanh_gelu_is_not_taken_for_gelu():
    assert isinstance(duals.rule(jax.nn.gelu), duals.Series)


def test_bad_activations_are_explained():
    with pytest.raises(ValueError, match="expected one of"):
        duals.rule("nonsense")
    with pytest.raises(ValueError, match="element by element"):
        duals.rule(lambda u: jnp.sum(u))
    with pytest.raises(ValueError, match="JAX function"):
        duals.rule(np.tanh)
    with pytest.raises(ValueError, match=r"options of .elu.; got"):
        duals.rule("elu", alpha=2.0)
    with pytest.raises(ValueError, match="Did you mean 'tanh'"):
        duals.rule("Tahn")


DEGENERATE = [(1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 2.0, 4.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["relu", "abs", "erf", "gelu", "sin", "gaussian", "tanh", "hard_tanh"]
)
def test_derivatives_are_finite_where_inputs_are_degenerate(name):
    derivatives = with_value(jax.grad(lambda q: duals.rule(name)(*q).k))
    for q in np.array(DEGENERATE):
        hessian, gradient = derivatives(q)
        assert np.all(np.isfinite(gradient)), (q, gradient)
        assert np.all(np.isfinite(hessian)), (q, hessian)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["relu", "sign", "erf", "gelu", "exp", "gaussian", "tanh", "selu", "hard_swish"]
)
def test_gradients_against_finite_differences(name):
    q, h = np.array([[1.1, 1.3], [0.4, -0.5], [0.7, 0.66]]), 1e-5
    dual = jax.vmap(with_value(lambda q: jnp.stack(duals.rule(name)(*q))), in_axes=1, out_axes=1)
    numeric = [
        (dual(q + h * e[:, None])[1] - dual(q - h * e[:, None])[1]) / (2 * h) for e in np.eye(3)
    ]
    np.testing.assert_allclose(dual(q)[0], np.stack(numeric, axis=-1), rtol=2e-6, atol=1e-8)


def test_a_cut_off_far_out_is_seen():
    assert not isinstance(duals.rule(lambda u: jnp.minimum(jax.nn.relu(u), 8.0)), Rectifier)
    assert duals.rule(lambda u: 2 * jax.nn.relu(u)) == Rectifier(2.0, 0.0)


@pytest.mark.slow
def test_derivatives_of_k_dot_are_exact_at_identical_and_antipodal_inputs():
    # erf: k_dot = 4/pi D^(-1/2), D = (1 + 2 q11)(1 + 2 q22) - 4 q12²; gaussian: k_dot = 4 q12
    # D^(-3/2)
    slopes = [
        jax.jit(jax.jacfwd(lambda *m, name=n: duals.rule(name)(*m).k_dot, (0, 1, 2)))
        for n in ("erf", "gaussian")
    ]
    for q, c in ((q, sign * q) for q in (1.0, 0.3, 3.0) for sign in (1, -1)):
        D = (1 + 2 * q) ** 2 - 4 * c * c
        own, cross = -(1 + 2 * q) * D**-1.5, 4 * c * D**-1.5
        np.testing.assert_allclose(
            slopes[0](q, c, q), 4 / np.pi * np.array([own, cross, own]), rtol=1e-12
        )
        by_own = -12 * c * (1 + 2 * q) * D**-2.5
        exact = [by_own, 4 * D**-1.5 + 48 * c * c * D**-2.5, by_own]
        np.testing.assert_allclose(slopes[1](q, c, q), exact, rtol=1e-12)
