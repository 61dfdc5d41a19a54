"""The limits of Flax networks, equal to the papers' formulas at 1e-10, in both
parameterizations.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases.closed_forms as exact
from cases.architectures import Net
from ntk_jax.infinite.flax.limit import infinite_width

N, WIDTH = 3, 24
W_STD, B_STD = 1.3, 0.4
EPSILON = 1e-6
F64 = jnp.float64
RNG = np.random.default_rng(0)


def layer(kind, features, fan_in, *window, W_std=W_STD, **options):
    """A Flax layer in double precision, with the initializers of the standard parameterization."""
    init = nn.initializers.normal
    scales = {"kernel_init": init(W_std / fan_in**0.5), "bias_init": init(B_STD)}
    return kind(features, *window, dtype=F64, param_dtype=F64, **scales, **options)


class Scaled(nn.Module):
    """The same layers in the "ntk" parameterization: standard normal parameters, multipliers in the
    forward pass.
    """

    features: int
    window: tuple[int, ...] = ()
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x):
        fan_in = int(np.prod(self.window)) * x.shape[-1]
        W = self.param(
            "kernel", nn.initializers.normal(1.0), (*self.window, x.shape[-1], self.features), F64
        )
        b = self.param("bias", nn.initializers.normal(1.0), (self.features,), F64)
        if self.window:
            z = jax.lax.conv_general_dilated(
                x,
                W,
                (1,) * len(self.window),
                self.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        else:
            z = jnp.dot(x, W)
        return W_STD / fan_in**0.5 * z + B_STD * b


def dense(x, features, ntk=False):
    return Scaled(features)(x) if ntk else layer(nn.Dense, features, x.shape[-1])(x)


def conv(x, features, window, padding="SAME", ntk=False):
    if ntk:
        return Scaled(features, window, padding)(x)
    return layer(nn.Conv, features, int(np.prod(window)) * x.shape[-1], window, padding=padding)(x)


def exact_dense(state, fan_in, ntk=False):
    """`fan_in` counts what one output sums over."""
    rates = (W_STD**2, B_STD**2) if ntk else (fan_in, 1.0)
    return exact.dense(state, W_STD**2, rates[0], B_STD**2, rates[1])


def limit(body, x, **options):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return infinite_width(Net(body, WIDTH, 2), **options)(x)


def check(found, state, tolerance=1e-10):
    for k, truth in zip(found, (state.S, state.T), strict=True):
        np.testing.assert_allclose(k, truth, rtol=0, atol=tolerance * np.abs(truth).max())
        np.testing.assert_array_equal(k, k.T)


IMAGES = RNG.standard_normal((N, 4, 3, 2))
VECTORS = RNG.standard_normal((N, 5))
VECTORS[1] = 0.7 * VECTORS[0] + 0.1 * VECTORS[1]


@pytest.mark.parametrize(
    "ntk",
    [pytest.param(False, id="standard", marks=pytest.mark.slow), pytest.param(True, id="ntk")],
)
@pytest.mark.parametrize("head", ["flatten", "average"])
def test_convolutional_networks(head, ntk):
    def body(x, width, num_outputs):
        x = nn.relu(conv(x, width, (3, 3), ntk=ntk))
        x = nn.relu(
            conv(x, width, (3, 3), "CIRCULAR" if head == "average" and not ntk else "SAME", ntk)
        )
        x = x.reshape((x.shape[0], -1)) if head == "flatten" else x.mean((1, 2))
        return dense(x, num_outputs, ntk)

    state = exact.inputs(IMAGES)
    circular = "CIRCULAR" if head == "average" and not ntk else "SAME"
    for channels, padding in ((2, "SAME"), (WIDTH, circular)):
        state = exact.patches(state, exact.shifts(N, (4, 3), (3, 3), padding))
        state = exact.relu(exact_dense(state, 9 * channels, ntk))
    if head == "flatten":
        state = exact_dense(exact.flatten(state, N), 12 * WIDTH, ntk)
    else:
        state = exact_dense(exact.linear(state, exact.average_positions(N, 12)), WIDTH, ntk)
    check(limit(body, IMAGES), state)


@pytest.mark.parametrize(
    "ntk",
    [pytest.param(False, id="standard", marks=pytest.mark.slow), pytest.param(True, id="ntk")],
)
def test_residual_network(ntk):
    def body(x, width, num_outputs):
        x = dense(x, width, ntk)
        for _ in range(2):
            x = x + 0.6 * dense(jax.lax.erf(x), width, ntk)
        return dense(x, num_outputs, ntk)

    state = exact_dense(exact.inputs(VECTORS), 5, ntk)
    for _ in range(2):
        state = exact.add(state, exact.scale(exact_dense(exact.erf(state), WIDTH, ntk), 0.6))
    check(limit(body, VECTORS), exact_dense(state, WIDTH, ntk))


def test_learning_rates_by_variance_are_the_ntk_parameterization():
    def body(x, width, num_outputs):
        x = nn.relu(dense(x, width))
        return dense(nn.relu(dense(x, width)), num_outputs)

    state = exact.relu(exact_dense(exact.inputs(VECTORS), 5, ntk=True))
    # A weight's variance is W_std² / fan_in: its rate, times the fan-in, is W_std².
    state = exact_dense(exact.relu(exact_dense(state, WIDTH, ntk=True)), WIDTH, ntk=True)
    check(limit(body, VECTORS, learning_rates="variance"), state)


def test_layer_norm_before_and_after_the_activation():
    norm = lambda x: nn.LayerNorm(epsilon=EPSILON, dtype=F64, param_dtype=F64)(x)

    def body(x, width, num_outputs):
        x = nn.relu(norm(dense(x, width)))
        x = norm(nn.relu(dense(x, width)))
        return dense(x, num_outputs)

    # The biases of the layer are the same channel by channel: they count in the variance over
    # channels.
    state = exact_dense(exact.inputs(VECTORS), 5)
    state = exact.relu_of_layer_norm(state, EPSILON)
    state = exact.layer_norm(exact.relu(exact_dense(state, WIDTH)), EPSILON)
    check(limit(body, VECTORS), exact_dense(state, WIDTH))


def test_attention_with_tied_queries_and_keys():
    def body(x, width, num_outputs):
        x = nn.relu(dense(x, width))
        q = layer(nn.Dense, width, width, use_bias=False)(x)
        weights = nn.softmax(jnp.einsum("bid,bjd->bij", q, q) / width)
        return dense(jnp.einsum("bij,bjd->bid", weights, x).mean(1), num_outputs)

    x = RNG.standard_normal((N, 4, 5))
    state = exact.relu(exact_dense(exact.inputs(x), 5))
    state = exact.attention(state, N, W_STD**2)
    state = exact.linear(state, exact.average_positions(N, 4))
    check(limit(body, x), exact_dense(state, WIDTH))


def test_recurrent_network_shares_its_weights_over_time():
    def body(x, width, num_outputs):
        inputs, recurrent = layer(nn.Dense, width, 5), layer(nn.Dense, width, width, use_bias=False)
        h = jax.lax.erf(inputs(x[:, 0]))
        for t in (1, 2):
            h = jax.lax.erf(inputs(x[:, t]) + recurrent(h))
        return dense(h, num_outputs)

    x = RNG.standard_normal((N, 3, 5))
    # Over (example, time): the state before step t is known at t - 1; strength and rates as in any
    # dense layer.
    driven = exact_dense(exact.inputs(x), 5)
    back = np.kron(np.eye(N), np.eye(3, k=-1))
    state = driven
    for _ in range(2):
        h = exact.linear(exact.erf(state), back)
        state = exact.add(driven, exact.dense(h, W_STD**2, WIDTH))
    last = np.kron(np.eye(N), np.eye(3)[2:])
    check(limit(body, x), exact_dense(exact.linear(exact.erf(state), last), WIDTH))
