"""Leave-one-out and evidence of operators: estimates, within their errors of the exact ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_regression_on_operators import Stored
from test_solve import OnlyMultiplied

import ntk_jax
from ntk_jax.operators.inverse_diagonal import solve_with_diagonal
from ntk_jax.operators.iteration import Options

N, M, RIDGE = 80, 13, 0.3
FEW = {"tol": 1e-13, "progress": False, "rank": 20}  # columns that leave much to the probes
RNG = np.random.default_rng(0)
X, X_TEST, Y = (RNG.standard_normal(shape) for shape in ((N, 4), (M, 4), (N, 2)))


def gaussian(x1, x2=None):
    x2 = x1 if x2 is None else x2
    squares = (x1**2).sum(1)[:, None] + (x2**2).sum(1)[None] - 2 * x1 @ x2.T
    return jnp.exp(-squares / 4) if isinstance(x1, jax.Array) else np.exp(-squares / 4)


K, K_TEST, PRIOR = gaussian(X), gaussian(X_TEST, X), gaussian(X_TEST)


def exact(ridge=RIDGE, **options):
    return ntk_jax.leave_one_out(ntk_jax.diagonalize(K), Y, diag_reg=ridge, **options)


def test_what_is_left_out_of_an_operator_is_that_of_its_array():
    dense = exact()
    found = ntk_jax.leave_one_out(Stored(K), Y, diag_reg=RIDGE, solve_options=FEW)
    away = np.abs(found.predictions - dense.predictions)
    assert np.all(away <= 6 * found.standard_error + 1e-12)
    shares = np.mean(np.square(away / found.standard_error))
    assert 0.3 < shares < 3  # errors that are as large as they say
    assert 0 < found.loss_standard_error < 0.1 * dense.loss
    assert abs(found.loss - dense.loss) < 4 * found.loss_standard_error
    assert found.test_change is None and dense.standard_error is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["recompute", "python"])
def test_ridges_initial_outputs_and_changes_of_test_outputs(kind):
    ridges, options = np.array([0.3, 1.0]), {"fx_train_0": 0.5 * Y}
    dense = exact(ridges, k_test_train=K_TEST, **options)
    recomputed = partial(ntk_jax.kernel_operator, gaussian, storage="recompute", block_size=32)
    operator, test = {
        "recompute": lambda: (recomputed(X), recomputed(X_TEST, X)),
        "python": lambda: (OnlyMultiplied(K), K_TEST),
    }[kind]()
    options |= {"num_probes": 1000, "solve_options": FEW}
    found = ntk_jax.leave_one_out(operator, Y, diag_reg=ridges, k_test_train=test, **options)
    assert found.predictions.shape == (2, N, 2) and found.test_change.shape == (2, N, M, 2)
    for name in ("predictions", "loss", "test_change"):
        one, other = getattr(found, name), getattr(dense, name)
        assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(other), name


@pytest.mark.slow
def test_the_diagonal_of_the_inverse_is_exact_but_for_probes():
    truth = np.diagonal(np.linalg.inv(K + RIDGE * np.eye(N)))
    options = Options(**FEW, method="conjugate_gradients")
    found_with = partial(
        solve_with_diagonal, jnp.asarray(K), jnp.asarray(Y), np.asarray(RIDGE), stacklevel=2
    )
    means = [found_with(options._replace(seed=i), num_probes=32).diagonal for i in range(12)]
    spread = np.std(means, axis=0, ddof=1) / len(means) ** 0.5
    assert np.mean(np.abs(np.mean(means, axis=0) - truth) < 3 * spread + 1e-12) > 0.9
    # With all columns in the preconditioner nothing is left to the probes.
    found = found_with(options._replace(rank=N), num_probes=2)
    np.testing.assert_allclose(found.diagonal, truth, rtol=1e-8)


def test_the_evidence_of_an_operator_has_a_standard_error():
    options = {"noise": RIDGE, "return_error": True}
    dense = ntk_jax.log_marginal_likelihood(K, Y, **options)
    found = ntk_jax.log_marginal_likelihood(Stored(K), Y, solve_options=FEW, **options)
    assert 0 < found.standard_error < 0.1 * abs(dense.value)
    assert abs(found.value - dense.value) < 4 * found.standard_error
    assert dense.standard_error == 0


@pytest.mark.slow
def test_the_standard_error_of_the_evidence_is_that_of_the_determinant():
    options = {"noise": RIDGE, "solve_options": FEW}
    found = ntk_jax.log_marginal_likelihood(Stored(K), Y, return_error=True, **options)
    # The same probes, of two outputs, each of which has half the determinant.
    same = ntk_jax.log_determinant(K, diag_reg=RIDGE, key=jax.random.key(0))
    np.testing.assert_allclose(found.standard_error, same.standard_error, rtol=1e-6)
    posterior = ntk_jax.gp_posterior(Stored(K), Y, Stored(K_TEST), np.diagonal(PRIOR), **options)
    np.testing.assert_allclose(posterior.standard_error, found.standard_error, rtol=1e-12)
    assert ntk_jax.gp_posterior(K, Y, K_TEST, PRIOR, noise=RIDGE).standard_error is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_probes": 1}, "num_probes: expected an integer .*2"),
        ({"y_train": np.ones(7)}, "y_train: expected one row per row of modes"),
        ({"y_train": np.ones((N // 2, 2))}, "modes: expected an operator with a row for each"),
        ({"modes": ntk_jax.diagonalize(np.eye(N))}, "solve_options: expected None with an array"),
        ({"solve_options": {"method": "cholesky"}}, "solve_options: expected keywords of solve"),
    ],
)
def test_bad_arguments_are_told(change, message, unchecked_shapes):
    arguments = {"modes": OnlyMultiplied(np.eye(N)), "y_train": np.ones(N), "diag_reg": 0.1}
    with pytest.raises(ValueError, match=message):
        ntk_jax.leave_one_out(**arguments | {"solve_options": {}} | change)
