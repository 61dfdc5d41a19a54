"""Polynomial networks, the shortest displacement, and single-step influence, against dense
Jacobians and differences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import ntk_jax
from cases.compilations import optimized
from ntk_jax import losses


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape)
    params = {"w": draw(3, 5) / 2, "v": draw(5, 2) / 2}
    return lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], params, draw(4, 3), draw(4, 2)


def moved(params, distance):
    return jax.tree.map(
        lambda p: p + distance * np.cos(np.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )


def test_error_of_degree_d_is_of_order_d_plus_1(network):
    apply_fn, params, x, _ = network
    for degree in range(5):
        taylor = ntk_jax.taylor_expand(apply_fn, params, degree)
        with optimized(True):
            np.testing.assert_array_equal(taylor(params, x), apply_fn(params, x))
        gap = jax.jit(lambda p, taylor=taylor: taylor(p, x) - apply_fn(p, x))
        gaps = [np.abs(gap(moved(params, h))).max() for h in (0.02, 0.01)]
        assert abs(np.log2(gaps[0] / gaps[1]) - (degree + 1)) < 0.2


def test_polynomials_are_exact_at_their_degree():
    apply_fn = lambda p, x: (x * p[0]) * p[1] ** 2 + p[2]
    start, params = jnp.array([0.3, -0.7, 0.2]), jnp.array([1.3, 2.0, -1.0])
    x = jnp.arange(3.0)[:, None]
    cubic, quadratic = (
        ntk_jax.taylor_expand(apply_fn, start, degree)(params, x) for degree in (3, 2)
    )
    np.testing.assert_allclose(cubic, apply_fn(params, x), rtol=1e-12)
    assert np.abs(quadratic - apply_fn(params, x)).max() > 0.1
    np.testing.assert_array_equal(
        ntk_jax.taylor_expand(apply_fn, start, 0)(params, x), apply_fn(start, x)
    )


def test_first_degree_is_the_dense_jacobian_and_second_the_hessian(network):
    apply_fn, params, x, _ = network
    flat, unravel = ravel_pytree(params)
    step = ravel_pytree(moved(params, 0.3))[0] - flat
    f = lambda v: apply_fn(unravel(v), x)
    value, jacobian, hessian = jax.jit(lambda v: (f(v), jax.jacobian(f)(v), jax.hessian(f)(v)))(
        flat
    )
    first = np.asarray(value) + np.asarray(jacobian) @ step
    second = first + 0.5 * np.einsum("iopq,p,q->io", hessian, step, step)
    np.testing.assert_allclose(
        ntk_jax.linearize(apply_fn, params)(moved(params, 0.3), x), first, rtol=1e-10
    )
    np.testing.assert_allclose(
        ntk_jax.taylor_expand(apply_fn, params, 2)(moved(params, 0.3), x), second, rtol=1e-10
    )


@pytest.mark.slow
def test_second_degree_trains_closer_to_the_network_than_the_first(network):
    apply_fn, params, x, y = network
    options = {
        "optimizer": optax.sgd(0.2),
        "num_steps": 20,
        "progress": False,
        "record_outputs": True,
    }
    own, first, second = (
        ntk_jax.train(fn, params, x, y, **options).fx_train[-1]
        for fn in (
            apply_fn,
            *(ntk_jax.taylor_expand(apply_fn, params, degree) for degree in (1, 2)),
        )
    )
    assert np.abs(second - own).max() < np.abs(first - own).max() / 2


def test_displacement_is_the_pseudo_inverse_of_the_jacobian(network):
    apply_fn, params, x, y = network
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def dense(flat, x, y):
        f = lambda v: apply_fn(unravel(v), x).ravel()
        return jax.jacobian(f)(flat), y.ravel() - f(flat)

    jacobian, residual = (np.asarray(a) for a in dense(flat, x, y))
    out = ntk_jax.min_norm_displacement(apply_fn, params, x, y, tolerance=1e-12)
    assert out.converged and out.num_steps <= 30
    np.testing.assert_allclose(
        ravel_pytree(out.params)[0], np.linalg.pinv(jacobian) @ residual, rtol=1e-8, atol=1e-9
    )
    fitted = ntk_jax.linearize(apply_fn, params)(jax.tree.map(np.add, params, out.params), x)
    np.testing.assert_allclose(fitted, y, atol=1e-9)
    # targets that cannot be fitted: a repeated example with two different targets
    x, y = np.concatenate([x, x[:1]]), np.concatenate([y, -y[:1]])
    jacobian, residual = (np.asarray(a) for a in dense(flat, x, y))
    out = ntk_jax.min_norm_displacement(apply_fn, params, x, y, tolerance=1e-10)
    expected = np.linalg.pinv(jacobian, rcond=1e-10) @ residual
    assert out.converged
    np.testing.assert_allclose(ravel_pytree(out.params)[0], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(out.residual.ravel(), residual - jacobian @ expected, atol=1e-7)
    assert not ntk_jax.min_norm_displacement(apply_fn, params, x, y, max_steps=2).converged


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_influence_is_a_step_on_one_example(network, loss):
    apply_fn, params, x, y = network
    y = np.exp(y) / np.exp(y).sum(1, keepdims=True) if loss == "cross_entropy" else y
    x_test = -0.5 * x[:3]
    influence = ntk_jax.single_step_influence(apply_fn, params, x_test, x, y, loss=loss)
    assert influence.shape == (3, 4, 2)
    h = 1e-6

    @jax.jit
    def outputs(weights, sign):
        # the share of an example in the loss: derivative of the loss through its own output alone
        f = lambda p: (
            weights[:, None] * apply_fn(p, x) + (1 - weights)[:, None] * apply_fn(params, x)
        )
        grads = jax.grad(lambda p: losses.LOSSES[loss](f(p), jax.device_put(y)))(params)
        return apply_fn(jax.tree.map(lambda p, g: p - sign * h * g, params, grads), x_test)

    for j in range(4):
        one = np.eye(4)[j]
        numeric = (np.asarray(outputs(one, 1)) - outputs(one, -1)) / (2 * h)
        np.testing.assert_allclose(influence[:, j], numeric, rtol=1e-6, atol=1e-9)
