"""Every differentiable function of kernels against central differences, at generic and at
degenerate points.

The kernel is K(h) = φ φᵀ of features φ + h d, with repeated eigenvalues (symmetric data, K = I) or
none at all to speak of (repeated rows). Forward and reverse mode, first and second order, inside
jit and vmap.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from ntk_jax import Kernels, diagonalize

N, N_TEST, D = 6, 2, 8
RNG = np.random.default_rng(0)
PHI_TEST = RNG.normal(size=(N_TEST, D))
DIRECTION = RNG.normal(size=(N, D))
Y = np.arange(6.0) - 1.3
GENERIC = RNG.normal(size=(N, D))
POINTS = {
    "generic": GENERIC,
    "symmetric": np.concatenate([np.eye(3, D), 0.3 * np.eye(3, D) + 0.2 * np.eye(3, D, 3)]),
    "identity": np.eye(N, D),
    "repeated rows": GENERIC[[0, 1, 2, 3, 0, 1]],
}
REGULAR = ("generic", "symmetric", "identity")  # where the pseudo-inverse is smooth
INF = np.inf


def flow(t, y=Y, **options):
    return lambda k, k_test: ntk_jax.gradient_flow_mse(
        diagonalize(k), y, t, k_test_train=k_test, **options
    )


def descent(steps, rate=0.3, **options):
    return lambda k, k_test: ntk_jax.gradient_descent_mse(
        diagonalize(k), Y, steps, rate, k_test_train=k_test, **options
    )


def ensemble(t, **options):
    def of(k, k_test):
        tested = Kernels(k_test + 0.1 * k_test**2, k_test)
        return ntk_jax.ensemble_mse(
            Kernels(k + 0.1 * k**2, k), tested, 50 * np.eye(N_TEST), Y, t, **options
        )

    return of


def posterior(k, k_test):
    return ntk_jax.gp_posterior(k, Y, k_test, 50 * np.eye(N_TEST), noise=np.linspace(0.1, 0.6, N))


DECAY = {"weight_decay": 0.3, "radial_train_0": np.cos(Y), "radial_test_0": np.ones(N_TEST)}
PER_OUTPUT = np.stack([Y, Y**2], 1)
FUNCTIONS = {
    "flow": (flow([0.0, 5.0, 300.0]), POINTS),
    "flow with a ridge and decay": (flow([3.0, INF], diag_reg=0.2, **DECAY), POINTS),
    "flow at inf": (flow([1.0, INF]), REGULAR),
    "flow of outputs apart": (
        lambda k, k_test: flow(5.0, PER_OUTPUT)(
            jnp.stack([k, 2 * k], -1), jnp.stack([k_test, k_test], -1)
        ),
        POINTS,
    ),
    "descent": (descent([0, 3, 40]), POINTS),
    "descent, momentum and decay": (descent(9, momentum=0.5, nesterov=True, **DECAY), POINTS),
    "kernel regression": (lambda k, k_test: ntk_jax.kernel_regression(k, Y, k_test)[:2], REGULAR),
    "ridge regression": (
        lambda k, k_test: ntk_jax.kernel_regression(k, Y, k_test, diag_reg=0.3)[:2],
        POINTS,
    ),
    "ensemble": (ensemble(4.0), POINTS),
    "ensemble at inf": (ensemble([2.0, INF], diag_reg=0.1), POINTS),
    "posterior": (posterior, POINTS),
    "leave one out": (
        lambda k, _: (
            ntk_jax.leave_one_out(diagonalize(k), Y, diag_reg=np.array([0.1, 2.0])).predictions
        ),
        POINTS,
    ),
    "leave one out, coupled": (
        lambda k, _: ntk_jax.leave_one_out(
            diagonalize(k.reshape(3, 2, 3, 2).swapaxes(1, 2)), Y.reshape(3, 2), diag_reg=0.3
        ),
        POINTS,
    ),
    "cross-validation": (
        lambda k, _: ntk_jax.generalized_cross_validation(k, Y, diag_reg=np.array([0.1, 1.0])),
        POINTS,
    ),
    "norm": (lambda k, _: ntk_jax.rkhs_norm(k, Y), REGULAR),
    "norm with a ridge": (lambda k, _: ntk_jax.rkhs_norm(k, Y, diag_reg=0.2), POINTS),
    "effective rank": (lambda k, _: ntk_jax.effective_rank(k), REGULAR),
    "participation": (lambda k, _: ntk_jax.effective_rank(k, kind="participation"), POINTS),
    "alignment": (
        lambda k, _: (
            ntk_jax.alignment(k, Y, centered=True),
            ntk_jax.centered_alignment(k, k**2 + 1),
            ntk_jax.cosine(k),
        ),
        POINTS,
    ),
    "sums over modes": (
        lambda k, _: jnp.sum(ntk_jax.learning_times(diagonalize(k))[: N // 2]),
        ("generic",),
    ),
    "largest rate": (lambda k, _: ntk_jax.max_learning_rate(diagonalize(k)), ("generic",)),
    "eigenlearning": (
        lambda k, _: ntk_jax.eigenlearning(jnp.diagonal(k), Y, [2, 4], diag_reg=0.1)[:2],
        POINTS,
    ),
}


def scalar(f):
    """A combination of all that f returns, of features."""

    def of(phi):
        out = [part.reshape(-1) for part in jax.tree.leaves(f(phi @ phi.T, PHI_TEST @ phi.T))]
        return sum(jnp.vdot(part, np.cos(np.arange(part.size))) for part in out)

    return of


STEP = 2e-4
OFFSETS = STEP * np.array([-2.0, -1.0, 1.0, 2.0])


def difference(values):
    """The derivative at 0 from the values at the offsets, to fourth order."""
    return np.dot([1.0, -8.0, 8.0, -1.0], values) / (12 * STEP)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_central_differences(name):
    f, points = FUNCTIONS[name]
    f = scalar(f)

    @jax.jit
    def program(phi):
        along = lambda h: f(phi + h * DIRECTION)
        slope, reverse = jax.jvp(along, (0.0,), (1.0,))[1], jnp.vdot(jax.grad(f)(phi), DIRECTION)
        return jax.vmap(along)(OFFSETS), slope, reverse

    for point in points:
        values, forward, reverse = program(POINTS[point])
        scale = 1 + np.abs(values).max()
        np.testing.assert_allclose(
            forward, difference(values), rtol=1e-6, atol=1e-8 * scale, err_msg=point
        )
        np.testing.assert_allclose(reverse, forward, rtol=1e-9, atol=1e-10 * scale, err_msg=point)


# Every function of eigenvalues that they are made of, in its simplest setting, is differentiated
# twice in every run.
SHORT = (
    "flow at inf",
    "kernel regression",
    "leave one out",
    "cross-validation",
    "effective rank",
    "eigenlearning",
)


@pytest.mark.parametrize(
    "name",
    [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in FUNCTIONS],
)
def test_second_derivatives_are_central_differences(name):
    f, points = FUNCTIONS[name]
    f = scalar(f)

    @jax.jit
    def program(phi):
        backward = lambda h: jnp.vdot(jax.grad(f)(phi + h * DIRECTION), DIRECTION)
        curvature = jax.linearize(backward, 0.0)[1]
        return (
            jax.vmap(backward)(OFFSETS),
            curvature(1.0),
            jax.linear_transpose(curvature, 0.0)(1.0)[0],
        )

    for point in points:
        slopes, forward, reverse = program(POINTS[point])
        scale = 1 + np.abs(slopes).max()
        np.testing.assert_allclose(
            forward, difference(slopes), rtol=1e-6, atol=1e-7 * scale, err_msg=point
        )
        np.testing.assert_allclose(reverse, forward, rtol=1e-8, atol=1e-9 * scale, err_msg=point)


def test_derivatives_found_wrong_on_symmetric_data():
    x, move = np.concatenate([np.eye(3), -np.eye(3)]), jax.random.normal(jax.random.key(0), (6, 3))

    @jax.jit
    def symmetric_data(h):
        return ntk_jax.mlp_kernels(x + h * move, depth=1, W_std=1.5, b_std=0.1).ntk

    k, dk = jax.jvp(symmetric_data, (0.0,), (1.0,))
    y = np.arange(6.0)
    flow = jax.jit(lambda k: ntk_jax.gradient_flow_mse(diagonalize(k), y, 5.0).train[0])
    np.testing.assert_allclose(jax.jvp(flow, (k,), (dk,))[1], 0.3535, atol=5e-5)
    at_identity = np.asarray(
        jax.grad(flow)(np.eye(6))
    )  # at t = 5 and n = 6, with f(s) = 1 - exp(-5 s / 6): f'(1) y in the first row
    expected = 5 / 6 * np.exp(-5 / 6) * np.asarray(y)
    np.testing.assert_allclose(at_identity[0] + at_identity[:, 0], expected, atol=1e-12)


def test_derivative_at_infinite_time():
    def test_output(s, t=np.inf):
        modes = diagonalize(s * jnp.diag(jnp.array([1.0, 2.0])))
        return ntk_jax.gradient_flow_mse(modes, jnp.ones(2), t, k_test_train=jnp.ones((1, 2))).test[
            ..., 0
        ]

    np.testing.assert_allclose(jax.jit(jax.grad(test_output))(1.0), -1.5, rtol=1e-14)
    both = jax.jit(jax.jacfwd(lambda s: test_output(s, jnp.array([1.0, np.inf]))))(1.0)
    np.testing.assert_allclose(both[1], -1.5, rtol=1e-14)
    assert np.isfinite(both).all()


def test_derivatives_by_time_ridge_and_rates():
    modes, p = diagonalize(GENERIC @ GENERIC.T), np.array([4.0, 0.2, 0.3, 0.1, 0.5])

    def output(p):
        rates = {"diag_reg": p[1], "weight_decay": p[2], "radial_train_0": np.cos(Y)}
        a = ntk_jax.gradient_flow_mse(modes, Y, jnp.stack([p[0], jnp.inf]), **rates).train
        b = ntk_jax.gradient_descent_mse(modes, Y, 7, p[3], momentum=p[4], **rates).train
        return jnp.sum(a[0] * np.cos(Y)) + jnp.sum(a[1]) + jnp.sum(b**2)

    slope, no_decay = jax.jit(jax.grad(output)), np.where(np.arange(5) == 2, 0, p)
    ahead = no_decay + np.array([0.0, 1e-4, 2e-4])[:, None] * np.eye(5)[2]
    beside = p + OFFSETS[:, None, None] * np.eye(5)
    values = jax.jit(jax.vmap(output))(np.concatenate([beside.reshape(-1, 5), ahead]))
    np.testing.assert_allclose(slope(p), difference(values[:-3].reshape(4, 5)), rtol=1e-7)
    # from one side only: no decay is a boundary
    one_sided = np.dot([-3, 4, -1], values[-3:]) / 2e-4
    np.testing.assert_allclose(slope(no_decay)[2], one_sided, rtol=1e-5)


def test_derivatives_go_through_vectorized_decompositions():
    # one program that decomposes a batch, keeps it, and is differentiated afterwards
    ks = jnp.stack([jnp.eye(3), jnp.ones((3, 3)) + jnp.eye(3)])

    def output(ks):
        modes = jax.jit(jax.vmap(diagonalize))(ks)
        return jnp.sum(
            jax.vmap(lambda m: ntk_jax.gradient_flow_mse(m, jnp.arange(3.0), 2.0).train[0])(modes)
        )

    d = jnp.stack([jnp.arange(9.0).reshape(3, 3), jnp.ones((3, 3))])
    d = d + jnp.swapaxes(d, 1, 2)
    values = jax.jit(jax.vmap(lambda h: output(ks + h * d)))(OFFSETS)
    np.testing.assert_allclose(jnp.vdot(jax.grad(output)(ks), d), difference(values), rtol=1e-8)
