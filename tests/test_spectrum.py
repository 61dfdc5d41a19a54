"""Eigenvalues, traces and alignments against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.draws import drawn, normal

N, NUM_OUTPUTS = 40, 2


class Matrix:
    """An operator that is nothing but products."""

    def __init__(self, k):
        self.k, self.shape, self.dtype = np.asarray(k), k.shape, k.dtype
        self.num_products = 0

    def __matmul__(self, v):
        self.num_products += v.shape[1]
        return self.k @ np.asarray(v)


def with_eigenvalues(s, seed=0):
    u = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(s), len(s))))[0]
    k = u * s @ u.T
    return (k + k.T) / 2


@pytest.fixture(scope="module")
def network():
    """A network's kernel operator, and the kernel as a matrix."""
    x = normal(0, (N, 3))
    model = ntk_jax.MLP((16,), NUM_OUTPUTS, "tanh", 1.5, 0.3)
    apply_fn, params = drawn(model, x)
    full = ntk_jax.empirical_ntk(apply_fn, params, x, outputs="full")
    return ntk_jax.ntk_operator(apply_fn, params, x), full


def flat(full):
    return np.asarray(full).transpose(0, 2, 1, 3).reshape(N * NUM_OUTPUTS, -1)


def test_eigenvalues_of_plain_and_full_kernels(network):
    _, full = network
    truth = np.linalg.eigvalsh(flat(full))[::-1]
    np.testing.assert_allclose(ntk_jax.eigenvalues(full), truth, atol=1e-12 * truth[0])
    np.testing.assert_allclose(ntk_jax.eigenvalues(flat(full)), truth, atol=1e-12 * truth[0])


def test_lanczos_on_a_network_never_forms_the_kernel(network):
    op, full = network
    truth = np.linalg.eigvalsh(flat(full))[::-1]
    top = ntk_jax.top_eigenvalues(op, 6, key=jax.random.key(2))
    assert top.converged and top.num_products < 80
    np.testing.assert_allclose(top.eigenvalues, truth[:6], rtol=1e-10)
    gap = flat(full) @ top.eigenvectors - np.asarray(top.eigenvectors * top.eigenvalues[None])
    np.testing.assert_allclose(np.linalg.norm(gap, axis=0), top.residuals, atol=1e-12 * truth[0])
    np.testing.assert_allclose(top.eigenvectors.T @ top.eigenvectors, np.eye(6), atol=1e-12)


@pytest.mark.slow
def test_lanczos_finds_repeated_eigenvalues():
    s = np.array([5.0, 5.0, 5.0, 3.0, 3.0, *np.linspace(1, 0.1, 55)])
    op = Matrix(with_eigenvalues(s))
    top = ntk_jax.top_eigenvalues(op, 6, key=jax.random.key(0))
    np.testing.assert_allclose(top.eigenvalues, s[:6], rtol=1e-10)
    assert top.num_products == op.num_products
    narrow = ntk_jax.top_eigenvalues(
        op, 2, key=jax.random.key(0), block_size=1
    )  # as documented: one copy of each
    np.testing.assert_allclose(narrow.eigenvalues, [5.0, 3.0], rtol=1e-6)


@pytest.mark.slow
def test_lanczos_on_singular_and_small_kernels():
    s = np.array([7.0, 2.0, *np.zeros(48)])
    top = ntk_jax.top_eigenvalues(with_eigenvalues(s), 4, key=jax.random.key(0))
    assert top.converged
    np.testing.assert_allclose(top.eigenvalues, s[:4], atol=1e-12)
    small = ntk_jax.top_eigenvalues(with_eigenvalues(s[:5]), 5, key=jax.random.key(0))
    np.testing.assert_allclose(small.eigenvalues, s[:5], atol=1e-12)
    zero = ntk_jax.top_eigenvalues(np.zeros((30, 30)), 2, key=jax.random.key(0))
    np.testing.assert_array_equal(zero.eigenvalues, [0, 0])


