"""`solve`: conjugate gradients and Cholesky against NumPy's dense solution."""

import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.compilations import compilations
from ntk_jax.operators.nystrom import nystrom, uniform

N = 120
RIDGE = 1e-3


class OnlyMultiplied:
    """A matrix behind `@` alone, multiplied by NumPy: no trace could hold it."""

    def __init__(self, k):
        self.k, self.shape, self.dtype = np.asarray(k), k.shape, k.dtype

    def __matmul__(self, v):
        return self.k @ np.asarray(v)


class WithColumns(OnlyMultiplied):
    def diagonal(self):
        return np.diagonal(self.k)

    def columns(self, indices):
        return self.k[:, indices]


def kernel(n=N, dtype=np.float64, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, 5))
    return np.array(ntk_jax.mlp_kernels(x, activation="relu", depth=2).ntk, dtype)


def targets(n=N, num=3):
    y = np.random.default_rng(1).standard_normal((n, num))
    y[:, 1] *= 1e-7  # a joint residual would not see this column
    return y


def dense(k, y, ridge):
    return np.linalg.solve(k + np.diag(np.broadcast_to(ridge, len(k))), y)


def distance(a, b):
    return float(np.max(np.linalg.norm(np.asarray(a) - b, axis=0) / np.linalg.norm(b, axis=0)))


@pytest.mark.parametrize("as_operator", [jnp.asarray, OnlyMultiplied, WithColumns])
@pytest.mark.parametrize("preconditioner", ["nystrom", "uniform", None])
def test_conjugate_gradients_reach_the_dense_solution(as_operator, preconditioner):
    k, y = kernel(), targets()
    ridge = np.linspace(1, 2, N) * RIDGE
    found = ntk_jax.solve(
        as_operator(k),
        y,
        diag_reg=ridge,
        preconditioner=preconditioner,
        tol=1e-13,
        method="conjugate_gradients",
    )
    assert found.converged.all() and found.residual.shape == (3,)
    assert distance(found.value, dense(k, y, ridge)) < 1e-10
    true = y - k @ found.value - ridge[:, None] * found.value
    sizes = np.linalg.norm(true, axis=0) / np.linalg.norm(y, axis=0)
    np.testing.assert_allclose(found.residual, sizes, rtol=0.1, atol=1e-15)


@pytest.mark.parametrize("as_operator", [jnp.asarray, np.asarray, WithColumns])
def test_cholesky_reaches_the_dense_solution_and_leaves_the_kernel_alone(as_operator):
    k, y = kernel(), targets()
    before = k.copy()
    found = ntk_jax.solve(as_operator(k), y, diag_reg=RIDGE, method="cholesky")
    assert found.steps == 0 and found.converged.all()
    assert distance(found.value, dense(k, y, RIDGE)) < 1e-12
    assert (k == before).all()


def test_a_vector_has_a_scalar_report_and_zero_is_solved_by_zero():
    k, y = kernel(), targets()[:, 0]
    found = ntk_jax.solve(k, y, diag_reg=RIDGE, method="conjugate_gradients", tol=1e-12)
    assert found.value.shape == (N,) and found.converged.shape == () == found.residual.shape
    assert distance(found.value[:, None], dense(k, y[:, None], RIDGE)) < 1e-10
    nothing = ntk_jax.solve(k, 0 * y, diag_reg=RIDGE, method="conjugate_gradients")
    assert nothing.converged and nothing.residual == 0 and not np.any(nothing.value)


