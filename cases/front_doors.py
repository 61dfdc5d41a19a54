"""The front doors as users call them: every object built anew at each call, and one number that
differs.

`DOORS[name]()` makes the inputs; what it returns, called with a number, is the call: models,
adapters, functions and optimizers are made in it, equal each time, and the number is a scale, a
ridge, a time or a learning rate.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import ntk_jax

Call: TypeAlias = Callable[[float], Any]
"""Takes a number near 1."""


class Mlp(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(1)(x)


class Cnn(nn.Module):
    """Two convolutions, each before a pool, or none."""

    pools: bool = True

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Conv(32, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), (2, 2)) if self.pools else x
        x = x.mean((1, 2)) if self.pools else x.reshape(len(x), -1)
        return nn.Dense(1)(x)


def _single(a: np.ndarray) -> Array:
    """In float32, on the device, with nothing compiled."""
    return jax.device_put(a.astype(np.float32))


def rows(n: int = 24, seed: int = 0) -> Array:
    """Examples with 8 features."""
    return _single(np.random.default_rng(seed).standard_normal((n, 8)))


def images(n: int = 6) -> Array:
    """Examples of 8 x 8 pixels."""
    return _single(np.random.default_rng(0).standard_normal((n, 8, 8, 3)))


def targets(n: int = 24) -> Array:
    """One output per example."""
    return _single(np.random.default_rng(1).standard_normal((n, 1)))


def kernels() -> tuple[Array, Array, Array]:
    """Of training rows, of test rows with training rows, of test rows."""
    x = np.random.default_rng(0).standard_normal((29, 8)).astype(np.float32)
    k = x @ x.T / 8 + np.eye(29, dtype=np.float32)
    return _single(k[:24, :24]), _single(k[24:, :24]), _single(k[24:, 24:])


def _mlp_kernels(activation: Any, *, pair: bool = False) -> Callable[[], Call]:
    def door() -> Call:
        x1, x2 = rows(), rows(5, 1) if pair else None
        return lambda c: ntk_jax.mlp_kernels(
            x1, x2, depth=3, activation=activation(), W_std=1.4 * c, b_std=0.1 * c
        )

    return door


def _finite(call: Callable[..., Any]) -> Callable[[], Call]:
    def door() -> Call:
        x, y = rows(), targets()
        variables = jax.jit(Mlp().init)(jax.random.key(0), x)
        return lambda c: call(*ntk_jax.from_linen(Mlp(), variables), x, y, c)

    return door


def _infinite(model: Callable[[], nn.Module], x: Callable[[], Array]) -> Callable[[], Call]:
    def door() -> Call:
        examples = x()
        return lambda _: ntk_jax.infinite_width(model())(examples)

    return door


def _of_kernel(call: Callable[..., Any]) -> Callable[[], Call]:
    def door() -> Call:
        arguments = *kernels(), targets()
        return lambda c: call(*arguments, c)

    return door


def _of_modes(call: Callable[..., Any]) -> Callable[[], Call]:
    def door() -> Call:
        k, k_test, _ = kernels()
        modes, y = ntk_jax.diagonalize(k), targets()
        return lambda c: call(modes, y, k_test, c)

    return door


DOORS: dict[str, Callable[[], Call]] = {
    "mlp_kernels relu": _mlp_kernels(lambda: "relu"),
    "mlp_kernels relu, x2": _mlp_kernels(lambda: "relu", pair=True),
    "mlp_kernels tanh": _mlp_kernels(lambda: "tanh"),
    "mlp_kernels gelu_tanh": _mlp_kernels(lambda: "gelu_tanh"),
    "mlp_kernels lambda": _mlp_kernels(lambda: lambda u: u * jnp.tanh(u)),
    "empirical_ntk": _finite(lambda f, p, x, y, c: ntk_jax.empirical_ntk(f, p, x)),
    "empirical_nngp": _finite(lambda f, p, x, y, c: ntk_jax.empirical_nngp(f, p, x)),
    "ntk_operator": _finite(lambda f, p, x, y, c: ntk_jax.ntk_operator(f, p, x) @ y),
    "train": _finite(
        lambda f, p, x, y, c: ntk_jax.train(
            f, p, x, y, optimizer=optax.sgd(0.1), num_steps=10, record_every=5
        )
    ),
    "infinite_width MLP": _infinite(Mlp, rows),
    "infinite_width flat CNN": _infinite(lambda: Cnn(pools=False), images),
    "infinite_width CNN": _infinite(Cnn, images),
    "diagonalize": _of_kernel(lambda k, kt, ktt, y, c: ntk_jax.diagonalize(k)),
    "gradient_flow_mse": _of_modes(
        lambda m, y, kt, c: ntk_jax.gradient_flow_mse(m, y, c, k_test_train=kt, diag_reg=0.1 * c)
    ),
    "gradient_descent_mse": _of_modes(
        lambda m, y, kt, c: ntk_jax.gradient_descent_mse(m, y, 10, 0.1 * c, k_test_train=kt)
    ),
    "kernel_regression": _of_kernel(
        lambda k, kt, ktt, y, c: ntk_jax.kernel_regression(k, y, kt, diag_reg=0.1 * c)
    ),
    "gp_posterior": _of_kernel(
        lambda k, kt, ktt, y, c: ntk_jax.gp_posterior(k, y, kt, ktt, noise=0.1 * c)
    ),
    "definiteness": _of_kernel(lambda k, kt, ktt, y, c: ntk_jax.definiteness(k)),
    "alignment": _of_kernel(lambda k, kt, ktt, y, c: ntk_jax.alignment(k, y)),
}
