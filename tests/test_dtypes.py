"""Arrays of every kind that people hold: the same numbers, or an error that says what to do; never
other numbers.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse

import ntk_jax
from ntk_jax.checks import as_array, as_examples, as_kernel, as_targets, check_number, check_params
from ntk_jax.networks.apply_fn import as_arrays

X = np.arange(12.0).reshape(4, 3) / 8
HALF = (np.float16, ml_dtypes.bfloat16)

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


def deleted():
    x = jnp.array(X)
    x.delete()
    return x


KEPT = {
    "big-endian floats": X.astype(">f8"),
    "big-endian integers": (8 * X).astype(">i4"),
    "long doubles": X.astype(np.longdouble),
    "booleans": X > 0.5,
    "float16": X.astype(np.float16),
    "unsigned": (8 * X).astype(np.uint8),
    "nested lists": X.tolist(),
    "list of JAX arrays": list(jnp.asarray(X)),
    "nothing masked": np.ma.masked_array(X),
    "Fortran order": np.asfortranarray(X),
    "reversed view": X[::-1, ::-1],
}


@pytest.mark.parametrize("case", KEPT)
def test_these_keep_their_numbers(case):
    np.testing.assert_array_equal(as_examples("x", KEPT[case]), np.asarray(KEPT[case], np.float64))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, ">i8", list])
def test_integers_beyond_the_range_of_jax_do_not_wrap(dtype):
    values = [[2**40, 1], [2**62, 3]]
    x = values if dtype is list else np.array(values, dtype)
    np.testing.assert_array_equal(as_examples("x", x), values)
    jax.config.update("jax_enable_x64", False)
    try:
        np.testing.assert_array_equal(as_examples("x", x), values)
        k = ntk_jax.mlp_kernels([[2**40, 1]], depth=0).nngp
        np.testing.assert_allclose(k, [[2.0**79]], rtol=1e-6)
        np.testing.assert_array_equal(
            as_targets("y", np.array([2**40, 1]), 2, jnp.float32), [2**40, 1]
        )
        assert as_examples("x", np.array([[5, 1]])).dtype == jnp.int32  # indices stay integers
    finally:
        jax.config.update("jax_enable_x64", True)


REFUSED = {
    "objects": (
        X.astype(object),
        r"expected numbers; got dtype object, such as 0.0.*\.astype\(float\)",
    ),
    "names": (
        np.array([["cat"], ["dog"]]),
        r"expected numbers; got dtype <U3, such as .*cat.*np.unique",
    ),
    "bytes": (np.array([[b"cat"]]), r"expected numbers; got dtype \|S3"),
    "dates": (np.array([["2020-01-01"]], "M8[D]"), r"expected numbers; got dtype datetime64"),
    "records": (np.zeros((2, 2), [("a", float)]), r"expected numbers; got dtype \[\('a'"),
    "None": (None, r"expected numbers; got dtype object, such as None"),
    "ragged": ([[1.0, 2.0], [3.0]], r"expected an array; got a list that is none.*inhomogeneous"),
    "masked": (np.ma.masked_array(X, X > 1), r"expected no masked values.*Fill or drop"),
    "deleted": (deleted(), r"was deleted, or donated"),
    "SciPy sparse": (
        scipy.sparse.csr_matrix(X),
        r"dense array; got a sparse csr_matrix. Pass x.toarray\(\)",
    ),
    "SciPy sparse array": (
        scipy.sparse.coo_array(X),
        r"got a sparse coo_array. Pass x.toarray\(\)",
    ),
    "named tuple": (
        ntk_jax.Modes(X[0], X),
        r"got Modes. Take one of its parts: .eigenvalues, .eigenvectors",
    ),
    "beyond int64": ([[2**70, 1]], r"expected numbers; got dtype object"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(
    "check", [as_array, as_examples, as_kernel, lambda name, y: as_targets(name, y, 2, float)]
)
def test_these_are_refused_in_our_words(case, check):
    value, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"(?s)^x: .*{message}"):
        check("x", value)


def test_names_of_classes_as_targets():
    names = np.array(["cat", "dog", "cat", "eel"])
    with pytest.raises(
        ValueError,
        match=r"y_train: expected numbers.*\(y_train\[:, None\] == np.unique\(y_train\)\)",
    ):
        ntk_jax.kernel_regression(np.eye(4), names, np.eye(4))


def test_kernels_where_one_kernel_is_expected():
    pair = ntk_jax.Kernels(np.eye(3), np.eye(3))
    for call in (
        ntk_jax.diagonalize,
        ntk_jax.eigenvalues,
        ntk_jax.definiteness,
        ntk_jax.effective_rank,
    ):
        with pytest.raises(
            ValueError, match=r"got Kernels\(nngp, ntk\). Take one of the two, .nngp or .ntk"
        ):
            call(pair)
    with pytest.raises(ValueError, match=r"k_test_train: expected one kernel; got Kernels"):
        ntk_jax.kernel_regression(np.eye(3), np.ones(3), pair)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_kernels_are_those_numbers_in_single(dtype):
    k, y = np.asarray(np.diag([4.0, 2.0, 1.0]) + 0.5, dtype), np.array([1.0, 2.0, -1.0], dtype)
    single, target = k.astype(np.float32), y.astype(np.float32)
    assert as_kernel("k", k).dtype == jnp.float32
    for f in (
        ntk_jax.eigenvalues,
        ntk_jax.effective_rank,
        lambda k: ntk_jax.alignment(k, target),
        lambda k: (
            ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(k), target, 1.0, k_test_train=k).test
        ),
        lambda k: ntk_jax.kernel_regression(k, target, k).test,
        lambda k: ntk_jax.generalized_cross_validation(k, target, diag_reg=0.1),
        lambda k: ntk_jax.kernel_change(k, 2 * np.asarray(k)),
        lambda k: ntk_jax.log_determinant(k, diag_reg=0.1, key=jax.random.key(0)).value,
    ):
        out = f(k)
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, f(single))
    np.testing.assert_array_equal(ntk_jax.alignment(single, y), ntk_jax.alignment(single, target))


def test_targets_outside_the_range_of_the_kernel():
    k = np.eye(2, dtype=np.float32)
    with pytest.raises(
        ValueError, match=r"y_train: expected values in the range of the kernel's float32"
    ):
        ntk_jax.kernel_regression(k, np.array([1e300, 1.0]), k)


PARAMS = {
    "a function": ({"w": X, "phi": jnp.tanh}, r"params\['phi'\]: .*Equinox.*eqx.partition"),
    "a name": (
        {"w": X, "phi": "tanh"},
        r"params\['phi'\]: expected a floating-point array; got <U4",
    ),
    "a key": (
        {"w": X, "key": jax.random.key(0)},
        r"params\['key'\]: expected a floating-point array; got key",
    ),
    "long doubles": (
        {"w": X.astype(np.longdouble)},
        r"params\['w'\]: expected a dtype that JAX has; got float128",
    ),
    "big-endian": (
        {"w": X.astype(">f8")},
        r"params\['w'\]: expected a dtype that JAX has; got >f8",
    ),
    "deleted": ({"w": deleted()}, r"params\['w'\]: .*deleted, or donated"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_params_that_are_none(case):
    params, message = PARAMS[case]
    with pytest.raises(ValueError, match=message):
        check_params(params)


def test_scalars_are_scalars():
    for good in (1, 0.5, np.float32(0.5), jnp.bfloat16(0.5), np.array(0.5), jnp.array(0.5)):
        check_number("r", good, max_ndim=0)
    check_number("r", [0.1, 0.2], max_ndim=1)
    for bad, message in [
        (np.ones(3), r"r: expected a number; got shape \(3,\)"),
        ([0.1], r"r: expected a number; got shape \(1,\)"),
        (1j, r"r: expected a real number"),
        ("a", r"r: expected a real number"),
        (None, r"r: expected a real number"),
        (True, r"r: expected a real number"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_number("r", bad, max_ndim=0)
    with pytest.raises(
        ValueError, match=r"r: expected a number or a vector of them; got shape \(2, 2\)"
    ):
        check_number("r", np.ones((2, 2)), max_ndim=1)
    with pytest.raises(
        ValueError, match=r"r: expected a number; got shape \(2,\)"
    ):  # also where values are unknown
        jax.jit(lambda r: check_number("r", r, max_ndim=0))(np.ones(2))
    with pytest.raises(ValueError, match=r"r: expected a real number"):
        jax.jit(lambda r: check_number("r", r))(1j)


@pytest.mark.parametrize("n", [4, 64, 4096])
def test_arrays_of_numpy_are_copied(n):
    """Else a caller who writes to one later would change what an operator or a kernel holds."""
    for _ in range(10):  # JAX takes over memory that happens to be aligned
        x = np.ones(n, np.float32)
        held = as_array("x", x)
        tree = as_arrays({"w": x})["w"]
        x[:] = 5
        np.testing.assert_array_equal(held, 1)
        np.testing.assert_array_equal(tree, 1)
