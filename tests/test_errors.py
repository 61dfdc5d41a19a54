"""Every bad input raises an error that says what was expected, what came, and the way out: one
list.
"""

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
NAN = np.where(np.eye(4, 3), np.nan, X)
KEY = jax.random.key(0)
MODES = ntk_jax.diagonalize(K)
KERNELS = ntk_jax.Kernels(K, K)


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
    "other features": (
        lambda: kernels(X, X[:, :2]),
        r"shaped like those of x1, \(3,\); got \(2,\)",
    ),
    # options
    "unknown outputs": (
        lambda: ntk(outputs="trace"),
        r"outputs: expected one of 'mean', 'diagonal', 'full'; got 'trace'",
    ),
    "unknown method": (
        lambda: ntk(method="fast"),
        r"method: expected one of .*'jacobian'.*; got 'fast'",
    ),
    "unknown activation": (
        lambda: kernels(activation="rleu"),
        r"activation: expected .*'relu'.*got 'rleu'",
    ),
    "unknown parameterization": (
        lambda: kernels(parameterization="mup"),
        r"parameterization: expected one of 'ntk', 'standard'; got 'mup'",
    ),
    "negative depth": (
        lambda: kernels(depth=-1),
        r"depth: expected an integer of at least 0; got -1",
    ),
    "float depth": (
        lambda: kernels(depth=1.5),
        r"depth: expected an integer of at least 0; got 1.5",
    ),
    "zero W_std": (lambda: kernels(W_std=0.0), r"W_std: expected finite and above 0; got 0.0"),
    "negative b_std": (
        lambda: kernels(b_std=-1.0),
        r"b_std: expected finite and at least 0; got -1.0",
    ),
    "too few W_std": (
        lambda: kernels(W_std=(1.0,)),
        r"W_std: expected a number or one per Dense layer \(2.*got 1",
    ),
    "no width": (
        lambda: kernels(parameterization="standard"),
        r"width: expected the units of the hidden layers",
    ),
    "idle width": (lambda: kernels(width=10), r"width: expected None with parameterization='ntk'"),
    "overflow": (
        lambda: kernels(X.astype(np.float32), depth=12, W_std=1e4),
        r"they overflow.*Use float64",
    ),
    # networks
    "integer params": (
        lambda: ntk(params=jnp.ones((3, 2), int)),
        r"params: expected a floating-point array; got int64",
    ),
    "empty params": (lambda: ntk(params={}), r"params: expected a pytree with at least one array"),
    "NaN params": (
        lambda: ntk(params={"w": PARAMS * np.nan}),
        r"params\['w'\]: expected finite values; got 6 NaN",
    ),
    "Flax variables": (
        lambda: ntk(params={"params": PARAMS, "batch_stats": PARAMS}),
        r"also hold batch_stats.*from_linen",
    ),
    "no rows": (
        lambda: ntk(apply_fn=lambda p, x: jnp.sum(x @ p)),
        r"apply_fn: expected one array with a row per example",
    ),
    "two results": (
        lambda: ntk(apply_fn=lambda p, x: (x @ p, x)),
        r"apply_fn: expected one array.*picks one",
    ),
    "class outputs": (
        lambda: ntk(apply_fn=lambda p, x: jnp.argmax(x @ p, 1)),
        r"apply_fn: expected real floating",
    ),
    "no params collection": (
        lambda: ntk_jax.from_linen(ntk_jax.MLP(()), {"w": PARAMS}),
        r"'params' collection; got \['w'\]",
    ),
    "image into MLP": (
        lambda: ntk_jax.MLP(()).apply({"params": {}}, np.ones((2, 3, 3))),
        r"x: expected shape \(n, d\); got \(2, 3, 3\). Flatten it",
    ),
    # kernels
    "rectangular": (
        lambda: ntk_jax.diagonalize(K[:3]),
        r"expected a square kernel \(n, n\); got shape \(3, 4\)",
    ),
    "not symmetric": (
        lambda: ntk_jax.diagonalize(K + np.triu(K)),
        r"expected a symmetric kernel; got max \|K - K.T\|",
    ),
    "not PSD": (
        lambda: ntk_jax.diagonalize(K - 1.2 * np.eye(4)),
        r"3 of 4 eigenvalues below.*smallest -0.2",
    ),
    "1-d kernel": (
        lambda: ntk_jax.diagonalize(np.ones(4)),
        r"shape \(n1, n2\), \(n1, n2, O\) or \(n1, n2, O, O\)",
    ),
    "uneven outputs": (
        lambda: ntk_jax.diagonalize(np.ones((4, 4, 2, 3))),
        r"\(n1, n2, O, O\); got \(4, 4, 2, 3\)",
    ),
    "integer kernel": (
        lambda: ntk_jax.diagonalize(np.eye(4, dtype=int)),
        r"floating-point values; got int64",
    ),
    "NaN kernel": (
        lambda: ntk_jax.diagonalize(K * np.nan),
        r"k_train_train: expected finite values",
    ),
    "not PSD, regression": (
        lambda: ntk_jax.kernel_regression(K - 2 * np.eye(4), Y, K),
        r"positive semi-definite",
    ),
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
    "rows of y": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y[:3], 1.0),
        r"shape \(4,\) or \(4, O\); got \(3, 2\)",
    ),
    "row y": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y[:1], 1.0),
        r"shape \(4,\) or \(4, O\); got \(1, 2\)",
    ),
    "(n, 1) against (n,)": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y[:, :1], 1.0, fx_train_0=Y[:, 0]),
        r"fx_train_0: expected a scalar or shape \(4, 1\).*got \(4,\)",
    ),
    "transposed test kernel": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, 1.0, k_test_train=np.ones((4, 7))),
        r"k_test_train: expected test examples in rows.*It is transposed",
    ),
    "complex targets": (
        lambda: ntk_jax.gradient_flow_mse(MODES, 1j * Y, 1.0),
        r"y_train: expected real values; got complex128. Use two outputs",
    ),
    "outputs without kernel": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, 1.0, fx_test_0=Y),
        r"k_test_train: expected the test kernel together with fx_test_0",
    ),
    "negative time": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, [-1.0, 1.0]),
        r"t: expected at least 0",
    ),
    "NaN time": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, np.nan),
        r"t: expected at least 0; got nan",
    ),
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
    "momentum 1": (
        lambda: ntk_jax.max_learning_rate(MODES, momentum=1.0),
        r"momentum: expected a number in \[0, 1\)",
    ),
    "raw kernel as modes": (
        lambda: ntk_jax.gradient_flow_mse(jnp.asarray(K), Y, 1.0),
        r"modes: expected diagonalize\(k_train_train\); got ArrayImpl",
    ),
    "targets on their side": (
        lambda: ntk_jax.gradient_flow_mse(MODES, np.ones((1, 4)), 1.0),
        r"y_train: expected 4 rows, one for each mode of a kernel that all outputs share; got \(1, "
        r"4\).*reshape\(-1\)",
    ),
    "targets of a flattened kernel": (
        lambda: ntk_jax.gradient_descent_mse(MODES, np.ones((2, 2)), 3, 0.1),
        r"y_train: expected 4 rows.*got \(2, 2\)",
    ),
    "left out, on their side": (
        lambda: ntk_jax.leave_one_out(MODES, np.ones((1, 4)), diag_reg=0.1),
        r"y_train: expected 4 rows",
    ),
    "power of targets on their side": (
        lambda: ntk_jax.cumulative_power(MODES, np.ones((2, 2))),
        r"y: expected one row per training example, shape \(4,\)",
    ),
    "ensemble of other targets": (
        lambda: ntk_jax.ensemble_mse(KERNELS, KERNELS, K, np.ones((2, 2)), 1.0),
        r"y_train: expected one row per training example",
    ),
    "initial outputs of half the network, flow": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, 1.0, fx_train_0=Y, k_test_train=K),
        r"fx_test_0: expected the initial outputs on the test examples.*got None. Pass 0.0",
    ),
    "initial outputs of half the network, descent": (
        lambda: ntk_jax.gradient_descent_mse(MODES, Y, 3, 0.1, fx_train_0=Y, k_test_train=K),
        r"fx_test_0: expected the initial outputs",
    ),
    "initial outputs of half the network, any loss": (
        lambda: ntk_jax.gradient_flow("mse", K, Y, 1.0, fx_train_0=Y, k_test_train=K),
        r"fx_test_0: expected the initial outputs",
    ),
    "initial outputs of half the network, regression": (
        lambda: ntk_jax.kernel_regression(K, Y, K, fx_train_0=Y),
        r"fx_test_0: expected the initial outputs",
    ),
    "ridges over times": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, [1.0, 2.0], diag_reg=np.ones(2)),
        r"diag_reg: expected a number; got shape \(2,\)",
    ),
    "decays over steps": (
        lambda: ntk_jax.gradient_descent_mse(MODES, Y, 3, 0.1, weight_decay=np.ones(4)),
        r"weight_decay: expected a number; got shape \(4,\)",
    ),
    "one rcond for each mode": (
        lambda: ntk_jax.diagonalize(K, rcond=np.zeros(4)),
        r"rcond: expected a number; got shape \(4,\)",
    ),
    "ridges for other rows": (
        lambda: ntk_jax.kernel_regression(K, Y, K, diag_reg=np.ones(3)),
        r"diag_reg: expected a number, or one for each of the 4 examples; got shape \(3,\)",
    ),
    "noises for other rows": (
        lambda: ntk_jax.gp_posterior(K, Y, K, K, noise=np.ones(2)),
        r"noise: expected a number, or one for each of the 4 examples; got shape \(2,\)",
    ),
    "a flow that would explode": (
        lambda: ntk_jax.gradient_flow("mse", np.diag([1.0, -1.0, 1.0, 1.0]), Y, 30.0),
        r"k_train_train: expected a positive semi-definite kernel; got 1 of 4 eigenvalues",
    ),
    "kernels as modes": (
        lambda: ntk_jax.gradient_flow_mse(ntk_jax.Modes(np.ones(4), np.ones((4, 3))), Y, 1.0),
        r"modes: expected diagonalize\(k_train_train\)",
    ),
    "one kernel per output, other outputs": (
        lambda: ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(np.stack([K] * 3, -1)), Y, 1.0),
        r"y_train: expected shape \(4, 3\), for modes of one kernel per output; got \(4, 2\)",
    ),
    "test kernel of another kind": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, 1.0, k_test_train=np.stack([K] * 2, -1)),
        r"k_test_train: expected a kernel of the kind of the training one, with 2 axes; got shape "
        r"\(4, 4, 2\)",
    ),
    "decay without start": (
        lambda: ntk_jax.gradient_flow_mse(MODES, Y, 1.0, weight_decay=0.1),
        r"radial_train_0: expected J\(x\) θ_0 of shape \(4, 2\) together with "
        r"weight_decay.*jax.jvp",
    ),
    "negative decay": (
        lambda: ntk_jax.gradient_descent_mse(MODES, Y, 1, 0.1, weight_decay=-0.1),
        r"weight_decay: expected finite and at least 0",
    ),
    "regression, test kernel of another kind": (
        lambda: ntk_jax.kernel_regression(K, Y, np.ones((3, 4, 2))),
        r"k_test_train: expected test rows and training columns, \(n_test, 4\); got \(3, 4, 2\)",
    ),
    "flow: infinite time": (
        lambda: ntk_jax.gradient_flow("mse", K, Y, np.inf),
        r"t: expected finite and at least 0",
    ),
    "flow: negative time": (
        lambda: ntk_jax.gradient_flow("mse", K, Y, -1.0),
        r"t: expected finite and at least 0",
    ),
    "flow: unknown loss": (
        lambda: ntk_jax.gradient_flow("hinges", K, Y, 1.0),
        r"loss: expected one of 'mse', .*; got 'hinges'. Did you mean 'hinge'",
    ),
    "flow: kinks with momentum": (
        lambda: ntk_jax.gradient_flow("hinge", K, np.sign(Y), 1.0, momentum=0.5, learning_rate=0.1),
        r"loss: expected one with a continuous derivative.*gradient_descent",
    ),
    "flow: too many kinks": (
        lambda: ntk_jax.gradient_flow("l1", K, np.arange(8.0).reshape(4, 2), 1e3, max_steps=1),
        r"gradient_flow: the outputs met more than 1 kinks",
    ),
    "loss without its level": (
        lambda: ntk_jax.gradient_descent("quantile", K, Y, 1, 0.1),
        r"loss: expected a level, such as 'quantile\(0.9\)'",
    ),
    "loss of another level": (
        lambda: ntk_jax.gradient_descent("expectile(1.5)", K, Y, 1, 0.1),
        r"level: expected a number between 0 and 1; got 1.5",
    ),
    "hinge of other targets": (
        lambda: ntk_jax.gradient_descent("hinge", K, 2 * Y, 1, 0.1),
        r"y: expected targets -1 and 1 for the hinge loss",
    ),
    "labels of no class": (
        lambda: ntk_jax.gradient_descent(
            "cross_entropy", K, np.array([0, 1, 2, 3]), 1, 0.1, fx_train_0=np.zeros((4, 3))
        ),
        r"y_train: expected class labels from 0 to 2; got 0 to 3",
    ),
    "descent: fractions of steps": (
        lambda: ntk_jax.gradient_descent("l1", K, Y, 1.5, 0.1),
        r"num_steps: expected integers",
    ),
    "descent: too fast": (
        lambda: ntk_jax.gradient_descent("mse", K, Y, 9999, 1e9),
        r"learning_rate: expected one under which the outputs stay finite",
    ),
    "flow: centered one-hot": (
        lambda: ntk_jax.gradient_flow("cross_entropy", K, np.eye(4) - 0.25, 1.0),
        r"y: expected rows of probabilities.*adding 1/O",
    ),
    "flow: one class": (
        lambda: ntk_jax.gradient_flow("cross_entropy", K, Y[:, :1], 1.0),
        r"shape \(n, O\) with O >= 2.*loss='logistic'",
    ),
    "flow: labels 0 and 1": (
        lambda: ntk_jax.gradient_flow("logistic", K, 0 * Y, 1.0),
        r"targets -1 and 1.*2 y - 1",
    ),
    "flow: momentum alone": (
        lambda: ntk_jax.gradient_flow("mse", K, Y, 1.0, momentum=0.9),
        r"learning_rate: expected together with momentum",
    ),
    "flow: unknown solver": (
        lambda: ntk_jax.gradient_flow("mse", K, Y, 1.0, solver="euler"),
        r"solver: expected one of 'tsit5', 'dopri8', 'kvaerno5'; got 'euler'",
    ),
    "flow: would broadcast": (
        lambda: ntk_jax.gradient_flow("mse", K, Y, 1.0, fx_train_0=Y[:, 0]),
        r"fx_train_0: expected a scalar or shape \(4, 2\).*got \(4,\)",
    ),
    # Gaussian processes
    "GP: singular": (
        lambda: ntk_jax.gp_posterior(np.ones((4, 4)), Y, np.ones((2, 4)), np.ones(2), noise=0.0),
        r"noise: expected above .*positive definite in float64; got 0.*smallest eigenvalue of K is",
    ),
    "GP: test-test shape": (
        lambda: ntk_jax.gp_posterior(K, Y, K[:2], np.ones(3), noise=0.1),
        r"k_test_test: expected shape \(2, 2\) for the whole covariance, or \(2,\) for its "
        r"diagonal alone; got \(3,\)",
    ),
    "GP: negative variance": (
        lambda: ntk_jax.gp_posterior(K, Y, K[:2], np.zeros(2), noise=0.1),
        r"covariance: expected variances of at least 0; got -",
    ),
    "ensemble: one kernel": (
        lambda: ntk_jax.ensemble_mse(K, K, K, Y, 1.0),
        r"kernels_train_train: expected Kernels\(nngp, ntk\); got ndarray",
    ),
    "ensemble: negative time": (
        lambda: ntk_jax.ensemble_mse(ntk_jax.Kernels(K, K), ntk_jax.Kernels(K, K), K, Y, -1.0),
        r"t: expected at least 0",
    ),
    "leave one out, singular": (
        lambda: ntk_jax.leave_one_out(ntk_jax.diagonalize(np.ones((4, 4))), Y, diag_reg=0.0),
        r"diag_reg: expected above 0 for a singular kernel \(rank 1 of 4\)",
    ),
    "no candidates": (
        lambda: ntk_jax.select_diag_reg(MODES, Y, candidates=np.ones(0)),
        r"candidates: expected a non-empty vector",
    ),
    "zero start": (
        lambda: ntk_jax.fit_hyperparameters(kernels, X, Y, initial={"W_std": 0.0}),
        r"initial\['W_std'\]: expected finite and above 0",
    ),
    # parameters
    "negative degree": (
        lambda: ntk_jax.taylor_expand(linear, PARAMS, -1),
        r"degree: expected an integer of at least 0",
    ),
    "displacement would broadcast": (
        lambda: ntk_jax.min_norm_displacement(linear, PARAMS, X, Y[:, :1]),
        r"y: expected the shape that apply_fn returns, \(4, 2\); got \(4, 1\)",
    ),
    "influence would broadcast": (
        lambda: ntk_jax.single_step_influence(linear, PARAMS, X, X, Y[:, 0]),
        r"y: expected the shape that apply_fn returns, \(4, 2\); got \(4,\)",
    ),
    # spectrum
    "rectangular operator": (
        lambda: ntk_jax.top_eigenvalues(ntk_jax.ntk_operator(linear, PARAMS, X, X[:2]), 2, key=KEY),
        r"k: expected a square operator; got shape \(8, 4\). Make it with x2=None",
    ),
    "too many eigenvalues": (
        lambda: ntk_jax.top_eigenvalues(K, 5, key=KEY),
        r"num: expected at most n = 4.*got 5",
    ),
    "no eigenvalues": (
        lambda: ntk_jax.top_eigenvalues(K, 0, key=KEY),
        r"num: expected an integer of at least 1; got 0",
    ),
    "eigenvalues of no kernel": (
        lambda: ntk_jax.eigenvalues(K[:3]),
        r"k: expected a square kernel",
    ),
    "one probe": (
        lambda: ntk_jax.stochastic_trace(K, key=KEY, num_probes=1),
        r"num_probes: expected an integer of at least 2",
    ),
    "log of a singular kernel": (
        lambda: ntk_jax.stochastic_trace(np.ones((4, 4)), lambda s: jnp.log(-1 - s), key=KEY),
        r"function: expected finite values on the eigenvalues.*add a ridge",
    ),
    "log-determinant without ridge": (
        lambda: ntk_jax.log_determinant(K, diag_reg=0.0, key=KEY),
        r"diag_reg: expected finite and above 0",
    ),
    "unknown rank": (
        lambda: ntk_jax.effective_rank(K, kind="stable"),
        r"kind: expected one of 'entropy', 'partic",
    ),
    "other targets": (
        lambda: ntk_jax.alignment(K, Y[:3]),
        r"y: expected one row per training example",
    ),
    "constant targets": (
        lambda: ntk_jax.alignment(K, Y, centered=True),
        r"alignment: expected.*not zero.*not constant",
    ),
    "centered full kernel": (
        lambda: ntk_jax.centered_alignment(np.ones((2, 2, 3, 3)), K),
        r'k1: expected a kernel \(n, n\).*outputs="mean"',
    ),
    "kernels of other examples": (
        lambda: ntk_jax.centered_alignment(K, K[:3, :3]),
        r"k2: expected the shape of k1, \(4, 4\); got \(3, 3\)",
    ),
    "no direction": (
        lambda: ntk_jax.cosine(np.diag([1.0, 0.0])),
        r"k: expected positive diagonal.*A zero input",
    ),
    "zero targets": (lambda: ntk_jax.cumulative_power(MODES, 0 * Y), r"\|y\|².*above 0"),
    "all is learned": (
        lambda: ntk_jax.eigenlearning(np.ones(4), np.ones(4), 4),
        r"num_train: expected less than 4, the number of positive eigenvalues; got 4.*diag_reg",
    ),
    "negative eigenvalues": (
        lambda: ntk_jax.eigenlearning(-np.ones(4), np.ones(4), 2),
        r"eigenvalues: expected finite and at least 0",
    ),
    "fractional examples": (
        lambda: ntk_jax.eigenlearning(np.ones(4), np.ones(4), 1.5),
        r"num_train: expected an integer or a vector of them; got 1.5",
    ),
    "no rows left": (
        lambda: ntk_jax.learning_curve(K, Y, 4),
        r"num_train: expected less than the 4 rows of the pool",
    ),
    "singular pool": (
        lambda: ntk_jax.learning_curve(np.ones((4, 4)), Y, 2),
        r"less than 1, the number of positive eigenvalues; got 2",
    ),
    "GCV of a singular kernel": (
        lambda: ntk_jax.generalized_cross_validation(np.ones((4, 4)), Y, diag_reg=0.0),
        r"its smallest eigenvalue over the largest: expected finite and at least",
    ),
    # infinite width
    "model without a width": (
        lambda: ntk_jax.check_limit(ntk_jax.MLP((4,)), X, key=KEY),
        r"model: expected a function width -> model.*got MLP",
    ),
    "one width": (
        lambda: limits(widths=(8,)),
        r"widths: expected at least two increasing widths; got \(8,\)",
    ),
    "falling widths": (
        lambda: limits(widths=(8, 4)),
        r"at least two increasing widths; got \(8, 4\)",
    ),
    "unknown draw": (
        lambda: limits(draw="normal"),
        r"draw: expected one of 'initializer', 'gaussian'; got 'normal'",
    ),
    "one network": (
        lambda: limits(num_samples=1),
        r"num_samples: expected an integer of at least 2; got 1",
    ),
    "unknown law": (
        lambda: ntk_jax.init_stats(lambda key: jnp.sort(jax.random.normal(key, (3,)))),
        r"known distribution.*`sort` of random entries.*init_stats=",
    ),
    # training
    "batch without key": (
        lambda: train(batch_size=2),
        r"key: expected a random key together with batch_size",
    ),
    "batch too large": (
        lambda: train(batch_size=9, key=jax.random.key(0)),
        r"batch_size: expected at most the 4 examples; got 9",
    ),
    "cross-entropy of scores": (
        lambda: train(y=5 * Y, loss="cross_entropy"),
        r"y: expected rows of probabilities",
    ),
    "no networks": (
        lambda: ntk_jax.train_ensemble(
            lambda key: PARAMS,
            linear,
            X,
            Y,
            key=jax.random.key(0),
            num_networks=0,
            optimizer=optax.sgd(0.1),
            num_steps=1,
        ),
        r"num_networks: expected an integer of at least 1; got 0",
    ),
    "nothing to compare": (
        lambda: ntk_jax.compare(train(), ntk_jax.Prediction(Y, None), Y, learning_rate=0.1),
        r"history: expected outputs; got none. Train with record_outputs=True",
    ),
    "compared at other times": (
        lambda: ntk_jax.compare(
            train(record_outputs=True), ntk_jax.Prediction(Y, None), Y, learning_rate=0.1
        ),
        r"prediction.train: expected shape \(4, 4, 2\), one entry per record.*got \(4, 2\)",
    ),
    "y would broadcast": (
        lambda: train(y=Y[:, :1]),
        r"y: expected the shape that apply_fn returns, \(4, 2\); got \(4, 1\)",
    ),
    "unknown loss": (
        lambda: train(loss="l2"),
        r"loss: expected one of 'mse', 'cross_entropy', .*; got 'l2'",
    ),
    "y_test alone": (
        lambda: train(y_test=Y),
        r"x_test: expected the test examples together with y_test",
    ),
    "unordered records": (
        lambda: train(record_every=[2, 1]),
        r"record_every: expected increasing steps.*got \[2, 1\]",
    ),
    "NaN targets": (lambda: train(y=Y * np.nan), r"y: expected finite values; got 8 NaN"),
    "other kernel shapes": (
        lambda: ntk_jax.kernel_change(K, K[:2]),
        r"expected the shape of k_0, \(2, 4\); got \(4, 4\)",
    ),
    # laziness
    "unknown norm": (
        lambda: ntk_jax.laziness(linear, PARAMS, X, Y, norm="nuclear"),
        r"norm: expected one of 'operator', 'frobenius'; got 'nuclear'",
    ),
    "y of laziness": (
        lambda: ntk_jax.laziness(linear, PARAMS, X, Y[:, :1]),
        r"y: expected the shape that apply_fn returns, \(4, 2\); got \(4, 1\)",
    ),
    "dead network": (
        lambda: ntk_jax.laziness(lambda p, x: 0 * (x @ p), PARAMS, X, Y),
        r"depend on its parameters; got a Jacobian of 0",
    ),
    "other parameters": (
        lambda: ntk_jax.jacobian_change(linear, PARAMS, jnp.ones((3, 1)), X),
        r"params: expected the structure and shapes of params_0",
    ),
    "other parameters, Taylor": (
        lambda: ntk_jax.taylor_gap(linear, {"w": PARAMS}, PARAMS, X),
        r"params: expected the structure and shapes of params_0",
    ),
    "indefinite kernel": (
        lambda: ntk_jax.definiteness(K - 1.2 * np.eye(4)),
        r"k: expected a positive semi-definite",
    ),
    "no parameters": (
        lambda: ntk_jax.definiteness(K, num_params=0),
        r"num_params: expected an integer of at least 1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, unchecked_shapes):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()
