"""Every front door from kernels on compiles a few programs at its first call, and none later: not
for the same arguments, not for another number, not for functions of the same code.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.compilations import compilations

pytestmark = pytest.mark.usefixtures("unoptimized")

N, O = 6, 2
RNG = np.random.default_rng(0)
X = jax.device_put(RNG.standard_normal((N + 3, 4)))
Y = jax.device_put(RNG.standard_normal((N, O)))
ALL = np.exp(-np.sum((np.asarray(X)[:, None] - np.asarray(X)) ** 2, 2) / 4)
K, K_TEST, K_TEST_TEST = (
    jax.device_put(ALL[a]) for a in (np.s_[:N, :N], np.s_[N:, :N], np.s_[N:, N:])
)
BY_OUTPUT = jax.device_put(np.stack([K, 2 * np.asarray(K)], -1))
KERNELS = [ntk_jax.Kernels(k, k) for k in (K, K_TEST, K_TEST_TEST)]
MODES = ntk_jax.diagonalize(K)
KEY = jax.random.key(0)
PARAMS, PARAMS_0 = ({"w": jax.device_put(scale * np.ones((4, O)))} for scale in (1.0, 0.5))


def network():
    """Equal functions, each of its own."""
    return lambda p, x: jnp.tanh(x @ p["w"])


def fit(**options):
    return ntk_jax.fit_hyperparameters(
        lambda x, scale: scale * (x @ x.T), X[:N], Y, num_steps=5, **options
    )


def fourth(r):
    return ntk_jax.gradient_flow(
        lambda f, y: jnp.mean((f - y) ** 4), K, Y, [1.0, 2.0], rtol=r, progress=False
    ).train


# Of a number, which is another at every call.
DOORS = {
    "diagonalize": lambda r: ntk_jax.diagonalize(K, rcond=r),
    "one kernel per output": lambda r: ntk_jax.diagonalize(BY_OUTPUT),
    "rank": lambda r: (MODES.rank, MODES.condition_number),
    "max_learning_rate": lambda r: ntk_jax.max_learning_rate(MODES, momentum=r),
    "gradient_flow_mse": lambda r: ntk_jax.gradient_flow_mse(
        MODES, Y, r, k_test_train=K_TEST, diag_reg=r
    ),
    "weight decay": lambda r: ntk_jax.gradient_flow_mse(
        MODES, Y, [r, 2.0], weight_decay=r, radial_train_0=Y, fx_train_0=Y
    ),
    "gradient_descent_mse": lambda r: ntk_jax.gradient_descent_mse(
        MODES, Y, 5, r, momentum=r, diag_reg=r, k_test_train=K_TEST
    ),
    "gradient_flow": lambda r: (
        ntk_jax.gradient_flow("huber", K, Y, [r, 2.0], k_test_train=K_TEST, progress=False).test
    ),
    "ensemble_mse": lambda r: ntk_jax.ensemble_mse(*KERNELS, Y, [r, 2.0], diag_reg=r),
    "kernel_regression": lambda r: ntk_jax.kernel_regression(K, Y, K_TEST, diag_reg=r),
    "pseudo-inverse": lambda r: ntk_jax.kernel_regression(K, Y, K_TEST, rcond=r),
    "gp_posterior": lambda r: ntk_jax.gp_posterior(K, Y, K_TEST, K_TEST_TEST, noise=r),
    "log_marginal_likelihood": lambda r: ntk_jax.log_marginal_likelihood(K, Y, noise=r),
    "leave_one_out": lambda r: ntk_jax.leave_one_out(MODES, Y, diag_reg=r),
    "select_diag_reg": lambda r: ntk_jax.select_diag_reg(MODES, Y, candidates=[r, 2.0]),
    "generalized_cross_validation": lambda r: ntk_jax.generalized_cross_validation(
        K, Y, diag_reg=[r, 2.0]
    ),
    "fit_hyperparameters": lambda r: fit(initial={"scale": r}, noise=r),
    "eigenlearning": lambda r: ntk_jax.eigenlearning(
        MODES.eigenvalues, Y, [2, 3], diag_reg=r, noise=r
    ),
    "learning_curve": lambda r: ntk_jax.learning_curve(K, Y, [2, 3], diag_reg=r),
    "eigenvalues": lambda r: ntk_jax.eigenvalues(K),
    "effective_rank": lambda r: ntk_jax.effective_rank(K),
    "participation": lambda r: ntk_jax.effective_rank(K, kind="participation"),
    "definiteness": lambda r: ntk_jax.definiteness(K).rank,
    "alignment": lambda r: ntk_jax.alignment(K, Y),
    "centered_alignment": lambda r: ntk_jax.centered_alignment(K, K),
    "cosine": lambda r: ntk_jax.cosine(K),
    "kernel_distance": lambda r: ntk_jax.kernel_distance(K),
    "learning_times": lambda r: ntk_jax.learning_times(MODES),
    "cumulative_power": lambda r: ntk_jax.cumulative_power(MODES, Y),
    "rkhs_norm": lambda r: ntk_jax.rkhs_norm(K, Y, diag_reg=r),
    "stochastic_trace": lambda r: ntk_jax.stochastic_trace(K, key=KEY),
    "log_determinant": lambda r: ntk_jax.log_determinant(K, diag_reg=r, key=KEY, num_steps=3),
    "spectral_density": lambda r: ntk_jax.spectral_density(K, key=KEY, num_steps=3),
    "kernel_change": lambda r: ntk_jax.kernel_change(K, K),
    "relative_change": lambda r: ntk_jax.relative_change(PARAMS, PARAMS_0),
    "jacobian_change": lambda r: ntk_jax.jacobian_change(network(), PARAMS, PARAMS_0, X),
    "taylor_gap": lambda r: ntk_jax.taylor_gap(network(), PARAMS, PARAMS_0, X),
    "kernel_velocity": lambda r: ntk_jax.kernel_velocity(network(), PARAMS, X[:N], Y),
    "min_norm_displacement": lambda r: ntk_jax.min_norm_displacement(
        network(), PARAMS, X[:N], Y, tolerance=r
    ),
}
# diffrax compiles two small ones besides; checks of a network's rows are two.
FIRST = {
    "gradient_flow": 5,
    "jacobian_change": 5,
    "taylor_gap": 5,
    "kernel_velocity": 5,
    "min_norm_displacement": 5,
}


@pytest.mark.parametrize("door", DOORS)
def test_only_the_first_call_compiles(door, unchecked_shapes):
    numbers = [0.5, 0.6, np.float32(0.7), np.array(0.8), jnp.asarray(0.9)]
    call = DOORS[door]
    jax.clear_caches()
    with compilations() as first:
        call(numbers[0])
    with compilations() as later:
        for number in numbers:
            call(number)
    assert len(first) <= FIRST.get(door, 3)
    assert not later


def test_losses_of_equal_code_share_the_solve():
    fourth(1e-4)
    with compilations() as later:
        fourth(1e-3)
    assert not later


@pytest.mark.parametrize("fit", ["modes", "regression"])
def test_cross_validation_compiles_less_than_ten_programs(fit):
    """Three folds of 178 rows as scikit-learn cuts them, thirteen ridges."""
    x = np.asarray(RNG.standard_normal((178, 13)), np.float32)
    y = np.asarray(RNG.standard_normal((178, 3)), np.float32)
    k = x @ x.T / 13 + np.eye(178, dtype=np.float32)
    found = []
    jax.clear_caches()
    with compilations() as programs:
        for test in np.array_split(np.arange(178), 3):
            train = np.setdiff1d(np.arange(178), test)
            square, rows = k[np.ix_(train, train)], k[np.ix_(test, train)]
            for ridge in np.logspace(-4, 2, 13):
                if fit == "modes":
                    modes = ntk_jax.diagonalize(square)
                    out = ntk_jax.gradient_flow_mse(
                        modes, y[train], np.inf, k_test_train=rows, diag_reg=ridge
                    )
                else:
                    out = ntk_jax.kernel_regression(square, y[train], rows, diag_reg=ridge)
                found.append(float(np.mean((np.asarray(out.test) - y[test]) ** 2)))
    assert len(found) == 39 and np.isfinite(found).all()
    assert len(programs) < 10
