"""The front doors as functions of arrays alone, for programs that are lowered or compiled but not
run: names, functions, shapes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import ntk_jax
from ntk_jax.operators.lanczos import gauss_quadrature
from ntk_jax.types import Kernels

SCALES: dict[str, Any] = {"W_std": 2**0.5, "b_std": 0.1}
NUM_FEATURES, NUM_OUTPUTS = 784, 10


class Door(NamedTuple):
    """A function, and the shapes of its arguments."""

    call: Callable[..., Any]
    arguments: tuple[Any, ...]


class Cnn(nn.Module):
    """Two convolutions; then the mean over positions, or none, or the maxima of 2 x 2."""

    end: str = "flat"
    channels: int = 32

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Conv(self.channels, (3, 3))(x))
        if self.end == "max":
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.mean((1, 2)) if self.end == "mean" else x.reshape(len(x), -1)
        return nn.Dense(NUM_OUTPUTS)(x)


def doors(n: int = 2048) -> dict[str, Door]:
    """All of them, for n examples of 784 features where these are vectors."""
    return {**_analytic(n), **_limits(n), **_finite(n), **_kernels(n)}


def _analytic(n: int) -> dict[str, Door]:
    x = _array(n, NUM_FEATURES)

    def of(activation: str, depth: int = 3) -> Door:
        options: dict[str, Any] = {"depth": depth, "activation": activation, **SCALES}
        return Door(lambda x: ntk_jax.mlp_kernels(x, **options), (x,))

    def total(x, W_std):
        return jnp.sum(ntk_jax.mlp_kernels(x, depth=3, W_std=W_std, b_std=0.1).ntk)

    return {
        "mlp_kernels relu": of("relu"),
        "mlp_kernels relu, depth 20": of("relu", 20),
        "mlp_kernels tanh": of("tanh"),
        "mlp_kernels gelu": of("gelu"),
        "mlp_kernels selu": of("selu"),
        "mlp_kernels gelu_tanh": of("gelu_tanh"),
        "mlp_kernels hard_tanh": of("hard_tanh"),
        "mlp_kernels relu, x2": Door(
            lambda x, z: ntk_jax.mlp_kernels(x, z, depth=3, **SCALES), (x, x)
        ),
        "mlp_kernels_by_layer": Door(
            lambda x: ntk_jax.mlp_kernels_by_layer(x, depth=3, **SCALES), (x,)
        ),
        "kernel_diagonal": Door(lambda x: ntk_jax.kernel_diagonal(x, depth=3, **SCALES), (x,)),
        "mlp_kernels, value and gradient": Door(jax.value_and_grad(total, (0, 1)), (x, _array())),
    }


def _limits(n: int) -> dict[str, Door]:
    images = _array(64, 8, 8, 3)
    key = jax.eval_shape(lambda: jax.random.key(0))
    mlp = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(1)])
    limit = lambda model: lambda x: ntk_jax.infinite_width(model)(x)
    sampled = lambda x, key: ntk_jax.infinite_width(Cnn("max"), num_samples=256, key=key)(x)
    return {
        "infinite_width MLP": Door(limit(mlp), (_array(n, NUM_FEATURES),)),
        "infinite_width flat CNN": Door(limit(Cnn("flat")), (images,)),
        "infinite_width pooled CNN": Door(limit(Cnn("mean")), (images,)),
        "infinite_width sampled CNN": Door(sampled, (_array(16, 8, 8, 3), key)),
    }


def _finite(n: int) -> dict[str, Door]:
    mlp = ntk_jax.MLP((512, 512), NUM_OUTPUTS)

    def of(model: nn.Module, x: Any, call: Callable[..., Any], *more: Any) -> Door:
        one = _array(1, *x.shape[1:])
        params = jax.eval_shape(model.init, jax.random.key(0), one)
        return Door(lambda p, *args: call(model.apply, p, *args), (params, x, *more))

    def kernel(outputs: str = "mean", method: str = "auto") -> Callable[..., Any]:
        options: dict[str, Any] = {"outputs": outputs, "method": method}
        return lambda f, p, *xs: ntk_jax.empirical_ntk(f, p, *xs, **options)

    x, few, images = _array(n, NUM_FEATURES), _array(n // 8, NUM_FEATURES), _array(128, 16, 16, 3)
    times = lambda f, p, x, v: ntk_jax.ntk_operator(f, p, x) @ v
    features = lambda f, p, x: ntk_jax.tangent_features(f, p, x)
    projected = lambda f, p, x, key: ntk_jax.tangent_features(f, p, x, projection=1024, key=key)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return {
        "empirical_ntk MLP": of(mlp, x, kernel()),
        "empirical_ntk MLP, x2": of(mlp, x, kernel(), x),
        "empirical_ntk MLP, jacobian": of(mlp, few, kernel(method="jacobian")),
        "empirical_ntk MLP, vector_products": of(mlp, few, kernel(method="vector_products")),
        "empirical_ntk MLP, diagonal": of(mlp, x, kernel("diagonal")),
        "empirical_ntk MLP, full": of(mlp, few, kernel("full")),
        "empirical_ntk flat CNN": of(Cnn("flat"), images, kernel()),
        "empirical_ntk pooled CNN": of(Cnn("mean"), images, kernel()),
        "empirical_nngp": of(mlp, x, lambda f, p, x: ntk_jax.empirical_nngp(f, p, x)),
        "tangent_features": of(mlp, x, features),
        "tangent_features, projected": of(mlp, few, projected, key),
        "ntk_operator": of(mlp, x, times, _array(n, NUM_OUTPUTS)),
        "ntk_operator, 32 vectors": of(mlp, x, times, _array(n, NUM_OUTPUTS, 32)),
        "ntk_operator.diagonal": of(
            mlp, x, lambda f, p, x: ntk_jax.ntk_operator(f, p, x).diagonal()
        ),
    }


def _kernels(n: int) -> dict[str, Door]:
    k, k_test, k_tests, y = _array(n, n), _array(64, n), _array(64, 64), _array(n, NUM_OUTPUTS)
    key, times = jax.eval_shape(lambda: jax.random.key(0)), _array(50)
    modes = jax.eval_shape(ntk_jax.diagonalize, k)
    flow = lambda m, y, t, k: ntk_jax.gradient_flow_mse(m, y, t, k_test_train=k)
    descent = lambda m, y, k: ntk_jax.gradient_descent_mse(m, y, 1000, 0.1, k_test_train=k)
    momentum = lambda m, y, k: ntk_jax.gradient_descent_mse(
        m, y, 1000, 0.1, momentum=0.9, k_test_train=k
    )
    ridge = lambda k, y, kt: ntk_jax.kernel_regression(k, y, kt, diag_reg=0.1)
    ensemble = lambda k, th, kt, tht, ktt, y, t: ntk_jax.ensemble_mse(
        Kernels(k, th), Kernels(kt, tht), ktt, y, t
    )
    posterior = lambda k, y, kt, ktt: ntk_jax.gp_posterior(k, y, kt, ktt, noise=0.1)
    return {
        "diagonalize": Door(ntk_jax.diagonalize, (k,)),
        "gradient_flow_mse": Door(flow, (modes, y, times, k_test)),
        "gradient_descent_mse": Door(descent, (modes, y, k_test)),
        "gradient_descent_mse, momentum": Door(momentum, (modes, y, k_test)),
        "kernel_regression": Door(ridge, (k, y, k_test)),
        "gp_posterior": Door(posterior, (k, y, k_test, k_tests)),
        "ensemble_mse": Door(ensemble, (k, k, k_test, k_test, k_tests, y, times)),
        "eigenlearning": Door(
            lambda s, v: ntk_jax.eigenlearning(s, v, np.arange(1, n, n // 100)),
            (_array(n), _array(n)),
        ),
        "Lanczos quadrature": Door(
            lambda k, key: gauss_quadrature(k, key, num_probes=16, num_steps=30), (k, key)
        ),
        "alignment": Door(ntk_jax.alignment, (k, y)),
    }


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
