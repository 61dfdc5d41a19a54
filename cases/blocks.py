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


RELATIVE = np.random.default_rng(0).standard_normal((2, 3, 3)).astype(np.float32)
BY_HEAD = grouped_queries(2, 1, RELATIVE[:, None])

SAME = {
    "scan over layers": (net(layers_scanned), net(layers_written_out), (6,)),
    "remat": (net(layers_rematerialized), net(layers_written_out), (6,)),
    "fixed key": (fourier(drawn_inside), fourier(lambda _: jnp.asarray(FREQUENCIES)), (6,)),
    "stacked experts": (net(experts_stacked), net(experts_apart), (6,)),
    "bias by head": (BY_HEAD, heads_apart(RELATIVE), (3, 4)),
}
BLOCKS = [
    LimitCase("layers_scanned", net(layers_scanned), (6,)),
    LimitCase("fourier", fourier(drawn_inside), (6,)),
    LimitCase("experts", net(experts_stacked), (6,)),
    LimitCase("one_expert", net(one_expert), (6,)),
    LimitCase("grouped_queries", grouped_queries(2, 2), (3, 4)),
    LimitCase("bias_by_head", BY_HEAD, (3, 4)),
]
SAMPLED_BLOCKS = [
    LimitCase("correlated_products", net(correlated_products), (6,)),
    LimitCase("grouped_queries_standard", grouped_queries(0, 2, divided=False, many=True), (3, 4)),
]
