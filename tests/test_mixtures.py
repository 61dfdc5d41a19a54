"""Mixtures of closed forms over scales: exact where a series needs thousands of terms, chosen where
they are needed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_jax import duals, mlp_kernels
from ntk_jax.duals.catalogue import CATALOGUE
from ntk_jax.duals.mixtures import Mixture

pytestmark = pytest.mark.slow

NAMES = ["tanh", "sigmoid", "softplus", "silu"]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


def panels(deviation):
    """Nodes and weights, with the normal density, on panels as narrow as a function of scale 1 asks
    for.
    """
    count = 2 * int(np.ceil(12 * max(2.0, deviation)))
    half = 12 / count
    u = (np.linspace(-12, 12, count + 1)[:-1, None] + half * (1 + NODES)).ravel()
    return u, np.tile(half * WEIGHTS, count) * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)


def quadrature(phi, s1, distance, s2):
    """(E[phi phi], E[phi' phi']) at the correlation 1 - distance: v = s2 (rho x + sqrt(1 - rho²)
    y).
    """
    slope = lambda v: jax.jvp(phi, (v,), (jnp.ones_like(v),))[1]
    (x, wx), sine = panels(max(s1, s2)), np.sqrt(distance * (2 - distance))
    y, wy = panels(s2 * sine) if sine else (np.zeros(1), np.ones(1))
    v = s2 * ((1 - distance) * x[:, None] + sine * y)
    return [float(wx * f(s1 * x) @ (f(v) @ wy)) for f in (phi, slope)]


@pytest.mark.parametrize("name", NAMES)
def test_mixtures_against_nested_quadrature(name):
    rule, phi = duals.rule(name), CATALOGUE[name].function
    moments, exact, scale = [], [], []
    for s1, s2 in ((0.1, 0.1), (1.0, 1.5), (10.0, 10.0)):
        for distance in (1.0, 1e-3, 1e-7, 0.0) if s1 < 10 else (1e-3, 0.0):
            moments.append((s1 * s1, (1 - distance) * s1 * s2, s2 * s2))
            exact.append(quadrature(phi, s1, distance, s2))
        scale += [exact[-1]] * (len(exact) - len(scale))
    for dtype, tolerance in ((np.float64, 1e-11), (np.float32, 2e-6)):
        found = rule(*np.array(moments, dtype).T)
        error = np.abs(np.stack(found, axis=1).astype(float) - exact) / np.abs(scale)
        assert np.all(error <= tolerance), (dtype, error)


@pytest.mark.parametrize("name", ["tanh", "softplus", "silu"])
def test_derivatives_of_mixtures(name):
    q, h = np.array([[1.1, 150.0], [0.4, -120.0], [0.7, 110.0]]), 1e-5
    slopes_and_dual = jax.jacfwd(lambda q: (jnp.stack(duals.rule(name)(*q)),) * 2, has_aux=True)
    both = jax.jit(jax.vmap(slopes_and_dual, in_axes=1, out_axes=1))
    numeric = [
        (both(q + h * e[:, None])[1] - both(q - h * e[:, None])[1]) / (2 * h) for e in np.eye(3)
    ]
    np.testing.assert_allclose(both(q)[0], np.stack(numeric, axis=-1), rtol=1e-5, atol=1e-8)


def test_mixtures_are_found_and_chosen():
    assert duals.rule(lambda u: jax.nn.sigmoid(u)) == duals.rule("sigmoid")
    assert duals.rule("swish") == duals.rule(jax.nn.silu)
    assert isinstance(duals.rule("tanh").fitted(1.0, jnp.dtype("float64")), duals.Series)
    assert isinstance(duals.rule("tanh").fitted(100.0, jnp.dtype("float64")), Mixture)


def test_the_series_chosen_at_small_variances_is_the_same_kernel():
    x = np.random.default_rng(0).standard_normal((6, 4))
    q = np.sum(x * x, axis=1) / 4
    exact = duals.rule("tanh")(*np.broadcast_arrays(q[:, None], x @ x.T / 4, q)).k
    np.testing.assert_allclose(
        mlp_kernels(x, depth=1, activation="tanh").nngp, exact, rtol=1e-10, atol=1e-13
    )


def test_inputs_in_the_hundreds_raise_no_warning_and_permute_to_the_bit():
    x, p = (
        np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32) * 300,
        np.random.default_rng(1).permutation(20),
    )
    for a, b in zip(
        *(mlp_kernels(y, depth=2, activation="tanh", W_std=1.5) for y in (x, x[p])), strict=True
    ):
        assert np.array_equal(np.asarray(a)[np.ix_(p, p)], np.asarray(b))
