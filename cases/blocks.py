"""Blocks that the infinite-width interpreter takes by general rules: loops over layers, experts,
queries that share keys, constants drawn from fixed keys. Each beside an equivalent model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cases.architectures import LimitCase, net, normal


def by_width(width):
    return normal(width**-0.5)


class Layer(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.relu(nn.LayerNorm()(x))
        dense = nn.Dense(self.width, kernel_init=by_width(self.width), bias_init=normal(0.3))
        return x + dense(y), None


def layers_scanned(x, width, num_outputs, layer=Layer):
    """Stacked parameters: a weight of its own for every layer."""
    x = nn.Dense(width)(x)
    stack = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    return nn.Dense(num_outputs)(stack(width)(x, None)[0])


def layers_rematerialized(x, width, num_outputs):
    return layers_scanned(x, width, num_outputs, nn.remat(Layer, prevent_cse=False))


def layers_written_out(x, width, num_outputs):
    x = nn.Dense(width)(x)
    for _ in range(3):
        x = Layer(width)(x)[0]
    return nn.Dense(num_outputs)(x)


def fourier(draw):
    """Features of fixed frequencies, which `draw` makes."""

    def body(x, width, num_outputs):
        z = x @ draw((x.shape[-1], 16)).astype(x.dtype)
        x = nn.relu(nn.Dense(width)(jnp.concatenate([jnp.cos(z), jnp.sin(z)], axis=-1)))
        return nn.Dense(num_outputs)(x)

    return net(body)


def drawn_inside(shape):
    return jax.random.normal(jax.random.key(5), shape)


FREQUENCIES = np.asarray(drawn_inside((6, 16)))


class Experts(nn.Module):
    """Two layers with stacked weights, one expert after the other along axis 1."""

    width: int
    experts: int = 3

    @nn.compact
    def __call__(self, x):
        init = by_width(self.width)
        first = self.param("first", init, (self.experts, x.shape[-1], self.width), jnp.float32)
        second = self.param("second", init, (self.experts, self.width, self.width), jnp.float32)
        hidden = nn.relu(jnp.einsum("bd,edf->bef", x, first))
        return jnp.einsum("bef,efd->bed", hidden, second)


def gates(x):
    return nn.softmax(jnp.stack([x[:, 0], x[:, 1], -x[:, 0]], axis=-1))


def experts_stacked(x, width, num_outputs):
    h = Experts(width)(nn.relu(nn.Dense(width)(x)))
    return nn.Dense(num_outputs)(nn.relu(jnp.einsum("be,bed->bd", gates(x), h)))


def experts_apart(x, width, num_outputs):
    h = nn.relu(nn.Dense(width)(x))
    dense = lambda: nn.Dense(width, use_bias=False, kernel_init=by_width(width))
    found = [dense()(nn.relu(dense()(h))) for _ in range(3)]
    return nn.Dense(num_outputs)(
        nn.relu(jnp.einsum("be,bed->bd", gates(x), jnp.stack(found, axis=1)))
    )


def one_expert(x, width, num_outputs):
    """The expert of the largest of three inputs: a fixed function of x."""
    h = Experts(width)(nn.relu(nn.Dense(width)(x)))
    chosen = jnp.argmax(x[:, :3], axis=-1)[:, None, None]
    return nn.Dense(num_outputs)(nn.relu(jnp.take_along_axis(h, chosen, axis=1)[:, 0]))


def grouped_queries(key_heads, group, bias=None, divided=True, many=False):
    """Attention with `group` queries for each key and value, of as many heads or, with `many`, more
    and more; scores over the width or over its root.
    """

    def body(x, width, num_outputs):
        heads = width // (8 * group) if many else key_heads
        d = width // 2
        x = nn.relu(nn.Dense(width)(x))
        wide = normal((4 / width) ** 0.5)
        project = lambda *shape: nn.DenseGeneral(shape, use_bias=False, kernel_init=wide)
        q, k, v = project(heads, group, d)(x), project(heads, d)(x), project(heads, d)(x)
        scores = jnp.einsum("bihgd,bjhd->bhgij", q, k) / (d if divided else d**0.5)
        if bias is not None:
            scores = scores + bias
        y = jnp.einsum("bhgij,bjhd->bihgd", nn.softmax(scores, axis=-1), v)
        y = nn.DenseGeneral(width, axis=(-2, -1))(y.reshape(*x.shape[:2], heads * group, d))
        return nn.Dense(num_outputs)(nn.relu(y).mean(axis=1))

    return net(body)


def heads_apart(bias):
    """The same with one query for each key, head by head, scores over the width."""

    def body(x, width, num_outputs):
        d = width // 2
        x = nn.relu(nn.Dense(width)(x))
        project = lambda: nn.Dense(d, use_bias=False, kernel_init=normal((4 / width) ** 0.5))
        found = []
        for b in bias:
            q, k, v = project()(x), project()(x), project()(x)
            scores = jnp.einsum("bid,bjd->bij", q, k) / d + b
            found.append(jnp.einsum("bij,bjd->bid", nn.softmax(scores, axis=-1), v))
        y = nn.DenseGeneral(width, axis=(-2, -1))(jnp.stack(found, axis=2))
        return nn.Dense(num_outputs)(nn.relu(y).mean(axis=1))

    return net(body)


def correlated_products(x, width, num_outputs):
    """A product of independent values, beside a function of both: known by joint samples."""
    u, v = nn.Dense(width, bias_init=normal(0.5))(x), nn.Dense(width)(x)
    return nn.Dense(num_outputs)(u * nn.tanh(v) + nn.tanh(u + v))


class JoinedKernels(nn.Module):
    """Two gates by one product, as in `nn.OptimizedLSTMCell`."""

    width: int

    @nn.compact
    def __call__(self, x):
        kernel = lambda i: self.param(
            f"kernel{i}", by_width(self.width), (self.width, self.width), jnp.float32
        )
        bias = lambda i: self.param(f"bias{i}", normal(0.3), (self.width,), jnp.float32)
        both = x @ jnp.concatenate([kernel(0), kernel(1)], axis=-1)
        return jnp.split(both + jnp.concatenate([bias(0), bias(1)]), 2, axis=-1)


def gates_joined(x, width, num_outputs):
    u, v = JoinedKernels(width)(nn.relu(nn.Dense(width)(x)))
    return nn.Dense(num_outputs)(nn.relu(u) * v)


def gates_apart(x, width, num_outputs):
    x = nn.relu(nn.Dense(width)(x))
    gate = lambda: nn.Dense(width, kernel_init=by_width(width), bias_init=normal(0.3))(x)
    u, v = gate(), gate()
    return nn.Dense(num_outputs)(nn.relu(u) * v)


def recurrent(cell):
    """Of two steps or more by samples: there is no closed form."""

    def body(x, width, num_outputs):
        x = nn.RNN(cell(width, recurrent_kernel_init=by_width(width), param_dtype=x.dtype))(x)
        return nn.Dense(num_outputs)(x[:, -1])

    return net(body)


def recurrent_beside_dense(x, width, num_outputs):
    """The last state of an LSTM, joined with a rectified layer of the last inputs."""
    cell = nn.LSTMCell(width, recurrent_kernel_init=by_width(width), param_dtype=x.dtype)
    parts = [jnp.asarray(nn.RNN(cell)(x))[:, -1], nn.relu(nn.Dense(width)(x[:, -1]))]
    return nn.Dense(num_outputs)(jnp.concatenate(parts, axis=-1))


def recurrent_twice(x, width, num_outputs):
    """One LSTM on the states of another."""
    for _ in range(2):
        cell = nn.LSTMCell(width, recurrent_kernel_init=by_width(width), param_dtype=x.dtype)
        x = jnp.asarray(nn.RNN(cell)(x))
    return nn.Dense(num_outputs)(x[:, -1])


class Taps(nn.Module):
    """The depthwise convolution of `by_flax`, written as a sum over its taps."""

    width: int

    @nn.compact
    def __call__(self, x):
        taps = self.param("taps", normal(3**-0.5), (3, self.width), jnp.float32)
        x = jnp.pad(x, ((0, 0), (2, 3), (0, 0)))
        out = sum(taps[t] * x[:, 2 * t : x.shape[1] - 4 + 2 * t : 2] for t in range(3))
        return out + self.param("bias", normal(0.3), (self.width,), jnp.float32)


def separable(depthwise):
    """Depthwise, then pointwise: what the second makes of many channels is Gaussian."""

    def body(x, width, num_outputs):
        x = nn.relu(nn.Conv(width, (3,), bias_init=normal(0.3))(x))
        x = nn.relu(nn.Conv(width, (1,))(depthwise(width)(x)))
        return nn.Dense(num_outputs)(x.reshape(len(x), -1))

    return net(body)


def by_flax(width):
    return nn.Conv(
        width,
        (3,),
        strides=(2,),
        kernel_dilation=(2,),
        padding=[(2, 3)],
        feature_group_count=width,
        kernel_init=normal(3**-0.5),
        bias_init=normal(0.3),
    )


def inverted_bottleneck(x, width, num_outputs):
    """A block of ConvNeXt (Liu et al. 2022)."""
    x = nn.Conv(width, (2, 2), strides=(2, 2))(x)
    y = nn.LayerNorm()(nn.Conv(width, (3, 3), feature_group_count=width)(x))
    x = x + nn.Dense(width)(nn.gelu(nn.Dense(2 * width)(y)))
    return nn.Dense(num_outputs)(x.mean(axis=(1, 2)))


def rectified_depthwise(x, width, num_outputs):
    x = nn.relu(nn.Conv(width, (3,))(x))
    x = nn.relu(nn.Conv(width, (3,), feature_group_count=width)(x))
    return nn.Dense(num_outputs)(nn.Dense(width)(x).mean(axis=1))


def groups_of_inputs(x, width, num_outputs):
    x = nn.relu(nn.Conv(width, (3,), feature_group_count=2, bias_init=normal(0.3))(x))
    return nn.Dense(num_outputs)(nn.relu(nn.Dense(width)(x)).mean(axis=1))


def groups_apart(x, width, num_outputs):
    # Flax's default variance: over all inputs of an output, here half of the channels.
    conv = lambda: nn.Conv(width // 2, (3,), bias_init=normal(0.3))
    x = nn.relu(jnp.concatenate([conv()(x[..., :2]), conv()(x[..., 2:])], axis=-1))
    return nn.Dense(num_outputs)(nn.relu(nn.Dense(width)(x)).mean(axis=1))


def turned(z):
    """Halves of the units of every head turned by angles of position and unit (Su et al. 2021)."""
    angles = np.arange(z.shape[1])[:, None] * 2.0 * 10.0 ** (-np.arange(4) / 4)
    c, s = (f(angles)[:, None, :].astype(z.dtype) for f in (np.cos, np.sin))
    a, b = jnp.split(z, 2, axis=-1)
    return jnp.concatenate([a * c - b * s, a * s + b * c], axis=-1)


def scores_turned(x, heads):
    """(n, T, T, heads): unlike other scores, of finitely many units, 8, as written."""
    wide = normal((4 / x.shape[-1]) ** 0.5)
    project = lambda: nn.DenseGeneral((heads, 8), use_bias=False, kernel_init=wide)
    q, k = turned(project()(x)), turned(project()(x))
    return jnp.einsum("bihd,bjhd->bijh", q, k) / 8**0.5


def rotary(x, width, num_outputs):
    weights = nn.softmax(scores_turned(x, width // 8), axis=2)
    v = nn.DenseGeneral((width // 8, 8), kernel_init=normal(x.shape[-1] ** -0.5))(x)
    y = jnp.einsum("bijh,bjhd->bihd", weights, v)
    return nn.Dense(num_outputs)(nn.DenseGeneral(width, axis=(-2, -1))(y)[:, 0])


def rotary_scores(x, width, num_outputs):
    """The scores of the first position, summed: their kernels are known in closed form."""
    return nn.Dense(num_outputs, use_bias=False)(scores_turned(x, width // 8)[:, 0].sum(axis=1))


def after_trained_scale(phi, bias=0.0):
    """A function with its argument as a factor, of what has a trained scale and shift."""

    def body(x, width, num_outputs):
        norm = nn.LayerNorm(bias_init=normal(bias))
        return nn.Dense(num_outputs)(phi(norm(nn.Dense(width)(x))))

    return net(body)


class WeightNormalized(nn.Module):
    """As Salimans and Kingma (2016) write it, from entries of variance 1: the gradients by scale
    and by direction are of one size.
    """

    width: int

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.width)
        v = self.param("v", normal(1.0), shape, jnp.float32)
        scale = self.param("scale", nn.initializers.constant(1.2), shape[1:], jnp.float32)
        z = x @ (scale * v / jnp.linalg.norm(v, axis=0))
        return z + self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)


def weight_normalized(x, width, num_outputs):
    x = nn.relu(WeightNormalized(width)(nn.relu(nn.Dense(width)(x))))
    return nn.Dense(num_outputs)(x)


class ThenScaled(nn.Module):
    """What a layer makes, times a trained scale, plus a bias."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        z = self.layer(x)
        scale = self.param("scale", nn.initializers.ones, z.shape[-1:], jnp.float32)
        return z * scale + self.param("bias", nn.initializers.zeros, z.shape[-1:], jnp.float32)


