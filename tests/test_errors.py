"""Every bad input raises an error that says what was expected, what came, and the way out: one list."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_jax

X = np.arange(12.0).reshape(4, 3) / 10
Y = np.ones((4, 2))
K = np.eye(4) + 0.1
PARAMS = jnp.ones((3, 2))
KEY = jax.random.key(0)
NAN = np.where(np.eye(4, 3), np.nan, X)
MODES = ntk_jax.diagonalize(K)


def linear(params, x):
    return x @ params


def kernels(x1=X, x2=None, **options):
    return ntk_jax.mlp_kernels(x1, x2, **{"depth": 1, **options})


def ntk(x1=X, x2=None, apply_fn=linear, params=PARAMS, **options):
    return ntk_jax.empirical_ntk(apply_fn, params, x1, x2, **options)


def train(x=X, y=Y, **options):
    options = {"optimizer": optax.sgd(0.1), "num_steps": 3, "progress": False, **options}
    return ntk_jax.train(linear, PARAMS, x, y, **options)


def limits(**options):
    return ntk_jax.check_limit(lambda width: ntk_jax.MLP((width,)), X, key=KEY, **options)


CASES = {
    # examples
    "1-d x": (lambda: ntk(X[0]), r"x1: expected examples in rows.*got shape \(3,\).*x1\[:, None\]"),
    "1-d x, analytic": (lambda: kernels(X[0]), r"x1: expected examples in rows.*got shape \(3,\)"),
    "n = 0": (lambda: kernels(X[:0]), r"at least one example.*got shape \(0, 3\)"),
    "NaN": (lambda: kernels(NAN), r"x1: expected finite values; got 3 NaN or infinite of 12"),
    "NaN in x2": (lambda: ntk(X, NAN), r"x2: expected finite values; got 3 NaN"),
    "complex": (lambda: kernels(X + 0j), r"expected real values; got complex128.*Stack"),
    "other features": (lambda: kernels(X, X[:, :2]), r"shaped like those of x1, \(3,\); got \(2,\)"),
    # options
    "unknown outputs": (
        lambda: ntk(outputs="trace"),
        r"outputs: expected one of 'mean', 'diagonal', 'full'; got 'trace'",
    ),
    "unknown method": (lambda: ntk(method="fast"), r"method: expected one of .*'jacobian'.*; got 'fast'"),
    "unknown activation": (lambda: kernels(activation="rleu"), r"activation: expected .*'relu'.*got 'rleu'"),
    "unknown parameterization": (
        lambda: kernels(parameterization="mup"),
        r"parameterization: expected one of 'ntk', 'standard'; got 'mup'",
    ),
    "negative depth": (lambda: kernels(depth=-1), r"depth: expected an integer of at least 0; got -1"),
    "float depth": (lambda: kernels(depth=1.5), r"depth: expected an integer of at least 0; got 1.5"),
    "zero W_std": (lambda: kernels(W_std=0.0), r"W_std: expected finite and above 0; got 0.0"),
    "negative b_std": (lambda: kernels(b_std=-1.0), r"b_std: expected finite and at least 0; got -1.0"),
    "too few W_std": (lambda: kernels(W_std=(1.0,)), r"W_std: expected a number or one per Dense layer \(2.*got 1"),
    "no width": (lambda: kernels(parameterization="standard"), r"width: expected the units of the hidden layers"),
    "idle width": (lambda: kernels(width=10), r"width: expected None with parameterization='ntk'"),
    "overflow": (lambda: kernels(X.astype(np.float32), depth=12, W_std=1e4), r"they overflow.*Use float64"),
    # networks
    "integer params": (
        lambda: ntk(params=jnp.ones((3, 2), int)),
        r"params: expected a floating-point array; got int64",
    ),
    "empty params": (lambda: ntk(params={}), r"params: expected a pytree with at least one array"),
    "NaN params": (lambda: ntk(params={"w": PARAMS * np.nan}), r"params\['w'\]: expected finite values; got 6 NaN"),
    "Flax variables": (
        lambda: ntk(params={"params": PARAMS, "batch_stats": PARAMS}),
        r"also hold batch_stats.*from_linen",
    ),
    "no rows": (
        lambda: ntk(apply_fn=lambda p, x: jnp.sum(x @ p)),
        r"apply_fn: expected one array with a row per example",
    ),
    "two results": (lambda: ntk(apply_fn=lambda p, x: (x @ p, x)), r"apply_fn: expected one array.*picks one"),
    "class outputs": (lambda: ntk(apply_fn=lambda p, x: jnp.argmax(x @ p, 1)), r"apply_fn: expected real floating"),
    "no params collection": (
        lambda: ntk_jax.from_linen(ntk_jax.MLP(()), {"w": PARAMS}),
        r"'params' collection; got \['w'\]",
    ),
    "image into MLP": (
        lambda: ntk_jax.MLP(()).apply({"params": {}}, np.ones((2, 3, 3))),
        r"x: expected shape \(n, d\); got \(2, 3, 3\). Flatten it",
    ),
    # kernels
    "rectangular": (lambda: ntk_jax.diagonalize(K[:3]), r"expected a square kernel \(n, n\); got shape \(3, 4\)"),
    "not symmetric": (lambda: ntk_jax.diagonalize(K + np.triu(K)), r"expected a symmetric kernel; got max \|K - K.T\|"),
    "not PSD": (lambda: ntk_jax.diagonalize(K - 1.2 * np.eye(4)), r"3 of 4 eigenvalues below.*smallest -0.2"),
    "3-d kernel": (lambda: ntk_jax.diagonalize(np.ones((4, 4, 2))), r"shape \(n1, n2\) or \(n1, n2, O, O\)"),
    "integer kernel": (lambda: ntk_jax.diagonalize(np.eye(4, dtype=int)), r"floating-point values; got int64"),
    "NaN kernel": (lambda: ntk_jax.diagonalize(K * np.nan), r"k_train_train: expected finite values"),
    "not PSD, regression": (lambda: ntk_jax.kernel_regression(K - 2 * np.eye(4), Y, K), r"positive semi-definite"),
    "tiny ridge": (
        lambda: ntk_jax.kernel_regression(K - 2 * np.eye(4), Y, K, diag_reg=0.1),
        r"expected a positive definite matrix.*diag_reg = 0.1.*pseudo-inverse",
    ),
    "ridge and rcond": (
        lambda: ntk_jax.kernel_regression(K, Y, K, diag_reg=0.1, rcond=0.1),
        r"rcond: expected None with diag_reg",
    ),
    "negative ridge": (
        lambda: ntk_jax.kernel_regression(K, Y, K, diag_reg=-1.0),
        r"diag_reg: expected finite and at least",
    ),
    # dynamics: shapes that would broadcast
    "rows of y": (lambda: ntk_jax.gradient_flow_mse(MODES, Y[:3], 1.0), r"shape \(4,\) or \(4, O\); got \(3, 2\)"),
    "row y": (lambda: ntk_jax.gradient_flow_mse(MODES, Y[:1], 1.0), r"shape \(4,\) or \(4, O\); got \(1, 2\)"),
    "(n, 1) against (n,)": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y[:, :1], 1.0, fx_train_0=Y[:, 0]),
        r"fx_train_0: expected a scalar or shape \(4, 1\).*got \(4,\)",
    ),
    "transposed test kernel": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, 1.0, k_test_train=np.ones((4, 7))),
        r"k_test_train: expected test examples in rows.*It is transposed",
    ),
    "outputs without kernel": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, 1.0, fx_test_0=Y),
        r"k_test_train: expected the test kernel together with fx_test_0",
    ),
    "negative time": (lambda: ntk_jax.gradient_flow_mse(MODES, Y, [-1.0, 1.0]), r"t: expected at least 0"),
    "NaN time": (lambda: ntk_jax.gradient_flow_mse(MODES, Y, np.nan), r"t: expected at least 0; got nan"),
    "matrix of times": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, np.ones((2, 2))),
        r"t: expected a scalar or a non-empty",
    ),
    "fractional steps": (
        lambda: ntk_jax.gradient_descent_mse(MODES, Y, 1.5, 0.1),
        r"num_steps: expected integers.*gradient_flow",
    ),
    "unstable rate": (
        lambda: ntk_jax.gradient_descent_mse(MODES, Y, 10**6, 1e6),
        r"learning_rate: expected at most .* the largest stable step.*got 1e\+06",
    ),
    "momentum 1": (lambda: ntk_jax.max_learning_rate(MODES, momentum=1.0), r"momentum: expected a number in \[0, 1\)"),
    "kernels as modes": (
        lambda: ntk_jax.gradient_flow_mse(ntk_jax.Modes(np.ones(4), np.ones((4, 3))), Y, 1.0),
        r"modes: expected diagonalize\(k_train_train\)",
    ),
    # infinite width
    "model without a width": (
        lambda: ntk_jax.check_limit(ntk_jax.MLP((4,)), X, key=KEY),
        r"model: expected a function width -> model.*got MLP",
    ),
    "one width": (lambda: limits(widths=(8,)), r"widths: expected at least two increasing widths; got \(8,\)"),
    "falling widths": (lambda: limits(widths=(8, 4)), r"at least two increasing widths; got \(8, 4\)"),
    "unknown draw": (lambda: limits(draw="normal"), r"draw: expected one of 'initializer', 'gaussian'; got 'normal'"),
    "one network": (lambda: limits(num_samples=1), r"num_samples: expected an integer of at least 2; got 1"),
    "unknown law": (
        lambda: ntk_jax.init_stats(lambda key: jnp.sort(jax.random.normal(key, (3,)))),
        r"known distribution.*`sort` of random entries.*init_stats=",
    ),
    # training
    "y would broadcast": (
        lambda: train(y=Y[:, :1]),
        r"y: expected the shape that apply_fn returns, \(4, 2\); got \(4, 1\)",
    ),
    "unknown loss": (lambda: train(loss="l2"), r"loss: expected one of 'mse'; got 'l2'"),
    "y_test alone": (lambda: train(y_test=Y), r"x_test: expected the test examples together with y_test"),
    "unordered records": (lambda: train(record_every=[2, 1]), r"record_every: expected increasing steps.*got \[2, 1\]"),
    "NaN targets": (lambda: train(y=Y * np.nan), r"y: expected finite values; got 8 NaN"),
    "other kernel shapes": (
        lambda: ntk_jax.kernel_change(K, K[:2]),
        r"expected the shape of k_0, \(2, 4\); got \(4, 4\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, unchecked_shapes):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()
