"""Fits of more rows than the memory holds matrices of, against fits by Cholesky."""

import pickle

import numpy as np
import pytest
from flax import linen as nn
from sklearn.base import clone

from ntk_jax.estimators import NTKClassifier, NTKRegressor

RNG = np.random.default_rng(0)
N = 150
X, NEW = RNG.normal(size=(N, 4)), RNG.normal(size=(70, 4))
Y = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + 0.3 * RNG.normal(size=N)
LABELS = np.where(Y > 0, "up", "down")
WEIGHTS = RNG.integers(1, 4, N).astype(float)
FIXED = {"depth": 1, "b_std": 0.3, "ridge": 0.1, "scale": "columns"}
HELD, RECOMPUTED = 5 * N**2, 3 * N**2  # of 32 N² for a fit, and 4 N² for a kernel in float32


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def changes(model, **options):
    """What each training row changes of each prediction."""
    rows, change = model.explain(NEW, top=N, **options)
    return np.take_along_axis(change, np.argsort(rows, axis=1), axis=1)


def check_close(found, dense, tol):
    """Predictions to the tolerance of the solves, what is left out as far as the probes go."""
    assert dense.solver_ == "cholesky" and found.solver_ == "conjugate_gradients"
    assert 0 < found.n_iter_ < 100 and found.residual_ <= tol
    for a, b in zip(found.predict(NEW, True), dense.predict(NEW, True), strict=True):
        assert distance(a, b) <= 3 * tol
    misses = [model.leave_one_out_predictions_ - Y for model in (found, dense)]
    assert distance(*misses) < 0.15
    assert abs(found.leave_one_out_score_ - dense.leave_one_out_score_) < 0.03


def test_a_kernel_that_is_recomputed_gives_what_cholesky_gives():
    model = NTKRegressor(memory_limit=RECOMPUTED, **FIXED)
    assert clone(model).memory_limit == RECOMPUTED
    found, dense = (m.fit(X, Y, WEIGHTS) for m in (model, NTKRegressor(**FIXED)))
    check_close(found, dense, 1e-3)
    assert "RecomputedKernel" in repr(found.fitted_._system.k)
    stored = pickle.dumps(found)
    assert len(stored) < 8 * 10 * N + 8 * N * 32 + 6000
    np.testing.assert_allclose(pickle.loads(stored).predict(NEW), found.predict(NEW), rtol=1e-12)


@pytest.mark.slow
def test_what_rows_change_of_predictions_is_recomputed_too():
    models = NTKRegressor(memory_limit=RECOMPUTED, **FIXED), NTKRegressor(**FIXED)
    assert distance(*(changes(model.fit(X, Y, WEIGHTS)) for model in models)) < 0.15


@pytest.mark.slow
def test_one_copy_of_the_kernel_is_held_where_there_is_room(monkeypatch):
    dense = NTKRegressor(**FIXED).fit(X, Y)
    found = NTKRegressor(memory_limit=HELD, **FIXED).fit(X, Y)
    check_close(found, dense, 1e-3)
    assert distance(changes(found), changes(dense)) < 0.15
    assert "HeldKernel" in repr(found.fitted_._system.k)
    monkeypatch.setattr("ntk_jax.estimators.kernels.free_bytes", lambda: HELD)
    assert NTKRegressor(**FIXED).fit(X, Y).solver_ == "conjugate_gradients"


@pytest.mark.slow
def test_a_ridge_below_the_rounding_of_float32_is_solved_in_float64():
    options = FIXED | {"ridge": 1e-6}
    dense = NTKRegressor(**options).fit(X, Y)
    found = NTKRegressor(memory_limit=RECOMPUTED, **options).fit(X, Y)
    assert found.fitted_._system.k.dtype == np.float64
    assert distance(found.predict(NEW), dense.predict(NEW)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ridge", "gp"])
def test_classes_are_those_of_cholesky(method):
    options = FIXED | {"method": method}
    dense = NTKClassifier(**options).fit(X, LABELS)
    found = NTKClassifier(memory_limit=RECOMPUTED, **options).fit(X, LABELS)
    np.testing.assert_allclose(found.predict_proba(NEW), dense.predict_proba(NEW), atol=0.03)
    assert np.mean(found.predict(NEW) == dense.predict(NEW)) > 0.97
    assert abs(found.leave_one_out_score_ - dense.leave_one_out_score_) < 0.03


@pytest.mark.slow
def test_parameters_are_chosen_on_rows_that_fit():
    model = NTKRegressor(memory_limit=32 * 60**2 + 1, scale="columns").fit(X, Y)
    assert len(model.selection_rows_) == 60 and len(np.unique(model.selection_rows_)) == 60
    few = NTKRegressor(scale="columns").fit(X[model.selection_rows_], Y[model.selection_rows_])
    assert model.kernel_ == few.kernel_
    fixed = {"depth": model.kernel_.depth, "b_std": model.kernel_.b_std, "ridge": model.ridge_}
    dense = NTKRegressor(scale="columns", **fixed).fit(X, Y)
    assert distance(model.predict(NEW), dense.predict(NEW)) < 3e-3


@pytest.mark.slow
def test_networks_of_finite_width_and_models_go_the_same_way():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.relu(nn.Dense(8)(x)))

    for options in ({"width": 32, "random_state": 0}, {"model": Model()}):
        options |= {"ridge": 0.1, "scale": "all"}
        dense = NTKRegressor(**options).fit(X, Y)
        found = NTKRegressor(memory_limit=RECOMPUTED, **options).fit(X, Y)
        assert found.solver_ == "conjugate_gradients"
        assert distance(found.predict(NEW), dense.predict(NEW)) < 3e-3


def test_a_limit_that_is_none_is_told():
    with pytest.raises(ValueError, match="memory_limit: expected finite and above 0"):
        NTKRegressor(memory_limit=0, **FIXED).fit(X, Y)
