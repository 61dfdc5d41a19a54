"""Gaussian processes, ensembles of trained networks, leave-one-out: against plain linear algebra
and refits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import ntk_jax
from ntk_jax.data import linear_data

N, N_TEST, O = 7, 3, 2
KINDS = ["shared", "diagonal", "full"]


def gram(rng, num_features=40):
    """A kernel of all examples and outputs, as a matrix (all O, all O) in example-major order."""
    phi = rng.normal(size=((N + N_TEST) * O, num_features)) / num_features**0.5
    return phi @ phi.T


def parts(dense, kind):
    """train-train, test-train and test-test kernels of a kind, and the dense matrices that they
    mean.
    """
    blocks = dense.reshape(N + N_TEST, O, N + N_TEST, O).swapaxes(1, 2)
    if kind == "shared":
        blocks = blocks[:, :, 0, 0]
        dense = np.kron(blocks, np.eye(O))
    elif kind == "diagonal":
        blocks = np.stack([blocks[:, :, o, o] for o in range(O)], -1)
        dense = np.einsum("ijo,op->iojp", blocks, np.eye(O)).reshape(dense.shape)
    cut = N * O
    matrices = dense[:cut, :cut], dense[cut:, :cut], dense[cut:, cut:]
    return (blocks[:N, :N], blocks[N:, :N], blocks[N:, N:]), matrices


def diagonal_of(k_test_test, kind):
    picked = np.einsum("ii...->i...", k_test_test)
    return np.einsum("ioo->io", picked) if kind == "full" else picked


def as_dense(covariance, kind):
    """A covariance of any kind as the dense matrix of all test outputs."""
    if kind == "shared":
        return np.kron(covariance, np.eye(O))
    if kind == "diagonal":
        covariance = np.einsum("ijo,op->ijop", covariance, np.eye(O))
    return np.swapaxes(covariance, 1, 2).reshape(N_TEST * O, N_TEST * O)


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_is_gaussian_conditioning(kind):
    rng = np.random.default_rng(0)
    (k, k_test, k_test_test), (m, m_test, m_test_test) = parts(gram(rng), kind)
    y = rng.normal(size=(N, O))
    out = ntk_jax.gp_posterior(k, y, k_test, k_test_test, noise=0.2)
    noisy = m + 0.2 * np.eye(N * O)
    gain = m_test @ np.linalg.inv(noisy)
    np.testing.assert_allclose(out.mean.ravel(), gain @ y.ravel(), rtol=1e-10)
    np.testing.assert_allclose(
        as_dense(out.covariance, kind), m_test_test - gain @ m_test.T, rtol=1e-10, atol=1e-12
    )
    quadratic = y.ravel() @ np.linalg.solve(noisy, y.ravel())
    logpdf = -(quadratic + np.linalg.slogdet(2 * np.pi * noisy)[1]) / 2
    np.testing.assert_allclose(out.log_marginal_likelihood, logpdf, rtol=1e-10)
    np.testing.assert_allclose(ntk_jax.log_marginal_likelihood(k, y, noise=0.2), logpdf, rtol=1e-10)
    cheap = ntk_jax.gp_posterior(k, y, k_test, diagonal_of(k_test_test, kind), noise=0.2)
    np.testing.assert_allclose(cheap.covariance, diagonal_of(out.covariance, kind), rtol=1e-10)


def test_likelihood_is_differentiable_in_scales_and_noise():
    x, y = np.random.default_rng(0).normal(size=(5, 3)), np.arange(5.0)

    @jax.jit
    @jax.value_and_grad
    def evidence(v):
        k = ntk_jax.mlp_kernels(x, depth=2, W_std=v[0], b_std=v[1]).nngp
        return ntk_jax.log_marginal_likelihood(k, y, noise=v[2])

    v = jnp.array([1.3, 0.4, 0.1])
    step = 1e-5 * np.eye(3)
    numeric = [(evidence(v + e)[0] - evidence(v - e)[0]) / 2e-5 for e in step]
    np.testing.assert_allclose(evidence(v)[1], numeric, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("diag_reg", [0.0, 0.3])
def test_ensemble_is_the_affine_image_of_the_prior(kind, diag_reg):
    rng = np.random.default_rng(1)
    dense = gram(rng), gram(rng)
    (nngp, ntk), (k, theta) = zip(*(parts(d, kind) for d in dense), strict=True)
    y, t = rng.normal(size=(N, O)), [0.0, 3.0, 50.0]
    train_train, test_train = (ntk_jax.Kernels(nngp[i], ntk[i]) for i in (0, 1))
    out = ntk_jax.ensemble_mse(train_train, test_train, nngp[2], y, t, diag_reg=diag_reg)
    variances = ntk_jax.ensemble_mse(
        train_train, test_train, diagonal_of(nngp[2], kind), y, t, diag_reg=diag_reg
    ).covariance
    for i, time in enumerate(t):
        ridge = theta[0] + diag_reg * np.eye(N * O)
        a = theta[1] @ np.linalg.solve(ridge, np.eye(N * O) - expm(-ridge * time / y.size))
        joint = np.hstack(
            [-a, np.eye(N_TEST * O)]
        )  # f_test(t) = joint (f_train(0), f_test(0)) + a y
        prior = np.block([[k[0], k[1].T], [k[1], k[2]]])
        np.testing.assert_allclose(out.mean[i].ravel(), a @ y.ravel(), rtol=1e-9, atol=1e-12)
        dense_cov = as_dense(out.covariance[i], kind)
        np.testing.assert_allclose(dense_cov, joint @ prior @ joint.T, rtol=1e-9, atol=1e-11)
        assert np.linalg.eigvalsh(dense_cov)[0] > -1e-12
        np.testing.assert_allclose(variances[i], diagonal_of(out.covariance[i], kind), rtol=1e-9)
    np.testing.assert_array_equal(out.covariance[0], nngp[2])
    np.testing.assert_array_equal(out.mean[0], 0)
    limit = ntk_jax.ensemble_mse(train_train, test_train, nngp[2], y, np.inf, diag_reg=diag_reg)
    regression = ntk_jax.kernel_regression(ntk[0], y, ntk[1], diag_reg=diag_reg)
    np.testing.assert_allclose(limit.mean, regression.test, rtol=1e-8)


@pytest.mark.slow
def test_trained_ensemble_is_certain_where_it_was_trained():
    data = linear_data(8, 1, 5)
    kernels = ntk_jax.mlp_kernels(data.x_train, depth=1, b_std=0.5)
    out = ntk_jax.ensemble_mse(kernels, kernels, kernels, data.y_train, np.inf)
    np.testing.assert_allclose(out.mean, data.y_train, atol=1e-10)
    np.testing.assert_allclose(out.covariance, 0, atol=1e-10)
    variance = ntk_jax.ensemble_mse(
        kernels, kernels, np.diag(kernels.nngp), data.y_train, np.inf
    ).covariance
    assert (variance >= 0).all() and variance.max() < 1e-10  # rounding is not negative


@pytest.fixture(scope="module")
def linear():
    """The published experiment: one hidden layer, linear data; kernels of train and test
    examples.
    """
    data = linear_data()
    scales = {"depth": 1, "W_std": (10.0, 2**0.5), "b_std": (1.0, None)}
    pairs = (data.x_train,), (data.x_test, data.x_train), (data.x_test,)
    return data, *(ntk_jax.mlp_kernels(*pair, **scales) for pair in pairs)


@pytest.mark.slow
def test_published_ensemble_numbers(linear):
    data, k, k_test, k_test_test = linear
    out = ntk_jax.ensemble_mse(k, k_test, k_test_test, data.y_train, np.inf)
    mean_loss = np.mean((out.mean - data.y_test) ** 2)
    variance = np.mean(np.diag(out.covariance))
    assert abs(mean_loss - 0.48437) < 5e-6
    assert abs(variance - 0.6458) < 5e-5
    assert abs(mean_loss + variance - 1.1302) < 5e-5
    np.testing.assert_allclose(np.diag(k_test_test.nngp), 2.0, rtol=1e-12)
    posterior = ntk_jax.gp_posterior(
        k.nngp, data.y_train, k_test.nngp, np.diag(k_test_test.nngp), noise=0.0
    )
    assert abs(np.mean((posterior.mean - data.y_test) ** 2) - 0.46147) < 5e-6
    assert abs(np.mean(posterior.covariance) - 0.63951) < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_leave_one_out_equals_refits(kind):
    rng = np.random.default_rng(2)
    (k, *_), (m, *_) = parts(gram(rng, 9 if kind == "full" else 40), kind)
    y, f_0, ridges = rng.normal(size=(N, O)), rng.normal(size=(N, O)), [0.05, 0.7]
    out = ntk_jax.leave_one_out(ntk_jax.diagonalize(k), y, diag_reg=ridges, fx_train_0=f_0)
    for ridge, predictions, loss in zip(ridges, *out[:2], strict=True):
        expected = np.empty((N, O))
        for i in range(N):
            own, rest = (
                np.arange(i * O, (i + 1) * O),
                np.delete(np.arange(N * O), np.s_[i * O : (i + 1) * O]),
            )
            kept = m[np.ix_(rest, rest)] + ridge * np.eye(len(rest))
            expected[i] = f_0[i] + m[np.ix_(own, rest)] @ np.linalg.solve(
                kept, (y - f_0).ravel()[rest]
            )
        np.testing.assert_allclose(predictions, expected, rtol=1e-9)
        np.testing.assert_allclose(loss, np.mean((expected - y) ** 2) / 2, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_leaving_out_does_to_test_outputs_equals_refits(kind):
    rng = np.random.default_rng(4)
    whole = parts(gram(rng, 9 if kind == "full" else 40), kind)
    (k, k_test, *_), (m, m_test, *_) = whole
    y = rng.normal(size=(N, O))
    ridges = [0.05 if kind == "full" else 0.0, 0.7]  # the full kernel is singular
    out = ntk_jax.leave_one_out(
        ntk_jax.diagonalize(k), y, diag_reg=ridges, k_test_train=k_test
    ).test_change
    assert out.shape == (2, N, len(m_test) // O, O)
    for ridge, change in zip(ridges, out, strict=True):
        fit = lambda rows, ridge=ridge: (
            m_test[:, rows]
            @ np.linalg.solve(m[np.ix_(rows, rows)] + ridge * np.eye(len(rows)), y.ravel()[rows])
        )
        everything = fit(np.arange(N * O))
        for i in range(N):
            expected = fit(np.delete(np.arange(N * O), np.s_[i * O : (i + 1) * O])) - everything
            size = np.max(np.abs(everything))
            np.testing.assert_allclose(change[i].ravel(), expected, rtol=0, atol=1e-12 * size)


@pytest.mark.slow
def test_selected_ridge_is_about_the_noise():
    rng = np.random.default_rng(3)
    phi = rng.normal(size=(200, 50)) / 50**0.5
    y = phi @ rng.normal(size=50) + 0.3 * rng.normal(size=200)
    modes = ntk_jax.diagonalize(phi @ phi.T)
    ridge = ntk_jax.select_diag_reg(modes, y)
    assert (
        0.09 / 3 < ridge.diag_reg < 0.09 * 3
    )  # of a linear model with unit prior: the variance of the noise
    losses = [
        ntk_jax.leave_one_out(modes, y, diag_reg=r).loss for r in np.asarray(ridge.candidates[::20])
    ]
    np.testing.assert_allclose(losses, ridge.losses[::20], rtol=1e-10)
    assert ridge.diag_reg == ridge.candidates[np.argmin(ridge.losses)]


def test_regression_with_one_kernel_per_output_is_as_many_regressions():
    rng = np.random.default_rng(4)
    (k, k_test, _), _ = parts(gram(rng), "diagonal")
    y = rng.normal(size=(N, O))
    for diag_reg in (0.0, 0.1):
        out = ntk_jax.kernel_regression(k, y, k_test, diag_reg=diag_reg)
        assert out.report.rank.shape == (O,)
        for o in range(O):
            alone = ntk_jax.kernel_regression(k[..., o], y[:, o], k_test[..., o], diag_reg=diag_reg)
            np.testing.assert_allclose(out.test[:, o], alone.test, rtol=1e-9)
