"""What is a ratio does not depend on the scale of kernels, targets or parameters: squares neither
over- nor underflow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from ntk_jax.norms import norm, norm_ratio, standard_error

N = 6
Z = np.random.default_rng(0).standard_normal((N, 9))
K, K2 = Z @ Z.T, Z[:, :5] @ Z[:, :5].T + np.eye(N)
Y = np.random.default_rng(1).standard_normal((N, 2))
KEY = jax.random.key(0)
SCALES = {np.float32: (1e-30, 1e-25, 1e20, 1e30), np.float64: (1e-200, 1e200)}
CASES = [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales]
TREE = {"a": {"w": Z, "b": Z[0]}, "c": {"w": Y}}
MOVED = jax.tree.map(lambda p: 1.5 * p + 0.1, TREE)


def put(a, dtype):
    """On the device, with nothing compiled."""
    return jax.device_put(np.asarray(a, dtype))


def linear(params, x):
    return x @ params["w"] + params["b"][None]


def movement(p, p_0):
    change = ntk_jax.relative_change(p, p_0)
    return jnp.stack([change.total, *change.by_layer.values()])


def top(k):
    found = ntk_jax.top_eigenvalues(k, 2, key=KEY, block_size=1)
    assert found.converged
    return found.eigenvalues


def trace(k):
    return jnp.stack(ntk_jax.stochastic_trace(k, key=KEY, num_probes=4))


# name: (function of scaled arrays, arrays, the power of the scale that the result has)
RATIOS = {
    "norm": (norm, (K,), 1),
    "norm along an axis": (lambda k: norm(k, axis=0), (K,), 1),
    "standard error": (standard_error, (Y[:, 0],), 1),
    "kernel_change": (ntk_jax.kernel_change, (2 * K + K2, K), 0),
    "relative_change": (movement, (MOVED, TREE), 0),
    "alignment": (lambda k: ntk_jax.alignment(k, put(Y, k.dtype)), (K,), 0),
    "alignment, targets": (lambda y: ntk_jax.alignment(put(K, y.dtype), y), (Y,), 0),
    "centered alignment, targets": (
        lambda y: ntk_jax.alignment(put(K, y.dtype), y, centered=True),
        (Y,),
        0,
    ),
    "centered_alignment": (ntk_jax.centered_alignment, (K, K2), 0),
    "cosine": (ntk_jax.cosine, (K,), 0),
    "kernel_distance": (ntk_jax.kernel_distance, (K,), 0.5),
    "effective_rank": (ntk_jax.effective_rank, (K,), 0),
    "participation": (lambda k: ntk_jax.effective_rank(k, kind="participation"), (K,), 0),
    "eigenvalues": (ntk_jax.eigenvalues, (K,), 1),
    "top_eigenvalues": (top, (np.kron(K, np.eye(2)) + np.diag(np.arange(2.0 * N)),), 1),
    "trace and its error": (trace, (K,), 1),
    "cumulative_power": (
        lambda y: ntk_jax.cumulative_power(ntk_jax.diagonalize(put(K, y.dtype)), y),
        (Y,),
        0,
    ),
    "rkhs_norm, targets": (lambda y: ntk_jax.rkhs_norm(put(K, y.dtype), y), (Y,), 1),
    "GCV": (
        lambda k: ntk_jax.generalized_cross_validation(
            k, put(Y, k.dtype), diag_reg=float(k[0, 0]) / 9
        ),
        (K,),
        0,
    ),
    "learning_curve": (
        lambda k: ntk_jax.learning_curve(k, put(Y, k.dtype), 4, diag_reg=float(k[0, 0]) / 9).test,
        (K2,),
        0,
    ),
    "definiteness": (lambda k: ntk_jax.definiteness(k).condition_number, (K2,), 0),
}


@pytest.mark.parametrize("name", RATIOS)
def test_the_scale_of_the_numbers_does_not_matter(name):
    function, arrays, power = RATIOS[name]
    truth = function(*jax.device_put(arrays))
    for dtype, scale in CASES:
        scaled = jax.tree.map(lambda a: put(a * scale, dtype), arrays)  # noqa: B023
        tolerance = 1e-4 if dtype == np.float32 else 1e-10
        found = np.asarray(function(*scaled), float) / scale**power
        np.testing.assert_allclose(
            found, truth, rtol=tolerance, atol=tolerance, err_msg=f"{dtype} {scale}"
        )


@pytest.mark.parametrize("dtype, scale", CASES)
def test_the_log_determinant_of_any_scale(dtype, scale):
    truth = np.linalg.slogdet(K / K[0, 0] + np.eye(N))[1] + N * (np.log(K[0, 0]) + np.log(scale))
    k = put(K * scale, dtype)
    probes = {"key": KEY, "num_probes": 4, "num_steps": N}
    unit = ntk_jax.log_determinant(K, diag_reg=float(K[0, 0]), **probes)
    found = ntk_jax.log_determinant(k, diag_reg=float(k[0, 0]), **probes)
    np.testing.assert_allclose(
        float(found.value) - N * np.log(scale),
        unit.value,
        atol=1e-3 if dtype == np.float32 else 1e-9,
    )
    np.testing.assert_allclose(
        found.standard_error, unit.standard_error, rtol=1e-2 if dtype == np.float32 else 1e-9
    )
    assert abs(float(found.value) - truth) < 5 * float(found.standard_error)


@pytest.mark.parametrize("dtype, scale", CASES)
def test_networks_of_any_scale(dtype, scale):
    x = put(Z[:3], dtype)
    start = {"w": put(Y[:1].repeat(9, 0), dtype), "b": put(np.zeros(2), dtype)}
    moved = jax.tree.map(lambda p: 2 * np.asarray(p) + 1, start)
    apply_fn = lambda p, x: jnp.asarray(scale, dtype) * jnp.tanh(linear(p, x))
    unit = lambda p, x: jnp.tanh(linear(p, x))
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(
        ntk_jax.jacobian_change(apply_fn, moved, start, x),
        ntk_jax.jacobian_change(unit, moved, start, x),
        rtol=tolerance,
    )
    gap, truth = (ntk_jax.taylor_gap(f, moved, start, x) for f in (apply_fn, unit))
    np.testing.assert_allclose(gap.relative, truth.relative, rtol=tolerance)
    np.testing.assert_allclose(gap.absolute / scale, truth.absolute, rtol=tolerance)


def test_zero_over_zero_is_what_the_docstrings_say():
    zero, k = np.zeros((3, 3)), np.eye(3)
    assert ntk_jax.kernel_change(zero, zero) == 0 and ntk_jax.kernel_change(k, zero) == np.inf
    assert ntk_jax.kernel_change(zero, k) == 1
    change = ntk_jax.relative_change(
        {"a": {"w": zero}, "b": {"w": k}, "c": {"w": zero}}, {x: {"w": zero} for x in "abc"}
    )
    assert change.total == np.inf and list(change.by_layer.values()) == [0, np.inf, 0]
    still = lambda p, x: 0 * (x @ p)
    assert ntk_jax.jacobian_change(still, 2 * k, k, k) == 0
    assert ntk_jax.taylor_gap(still, 2 * k, k, k) == (0, 0)
    assert ntk_jax.effective_rank(np.ones((1, 1))) == 1
    assert (
        ntk_jax.generalized_cross_validation(2 * np.ones((1, 1)), np.array([3.0]), diag_reg=0.1)
        == 9
    )
    np.testing.assert_allclose(
        ntk_jax.generalized_cross_validation(zero, np.array([1.0, 2, 2]), diag_reg=0.1), 3
    )
    np.testing.assert_array_equal(ntk_jax.kernel_distance(np.ones((1, 1))), [[0]])
    assert ntk_jax.rkhs_norm(zero, np.ones(3)) == 0
    assert ntk_jax.definiteness(zero).rank == 0


def test_what_diverged_is_not_called_still():
    nan = {"w": np.full(2, np.nan)}
    assert np.isnan(ntk_jax.relative_change(nan, {"w": np.ones(2)}).total)
    with pytest.raises(ValueError, match="k: expected finite values"):
        ntk_jax.kernel_change(np.full((2, 2), np.nan), np.eye(2))


ZERO = {
    "effective_rank": lambda: ntk_jax.effective_rank(np.zeros((3, 3))),
    "participation": lambda: ntk_jax.effective_rank(np.zeros((3, 3)), kind="participation"),
    "alignment": lambda: ntk_jax.alignment(np.zeros((3, 3)), np.ones(3)),
    "alignment, targets": lambda: ntk_jax.alignment(np.eye(3), np.zeros(3)),
    # not exactly 0 after centering in floating point
    "constant targets": lambda: ntk_jax.alignment(np.eye(7), np.full(7, 0.1), centered=True),
    "constant targets, single": lambda: ntk_jax.alignment(
        np.eye(1000, dtype=np.float32), np.full(1000, 0.1, np.float32), centered=True
    ),
    "constant kernel": lambda: ntk_jax.centered_alignment(np.full((7, 7), 0.1), np.eye(7)),
    "one example": lambda: ntk_jax.centered_alignment(np.ones((1, 1)), np.ones((1, 1))),
    "cumulative_power": lambda: ntk_jax.cumulative_power(
        ntk_jax.diagonalize(np.eye(3)), np.zeros(3)
    ),
    "GCV": lambda: ntk_jax.generalized_cross_validation(np.zeros((3, 3)), np.ones(3), diag_reg=0.0),
}


@pytest.mark.parametrize("case", ZERO)
def test_or_an_error(case):
    with pytest.raises(ValueError, match=r"zero|above 0|at least"):
        ZERO[case]()


def test_derivatives_of_ratios():
    k, k_0, d = jax.device_put((K, K2, K2 @ K2))
    for f in (
        lambda k: ntk_jax.kernel_change(k, k_0),
        lambda k: ntk_jax.centered_alignment(k, k_0),
        lambda k: ntk_jax.alignment(k, Y),
        lambda k: norm_ratio(k_0, k),
    ):
        g = jax.jit(lambda h, f=f: f(k + h * d))
        _, slope = jax.jvp(g, (0.0,), (1.0,))
        np.testing.assert_allclose(slope, (float(g(1e-6)) - float(g(-1e-6))) / 2e-6, rtol=1e-6)
    assert (
        jax.jit(jax.grad(lambda s: ntk_jax.kernel_change(k + s * d, k)))(0.0) == 0
    )  # a kink: between the two slopes
    slope = jax.jit(jax.grad(lambda k: jnp.sum(ntk_jax.kernel_distance(k))))(k_0)
    assert np.all(np.isfinite(slope))


INDEFINITE = np.diag([2.0, 1.0, -0.5])
NOT_PSD = {
    "log_determinant": lambda k: ntk_jax.log_determinant(k, diag_reg=1.0, key=KEY),
    "effective_rank": ntk_jax.effective_rank,
    "participation": lambda k: ntk_jax.effective_rank(k, kind="participation"),
    "cosine": lambda k: ntk_jax.cosine(np.array([[1.0, 2.0], [2.0, 1.0]])),
    "kernel_distance": ntk_jax.kernel_distance,
    "GCV": lambda k: ntk_jax.generalized_cross_validation(k, np.ones(3), diag_reg=1.0),
    "learning_curve": lambda k: ntk_jax.learning_curve(k, np.ones(3), 2, diag_reg=1.0),
    "definiteness": ntk_jax.definiteness,
    "learning_times": lambda k: ntk_jax.learning_times(ntk_jax.top_eigenvalues(k, 3, key=KEY)),
    "rkhs_norm": lambda k: ntk_jax.rkhs_norm(k, np.ones(3)),
    "rkhs_norm with a ridge": lambda k: ntk_jax.rkhs_norm(k, np.ones(3), diag_reg=0.1),
}


@pytest.mark.parametrize("case", NOT_PSD)
def test_kernels_that_are_not_positive_semi_definite_are_refused(case, unchecked_shapes):
    with pytest.raises(ValueError, match=r"positive (semi-)?definite"):
        NOT_PSD[case](INDEFINITE)


def test_singular_kernels_are_positive_semi_definite():
    for dtype in (np.float32, np.float64):
        k = (Z[:, :2] @ Z[:, :2].T).astype(dtype)
        assert 1 < ntk_jax.effective_rank(k) < 2 + 1e-4
        assert 1 < ntk_jax.effective_rank(k, kind="participation") < 2
        ntk_jax.log_determinant(k, diag_reg=1e-3, key=KEY)
        assert ntk_jax.cosine(k).shape == ntk_jax.kernel_distance(k).shape == k.shape


VECTOR = np.ones(3)
SCALARS = {
    "rkhs_norm": lambda: ntk_jax.rkhs_norm(K, Y, diag_reg=VECTOR),
    "log_determinant": lambda: ntk_jax.log_determinant(K, diag_reg=VECTOR, key=KEY),
    "eigenlearning, ridge": lambda: ntk_jax.eigenlearning(
        np.ones(3), np.ones(3), 2, diag_reg=VECTOR
    ),
    "eigenlearning, noise": lambda: ntk_jax.eigenlearning(np.ones(3), np.ones(3), 2, noise=VECTOR),
    "learning_curve": lambda: ntk_jax.learning_curve(K, Y, 2, diag_reg=VECTOR),
    "top_eigenvalues": lambda: ntk_jax.top_eigenvalues(K, 2, key=KEY, tol=VECTOR),
    "definiteness": lambda: ntk_jax.definiteness(K, rcond=VECTOR),
    "GCV": lambda: ntk_jax.generalized_cross_validation(K, Y, diag_reg=np.ones((3, 1))),
}


@pytest.mark.parametrize("case", SCALARS)
def test_arrays_where_a_scalar_is_meant_are_refused(case, unchecked_shapes):
    with pytest.raises(
        ValueError, match=r"expected a number( or a vector of them)?; got shape \(3,"
    ):
        SCALARS[case]()


def test_integers_as_eigenvalues_are_not_the_dtype_of_the_rest(unchecked_shapes):
    a = ntk_jax.eigenlearning(np.array([4, 2, 1]), np.array([0.5, 0.25, 0.1]), 2)
    b = ntk_jax.eigenlearning(np.array([4.0, 2.0, 1.0]), np.array([0.5, 0.25, 0.1]), 2)
    np.testing.assert_array_equal(a.test, b.test)
