"""Weight decay pulls parameters to 0, not to their start: against an ODE, and Optax on the
linearized network.
"""

import jax
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp

import ntk_jax

N, N_TEST, O, P = 5, 3, 2, 9


@pytest.fixture
def features():
    """A linear model f = f_0 + J (θ - θ_0): everything that weight decay needs."""
    rng = np.random.default_rng(0)
    jacobian, jacobian_test = rng.normal(size=(N, O, P)), rng.normal(size=(N_TEST, O, P))
    theta_0, f_0, f_test_0, y = (
        rng.normal(size=P),
        *(rng.normal(size=(n, O)) for n in (N, N_TEST, N)),
    )
    kernels = [np.einsum("iop,jqp->ijoq", j, jacobian) for j in (jacobian, jacobian_test)]
    start = {"fx_train_0": f_0, "fx_test_0": f_test_0, "k_test_train": kernels[1]}
    start |= {"radial_train_0": jacobian @ theta_0, "radial_test_0": jacobian_test @ theta_0}
    return ntk_jax.diagonalize(kernels[0]), y, start, (jacobian, jacobian_test, theta_0)


@pytest.mark.parametrize("diag_reg", [0.0, 0.5])
def test_flow_equals_ode_of_the_parameters(features, diag_reg):
    modes, y, start, (jacobian, jacobian_test, theta_0) = features
    decay, t = 0.07, [0.0, 1e-3, 1.0, 20.0, 200.0]

    def rhs(_, theta):
        f = start["fx_train_0"] + jacobian @ (theta - theta_0)
        pull = decay * theta + diag_reg / y.size * (theta - theta_0)
        return -np.einsum("iop,io->p", jacobian, f - y) / y.size - pull

    theta = solve_ivp(rhs, (0, 200), theta_0, t_eval=t, method="DOP853", rtol=1e-12, atol=1e-13).y.T
    out = ntk_jax.gradient_flow_mse(modes, y, t, weight_decay=decay, diag_reg=diag_reg, **start)
    for f, j, f_0 in (
        (out.train, jacobian, start["fx_train_0"]),
        (out.test, jacobian_test, start["fx_test_0"]),
    ):
        np.testing.assert_allclose(
            f, [f_0 + j @ (th - theta_0) for th in theta], rtol=1e-8, atol=1e-8
        )
    limit = ntk_jax.gradient_flow_mse(
        modes, y, [1e9, np.inf], weight_decay=decay, diag_reg=diag_reg, **start
    )
    hessian = np.einsum("iop,ioq->pq", jacobian, jacobian) / y.size + (
        decay + diag_reg / y.size
    ) * np.eye(P)
    pulled = np.einsum("iop,io->p", jacobian, y - start["fx_train_0"] + jacobian @ theta_0) / y.size
    theta = np.linalg.solve(hessian, pulled + diag_reg / y.size * theta_0)
    expected = start["fx_test_0"] + jacobian_test @ (theta - theta_0)
    np.testing.assert_allclose(limit.test, [expected] * 2, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("momentum", "nesterov", "diag_reg"), [(0.0, False, 0.3), (0.9, False, 0.0), (0.9, True, 0.3)]
)
def test_descent_equals_the_recursion_of_the_parameters(features, momentum, nesterov, diag_reg):
    modes, y, start, (jacobian, jacobian_test, theta_0) = features
    decay, steps = 0.02, [0, 1, 2, 50, 3000]
    rate = 0.5 * float(ntk_jax.max_learning_rate(modes, momentum=momentum, nesterov=nesterov))
    theta, v, test = theta_0, np.zeros(P), []
    for step in range(steps[-1] + 1):
        if step in steps:
            test.append(start["fx_test_0"] + jacobian_test @ (theta - theta_0))
        f = start["fx_train_0"] + jacobian @ (theta - theta_0)
        g = (
            np.einsum("iop,io->p", jacobian, f - y) / y.size
            + decay * theta
            + diag_reg / y.size * (theta - theta_0)
        )
        v = momentum * v + g
        theta = theta - rate * (momentum * v + g if nesterov else v)
    options = {
        "momentum": momentum,
        "nesterov": nesterov,
        "diag_reg": diag_reg,
        "weight_decay": decay,
    }
    out = ntk_jax.gradient_descent_mse(modes, y, steps, rate, **options, **start)
    np.testing.assert_allclose(out.test, test, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_descent_equals_optax_on_the_linearized_network(getkey):
    x, x_test = jax.random.normal(getkey(), (N, 3)), jax.random.normal(getkey(), (N_TEST, 3))
    y = jax.random.normal(getkey(), (N, O))
    model = ntk_jax.MLP((16,), O, W_std=1.5, b_std=0.1)
    apply_fn, params = ntk_jax.from_linen(model, model.init(getkey(), x))
    modes = ntk_jax.diagonalize(ntk_jax.empirical_ntk(apply_fn, params, x, outputs="full"))
    rate = 0.5 * float(ntk_jax.max_learning_rate(modes, momentum=0.8, nesterov=True))
    history = ntk_jax.train(
        ntk_jax.linearize(apply_fn, params),
        params,
        x,
        y,
        num_steps=400,
        record_every=100,
        x_test=x_test,
        optimizer=optax.chain(
            optax.add_decayed_weights(0.01), optax.sgd(rate, momentum=0.8, nesterov=True)
        ),
        record_outputs=True,
        progress=False,
    )
    radial = [jax.jvp(lambda p, x=x: apply_fn(p, x), (params,), (params,))[1] for x in (x, x_test)]
    out = ntk_jax.gradient_descent_mse(
        modes,
        y,
        history.steps,
        rate,
        momentum=0.8,
        nesterov=True,
        weight_decay=0.01,
        fx_train_0=history.fx_train[0],
        fx_test_0=history.fx_test[0],
        radial_train_0=radial[0],
        radial_test_0=radial[1],
        k_test_train=ntk_jax.empirical_ntk(apply_fn, params, x_test, x, outputs="full"),
    )
    np.testing.assert_allclose(history.fx_train, out.train, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(history.fx_test, out.test, rtol=1e-8, atol=1e-8)