@pytest.mark.slow
def test_lanczos_says_when_it_has_not_converged():
    k = with_eigenvalues(np.linspace(1, 0.99, 200))
    top = ntk_jax.top_eigenvalues(k, 2, key=jax.random.key(0), max_dimension=6)
    assert not top.converged and top.num_products == 6
    assert np.all(
        np.min(np.abs(np.linspace(1, 0.99, 200)[:, None] - np.asarray(top.eigenvalues)), axis=0)
        <= top.residuals
    )


def test_lanczos_in_single_precision():
    s = 2.0 ** -np.arange(60)
    top = ntk_jax.top_eigenvalues(with_eigenvalues(s).astype(np.float32), 5, key=jax.random.key(0))
    assert top.converged and top.eigenvalues.dtype == np.float32
    np.testing.assert_allclose(top.eigenvalues, s[:5], atol=2e-6)


@pytest.mark.slow
def test_stochastic_trace_within_its_standard_error(network):
    op, full = network
    k = flat(full)
    s = np.linalg.eigvalsh(k)
    for function, truth in [
        (None, s.sum()),
        (jnp.square, (s**2).sum()),
        (lambda s: 1 / (s + 0.1), (1 / (s + 0.1)).sum()),
    ]:
        estimate = ntk_jax.stochastic_trace(op, function, key=jax.random.key(3), num_steps=40)
        assert abs(estimate.value - truth) < 4 * estimate.standard_error
        assert estimate.standard_error < 0.3 * truth
    estimate = ntk_jax.log_determinant(op, diag_reg=0.1, key=jax.random.key(4))
    truth = np.linalg.slogdet(k + 0.1 * np.eye(len(k)))[1]
    assert abs(estimate.value - truth) < 4 * estimate.standard_error < 0.4 * abs(truth)


def test_gauss_rule_is_exact_per_probe():
    k, key = with_eigenvalues(np.linspace(0, 3, 30)), jax.random.key(5)
    signs = np.asarray(jax.random.rademacher(key, (30, 4), jnp.float64))
    cubes = np.einsum("np,nm,mp->p", signs, k @ k @ k, signs)
    estimate = ntk_jax.stochastic_trace(k, lambda s: s**3, key=key, num_probes=4, num_steps=2)
    np.testing.assert_allclose(estimate.value, cubes.mean(), rtol=1e-12)
    np.testing.assert_allclose(estimate.standard_error, cubes.std(ddof=1) / 2, rtol=1e-10)
    inverses = np.einsum("np,nm,mp->p", signs, np.linalg.inv(k + np.eye(30)), signs)
    estimate = ntk_jax.stochastic_trace(
        k, lambda s: 1 / (1 + s), key=key, num_probes=4
    )  # all n steps: exact
    np.testing.assert_allclose(estimate.value, inverses.mean(), rtol=1e-10)


@pytest.mark.slow
def test_exhausted_krylov_spaces_have_weight_zero():
    k = with_eigenvalues(np.array([4.0, 4.0, 1.0, 1.0, *np.zeros(20)]))
    density = ntk_jax.spectral_density(k, key=jax.random.key(6), num_probes=400, num_steps=10)
    np.testing.assert_allclose(density.weights.sum(), 1, rtol=1e-12)
    for value, share in [(4.0, 2 / 24), (1.0, 2 / 24), (0.0, 20 / 24)]:
        mass = density.weights[np.abs(density.nodes - value) < 1e-8].sum()
        assert abs(mass - share) < 0.02
    assert np.all(np.diff(density.nodes) >= 0)


def test_effective_ranks():
    flat_spectrum = with_eigenvalues(np.array([3.0, 3.0, 3.0, 0.0, 0.0]))
    s = np.array([4.0, 2.0, 1.0, 0.5, 0.0])
    p = s[:-1] / s.sum()
    truths = {
        "entropy": np.exp(-np.sum(p * np.log(p))),
        "participation": s.sum() ** 2 / np.sum(s**2),
    }
    for kind, truth in truths.items():
        np.testing.assert_allclose(ntk_jax.effective_rank(flat_spectrum, kind=kind), 3, rtol=1e-12)
        np.testing.assert_allclose(
            ntk_jax.effective_rank(with_eigenvalues(s), kind=kind), truth, rtol=1e-12
        )


