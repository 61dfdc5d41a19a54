"""The matrix-free operator against the kernel it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.draws import drawn, normal

N1, N2, NUM_OUTPUTS = 5, 3, 2


@pytest.fixture(scope="module")
def case():
    """A network, examples, and both kernels as matrices."""
    model = ntk_jax.MLP((4,), NUM_OUTPUTS, "tanh", 1.2, 0.3)
    x1, x2 = (
        normal(0, (N1, 3)),
        normal(1, (N2, 3)),
    )
    apply_fn, params = drawn(model, x1)
    square, rectangle = (
        ntk_jax.empirical_ntk(apply_fn, params, x1, b, outputs="full") for b in (None, x2)
    )
    flat = lambda k: np.asarray(k.transpose(0, 2, 1, 3).reshape(N1 * NUM_OUTPUTS, -1))
    return apply_fn, params, x1, x2, flat(square), flat(rectangle)


@pytest.mark.parametrize(
    "block_size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 64))]
)
def test_products_in_every_shape(case, block_size):
    apply_fn, params, x1, x2, _, k = case
    op = ntk_jax.ntk_operator(apply_fn, params, x1, x2, block_size=block_size)
    assert op.shape == k.shape and op.dtype == k.dtype
    v = normal(3, (N2, NUM_OUTPUTS, 11))
    truth = k @ np.asarray(v).reshape(N2 * NUM_OUTPUTS, -1)
    np.testing.assert_allclose((op @ v).reshape(N1 * NUM_OUTPUTS, -1), truth, atol=1e-12)
    np.testing.assert_allclose(op @ v.reshape(N2 * NUM_OUTPUTS, -1), truth, atol=1e-12)
    np.testing.assert_allclose(op @ v[..., 0], truth[:, 0].reshape(N1, NUM_OUTPUTS), atol=1e-12)
    np.testing.assert_allclose(op @ v[..., 0].reshape(-1), truth[:, 0], atol=1e-12)


def test_transpose_columns_diagonal(case):
    apply_fn, params, x1, x2, square, k = case
    op = ntk_jax.ntk_operator(apply_fn, params, x1, x2)
    np.testing.assert_allclose(op.T @ np.eye(N1 * NUM_OUTPUTS), k.T, atol=1e-12)
    indices = jnp.array([4, 1, 1])
    np.testing.assert_allclose(op.columns(indices), k[:, indices], atol=1e-12)
    symmetric = ntk_jax.ntk_operator(apply_fn, params, x1, block_size=2)
    np.testing.assert_allclose(symmetric.diagonal(), np.diag(square), atol=1e-12)
    assert symmetric.T.shape == symmetric.shape
    np.testing.assert_allclose(
        jax.jit(lambda op, i: op.columns(i))(symmetric, indices), square[:, indices], atol=1e-12
    )


def test_conjugate_gradients_inside_jit(case):
    apply_fn, params, x1, _, square, _ = case
    op = ntk_jax.ntk_operator(apply_fn, params, x1)
    y = normal(4, (N1, NUM_OUTPUTS))

    @jax.jit
    def solve(op, y):
        return jax.scipy.sparse.linalg.cg(lambda v: op @ v + 0.1 * v, y, tol=1e-12, maxiter=200)[0]

    truth = np.linalg.solve(square + 0.1 * np.eye(N1 * NUM_OUTPUTS), np.asarray(y).reshape(-1))
    np.testing.assert_allclose(solve(op, y).reshape(-1), truth, rtol=1e-8)


def test_lineax(case):
    lineax = pytest.importorskip("lineax")
    apply_fn, params, x1, _, square, _ = case
    op = ntk_jax.ntk_operator(apply_fn, params, x1).as_lineax()
    v = normal(5, (N1 * NUM_OUTPUTS,))
    np.testing.assert_allclose(op.mv(v), square @ np.asarray(v), atol=1e-12)
    assert lineax.is_positive_semidefinite(op)


def test_errors(case, unchecked_shapes):
    apply_fn, params, x1, x2, _, _ = case
    op = ntk_jax.ntk_operator(apply_fn, params, x1, x2)
    with pytest.raises(ValueError, match=r"expected shape \(3, 2\)"):
        op @ jnp.ones((5, 2))
    with pytest.raises(ValueError, match="x2=None"):
        op.diagonal()
    with pytest.raises(ValueError, match="block_size"):
        ntk_jax.ntk_operator(apply_fn, params, x1, block_size=0)