def weight_norm(layer, **options):
    """By Flax, which stores kernels that are normalized already."""

    def body(x, width, num_outputs):
        x = nn.relu(layer(width)(x))
        x = nn.relu(nn.WeightNorm(layer(width), **options)(x))
        return nn.Dense(num_outputs)(x.reshape(len(x), -1))

    return net(body)


def without_weight_norm(layer, fan_in=1, scaled=True):
    """The same with kernels of variance 1 / fan_in, and the scale behind."""

    def body(x, width, num_outputs):
        x = nn.relu(layer(width)(x))
        one = layer(width, use_bias=not scaled, kernel_init=by_width(fan_in * width))
        x = nn.relu((ThenScaled(one) if scaled else one)(x))
        return nn.Dense(num_outputs)(x.reshape(len(x), -1))

    return net(body)


def of_joined(layer):
    """Of two hidden layers side by side: 4 · 16 inputs."""

    def body(x, width, num_outputs):
        x = nn.relu(jnp.concatenate([nn.Dense(width)(x), nn.Dense(3 * width)(x)], axis=-1))
        return nn.Dense(num_outputs)(nn.relu(layer(width)(x)))

    return net(body)


def conv(width, **options):
    return nn.Conv(width, (4,), **options)  # 4 · 16 inputs have a root without rounding


