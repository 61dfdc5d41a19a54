"""Flax models that are fully connected networks have the kernels of the recursion of `mlp_kernels`:
equal to their interpretation, which stays for all others, and better where rows are close.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.architectures import lenient
from cases.mlps import F64

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((5, 2, 3)), RNG.standard_normal((3, 2, 3))
X[3] = X[1]
RANDOM = nn.initializers.normal(0.3, F64)
dense = lambda units, **options: nn.Dense(units, param_dtype=F64, dtype=F64, **options)
flat = lambda x: x.reshape(len(x), -1)


class Model(nn.Module):
    """A module from a function of x that may create submodules."""

    body: Callable[..., Any]

    @nn.compact
    def __call__(self, x):
        return self.body(x)


def normalized(x):
    x = jnp.sin(flat(x))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def plain(x, phi=nn.relu):
    h = phi(dense(8, bias_init=RANDOM)(flat(x)))
    return dense(2, use_bias=False)(2 * phi(dense(8)(h)))


def residual(x):
    h = dense(8, bias_init=RANDOM)(flat(x))
    for _ in range(2):
        h = h + 0.5 * dense(8, bias_init=RANDOM)(nn.relu(h))
    return dense(1)(nn.relu(h))


def layer_norm(x, phi=nn.relu, **options):
    """Scales, shifts and an epsilon that shows."""
    h = dense(8, bias_init=RANDOM)(flat(x))
    for _ in range(2):
        h = phi(nn.LayerNorm(epsilon=0.1, dtype=F64, param_dtype=F64, **options)(h))
        h = dense(8, bias_init=RANDOM)(h)
    return dense(1)(nn.relu(h) if phi is nn.relu else phi(h))


def before_layers(x):
    """Normalization inside of skip connections."""
    h = dense(8)(flat(x))
    for _ in range(2):
        h = h + dense(8, bias_init=RANDOM)(nn.relu(nn.RMSNorm(dtype=F64, param_dtype=F64)(h)))
    return dense(1)(nn.relu(h))


def shared(x):
    layer = dense(8)
    h = layer(nn.relu(dense(8)(flat(x))))
    return dense(1)(nn.relu(layer(nn.relu(h))))


def shifted(x):
    """A skip connection from other units than those that the layer is a function of."""
    h = dense(8)(flat(x))
    return dense(1)(nn.relu(h[:, :4] + dense(4)(nn.relu(h[:, 4:]))))


def twice(x):
    h = dense(8)(flat(x))
    return dense(1)(nn.relu(h + dense(8)(nn.relu(h)) + dense(8)(nn.relu(h))))


def outside_and_inside(x):
    h = dense(8)(flat(x))
    return dense(1)(nn.relu(dense(8)(flat(x)) + dense(8)(nn.relu(h))))


def convolutions(x, first=2):
    """At one position, if the first one meets all of x."""
    conv = lambda taps: nn.Conv(8, (taps,), padding="VALID", param_dtype=F64, dtype=F64)
    return dense(1)(flat(nn.relu(conv(1)(nn.relu(conv(first)(x))))))


def matrices(x):
    return dense(1)(nn.relu(dense(8)(nn.relu(dense(8)(flat(x))))))


RECOGNIZED = {
    "plain": plain,
    "convolutions": convolutions,
    "no hidden layer": lambda x: dense(3)(flat(x)),
    "features": lambda x: plain(normalized(x)),
    "residual": residual,
    "one output of three": lambda x: dense(3)(nn.relu(dense(8)(flat(x))))[:, 0],
    "half of the units": lambda x: dense(1)(nn.relu(dense(8)(flat(x))[:, :4])),
    "a scaled kink": lambda x: plain(x, lambda u: 3 * nn.relu(-2 * u)),
    "smooth": lambda x: plain(x, nn.tanh),
    "kinks": lambda x: plain(x, nn.hard_tanh),
    "normalization": layer_norm,
    "normalization before layers": before_layers,
    "normalization, no scale": lambda x: layer_norm(x, jnp.abs, use_scale=False),
    "normalization, a curved activation": lambda x: layer_norm(
        x, jax.scipy.special.erf, use_scale=False
    ),
    "a factor of the example": lambda x: dense(1)(
        nn.relu(dense(8, bias_init=RANDOM)(flat(x)) * jnp.sin(flat(x)[:, :1]))
    ),
    "a constant feature": lambda x: plain(jnp.concatenate([flat(x), jnp.ones((len(x), 1))], 1)),
}
OTHERS = {
    "shared weights": shared,
    "a trained scale, a curved activation": lambda x: layer_norm(x, jax.scipy.special.erf),
    "normalization, a series": lambda x: layer_norm(x, nn.hard_tanh, use_scale=False),
    "normalization after the activation": lambda x: dense(1)(
        nn.LayerNorm(dtype=F64)(nn.relu(dense(8)(flat(x))))
    ),
    "two activations": lambda x: dense(1)(nn.relu(dense(8)(nn.tanh(dense(8)(flat(x)))))),
    "convolutions at two positions": lambda x: convolutions(x, 1),
    "positions": lambda x: dense(1)(nn.relu(dense(8)(x))).mean(1),
    "a sum of branches": lambda x: dense(1)(nn.relu(dense(8)(flat(x)))) + dense(1)(flat(x)),
    "a product": lambda x: dense(1)(nn.relu(dense(8)(flat(x))) * dense(8)(flat(x))),
    "other units": shifted,
    "two branches": twice,
    "a parallel layer": outside_and_inside,
}


@lenient
def by_front_door(call, x1, x2=None):
    return ntk_jax.infinite_width(Model(call))(x1, x2)


@lenient
def interpreted(call, x1, x2=None):
    program = ntk_jax.infinite_width(Model(call)).model.program(x1)
    return program.interpreted(x1, x2, None, [None], None)[0]


def close(found, expected, rtol):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("name", RECOGNIZED)
def test_what_is_recognized_is_what_is_interpreted(name):
    x, y = jnp.asarray(X), jnp.asarray(Y)
    rtol = 1e-9 if name in ("smooth", "kinks") else 1e-12  # series of different lengths
    kernel_fn = ntk_jax.infinite_width(Model(RECOGNIZED[name]))
    assert lenient(kernel_fn.model.program)(x).network is not None
    n, call = len(x), RECOGNIZED[name]
    expected = interpreted(call, jnp.concatenate([x, y]))
    found = by_front_door(call, x)
    close(found, (k[:n, :n] for k in expected), rtol)
    close(by_front_door(call, x, y), (k[:n, n:] for k in expected), rtol)
    assert all(jnp.array_equal(k, k.T) for k in found)
    np.testing.assert_allclose(found.ntk[1, 3], found.ntk[1, 1], rtol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "features", "residual", "smooth", "normalization"])
def test_derivatives_are_those_of_the_interpretation(name):
    x, y = jnp.asarray(X[:3]), jnp.asarray(Y)
    total = lambda kernels: lambda x: jnp.sum(kernels(RECOGNIZED[name], x, y).ntk)
    found, expected = (jax.jit(jax.grad(total(by)))(x) for by in (by_front_door, interpreted))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_convolutions_at_one_position_are_matrices():
    x = jnp.asarray(X)
    found, expected = (ntk_jax.infinite_width(Model(f))(x) for f in (convolutions, matrices))
    close(found, expected, 1e-14)


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_is_taken_for_one(name):
    kernel_fn = ntk_jax.infinite_width(Model(OTHERS[name]))
    assert lenient(kernel_fn.model.program)(jnp.asarray(X)).network is None


def test_close_rows_are_told_apart_in_float32():
    """Interpreted, the covariances of such rows round, and the kernel has eigenvalues below 0."""
    x = RNG.standard_normal((40, 6)) * 1e-3 + 1
    model = ntk_jax.MLP((8,) * 3, 1, "relu", 2**0.5)
    kernel_fn, single = ntk_jax.infinite_width(model), jnp.asarray(x, jnp.float32)
    truth = np.asarray(ntk_jax.mlp_kernels(np.asarray(single, float), depth=3, W_std=2**0.5).ntk)
    (interpreted,) = kernel_fn.model.program(single).interpreted(single, None, None, [None], None)
    found, rounded = (
        np.max(np.abs(np.asarray(k.ntk, float) - truth)) / np.max(truth)
        for k in (kernel_fn(single), interpreted)
    )
    assert found < 1e-6 < 1e-4 < rounded


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_close_rows_keep_their_order_through_normalization(spread):
    """Interpreted, eigenvalues at 1e-3 are -2 to -4 ε n λ_max."""
    n = 100
    x = np.random.default_rng(0).standard_normal((n, 20)) * spread + 1
    kernel_fn = ntk_jax.infinite_width(Model(partial(single_precision, nn.LayerNorm)))
    for k in kernel_fn(jnp.asarray(x, jnp.float32)):
        values = np.linalg.eigvalsh(np.asarray(k, float))
        assert values[0] >= -0.1 * np.finfo(np.float32).eps * n * values[-1]


def single_precision(norm, x):
    for _ in range(3):
        x = nn.relu(norm()(nn.Dense(8, kernel_init=nn.initializers.normal(0.5))(x)))
    return nn.Dense(1)(x)
