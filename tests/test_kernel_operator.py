"""Operators of any kernel against the kernel as an array."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.compilations import compilations
from cases.draws import drawn, normal
from ntk_jax.closures.programs import forget

N, N2, D = 37, 11, 5
X, X2 = normal(0, (N, D)), normal(1, (N2, D))
BLOCK = 16  # blocks of 16, 16 and, reaching back, 16 rows


def kernel_fn(x1, x2=None):
    """Two kernels that are quick to compile; a row and itself differ from two equal rows."""
    y = x1 if x2 is None else x2
    nngp = x1 @ y.T / x1.shape[1]
    own = jnp.eye(len(x1), dtype=x1.dtype) if x2 is None else jnp.zeros((), x1.dtype)
    return ntk_jax.Kernels(nngp, (1 + nngp) ** 2 + own)


RELU = partial(ntk_jax.mlp_kernels, depth=2, activation="relu", W_std=1.4, b_std=0.1)


def as_array(x2=None):
    return np.asarray(kernel_fn(X, x2).ntk)


def operator(x2=None, **options):
    return ntk_jax.kernel_operator(
        kernel_fn, X, x2, kernel="ntk", **{"block_size": BLOCK, **options}
    )


def looking(x1, x2=None):
    """A kernel that no program can contain."""
    a, b = np.asarray(x1), np.asarray(x1 if x2 is None else x2)
    return (a @ b.T + 1) ** 2


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("x2", [None, X2], ids=["symmetric", "rectangle"])
def test_an_operator_is_the_kernel(storage, x2):
    op, k = operator(x2, storage=storage), as_array(x2)
    assert op.shape == k.shape and op.dtype == k.dtype
    v, w = normal(2, (k.shape[1], 3)), normal(3, (k.shape[0],))
    np.testing.assert_allclose(op @ v, k @ v, atol=1e-12)
    np.testing.assert_allclose(op @ v[:, 0], k @ v[:, 0], atol=1e-12)
    np.testing.assert_allclose(op.T @ w, k.T @ w, atol=1e-12)
    indices = np.array([3, -1, 0, 3])
    np.testing.assert_allclose(op.columns(indices), k[:, indices], atol=1e-13)
    if x2 is None:
        assert op.T is op
        np.testing.assert_allclose(op.diagonal(), np.diagonal(k), atol=1e-13)


def test_an_operator_is_an_argument_of_a_program():
    k, v = as_array(), normal(2, (N, 3))
    calls = []

    @jax.jit
    def run(op, v):
        calls.append(1)
        return op @ v, op.columns(jnp.arange(2)), op.diagonal()

    for storage in ("memory", "recompute"):
        for _ in range(2):
            product, columns, diagonal = run(operator(storage=storage), v)
        np.testing.assert_allclose(product, k @ v, atol=1e-12)
        np.testing.assert_allclose(columns, k[:, :2], atol=1e-13)
        np.testing.assert_allclose(diagonal, np.diagonal(k), atol=1e-13)
    assert len(calls) == 2  # an equal operator is no other program


def test_each_result_is_one_program_and_an_equal_one_none():
    x, v = normal(5, (N + 4, D)), normal(6, (N + 4, 3))  # of which no other test has programs
    forget()
    for storage in ("memory", "recompute"):
        make = lambda s=storage: ntk_jax.kernel_operator(
            kernel_fn, x, kernel="nngp", storage=s, block_size=BLOCK
        )
        with compilations() as found:
            op = make()
            op @ v, op.diagonal(), op.columns(np.arange(2))
        assert len(found) == (4 if storage == "memory" else 3)
        with compilations() as found:
            op = make()
            op @ v, op.diagonal(), op.columns(np.arange(2))
        assert not found


def test_a_product_has_derivatives():
    k, v = as_array(), normal(2, (N,))
    for storage in ("memory", "recompute"):
        op = operator(storage=storage)
        np.testing.assert_allclose(
            jax.grad(lambda v, op=op: v @ (op @ v) / 2)(v), k @ v, atol=1e-12
        )


def test_a_kernel_in_memory_is_symmetric_to_the_bit_and_holds_one_kernel():
    x = normal(0, (N, D)).astype(np.float32)
    op = ntk_jax.kernel_operator(RELU, x, kernel="nngp", block_size=BLOCK)
    k = np.asarray(op.kernel)
    np.testing.assert_array_equal(k, k.T)
    np.testing.assert_allclose(k, RELU(x).nngp, rtol=1e-6)
    exact = np.diagonal(RELU(x.astype(float)).nngp)  # float32: three roundings
    for found in (k, RELU(x).nngp):
        np.testing.assert_allclose(np.diagonal(found), exact, rtol=3 * 2.0**-23)


def networks():
    """Kernels of finite and of infinite width."""
    model = ntk_jax.MLP((6,), 2, "tanh", 1.2, 0.3)
    apply_fn, params = drawn(model, X)
    limit = ntk_jax.infinite_width(model)
    yield lambda x1, x2=None: ntk_jax.empirical_ntk(apply_fn, params, x1, x2), None
    yield limit, "ntk"


@pytest.mark.parametrize("case", [0, 1], ids=["finite", "infinite"])
def test_kernels_of_models(case):
    network, name = list(networks())[case]
    op = ntk_jax.kernel_operator(network, X, kernel=name, storage="recompute", block_size=BLOCK)
    k = network(X) if name is None else network(X).ntk
    v = normal(2, (N, 2))
    np.testing.assert_allclose(op @ v, np.asarray(k) @ v, atol=1e-11)


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("x2", [None, X2], ids=["symmetric", "rectangle"])
def test_a_kernel_that_looks_at_values(storage, x2):
    op = ntk_jax.kernel_operator(looking, X, x2, storage=storage, block_size=BLOCK)
    k = looking(X, x2)
    v = normal(2, (k.shape[1], 3))
    np.testing.assert_allclose(op @ v, k @ v, atol=1e-12)
    np.testing.assert_allclose(op.T @ normal(3, (N,)), k.T @ normal(3, (N,)), atol=1e-12)
    np.testing.assert_allclose(op.columns(np.array([2, -1])), k[:, [2, -1]], atol=1e-13)
    if x2 is None:
        np.testing.assert_allclose(op.diagonal(), np.diagonal(k), atol=1e-13)
    if storage == "recompute":
        with pytest.raises(ValueError, match="looks at its own"):
            jax.jit(lambda v: op @ v)(v)


class Disk:
    """What `kernel_operator` needs of a store."""

    def __init__(self, k):
        self.k, self.shape, self.dtype = k, k.shape, k.dtype
        self.diagonal, self.columns = k.diagonal, lambda indices: k[:, indices]

    def __matmul__(self, v):
        return self.k @ v


def test_a_store_is_an_operator_of_its_own(unchecked_shapes):
    disk, pair = Disk(as_array()), Disk(as_array())
    pair.ntk = disk
    assert operator(storage=pair) is disk
    assert ntk_jax.kernel_operator(kernel_fn, X, storage=pair) is pair
    with pytest.raises(ValueError, match=r"a store of shape \(37, 11\)"):
        operator(X2, storage=disk)
    with pytest.raises(ValueError, match="mesh: expected None"):
        operator(storage=disk, mesh=jax.make_mesh((1,), ("x",)))


def test_top_eigenvalues_of_a_kernel_that_is_not_held():
    found = ntk_jax.top_eigenvalues(operator(storage="recompute"), 3, key=jax.random.key(0))
    np.testing.assert_allclose(
        found.eigenvalues, np.linalg.eigvalsh(as_array())[::-1][:3], rtol=1e-8
    )


def test_errors(unchecked_shapes):
    with pytest.raises(ValueError, match='kernel="ntk" or kernel="nngp"'):
        ntk_jax.kernel_operator(kernel_fn, X)
    with pytest.raises(ValueError, match="kernel: expected None"):
        ntk_jax.kernel_operator(lambda x1, x2=None: x1 @ x1.T, X, kernel="ntk")
    with pytest.raises(ValueError, match=r"expected a kernel \(n1, n2\)"):
        ntk_jax.kernel_operator(lambda x1, x2=None: x1[:, None, :, None], X)
    with pytest.raises(ValueError, match="storage"):
        operator(storage="disk")
    with pytest.raises(ValueError, match="storage: expected 'memory'"):
        operator(storage=3)
    with pytest.raises(ValueError, match="function kernel_fn"):
        ntk_jax.kernel_operator(as_array(), X)
    op = operator(X2, storage="recompute")
    with pytest.raises(ValueError, match=r"v: expected shape \(11,\) or \(11, b\)"):
        op @ np.ones(N)
    with pytest.raises(ValueError, match="finite"):
        op @ np.full(N2, np.nan)
    with pytest.raises(ValueError, match="x2=None"):
        op.diagonal()
    with pytest.raises(ValueError, match="columns 0 to 10"):
        op.columns(np.array([11]))
