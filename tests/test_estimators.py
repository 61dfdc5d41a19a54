"""The estimators do what their slow twins do, and what scikit-learn asks of them."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from flax import linen as nn
from sklearn.datasets import load_wine
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import ntk_jax
from cases.compilations import compilations
from ntk_jax.estimators import NTKClassifier, NTKKernel, NTKRegressor, NTKTransformer
from ntk_jax.estimators.calibration import best_temperatures, smoothed
from ntk_jax.estimators.kernels import (
    cross_kernel,
    kernel_of_rows,
    kernels_by_depth,
    padded_size,
    training_kernel,
)
from ntk_jax.estimators.ridges import all_ridges, solve
from ntk_jax.estimators.rows import merged
from ntk_jax.estimators.sources import MLPSource

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3))
Y = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + 0.1 * RNG.normal(size=24)
NEW = RNG.normal(size=(5, 3))
WEIGHTS = RNG.integers(1, 4, 24).astype(float)
SOURCE = MLPSource("ntk", "relu", 2, 2**0.5, 0.3)
FIXED = {"depth": 1, "b_std": 0.3, "ridge": 0.1, "scale": "columns"}


def library_ntk(x1, x2=None):
    return np.asarray(ntk_jax.mlp_kernels(x1, x2, depth=2, W_std=2**0.5, b_std=0.3).ntk)


# Every check with what is tried by default is slow; with fixed settings the same checks are quick.
FAST = [NTKRegressor(**FIXED), NTKClassifier(**FIXED), NTKTransformer(depth=1)]
SLOW = [
    NTKRegressor(),
    NTKClassifier(),
    NTKRegressor(method="gp"),
    NTKRegressor(method="gp", **FIXED),
    NTKClassifier(method="gp", **FIXED),
    NTKTransformer(depth=1, n_components=1),
]


@pytest.mark.filterwarnings("default")
@parametrize_with_checks(FAST)
def test_scikit_learn_finds_nothing_to_object_to(estimator, check):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@parametrize_with_checks(SLOW)
def test_scikit_learn_finds_nothing_to_object_to_in_further_settings(estimator, check):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        check(estimator)


# kernels


def test_padding_changes_no_kernel():
    k = training_kernel(SOURCE, X)
    np.testing.assert_allclose(k, library_ntk(X), rtol=1e-12)
    assert np.array_equal(k, k.T)
    np.testing.assert_allclose(cross_kernel(SOURCE, NEW, X), library_ntk(NEW, X), rtol=1e-12)
    np.testing.assert_allclose(kernel_of_rows(SOURCE, NEW), np.diag(library_ntk(NEW)), rtol=1e-12)
    by_depth = kernels_by_depth(SOURCE, (0, 2), X)
    np.testing.assert_allclose(by_depth[2], library_ntk(X), rtol=1e-10)
    np.testing.assert_allclose(by_depth[0], 0.09 + 2 * X @ X.T / 3, rtol=1e-10)


def test_sizes_are_few():
    sizes = [padded_size(n) for n in range(1, 2001)]
    assert all(size >= n for n, size in enumerate(sizes, start=1))
    assert all(size < 1.25 * n for n, size in enumerate(sizes, start=1) if n > 256)
    assert len(set(sizes)) == 15


# ridges, in closed form and by refits


def problem():
    k = library_ntk(X)
    return k / np.diag(k).mean(), np.stack([Y, X[:, 0] ** 2], axis=1)


def refit(k, y, weights, ridge, rows):
    """What a fit without all other rows predicts for all."""
    a = np.linalg.solve(k[np.ix_(rows, rows)] + np.diag(ridge / weights[rows]), y[rows])
    return k[:, rows] @ a


def test_left_out_errors_are_those_of_refits():
    k, y = problem()
    ridges = np.array([1e-3, 0.3])
    found = all_ridges(k, y, WEIGHTS, np.zeros(2), ridges)
    for ridge, errors in zip(ridges, found.errors, strict=True):
        for i in range(len(k)):
            rest = np.delete(np.arange(len(k)), i)
            expected = y[i] - refit(k, y, WEIGHTS, ridge, rest)[i]
            np.testing.assert_allclose(errors[i], expected, rtol=1e-9)
        np.testing.assert_allclose(
            solve(k, y, WEIGHTS, np.zeros(2), float(ridge)).errors, errors, rtol=1e-9
        )


def test_evidence_is_that_of_the_gaussian_process_at_its_best_amplitude():
    k, y = problem()
    repeated = np.repeat(np.arange(len(k)), WEIGHTS.astype(int))
    noisy = y[repeated] + 0.1 * np.random.default_rng(1).normal(size=(len(repeated), 2))
    rows = merged(X[repeated], noisy, np.ones(len(repeated)))
    k = library_ntk(rows.x) / 3
    whole = library_ntk(X[repeated]) / 3
    whole = (whole + whole.T) / 2

    def evidence(amplitude, ridge):
        return float(
            ntk_jax.log_marginal_likelihood(amplitude * whole, noisy, noise=amplitude * ridge)
        )

    ridges = np.array([0.05, 0.5])
    found = all_ridges(k, *rows[1:4], ridges).evidence
    best = []
    for ridge in ridges:
        solution = solve(k, *rows[1:4], float(ridge))
        best.append(evidence(solution.amplitude, ridge))
        assert best[-1] > evidence(1.05 * solution.amplitude, ridge)
        assert best[-1] > evidence(0.95 * solution.amplitude, ridge)
    # What is left out does not depend on the ridge; two outputs have twice the evidence of one.
    np.testing.assert_allclose(best[1] - best[0], 2 * (found[1] - found[0]), rtol=1e-9)


def test_temperature_minimizes_the_log_loss():
    rng = np.random.default_rng(2)
    values, targets = rng.normal(size=(3, 30, 4)), np.eye(4)[rng.integers(0, 4, 30)]
    values[1] += 3 * targets
    weights = rng.uniform(0.5, 2, 30)
    aim = smoothed(targets, weights)
    a, losses = best_temperatures(values, aim, weights)

    def loss(log_a, v):
        z = np.exp(log_a) * v
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return -np.sum(weights * np.sum(aim * log_p, axis=1)) / weights.sum()

    for i, v in enumerate(values):
        best = scipy.optimize.minimize_scalar(
            loss, bounds=(np.log(0.1), np.log(1e3)), args=(v,), method="bounded"
        )
        assert losses[i] <= best.fun + 1e-6
        np.testing.assert_allclose(losses[i], loss(np.log(a[i]), v), rtol=1e-10)


# the estimators


def test_predictions_and_deviations_are_those_of_the_gaussian_process():
    model = NTKRegressor(kernel="ntk", depth=2, b_std=0.3, ridge=0.2, scale="none").fit(X, Y)
    k = library_ntk(X)
    unit = np.diag(k).mean()
    y = (Y - Y.mean()) / Y.std()
    amplitude = y @ np.linalg.solve(k / unit + 0.2 * np.eye(24), y) / 24
    posterior = ntk_jax.gp_posterior(
        amplitude * k / unit,
        y,
        amplitude * library_ntk(NEW, X) / unit,
        amplitude * np.diag(library_ntk(NEW)) / unit,
        noise=amplitude * 0.2,
    )
    mean, std = model.predict(NEW, return_std=True)
    np.testing.assert_allclose(mean, np.asarray(posterior.mean) * Y.std() + Y.mean(), rtol=1e-8)
    expected = np.sqrt(np.asarray(posterior.covariance) + amplitude * 0.2) * Y.std()
    np.testing.assert_allclose(std, expected, rtol=1e-8)


@pytest.mark.parametrize("method", ["ridge", pytest.param("gp", marks=pytest.mark.slow)])
def test_repeated_rows_weigh_as_much_as_they_are_many(method):
    repeated = np.repeat(np.arange(24), WEIGHTS.astype(int))
    one = NTKRegressor(method=method).fit(X, Y, sample_weight=WEIGHTS)
    other = NTKRegressor(method=method).fit(X[repeated], Y[repeated])
    assert one.kernel_ == other.kernel_ and one.ridge_ == other.ridge_
    for a, b in zip(one.predict(NEW, True), other.predict(NEW, True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7)


def test_influence_is_what_a_refit_without_the_row_changes():
    model = NTKRegressor(depth=2, b_std=0.3, ridge=0.2, scale="none").fit(X, Y)
    found = model.explain(NEW, top=24)
    k = library_ntk(np.concatenate([X, NEW]))
    unit = np.diag(k)[:24].mean()
    y, weights = Y - Y.mean(), np.ones(24)
    full = refit(k / unit, y, weights, 0.2, np.arange(24))[24:]
    for rows, changes, i in zip(*found, range(5), strict=True):
        assert np.all(np.diff(np.abs(changes)) <= 0)
        for row, change in list(zip(rows, changes, strict=True))[:6]:
            without = refit(k / unit, y, weights, 0.2, np.delete(np.arange(24), row))[24 + i]
            np.testing.assert_allclose(change, full[i] - without, rtol=1e-7, atol=1e-10)


def test_left_out_predictions_of_equal_rows_do_not_see_each_other():
    x, y = np.concatenate([X, X[:1]]), np.append(Y, 50.0)
    model = NTKRegressor(**FIXED).fit(x, y, sample_weight=np.append(np.ones(24), 0.0))
    same = NTKRegressor(**FIXED).fit(X, Y)
    np.testing.assert_allclose(model.predict(NEW), same.predict(NEW), rtol=1e-9)
    np.testing.assert_allclose(
        model.leave_one_out_predictions_[:24], same.leave_one_out_predictions_, rtol=1e-9
    )
    assert abs(model.leave_one_out_predictions_[24]) < 5


def labels():
    return np.where(X[:, 0] * X[:, 1] > 0, "same", "other")


def test_left_out_probabilities_are_those_of_refits():
    """With everything chosen and the mean kept; equal weights of classes keep the mean."""
    for method in ("ridge", "gp"):
        model = NTKClassifier(method=method, **FIXED | {"scale": "none"}).fit(X, labels())
        onehot = (labels()[:, None] == model.classes_).astype(float)
        k = training_kernel(model.kernel_, X)
        k, mean = k / np.diag(k).mean(), onehot.mean(axis=0)
        for i in range(3):
            rest = np.delete(np.arange(24), i)
            values = mean + refit(k, onehot - mean, np.ones(24), 0.1, rest)[i]
            if method == "gp":
                inverse = np.linalg.inv(k[np.ix_(rest, rest)] + 0.1 * np.eye(23))
                variance = k[i, i] - k[i, rest] @ inverse @ k[rest, i]
                values = values / np.sqrt(1 + np.pi / 8 * variance / 0.1)
            z = np.exp(model.temperature_[0] * values)
            np.testing.assert_allclose(model.leave_one_out_proba_[i], z / z.sum(), rtol=1e-8)


def test_labels_of_any_kind_and_several_targets():
    text, number = labels(), np.digitize(X[:, 2], [-0.5, 0.5]) * 10
    both = NTKClassifier(**FIXED).fit(X, np.stack([labels() == "same", number], axis=1))
    of_text, of_number = (NTKClassifier(**FIXED).fit(X, y) for y in (text, number))
    assert of_text.predict(NEW).dtype.kind == "U" and set(of_text.classes_) == {"same", "other"}
    assert np.array_equal(both.predict(NEW)[:, 0], of_text.predict(NEW) == "same")
    assert np.array_equal(both.predict(NEW)[:, 1], of_number.predict(NEW))
    assert [p.shape for p in both.predict_proba(NEW)] == [(5, 2), (5, 3)]
    assert not hasattr(both, "decision_function") and hasattr(of_text, "decision_function")
    assert of_number.explain(NEW, top=2).rows.shape == (5, 2)


def test_far_from_all_rows_a_gaussian_process_knows_less():
    far = 1e3 * np.ones((1, 3))
    model = NTKClassifier(method="gp", **FIXED).fit(X, labels())
    near = model.predict_proba(X).max(axis=1).mean()
    assert model.predict_proba(far).max() < near


def test_class_weights_move_the_border():
    y = np.where(np.arange(24) % 4 == 0, "rare", "often")
    shares = [
        np.mean(NTKClassifier(class_weight=w, **FIXED).fit(X, y).predict(X) == "rare")
        for w in (None, "balanced", {"rare": 30, "often": 1})
    ]
    assert shares[0] < shares[1] <= shares[2]


def test_pipelines_grids_and_pickles():
    y = labels()
    machine = make_pipeline(NTKTransformer(), SVC(kernel="precomputed", C=10.0)).fit(X, y)
    k = training_kernel(SOURCE, (X - X.mean(0)) / X.std(0))
    expected = SVC(kernel="precomputed", C=10.0).fit(k / np.diag(k).mean(), y)
    assert np.array_equal(machine.predict(X), expected.predict(k / np.diag(k).mean()))
    search = GridSearchCV(NTKRegressor(**FIXED), {"ridge": [0.01, 1.0], "depth": [1, 2]}, cv=2)
    search.fit(X, Y)
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    for a, b in zip(again.predict(NEW, True), search.predict(NEW)[None], strict=False):
        np.testing.assert_allclose(a, b)
    assert len(pickle.dumps(search.best_estimator_)) < 24 * 24 * 8 + 5000


def test_features_multiply_to_the_kernel():
    kernel = NTKTransformer().fit_transform(X)
    features = NTKTransformer(n_components=24).fit_transform(X)
    np.testing.assert_allclose(features @ features.T, kernel, rtol=1e-6, atol=1e-8)
    some = NTKTransformer(n_components=6, random_state=0).fit(X)
    assert some.transform(NEW).shape == (5, 6)
    assert some.get_feature_names_out()[0] == "ntktransformer0"


def test_tables_of_pandas_come_and_go():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = NTKRegressor(**FIXED).fit(frame, pd.Series(Y))
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    np.testing.assert_allclose(model.predict(frame), NTKRegressor(**FIXED).fit(X, Y).predict(X))
    out = NTKTransformer(n_components=2).set_output(transform="pandas").fit_transform(frame)
    assert isinstance(out, pd.DataFrame) and out.shape == (24, 2)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"a": "z"}))


@pytest.mark.filterwarnings("ignore:The optimal value found")
def test_a_kernel_of_scikit_learn_has_exact_derivatives():
    kernel = NTKKernel(depth=1)
    k, gradient = kernel(X[:6], eval_gradient=True)
    for i in range(2):
        step = 1e-6 * np.eye(2)[i]
        up, down = (kernel.clone_with_theta(kernel.theta + s)(X[:6]) for s in (step, -step))
        np.testing.assert_allclose(gradient[..., i], (up - down) / 2e-6, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(kernel.diag(X[:6]), np.diag(k), rtol=1e-12)
    fixed = NTKKernel(depth=1, W_std_bounds="fixed")
    assert fixed(X[:6], eval_gradient=True)[1].shape == (6, 6, 1)
    start = ConstantKernel() * fixed + WhiteKernel(0.1, (0.01, 1.0))
    noisy = Y + np.random.default_rng(3).normal(size=24)
    process = GaussianProcessRegressor(start).fit(X, noisy)
    assert process.log_marginal_likelihood_value_ > process.log_marginal_likelihood(start.theta)


class Images(nn.Module):
    """A small network of images."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (2, 2))(x))
        return nn.Dense(1)(x.reshape(len(x), -1))


