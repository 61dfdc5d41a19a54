"""Kernel regression against the normal equations of features, with and without a ridge, and near
singular kernels.
"""

import numpy as np
import pytest

import ntk_jax


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    phi, phi_test = rng.normal(size=(8, 5)), rng.normal(size=(3, 5))
    return phi @ phi.T, rng.normal(size=(8, 2)), phi_test @ phi.T, phi, phi_test


def test_ridge_is_the_normal_equations_of_the_features(data):
    k, y, k_test, phi, phi_test = data
    out = ntk_jax.kernel_regression(k, y, k_test, diag_reg=0.3)
    w = np.linalg.solve(phi.T @ phi + 0.3 * np.eye(5), phi.T @ y)
    np.testing.assert_allclose(out.test, phi_test @ w, rtol=1e-10)
    np.testing.assert_allclose(out.train, phi @ w, rtol=1e-10)
    values = np.linalg.eigvalsh(k + 0.3 * np.eye(8))
    assert out.report.rank == 8
    np.testing.assert_allclose(out.report.smallest_eigenvalue, values[0], rtol=0.05)
    np.testing.assert_allclose(out.report.largest_eigenvalue, values[-1], rtol=0.05)


def test_without_ridge_it_is_the_least_squares_solution_of_smallest_norm(data):
    k, y, k_test, phi, phi_test = data
    out = ntk_jax.kernel_regression(k, y, k_test)
    w = np.linalg.lstsq(phi, y, rcond=None)[0]
    np.testing.assert_allclose(out.test, phi_test @ w, rtol=1e-9)
    assert out.report.rank == 5
    values = np.linalg.eigvalsh(k)
    np.testing.assert_allclose(out.report.condition_number, values[-1] / values[3], rtol=1e-9)


def test_rcond_drops_the_modes_below_it(data):
    k, y, k_test, *_ = data
    values, vectors = np.linalg.eigh(k)
    out = ntk_jax.kernel_regression(
        k, y, k_test, rcond=0.5 * (values[-1] + values[-2]) / values[-1]
    )
    expected = k_test @ vectors[:, -1:] @ (vectors[:, -1:].T @ y) / values[-1]
    assert out.report.rank == 1
    np.testing.assert_allclose(out.test, expected, rtol=1e-10)


def test_initial_outputs_are_where_it_starts(data):
    k, y, k_test, *_ = data
    f_0, f_test_0 = np.full_like(y, 2.0), np.full((3, 2), 2.0)
    out = ntk_jax.kernel_regression(k, y, k_test, diag_reg=0.1, fx_train_0=f_0, fx_test_0=f_test_0)
    plain = ntk_jax.kernel_regression(k, y - f_0, k_test, diag_reg=0.1)
    np.testing.assert_allclose(out.test, plain.test + f_test_0, rtol=1e-12)


def test_full_kernel_of_independent_outputs_is_the_shared_one(data):
    k, y, k_test, *_ = data
    full, full_test = (m[:, :, None, None] * np.eye(2) for m in (k, k_test))
    for diag_reg in (0.0, 0.2):
        shared = ntk_jax.kernel_regression(k, y, k_test, diag_reg=diag_reg)
        joint = ntk_jax.kernel_regression(full, y, full_test, diag_reg=diag_reg)
        np.testing.assert_allclose(joint.test, shared.test, rtol=1e-8)
        assert joint.coefficients.shape == y.shape


def test_conflicting_labels_leave_the_known_floor():
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    y = np.array([1.0, -2.0, 0.5])
    out = ntk_jax.kernel_regression(x @ x.T, y, x @ x.T)
    np.testing.assert_allclose(np.sum((out.train - y) ** 2), (1.0 + 2.0) ** 2 / 2, rtol=1e-12)
    assert out.report.rank == 2