RELATIVE = np.random.default_rng(0).standard_normal((2, 3, 3)).astype(np.float32)
BY_HEAD = grouped_queries(2, 1, RELATIVE[:, None])

SAME = {
    "scan over layers": (net(layers_scanned), net(layers_written_out), (6,)),
    "remat": (net(layers_rematerialized), net(layers_written_out), (6,)),
    "fixed key": (fourier(drawn_inside), fourier(lambda _: jnp.asarray(FREQUENCIES)), (6,)),
    "stacked experts": (net(experts_stacked), net(experts_apart), (6,)),
    "bias by head": (BY_HEAD, heads_apart(RELATIVE), (3, 4)),
    "joined kernels": (net(gates_joined), net(gates_apart), (6,)),
    "LSTM": (recurrent(nn.OptimizedLSTMCell), recurrent(nn.LSTMCell), (1, 3)),
    "depthwise": (separable(by_flax), separable(Taps), (7, 2)),
    "groups of inputs": (net(groups_of_inputs), net(groups_apart), (5, 4)),
    "trained scale": (
        after_trained_scale(lambda y: y * nn.relu(y)),
        after_trained_scale(lambda y: jnp.square(nn.relu(y))),
        (6,),
    ),
    "weight norm": (weight_norm(nn.Dense), without_weight_norm(nn.Dense), (6,)),
    "weight norm without scale": (
        weight_norm(nn.Dense, use_scale=False),
        without_weight_norm(nn.Dense, scaled=False),
        (6,),
    ),
    "weight norm of joined inputs": (
        of_joined(lambda width: nn.WeightNorm(nn.Dense(width))),
        of_joined(
            lambda width: ThenScaled(
                nn.Dense(width, use_bias=False, kernel_init=by_width(4 * width))
            )
        ),
        (6,),
    ),
    "weight norm of a convolution": (weight_norm(conv), without_weight_norm(conv, 4), (5, 2)),
}
BLOCKS = [
    LimitCase("layers_scanned", net(layers_scanned), (6,)),
    LimitCase("fourier", fourier(drawn_inside), (6,)),
    LimitCase("experts", net(experts_stacked), (6,)),
    LimitCase("one_expert", net(one_expert), (6,)),
    LimitCase("grouped_queries", grouped_queries(2, 2), (3, 4)),
    LimitCase("multi_query", grouped_queries(1, 3), (3, 4)),
    LimitCase("bias_by_head", BY_HEAD, (3, 4)),
    LimitCase("separable", separable(by_flax), (7, 2)),
    LimitCase("inverted_bottleneck", net(inverted_bottleneck), (4, 4, 2)),
    LimitCase("groups_of_inputs", net(groups_of_inputs), (5, 4)),
    LimitCase("weight_normalized", net(weight_normalized), (6,)),
    LimitCase("weight_norm_of_convolution", weight_norm(conv), (5, 2)),
    LimitCase("gelu_after_trained_scale", after_trained_scale(nn.gelu, 0.5), (6,)),
]
SAMPLED_BLOCKS = [
    LimitCase("correlated_products", net(correlated_products), (6,)),
    LimitCase("rotary", net(rotary), (3, 4)),
    LimitCase("rectified_depthwise", net(rectified_depthwise), (4, 2)),
    LimitCase("lstm", recurrent(nn.LSTMCell), (2, 3)),
    LimitCase("gru", recurrent(nn.GRUCell), (2, 3)),
    LimitCase("lstm_beside_dense", net(recurrent_beside_dense), (2, 3)),
    LimitCase("lstm_twice", net(recurrent_twice), (1, 3)),
    LimitCase("grouped_queries_standard", grouped_queries(0, 2, divided=False, many=True), (3, 4)),
]
