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
    out = ntk_jax.kernel_regression(k, y, k_test, rcond=0.5 * (values[-1] + values[-2]) / values[-1])
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