def test_a_network_as_operator_is_solved_with_all_its_outputs():
    rng = np.random.default_rng(0)
    params = {
        "W": rng.standard_normal((6, 40)) / 6**0.5,
        "v": rng.standard_normal((40, 2)) / 40**0.5,
    }
    f = lambda p, x: jnp.tanh(x @ p["W"]) @ p["v"]
    x, y = rng.standard_normal((N // 2, 6)), rng.standard_normal((N // 2, 2))
    k = (
        np.asarray(ntk_jax.empirical_ntk(f, params, x, outputs="full"))
        .transpose(0, 2, 1, 3)
        .reshape(N, N)
    )
    operator = ntk_jax.ntk_operator(f, params, x)
    options = {"diag_reg": 0.1, "tol": 1e-12, "method": "conjugate_gradients"}
    found = ntk_jax.solve(operator, y.reshape(-1), **options)
    assert distance(found.value[:, None], dense(k, y.reshape(-1, 1), 0.1)) < 1e-10
    with pytest.raises(ValueError, match="reshape"):
        ntk_jax.solve(operator, y, **options)


@pytest.mark.parametrize("columns", [nystrom, uniform])
def test_a_preconditioner_is_the_inverse_of_its_low_rank_matrix(columns):
    k = kernel()
    m = columns(jnp.asarray(k), np.asarray(RIDGE), 30, np.random.default_rng(0))
    inverse = np.asarray(m(jnp.eye(N)))
    approximation = np.linalg.inv(inverse)
    diagonal = 1 / np.asarray(m.inverse)
    factor = approximation - np.diag(diagonal)
    s = np.linalg.eigvalsh((factor + factor.T) / 2)[::-1]
    assert np.abs(inverse - inverse.T).max() < 1e-10 * np.abs(inverse).max()
    assert np.sum(s > 1e-8 * s[0]) == 30 and s[-1] > -1e-8 * s[0]
    np.testing.assert_allclose(m.largest, s[0], rtol=0.05)
    # What is left of K is positive semi-definite, and its mean diagonal is in D.
    left = np.linalg.eigvalsh(k - factor)
    assert left[0] > -1e-8 * s[0]
    np.testing.assert_allclose(diagonal - RIDGE, np.mean(np.diagonal(k - factor)), rtol=0.2)


def test_columns_by_pivots_find_small_clusters_that_uniform_ones_miss():
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((40, 8))
    share = 1 / np.arange(1, 41) ** 2
    x = centers[rng.choice(40, 600, p=share / share.sum())] + 0.01 * rng.standard_normal((600, 8))
    k = np.exp(-np.sum((x[:, None] - x) ** 2, -1) / 16)
    steps = {
        name: ntk_jax.solve(
            k,
            x[:, 0],
            diag_reg=1e-2,
            rank=60,
            preconditioner=name,
            method="conjugate_gradients",
        ).steps
        for name in ("nystrom", "uniform", None)
    }
    assert 3 * steps["nystrom"] < 2 * steps["uniform"] < 2 * steps[None]


def test_float32_stops_at_its_floor_and_says_so():
    k, y = kernel(dtype=np.float32), targets()
    options = {"diag_reg": 1e-3, "tol": 1e-9}
    with pytest.warns(UserWarning, match="rounding in float32"):
        by_cg = ntk_jax.solve(k, y, method="conjugate_gradients", **options)
    with pytest.warns(UserWarning, match="rounding in float32"):
        direct = ntk_jax.solve(k, y, method="cholesky", **options)
    assert not by_cg.converged.any() and by_cg.steps < 500
    # As good as refined Cholesky in the same precision, up to a small factor: both are rounding.
    assert by_cg.residual.max() < 4 * direct.residual.max() < 1e-3
    assert distance(by_cg.value, dense(k.astype(float), y, 1e-3)) < 1e-4


def test_steps_that_run_out_are_told_with_the_residual():
    with pytest.warns(UserWarning, match=r"3 of 3 columns .* after 4 steps"):
        found = ntk_jax.solve(
            kernel(), targets(), diag_reg=RIDGE, method="conjugate_gradients", max_steps=4
        )
    assert found.steps == 4 and not found.converged.any() and (found.residual < 1).all()


def test_an_interrupted_solve_goes_on_to_the_same_bits(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    k, y = kernel(), targets()
    options = {
        "diag_reg": RIDGE,
        "preconditioner": None,
        "tol": 1e-12,
        "method": "conjugate_gradients",
    }
    whole = ntk_jax.solve(k, y, **options)
    with pytest.warns(UserWarning, match="after 50 steps"):
        ntk_jax.solve(k, y, max_steps=50, checkpoint=tmp_path / "c", **options)
    counted = WithColumns(k)
    resumed = ntk_jax.solve(jnp.asarray(k), y, checkpoint=tmp_path / "c", **options)
    assert resumed.steps == whole.steps > 75
    assert (np.asarray(resumed.value) == np.asarray(whole.value)).all()
    done = ntk_jax.solve(counted, y, checkpoint=tmp_path / "c", **options)
    assert (np.asarray(done.value) == np.asarray(whole.value)).all()
    # Another operator is not told apart, but solved: only true residuals are believed.
    changed = ntk_jax.solve(1.1 * k, y, checkpoint=tmp_path / "c", **options)
    assert changed.converged.all() and distance(changed.value, dense(1.1 * k, y, RIDGE)) < 1e-9
    for other, what in ((2 * y, "y"), (y[:, :2], "shape")):
        if what == "y":
            other = other + 1
        with pytest.raises(ValueError, match=f"another {what}"):
            ntk_jax.solve(k, other, checkpoint=tmp_path / "c", **options)
    with pytest.raises(ValueError, match="another diag_reg"):
        ntk_jax.solve(k, y, checkpoint=tmp_path / "c", **options | {"diag_reg": 1.0})


def test_an_equal_call_compiles_nothing():
    k, y = jnp.asarray(kernel()), targets()
    run = lambda y: ntk_jax.solve(k, y, diag_reg=RIDGE, method="conjugate_gradients")
    run(y)
    with compilations() as programs:
        run(2 * y)
    assert len(programs) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.full(N, np.nan)}, "y: expected finite"),
        ({"y": np.ones(N + 1)}, "y: expected a row for each"),
        ({"y": np.ones((N, 1, 1))}, "y: expected a row for each"),
        ({"diag_reg": -1.0}, "diag_reg: expected finite and at least 0"),
        ({"diag_reg": np.ones(3)}, "diag_reg: expected a number, or one"),
        ({"method": "lu"}, "method: expected one of"),
        ({"preconditioner": "jacobi"}, "preconditioner: expected one of"),
        ({"preconditioner": lambda v: v[:1]}, "preconditioner: expected results like"),
        ({"rank": 0}, "rank: expected an integer"),
        ({"tol": -1.0}, "tol: expected"),
        ({"max_steps": 0}, "max_steps: expected"),
        ({"operator": np.ones((N, 3))}, "operator: expected a square kernel"),
    ],
)
def test_bad_arguments_are_told(change, message, unchecked_shapes):
    arguments = {"operator": kernel(), "y": np.ones(N), "diag_reg": 1.0} | change
    arguments = {"method": "conjugate_gradients"} | arguments
    with pytest.raises(ValueError, match=message):
        ntk_jax.solve(**arguments)