@pytest.mark.slow
def test_any_flax_model_classifies_images():
    images = RNG.normal(size=(12, 9))
    y = images[:, 0] > 0
    options = {"ridge": 0.1, "model": Images(), "input_shape": (3, 3, 1)}
    model = NTKClassifier(**options).fit(images, y)
    assert model.predict(images).shape == (12,) and model.scale_ == "all"
    scaled = model.fitted_.scaler(images).astype(np.float32)
    k = ntk_jax.infinite_width(Images())(scaled.reshape(-1, 3, 3, 1)).ntk
    order = np.argsort(model.fitted_.first)
    np.testing.assert_allclose(
        training_kernel(model.kernel_, model.fitted_.x)[np.ix_(order, order)], k, rtol=1e-4
    )


def test_a_network_of_finite_width_has_a_kernel_too():
    finite = NTKRegressor(width=32, ridge=0.1, random_state=0).fit(X, Y)
    same = pickle.loads(pickle.dumps(finite))
    np.testing.assert_allclose(same.predict(NEW), finite.predict(NEW), rtol=1e-6)
    assert finite.score(X, Y) > 0.5


# what is compiled


def test_fits_of_a_grid_share_their_programs():
    x, y = load_wine(return_X_y=True)
    grid = {"depth": [1, 2], "b_std": [0.1, 0.5], "ridge": [0.01, 0.1, 1.0]}

    def search(seed):
        folds = StratifiedKFold(3, shuffle=True, random_state=seed)
        search = GridSearchCV(NTKClassifier(scale="columns"), grid, cv=folds, refit=False)
        return search.fit(x, y)

    with compilations() as first:
        assert search(0).best_score_ > 0.95
    # of each depth: diagonals and kernels of 128 x 128 and 64 x 128 rows
    assert len(first) <= 2 * 2 * 2, f"{len(first)} programs"
    with compilations() as second:
        search(1)
    assert not second


