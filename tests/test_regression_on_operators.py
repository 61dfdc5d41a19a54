"""What the front doors give for operators, against what they give for the kernel as an array."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_kernel_operator import kernel_fn
from test_solve import OnlyMultiplied, WithColumns

import ntk_jax

N, M = 80, 12
TIGHT = {"tol": 1e-13, "progress": False}


class Stored(WithColumns):
    """Like a store: slices, and products by NumPy."""

    def __getitem__(self, index):
        return self.k[index]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, x_test = rng.standard_normal((N, 4)), rng.standard_normal((M, 4))
    kernel = jax.jit(lambda *rows: kernel_fn(*rows).ntk)
    k, k_test, prior = (np.asarray(kernel(*rows)) for rows in ((x,), (x_test, x), (x_test,)))
    return x, x_test, k, k_test, prior, rng.standard_normal((N, 2))


def operators(kind, data):
    x, x_test, k, k_test, *_ = data
    if kind in ("memory", "recompute"):
        options = {"kernel": "ntk", "storage": kind, "block_size": 32}
        return (
            ntk_jax.kernel_operator(kernel_fn, x, **options),
            ntk_jax.kernel_operator(kernel_fn, x_test, x, **options),
        )
    return {"stored": Stored, "python": OnlyMultiplied}[kind](k), Stored(k_test)


@pytest.mark.parametrize("kind", ["memory", "recompute", "stored", "python"])
def test_regression_with_an_operator_is_that_with_its_array(kind, data):
    *_, k, k_test, _, y = data
    options = {"diag_reg": np.linspace(0.1, 0.2, N), "fx_train_0": 2 * y, "fx_test_0": 1.0}
    dense = ntk_jax.kernel_regression(k, y, k_test, **options)
    operator, test = operators(kind, data)
    for at_test in (test, k_test):
        found = ntk_jax.kernel_regression(operator, y, at_test, solve_options=TIGHT, **options)
        for one, other in zip(found[:3], dense[:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)
    s = np.linalg.eigvalsh(k + np.diag(options["diag_reg"]))
    report = found.report
    assert report.rank == N
    assert s[0] * (1 - 1e-10) <= report.smallest_eigenvalue < 3 * s[0]
    assert 0.9 * s[-1] < report.largest_eigenvalue <= s[-1] * 1.001
    np.testing.assert_allclose(
        report.condition_number, report.largest_eigenvalue / report.smallest_eigenvalue
    )


@pytest.mark.parametrize("kind", ["recompute", "stored"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_posterior_with_an_operator_is_that_with_its_array(kind, whole, data, monkeypatch):
    # Ten rows, then two: as many right-hand sides as there are targets, which is one program.
    monkeypatch.setattr("ntk_jax.inference.posterior_on_operators.ROWS", 10)
    *_, k, k_test, prior, y = data
    prior = prior if whole else np.diagonal(prior)
    dense = ntk_jax.gp_posterior(k, y, k_test, prior, noise=0.3)
    operator, test = operators(kind, data)
    for at_test in (test, k_test):
        found = ntk_jax.gp_posterior(operator, y, at_test, prior, noise=0.3, solve_options=TIGHT)
        np.testing.assert_allclose(found.mean, dense.mean, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.covariance, dense.covariance, rtol=1e-9, atol=1e-10)
    exact = float(dense.log_marginal_likelihood)
    spread = ntk_jax.log_determinant(k, diag_reg=0.3, key=jax.random.key(0))
    assert abs(found.log_marginal_likelihood - exact) < 4 * 2 * spread.standard_error
    alone = ntk_jax.log_marginal_likelihood(operator, y, noise=0.3, solve_options=TIGHT)
    np.testing.assert_allclose(alone, found.log_marginal_likelihood, rtol=1e-12)


@pytest.fixture(scope="module")
def coupled():
    """Outputs, noise, full kernels of a network with two outputs, and its operators."""
    rng = np.random.default_rng(1)
    params = {"W": rng.standard_normal((3, 30)), "v": rng.standard_normal((30, 2)) / 30**0.5}
    f = lambda p, x: jnp.tanh(x @ p["W"]) @ p["v"]
    x, x_test, y = (
        rng.standard_normal((20, 3)),
        rng.standard_normal((5, 3)),
        rng.standard_normal((20, 2)),
    )
    full = partial(ntk_jax.empirical_ntk, f, params, outputs="full")
    operators = ntk_jax.ntk_operator(f, params, x), ntk_jax.ntk_operator(f, params, x_test, x)
    return y, np.linspace(0.1, 0.2, 20), full, (x, x_test), operators


def test_coupled_outputs_of_a_network_are_those_of_its_full_kernel(coupled):
    y, noise, full, (x, x_test), (operator, test) = coupled
    k, k_test = full(x), full(x_test, x)
    dense = ntk_jax.kernel_regression(k, y, k_test, diag_reg=noise)
    found = ntk_jax.kernel_regression(operator, y, test, diag_reg=noise, solve_options=TIGHT)
    for one, other in zip(found[:3], dense[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_a_posterior_of_coupled_outputs_is_that_of_the_full_kernel(coupled):
    y, noise, full, (x, x_test), (operator, test) = coupled
    k, k_test, prior = full(x), full(x_test, x), full(x_test)
    variances = np.einsum("nnoo->no", prior)
    for priors in (prior, variances):
        posterior = ntk_jax.gp_posterior(k, y, k_test, priors, noise=noise)
        other = ntk_jax.gp_posterior(operator, y, test, priors, noise=noise, solve_options=TIGHT)
        np.testing.assert_allclose(other.mean, posterior.mean, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(other.covariance, posterior.covariance, rtol=1e-9, atol=1e-10)


def test_without_a_ridge_a_definite_kernel_is_interpolated(data):
    *_, k, k_test, _, y = data
    found = ntk_jax.kernel_regression(Stored(k), y, k_test, solve_options=TIGHT)
    np.testing.assert_allclose(found.train, y, rtol=1e-9)
    np.testing.assert_allclose(found.test, k_test @ np.linalg.solve(k, y), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["recompute", "stored", "python"])
def test_top_eigenvalues_of_an_operator_are_those_of_its_array(kind, data):
    k = data[2]
    top = ntk_jax.top_eigenvalues(operators(kind, data)[0], 3, key=jax.random.key(0))
    np.testing.assert_allclose(top.eigenvalues, np.linalg.eigvalsh(k)[::-1][:3], rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.ones(7)}, "y_train: expected one row per row of k_train_train"),
        ({"y_train": np.full(N, np.inf)}, "y_train: expected finite"),
        ({"k_test_train": np.ones((N, M))}, "k_test_train: expected test rows .* It is transposed"),
        ({"rcond": 0.1}, "rcond: expected None with an operator"),
        ({"solve_options": {"method": "cholesky"}}, "solve_options: expected keywords of solve"),
        ({"fx_train_0": np.ones(N)}, "fx_test_0: expected the initial outputs"),
        ({"diag_reg": -1.0}, "diag_reg: expected finite and at least 0"),
        ({"k_train_train": np.eye(N)}, "solve_options: expected None with an array"),
    ],
)
def test_bad_arguments_are_told(change, message, data, unchecked_shapes):
    *_, k, k_test, _, y = data
    arguments = {
        "k_train_train": Stored(k),
        "y_train": y[:, 0],
        "k_test_train": k_test,
        "diag_reg": 0.1,
        "solve_options": {},
    }
    with pytest.raises(ValueError, match=message):
        ntk_jax.kernel_regression(**arguments | change)


def test_a_shape_of_test_covariances_that_does_not_fit_is_told(data, unchecked_shapes):
    *_, k, k_test, _, y = data
    with pytest.raises(ValueError, match="k_test_test: expected one of the shapes"):
        ntk_jax.gp_posterior(Stored(k), y, k_test, np.ones(M + 1), noise=0.1)
    with pytest.raises(ValueError, match=r"gives rows, by .T.columns or by slices"):
        ntk_jax.gp_posterior(Stored(k), y, OnlyMultiplied(k_test), np.ones(M), noise=0.1)