@pytest.mark.parametrize("method", ["cholesky", "conjugate_gradients"])
@pytest.mark.parametrize("preconditioner", ["nystrom", None])
def test_a_matrix_that_is_no_kernel_is_refused(method, preconditioner):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((N, N))
    with pytest.raises(ValueError, match="positive"):
        ntk_jax.solve(
            a + a.T,
            rng.standard_normal(N),
            diag_reg=1e-3,
            method=method,
            preconditioner=preconditioner,
        )


def test_a_trace_is_refused():
    with pytest.raises(ValueError, match="got a trace"):
        jax.jit(lambda k: ntk_jax.solve(k, np.ones(N), diag_reg=1.0))(kernel())


ON_DEVICES = """
import jax, numpy as np, ntk_jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
jax.config.update("jax_enable_x64", True)
x = np.random.default_rng(0).standard_normal((64, 5))
k, y = np.asarray(ntk_jax.mlp_kernels(x, depth=2).ntk), x[:, :2]
rows = NamedSharding(Mesh(np.array(jax.devices()), "rows"), P("rows"))
spread = jax.device_put(k, rows)
try:
    ntk_jax.solve(spread, y, diag_reg=1e-3, method="cholesky")
except ValueError as error:
    print("several devices" in str(error))
found = ntk_jax.solve(spread, y, diag_reg=1e-3, tol=1e-12)
print(found.steps > 0, len(jax.devices()))
exact = np.linalg.solve(k + 1e-3 * np.eye(64), y)
print(np.abs(found.value - exact).max() < 1e-9 * np.abs(exact).max())
"""


@pytest.mark.slow
def test_an_array_on_eight_devices_is_never_factored():
    devices = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    flags = {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, "-c", ON_DEVICES]
    out = subprocess.run(run, env=os.environ | flags, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["True", "True", "8", "True"], out.stderr


def test_no_warning_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ntk_jax.solve(kernel(dtype=np.float32), targets(), diag_reg=0.1).converged.all()
