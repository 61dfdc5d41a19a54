"""Flow in parameter space against closed forms, Euler's method and finite differences."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax

A = jnp.array([[2.0, 0.5], [0.5, 1.0]])
START = {"w": jnp.array([1.0, -2.0])}


def loss(params):
    return params["w"] @ A @ params["w"] / 2


def quartic(params):
    return jnp.sum(params["w"] ** 4) / 4 + loss(params)


def test_a_quadratic_is_solved_exactly():
    t = [2.0, 0.0, 0.5]
    out = ntk_jax.parameter_flow(loss, START, t, rtol=1e-10, atol=1e-12)["w"]
    expected = np.stack([jax.scipy.linalg.expm(-A * s) @ START["w"] for s in t])
    np.testing.assert_allclose(out, expected, rtol=1e-8)
    np.testing.assert_allclose(
        ntk_jax.parameter_flow(loss, START, 2.0)["w"], expected[0], rtol=1e-4
    )


def test_the_loss_falls_at_the_rate_of_the_squared_gradient():
    h = 1e-4
    out = ntk_jax.parameter_flow(quartic, START, [0.3 - h, 0.3, 0.3 + h], rtol=1e-11, atol=1e-13)[
        "w"
    ]
    values = [quartic({"w": w}) for w in out]
    rate = jnp.sum(jax.grad(quartic)({"w": out[1]})["w"] ** 2)
    np.testing.assert_allclose((values[2] - values[0]) / (2 * h), -rate, rtol=1e-6)


def test_small_steps_of_gradient_descent_follow_the_flow():
    def euler(num_steps):
        step = lambda _, w: w - 1.0 / num_steps * jax.grad(quartic)({"w": w})["w"]
        return jax.lax.fori_loop(0, num_steps, step, START["w"])

    exact = ntk_jax.parameter_flow(quartic, START, 1.0, rtol=1e-10)["w"]
    errors = [float(jnp.linalg.norm(euler(k) - exact)) for k in (200, 400)]
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.05)


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="t: expected finite and at least 0"):
        ntk_jax.parameter_flow(loss, START, -1.0)
    with pytest.raises(ValueError, match="max_steps = 3"):
        ntk_jax.parameter_flow(loss, START, 100.0, max_steps=3)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"ntk-jax\[ode\]"):
        ntk_jax.parameter_flow(loss, START, 1.0)