def test_a_ridge_for_each_example():
    rng = np.random.default_rng(4)
    phi, phi_test, y, ridge = (
        rng.normal(size=(5, 8)),
        rng.normal(size=(2, 8)),
        rng.normal(size=(5, 2)),
        rng.uniform(1, 2, 5),
    )
    k, k_test = phi @ phi.T, phi_test @ phi.T
    expected = k_test @ np.linalg.solve(k + np.diag(ridge), y)
    np.testing.assert_allclose(
        ntk_jax.kernel_regression(k, y, k_test, diag_reg=ridge).test, expected, rtol=1e-11
    )
    full, full_test = (m[:, :, None, None] * np.eye(2) for m in (k, k_test))
    np.testing.assert_allclose(
        ntk_jax.kernel_regression(full, y, full_test, diag_reg=ridge).test, expected, rtol=1e-11
    )
    posterior = ntk_jax.gp_posterior(k, y, k_test, phi_test @ phi_test.T, noise=ridge)
    np.testing.assert_allclose(posterior.mean, expected, rtol=1e-11)


def test_modes_that_float32_can_tell_are_fitted_and_lost_ones_are_named():
    # xor of two coordinates: much of the targets is in modes of 1e-5 to 1e-6 of the largest
    # eigenvalue
    x = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    y = np.sign(x[:, 0] * x[:, 1])
    single, double = (
        np.asarray(ntk_jax.mlp_kernels(x.astype(t), depth=2).ntk) for t in (np.float32, np.float64)
    )
    s = np.linalg.eigvalsh(double)
    with pytest.warns(
        UserWarning,
        match=r"of 300 modes of this float32 kernel cannot be told from 0.*hold .* of the norm",
    ):
        fitted = ntk_jax.kernel_regression(single, y.astype(np.float32), single[:1])
    assert fitted.report.rank >= np.sum(s > 10 * np.finfo(np.float32).eps * s[-1])
    assert ntk_jax.kernel_regression(double, y, double[:1]).report.rank == 300


def test_a_kernel_of_condition_1e6_has_full_rank_in_float32():
    rng = np.random.default_rng(1)
    U, _ = np.linalg.qr(rng.normal(size=(300, 300)))
    k = (U * np.logspace(0, -6, 300)) @ U.T
    k, y = ((k + k.T) / 2).astype(np.float32), rng.normal(size=300).astype(np.float32)
    assert ntk_jax.diagonalize(k).rank == 300
    np.testing.assert_allclose(
        ntk_jax.kernel_regression(k, y, k[:2]).train, y, atol=0.5
    )  # eps times the condition number


@pytest.mark.parametrize("kind", ["shared", "diagonal", "full"])
def test_large_kernels_are_factored_in_place_and_give_the_same(kind, data, monkeypatch):
    k, y, k_test, *_ = data
    outputs = {"shared": np.ones(()), "diagonal": np.array([1.0, 2.0]), "full": np.eye(2) + 0.2}
    spread = lambda k: np.multiply.outer(k, outputs[kind])
    arguments = spread(k), y, spread(k_test)
    options = {"diag_reg": np.linspace(0.1, 0.2, 8), "fx_train_0": 2 * y, "fx_test_0": 1.0}
    program = ntk_jax.kernel_regression(*arguments, **options)
    monkeypatch.setattr("ntk_jax.inference.regression.IN_PLACE", 1)
    in_place = ntk_jax.kernel_regression(*arguments, **options)
    for one, other in zip(in_place[:3], program[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
    for one, other in zip(in_place.report, program.report, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0.1)
    assert (arguments[0] == spread(k)).all()
    with pytest.raises(ValueError, match="Use diag_reg above"):
        ntk_jax.kernel_regression(spread(k - 0.2 * np.eye(8)), y, spread(k_test), diag_reg=0.1)
    with pytest.raises(ValueError, match="k_train_train: expected finite"):
        ntk_jax.kernel_regression(spread(k * np.nan), y, spread(k_test), diag_reg=0.1)