def test_equal_sizes_of_default_fits_share_their_programs():
    options = {"scale": "columns", "b_std": 0.3}
    NTKRegressor(**options).fit(X, Y)
    with compilations() as found:  # whatever depth is chosen, its kernel was computed with others
        NTKRegressor(ridge=0.3, **options).fit(X[2:, :2], Y[2:])
        NTKRegressor(**options).fit(X[1:], Y[1:])
    assert len(found) <= 2  # the kernel of another depth


# errors

CASES = {
    "method": (lambda: NTKRegressor(method="svm").fit(X, Y), "method: expected one of 'ridge'"),
    "kernel": (lambda: NTKRegressor(kernel="rbf").fit(X, Y), "kernel: expected one of 'ntk'"),
    "scale": (lambda: NTKClassifier(scale="std").fit(X, Y > 0), "scale: expected one of 'auto'"),
    "ridge": (lambda: NTKRegressor(ridge=0).fit(X, Y), "ridge: expected finite and above 0"),
    "depth": (lambda: NTKRegressor(depth=1.5).fit(X, Y), "depth: expected an integer"),
    "activation": (lambda: NTKRegressor(activation="x").fit(X, Y), "activation: expected"),
    "shape": (
        lambda: NTKRegressor(model=Images(), input_shape=(2, 2, 1)).fit(X, Y),
        "input_shape: expected the shape of one row, of 3 features",
    ),
    "both": (lambda: NTKRegressor(model=Images(), width=3).fit(X, Y), "model, width: expected one"),
    "classes": (lambda: NTKClassifier().fit(X, np.ones(24)), "at least two classes.*got one class"),
    "weights": (
        lambda: NTKRegressor().fit(X, Y, sample_weight=-WEIGHTS),
        "sample_weight: expected finite numbers of at least 0",
    ),
    "top": (lambda: NTKRegressor(**FIXED).fit(X, Y).explain(X, top=0), "top: expected an integer"),
    "auto": (lambda: NTKTransformer(depth="auto").fit(X), "no target to choose by"),
    "components": (lambda: NTKTransformer(n_components=99).fit(X), "at most the 24 rows"),
    "rank": (
        lambda: NTKRegressor(depth=0, b_std=0.0, ridge=1e-18).fit(X, Y),
        "ridge: expected large enough",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_say_what_was_expected(case):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_more_rows_than_memory_holds_are_refused_by_the_transformer(monkeypatch):
    monkeypatch.setattr("ntk_jax.memory.free_bytes", lambda: 10_000)
    with pytest.raises(ValueError, match=r"fit of 24 rows.*n_components"):
        NTKTransformer(depth=1).fit_transform(X)


def test_without_scikit_learn_the_extra_is_named():
    import subprocess
    import sys

    code = "import sys; sys.modules['sklearn'] = None\nfrom ntk_jax import estimators"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'ntk-jax[sklearn]" in out.stderr


def test_jax_arrays_are_rows_too():
    a, b = (
        NTKRegressor(**FIXED).fit(f(X), f(Y)).predict(f(NEW)) for f in (np.asarray, jnp.asarray)
    )
    np.testing.assert_array_equal(a, b)
