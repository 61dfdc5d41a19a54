"""What must happen when widths or output scales grow: trained networks, all seeds of a width in one
program.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax

pytestmark = pytest.mark.slow

WIDTHS = (50, 500, 5000)
TWO_X, TWO_Y = jnp.array([[-3.0], [0.5]]), jnp.array([[2.0], [-1.0]])


def descend(apply_fn, params, x, y, learning_rate, num_steps, stop_loss=-1.0):
    """Parameters after gradient descent on the half-mean squared loss, until it is below
    `stop_loss`.
    """
    loss = lambda p: jnp.mean((apply_fn(p, x) - y) ** 2) / 2

    def step(state):
        params, grads, _, i = state
        params = jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)
        value, grads = jax.value_and_grad(loss)(params)
        return params, grads, value, i + 1

    value, grads = jax.value_and_grad(loss)(params)
    going = lambda state: (state[3] < num_steps) & (state[2] >= stop_loss)
    return jax.lax.while_loop(going, step, (params, grads, value, 0))[0]


def slope(widths, values):
    return np.polyfit(np.log(widths), np.log(values), 1)[0]


@pytest.fixture(scope="module")
def by_width():
    """Change of kernel, weights and Jacobian of networks on a noisy sine, and the error of their
    kernels, by width.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-3, 3, (50, 1)))
    y = jnp.sin(x) + 0.1 * rng.standard_normal((50, 1))
    scales = {"W_std": (1.0, 2**0.5), "b_std": (1.0, None)}
    limit = ntk_jax.mlp_kernels(x, depth=1, **scales).ntk
    learning_rate = 0.5 * ntk_jax.max_learning_rate(ntk_jax.diagonalize(limit))
    rows = []
    for width in WIDTHS:
        model = ntk_jax.MLP((width,), **scales)
        apply_fn = lambda p, x, model=model: model.apply({"params": p}, x)
        rows.append(measure(model, apply_fn, x, y, limit, learning_rate))
    return np.array(rows).T


def measure(model, apply_fn, x, y, limit, learning_rate):
    def one_seed(key):
        params = model.init(key, x)["params"]
        trained = descend(apply_fn, params, x, y, learning_rate, 500)
        k_0, k = (ntk_jax.empirical_ntk(apply_fn, p, x) for p in (params, trained))
        return (
            ntk_jax.kernel_change(k_0, limit),
            ntk_jax.kernel_change(k, k_0),
            ntk_jax.relative_change(trained, params).total,
            ntk_jax.jacobian_change(apply_fn, trained, params, x),
        )

    keys = jax.random.split(jax.random.key(0), 5)
    return [float(jnp.mean(v)) for v in jax.jit(partial(jax.lax.map, one_seed))(keys)]


def test_slopes_in_width(by_width):
    error, kernel, weights, jacobian = by_width
    assert abs(slope(WIDTHS, error) + 0.5) < 0.1
    assert abs(slope(WIDTHS, weights) + 0.5) < 0.1
    assert abs(slope(WIDTHS, jacobian) + 0.25) < 0.1
    assert slope(WIDTHS, kernel) < -0.4 and np.all(np.diff(kernel) < 0)


@cache
def two_points(width, zero, num_seeds):
    """Of an output scale: median relative weight change and initial loss in the two-point
    experiment, as PyTorch initializes.
    """
    model = ntk_jax.MLP((width, width), parameterization="standard")
    template = jax.eval_shape(model.init, jax.random.key(0), TWO_X)["params"]

    def one_seed(key, alpha):
        params = ntk_jax.torch_init(template, key)
        f = lambda p, x: model.apply({"params": p}, x)
        f = ntk_jax.scale_output(ntk_jax.zero_output(f, params) if zero else f, alpha)
        # the loss is divided by alpha²: time does not depend on alpha then
        trained = descend(f, params, TWO_X, TWO_Y, 2e-3 / alpha**2, 1000, 5e-11)
        return ntk_jax.relative_change(trained, params).total, jnp.mean(
            (f(params, TWO_X) - TWO_Y) ** 2
        )

    # One seed after the other: the weights of one stay in the caches, and it ends by itself.
    keys = jax.random.split(jax.random.key(0), num_seeds)
    every = jax.jit(lambda alpha: jax.lax.map(lambda key: one_seed(key, alpha), keys))
    return lambda alpha: [np.median(v) for v in every(alpha)]


# Wide networks differ little from each other, and take long.
@pytest.mark.parametrize(
    ("width", "change", "num_seeds"), [(10, 0.32, 10), (100, 0.050, 10), (1000, 0.0053, 4)]
)
def test_two_point_experiment_moves_less_the_wider_it_is(width, change, num_seeds):
    np.testing.assert_allclose(two_points(width, False, num_seeds)(1.0)[0], change, rtol=0.25)


def test_weights_move_like_one_over_alpha_only_from_zero_output():
    zero = [two_points(100, True, 5)(alpha)[0] for alpha in (1.0, 10.0, 100.0)]
    np.testing.assert_allclose(zero[0] / np.array(zero), [1, 10, 100], rtol=0.15)
    plain = [two_points(100, False, 10)(alpha) for alpha in (10.0, 100.0)]
    assert plain[1][0] > 0.3 * plain[0][0]  # saturated
    np.testing.assert_allclose(
        plain[1][1] / plain[0][1], 100, rtol=0.6
    )  # the initial loss grows like alpha²


def test_he_networks_have_kernels_that_grow_with_the_width():
    # standard parameterization, biases trained from zero: m (2/d) E[relu relu] + 1 + 2 (x.x' + 1)
    # E[relu' relu']
    width, d = 4096, 3
    x = np.random.default_rng(0).standard_normal((5, d))
    gram = x @ x.T
    own = np.diag(gram)
    k1, k0 = ntk_jax.duals.relu(
        jnp.asarray(own[:, None]), jnp.asarray(gram), jnp.asarray(own[None])
    )
    limit = width * 2 / d * k1 + 1 + 2 * (gram + 1) * k0
    options = {"W_std": 2**0.5, "parameterization": "standard"}
    np.testing.assert_allclose(
        ntk_jax.mlp_kernels(x, depth=1, width=width, **options).ntk, limit, rtol=1e-10
    )
    model = ntk_jax.MLP((width,), **options)
    apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(0), x))
    assert ntk_jax.kernel_change(ntk_jax.empirical_ntk(apply_fn, params, x), limit) < 0.05
