"""Matrices that LAPACK with 32-bit counts cannot take go to NumPy: here, with a lower threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax

CALLS = []


@pytest.fixture
def low_threshold(monkeypatch):
    """Sizes of this file alone: programs are remembered by shape."""
    monkeypatch.setattr("ntk_jax.linalg.TOO_MANY_ROWS", 8)
    for name in ("eigh", "eigvalsh"):
        real = getattr(np.linalg, name)

        def counted(a, real=real):
            CALLS.append(a.shape)
            return real(a)

        monkeypatch.setattr(np.linalg, name, counted)
    CALLS.clear()


def kernel(n, outputs=()):
    a = np.random.default_rng(0).standard_normal((*outputs, n, n))
    k = a @ np.swapaxes(a, -1, -2) / n
    return np.moveaxis(k, 0, -1) if outputs else k


def test_diagonalization_and_its_derivative_are_those_of_xla(low_threshold):
    k = kernel(307)
    modes = ntk_jax.diagonalize(k)
    assert CALLS == [(307, 307)]
    s, U = np.linalg.eigh(k)
    np.testing.assert_allclose(modes.eigenvalues, s[::-1], rtol=1e-10, atol=1e-14)
    rebuilt = (modes.eigenvectors * modes.eigenvalues[None]) @ modes.eigenvectors.T
    np.testing.assert_allclose(rebuilt, k, atol=1e-12)
    top = lambda k: ntk_jax.diagonalize(k).eigenvalues[0]
    outer = U[:, -1:] * U[:, -1]
    np.testing.assert_allclose(jax.grad(top)(jnp.asarray(k)), outer, atol=1e-10)


def test_eigenvalues_of_every_output_and_inside_of_jit(low_threshold):
    k = kernel(31, outputs=(3,))
    found = ntk_jax.diagonalize(k).eigenvalues
    assert len(CALLS) == 3
    np.testing.assert_allclose(found[1], np.linalg.eigvalsh(k[..., 1])[::-1], rtol=1e-9)
    CALLS.clear()
    spectrum = jax.jit(ntk_jax.eigenvalues)(k[..., 0])
    assert CALLS == [(31, 31)] or CALLS == [(1, 31, 31)]
    np.testing.assert_allclose(spectrum, np.linalg.eigvalsh(k[..., 0])[::-1], rtol=1e-9)


@pytest.mark.slow
def test_large_arrays_reach_the_callback_on_one_core(low_threshold):
    k = kernel(1501)
    fit = ntk_jax.kernel_regression(k, k[:, 0], k[:2])
    assert CALLS == [(1501, 1501)]
    np.testing.assert_allclose(fit.train, k[:, 0], atol=1e-8)