def test_alignment(draw):
    y = draw((6, 2))
    z = draw((6, 3))
    k, target = np.asarray(z @ z.T), np.asarray(y @ y.T)
    cosine = lambda a, b: np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    h = np.eye(6) - 1 / 6
    np.testing.assert_allclose(ntk_jax.alignment(k, y), cosine(k, target), rtol=1e-12)
    np.testing.assert_allclose(
        ntk_jax.alignment(k, y, centered=True), cosine(h @ k @ h, h @ target @ h), rtol=1e-12
    )
    np.testing.assert_allclose(ntk_jax.alignment(2 * target, y), 1, rtol=1e-12)
    full = k[:, :, None, None] * np.eye(2)[None, None]
    vector = np.asarray(y).reshape(-1)
    np.testing.assert_allclose(
        ntk_jax.alignment(full, y),
        cosine(np.kron(k, np.eye(2)), np.outer(vector, vector)),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        ntk_jax.centered_alignment(k, target), cosine(h @ k @ h, h @ target @ h), rtol=1e-12
    )
    np.testing.assert_allclose(ntk_jax.centered_alignment(k, 3 * k + 5.0), 1, rtol=1e-12)


def test_geometry_of_features(draw):
    z = draw((5, 3))
    k = z @ z.T
    norms = np.linalg.norm(z, axis=1)
    np.testing.assert_allclose(ntk_jax.cosine(k), k / np.outer(norms, norms), rtol=1e-12)
    distances = np.linalg.norm(np.asarray(z)[:, None] - np.asarray(z)[None], axis=2)
    np.testing.assert_allclose(
        ntk_jax.kernel_distance(k), distances, atol=1e-7
    )  # a square root of rounding


def test_eigenmodes_of_the_targets(getkey, draw):
    z, y = draw((8, 8)), draw((8, 2))
    k = z @ z.T
    modes = ntk_jax.diagonalize(k)
    power = np.sum(np.asarray(modes.eigenvectors.T @ y) ** 2, axis=1)
    np.testing.assert_allclose(
        ntk_jax.cumulative_power(modes, y), np.cumsum(power) / np.sum(y**2), rtol=1e-12
    )
    top = ntk_jax.top_eigenvalues(k, 2, key=getkey())
    np.testing.assert_allclose(
        ntk_jax.cumulative_power(top, y), ntk_jax.cumulative_power(modes, y)[:2], rtol=1e-10
    )
    # after one time constant of a mode, its residual is 1/e
    times = ntk_jax.learning_times(modes, num_outputs=2)
    for i in (0, 3):
        residual = y - ntk_jax.gradient_flow_mse(modes, y, times[i]).train
        u = modes.eigenvectors[:, i]
        np.testing.assert_allclose(u @ residual, u @ y / np.e, rtol=1e-10)
    singular = ntk_jax.diagonalize(np.ones((3, 3)))
    np.testing.assert_allclose(ntk_jax.learning_times(singular), [1, np.inf, np.inf])


def test_rkhs_norm_is_that_of_the_fit(draw):
    z, y = draw((7, 12)), draw((7, 2))
    k = z @ z.T
    w = np.linalg.pinv(z) @ y  # with features z the function is w·z, and its norm |w|
    np.testing.assert_allclose(ntk_jax.rkhs_norm(k, y), np.linalg.norm(w, axis=0), rtol=1e-9)
    ridge = np.linalg.solve(z.T @ z + 0.3 * np.eye(12), z.T @ y)
    np.testing.assert_allclose(
        ntk_jax.rkhs_norm(k, y, diag_reg=0.3), np.linalg.norm(ridge, axis=0), rtol=1e-9
    )
    assert ntk_jax.rkhs_norm(k, y[:, 0]).shape == ()
    full = k[:, :, None, None] * np.eye(2)[None, None]
    np.testing.assert_allclose(ntk_jax.rkhs_norm(full, y), np.linalg.norm(w), rtol=1e-9)
