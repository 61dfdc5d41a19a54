"""kappa, Jacobian change and Taylor gap against dense derivatives; definiteness against known
kernels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import ntk_jax
from cases.draws import UNOPTIMIZED, drawn, normal

X = normal(0, (3, 2))
Y = normal(1, (3, 1))
MODEL = ntk_jax.MLP((6,), activation="tanh", W_std=1.5, b_std=0.1)
APPLY, PARAMS = drawn(MODEL, X)
MOVED = jax.tree.map(lambda p: 1.1 * np.asarray(p) + 0.05, PARAMS)


def flat(apply_fn, params):
    w, unravel = ravel_pytree(params)
    return lambda v: apply_fn(unravel(v), X).reshape(-1), np.asarray(w)


@pytest.fixture(scope="module")
def dense():
    """(|f - y|, Jacobian, Hessians (n, P, P)) by automatic differentiation of the flat function."""
    f, w = flat(APPLY, PARAMS)
    return np.linalg.norm(f(w) - Y[:, 0]), *map(
        np.asarray,
        jax.jit(lambda w: (jax.jacobian(f)(w), jax.hessian(f)(w)), compiler_options=UNOPTIMIZED)(w),
    )


def spectral_norm(c, hessians):
    return np.abs(np.linalg.eigvalsh(np.tensordot(c / np.linalg.norm(c), hessians, 1))).max()


def test_kappa_is_that_of_dense_derivatives(dense):
    residual, jacobian, hessians = dense
    starts = np.random.default_rng(0).standard_normal((1000, 3))
    best = starts[np.argsort([-spectral_norm(c, hessians) for c in starts])[:5]]
    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 2000}
    found = [
        minimize(lambda c: -spectral_norm(c, hessians), c, method="Nelder-Mead", options=options)
        for c in best
    ]
    hessian, singular = -min(r.fun for r in found), np.linalg.svd(jacobian, compute_uv=False)[0]
    out = ntk_jax.laziness(APPLY, PARAMS, X, Y)
    for name, truth in (("residual", residual), ("jacobian", singular), ("hessian", hessian)):
        np.testing.assert_allclose(getattr(out, name), truth, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(out.kappa, residual * hessian / singular**2, rtol=1e-9)
    assert out.standard_error == 0


def test_frobenius_kappa_is_sampled_with_a_standard_error(dense):
    residual, jacobian, hessians = dense
    out = ntk_jax.laziness(APPLY, PARAMS, X, Y, norm="frobenius")
    np.testing.assert_allclose(out.jacobian, np.linalg.norm(jacobian), rtol=1e-12)
    truth = residual * np.linalg.norm(hessians) / np.linalg.norm(jacobian) ** 2
    assert 0 < out.standard_error < 0.1 * truth
    assert abs(out.kappa - truth) < 4 * out.standard_error


@pytest.mark.slow
def test_kappa_falls_like_one_over_alpha_only_from_zero_output():
    one = ntk_jax.laziness(APPLY, PARAMS, X, Y)
    unit = one.hessian / one.jacobian**2
    alpha = 1000.0
    centered = ntk_jax.scale_output(ntk_jax.zero_output(APPLY, PARAMS), alpha)
    small = ntk_jax.laziness(centered, PARAMS, X, Y).kappa
    np.testing.assert_allclose(small, np.linalg.norm(Y) * unit / alpha, rtol=1e-9)
    stuck = ntk_jax.laziness(ntk_jax.scale_output(APPLY, alpha), PARAMS, X, Y).kappa
    np.testing.assert_allclose(stuck, np.linalg.norm(APPLY(PARAMS, X)) * unit, rtol=0.01)


@pytest.mark.slow
def test_kappa_falls_like_one_over_root_width():
    x, y = (
        jax.random.normal(jax.random.key(0), (8, 3)),
        jax.random.normal(jax.random.key(9), (8, 1)),
    )
    means, widths = [], (256, 4096)
    for width in widths:
        model = ntk_jax.MLP((width,), activation="tanh")
        init = jax.jit(model.init)
        apply_fn, params = ntk_jax.from_linen(model, init(jax.random.key(0), x))
        seeds = [params, *(init(jax.random.key(seed), x)["params"] for seed in (1, 2))]
        means.append(
            np.mean([ntk_jax.laziness(apply_fn, p, x, y, num_starts=2).kappa for p in seeds])
        )
    slope = np.log(means[1] / means[0]) / np.log(widths[1] / widths[0])
    assert abs(slope + 0.5) < 0.15


def test_kappa_of_a_model_linear_in_its_parameters_is_zero():
    out = ntk_jax.laziness(lambda w, x: x @ w, jnp.ones((2, 1)), X, Y)
    assert out.kappa == out.hessian == 0
    np.testing.assert_allclose(out.jacobian, np.linalg.svd(X, compute_uv=False)[0], rtol=1e-12)


def test_jacobian_change_is_that_of_dense_jacobians():
    f, w_0 = flat(APPLY, PARAMS)
    jacobian = jax.jit(jax.jacobian(f), compiler_options=UNOPTIMIZED)
    start, now = (np.asarray(jacobian(w)) for w in (w_0, ravel_pytree(MOVED)[0]))
    expected = np.linalg.norm(now - start) / np.linalg.norm(start)
    np.testing.assert_allclose(
        ntk_jax.jacobian_change(APPLY, MOVED, PARAMS, X), expected, rtol=1e-12
    )
    assert ntk_jax.jacobian_change(APPLY, PARAMS, PARAMS, X) < 1e-15


def test_taylor_gap_is_second_order():
    f, w_0 = flat(APPLY, PARAMS)
    step = ravel_pytree(MOVED)[0] - w_0
    change, slope = map(
        np.asarray, jax.jit(lambda s: (f(w_0 + s) - f(w_0), jax.jvp(f, (w_0,), (s,))[1]))(step)
    )
    expected = np.linalg.norm(change - slope)
    out = ntk_jax.taylor_gap(APPLY, MOVED, PARAMS, X)
    np.testing.assert_allclose(out.absolute, expected, rtol=1e-10)
    np.testing.assert_allclose(out.relative, expected / np.linalg.norm(change), rtol=1e-10)
    tenth = jax.tree.map(lambda p, q: np.asarray(p) + (q - np.asarray(p)) / 1000, PARAMS, MOVED)
    hundredth = jax.tree.map(
        lambda p, q: np.asarray(p) + (q - np.asarray(p)) / 10000, PARAMS, MOVED
    )
    gaps = [ntk_jax.taylor_gap(APPLY, p, PARAMS, X) for p in (tenth, hundredth)]
    np.testing.assert_allclose(gaps[0].absolute / gaps[1].absolute, 100, rtol=0.01)
    np.testing.assert_allclose(gaps[0].relative / gaps[1].relative, 10, rtol=0.01)


def relu_kernel(x, b_std=None):
    model = ntk_jax.MLP((100,), W_std=2**0.5, b_std=b_std)
    return ntk_jax.empirical_ntk(*drawn(model, x), x)


def test_a_definite_kernel():
    k = np.diag([4.0, 1.0, 2.0])
    out = ntk_jax.definiteness(k, num_params=3)
    assert out.positive_definite and (out.rank, out.size, out.condition_number) == (3, 3, 4.0)
    assert (out.smallest_eigenvalue, out.largest_eigenvalue) == (1.0, 4.0)
    assert (
        not out.too_few_parameters
        and not out.zeros.size
        and not out.duplicates.size
        and not out.parallel.size
    )


def test_the_examples_that_make_a_kernel_singular_are_named():
    x = np.random.default_rng(0).standard_normal((6, 3))
    x[3], x[4], x[5] = x[1], 2 * x[0], 0
    out = ntk_jax.definiteness(relu_kernel(x))
    assert (out.rank, out.size, out.condition_number) == (
        3,
        6,
        np.inf,
    ) and not out.positive_definite
    np.testing.assert_array_equal(out.duplicates, [[1, 3]])
    np.testing.assert_array_equal(out.parallel, [[0, 4]])
    np.testing.assert_array_equal(out.zeros, [5])
    with_biases = ntk_jax.definiteness(relu_kernel(x, b_std=0.5))
    assert with_biases.rank == 5 and not with_biases.parallel.size and not with_biases.zeros.size
    np.testing.assert_array_equal(with_biases.duplicates, [[1, 3]])


@pytest.mark.slow
def test_a_line_without_biases_has_rank_two_and_with_them_full_rank():
    x = np.linspace(-2, 2.5, 9)[:, None]
    assert ntk_jax.definiteness(relu_kernel(x)).rank == 2
    assert ntk_jax.definiteness(relu_kernel(x, b_std=1.0)).positive_definite
    he = ntk_jax.MLP(
        (100,), W_std=2**0.5, parameterization="standard"
    )  # biases start at zero, and are trained
    k = ntk_jax.empirical_ntk(*ntk_jax.from_linen(he, he.init(jax.random.key(0), x)), x)
    assert ntk_jax.definiteness(k).rank == 4  # max(x, 0), max(-x, 0), and a constant on each side


def test_full_kernels_and_too_few_parameters():
    linear = lambda w, x: x @ w
    x = np.random.default_rng(0).standard_normal((4, 2))
    x[2] = -x[0]
    k = ntk_jax.empirical_ntk(linear, jnp.ones((2, 3)), x, outputs="full")
    out = ntk_jax.definiteness(k, num_params=6)
    assert (out.rank, out.size) == (6, 12) and out.too_few_parameters
    np.testing.assert_array_equal(out.parallel, [[0, 2]])


@pytest.mark.slow
def test_conflicting_duplicates_leave_the_variance_of_their_targets():
    x, y = np.array([[1.0, 2.0], [1.0, 2.0], [0.5, -1.0]]), np.array([1.0, -1.0, 0.3])
    f = ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(relu_kernel(x, b_std=0.1)), y, np.inf).train
    np.testing.assert_allclose(np.mean((f - y) ** 2), (1 - -1) ** 2 / 2 / 3, rtol=1e-9)
