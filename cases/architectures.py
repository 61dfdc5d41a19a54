"""One list of architectures as users write them, for the infinite-width interpreter: Linen and NNX,
each at any width.

`SAMPLED` are those that need `num_samples=`.

`LimitCase.build(width, num_outputs)` is the module itself (Linen), or a constructor that takes
`rngs` (NNX), with float32 parameters and Flax's own initializers unless the case is about another
one. `REFUSED` are those that have no limit or no rule, with what the error must say. Nothing here
knows of the interpreter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ntk_jax

normal = nn.initializers.normal
he = nn.initializers.he_normal()


class LimitCase(NamedTuple):
    """An architecture, the shape of one example (with a vocabulary size: integer tokens), and words
    to select it by.
    """

    name: str
    build: Callable[[int, int], Any]
    shape: tuple[int, ...]
    tags: str = ""
    vocabulary: int | None = None

    def inputs(self, n: int = 3, seed: int = 0, dtype: Any = np.float32) -> Any:
        """Examples (n, *shape); the second and the first are correlated."""
        rng = np.random.default_rng(seed)
        if self.vocabulary is not None:
            return rng.integers(0, self.vocabulary, (n, *self.shape))
        x = rng.standard_normal((n, *self.shape))
        x[1:2] = 0.6 * x[:1] + 0.8 * x[1:2]
        return x.astype(dtype)


def lenient(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Networks may promote ranks and dtypes, as Flax's own layers do."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args, **kwargs)

    return call


def init_and_apply(model: Any, x: Any) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """`init_fn(key)` -> params and `apply_fn(params, x)` of a Linen module or an NNX
    constructor.
    """
    if isinstance(model, nn.Module):
        shapes = jax.eval_shape(lambda key: lenient(model.init)(key, x[:1]), jax.random.key(0))
        fixed = {name: value for name, value in shapes.items() if name != "params"}
        if fixed:  # batch statistics: constants, drawn once
            variables = jax.jit(lambda key: lenient(model.init)(key, x[:1]))(jax.random.key(0))
            fixed = {name: variables[name] for name in fixed}
        init_fn = lambda key: lenient(model.init)(key, x[:1])["params"]
        return init_fn, lenient(lambda params, x: model.apply({"params": params, **fixed}, x))
    module = lenient(model)(nnx.Rngs(0))
    module.eval()
    apply_fn, _ = ntk_jax.from_nnx(module)
    return lambda key: nnx.state(lenient(model)(nnx.Rngs(key)), nnx.Param).to_pure_dict(), lenient(
        apply_fn
    )


class Net(nn.Module):
    """A module from a function of (x, width, num_outputs), which may create submodules."""

    body: Callable[..., Any]
    width: int
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        return self.body(x, self.width, self.num_outputs)


def net(body: Callable[..., Any]) -> Callable[[int, int], nn.Module]:
    return lambda width, num_outputs: Net(body, width, num_outputs)


# Fully connected


def mlp(phi, depth=2, **dense):
    def body(x, width, num_outputs):
        for _ in range(depth):
            x = phi(nn.Dense(width, **dense)(x))
        return nn.Dense(num_outputs, **dense)(x)

    return net(body)


def standard_mlp(width, num_outputs):
    return ntk_jax.MLP((width, width), num_outputs, "tanh", 1.4, 0.3, "standard")


def ntk_mlp(width, num_outputs):
    return ntk_jax.MLP((width, width), num_outputs, "gelu", 1.4, 0.3, "ntk")


class NnxMLP(nnx.Module):
    def __init__(self, width, num_outputs, *, rngs):
        self.first = nnx.Linear(6, width, bias_init=normal(0.3), rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.readout = nnx.Linear(width, num_outputs, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.dropout(nnx.elu(self.second(nnx.relu(self.first(x))))))


def pre_activation(x, width, num_outputs):
    x = nn.Dense(width)(x)
    for _ in range(2):
        x = x + 0.5 * nn.Dense(width, kernel_init=he)(nn.relu(x))
    return nn.Dense(num_outputs)(nn.relu(x))


def post_activation(x, width, num_outputs):
    x = nn.Dense(width)(x)
    x = nn.relu(x + nn.Dense(width)(nn.relu(nn.Dense(width)(x))))
    return nn.Dense(num_outputs)(x)


def normalized(layer):
    def body(x, width, num_outputs):
        x = nn.relu(layer()(nn.Dense(width)(x)))
        x = x + nn.relu(layer()(nn.Dense(width, bias_init=normal(0.2))(x)))
        return nn.Dense(num_outputs)(layer()(x))

    return net(body)


def standardized_by_hand(x, width, num_outputs):
    x = nn.Dense(width)(x)
    x = (x - jnp.mean(x, -1, keepdims=True)) / (1e-3 + jnp.std(x, -1, keepdims=True))
    return nn.Dense(num_outputs)(nn.tanh(x))


def learned_scale(x, width, num_outputs):
    x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(num_outputs)(nn.LayerNorm(scale_init=normal(1.0), bias_init=normal(0.5))(x))


def gated(x, width, num_outputs):
    x = nn.Dense(width)(x)
    x = nn.Dense(width)(x) * nn.sigmoid(nn.Dense(width)(x))
    return nn.Dense(num_outputs)(x)


def concatenated(x, width, num_outputs):
    h = nn.relu(nn.Dense(width)(x))
    h = jnp.concatenate([h, nn.tanh(nn.Dense(width // 2)(h))], axis=-1)
    return nn.Dense(num_outputs)(nn.relu(nn.Dense(width)(h)))


def input_again(x, width, num_outputs):
    h = nn.relu(nn.Dense(width)(x))
    return nn.Dense(num_outputs)(h) + nn.Dense(num_outputs, kernel_init=normal(0.5))(x)


def two_axes(x, width, num_outputs):
    x = nn.tanh(nn.DenseGeneral((4, width), axis=(-2, -1))(x))
    return nn.DenseGeneral(num_outputs, axis=(-2, -1))(x)


# Images


def cnn(head, **conv):
    def body(x, width, num_outputs):
        for _ in range(2):
            x = nn.relu(nn.Conv(width, (3,) * (x.ndim - 2), **conv)(x))
        return nn.Dense(num_outputs)(head(x))

    return net(body)


def flatten(x):
    return x.reshape((x.shape[0], -1))


def global_average(x):
    return x.mean(axis=tuple(range(1, x.ndim - 1)))


def pooled(x, width, num_outputs):
    x = nn.gelu(nn.Conv(width, (3, 3), strides=(2, 2), padding="VALID", bias_init=normal(0.3))(x))
    x = nn.avg_pool(x, (2, 2), strides=(1, 1), padding="SAME")
    x = nn.relu(nn.Conv(width, (2, 2))(x))
    return nn.Dense(num_outputs)(flatten(x))


def group_norm(x, width, num_outputs):
    x = nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(width, (3, 3))(x)))
    return nn.Dense(num_outputs)(global_average(x))


def grouped(x, width, num_outputs):
    x = nn.relu(nn.Conv(width, (3, 3))(x))
    x = nn.relu(nn.Conv(width, (3, 3), feature_group_count=2)(x))
    return nn.Dense(num_outputs)(global_average(x))


def local(x, width, num_outputs):
    x = nn.relu(nn.ConvLocal(width, (3,), padding="VALID")(x))
    return nn.Dense(num_outputs)(
        nn.relu(nn.ConvLocal(width, (2,), padding="VALID")(x)).reshape((x.shape[0], -1))
    )


def transposed(x, width, num_outputs):
    x = nn.relu(nn.Conv(width, (3, 3), strides=(2, 2))(x))
    x = nn.relu(nn.ConvTranspose(width, (3, 3), strides=(2, 2))(x))
    return nn.Dense(num_outputs)(global_average(x))


def flax_mnist(x, width, num_outputs):
    """The CNN of Flax's MNIST example, average instead of max pooling; there width = 32,
    num_outputs = 10.
    """
    x = nn.Conv(features=width, kernel_size=(3, 3))(x)
    x = nn.relu(x)
    x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
    x = nn.Conv(features=2 * width, kernel_size=(3, 3))(x)
    x = nn.relu(x)
    x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
    x = x.reshape((x.shape[0], -1))
    x = nn.Dense(features=8 * width)(x)
    x = nn.relu(x)
    return nn.Dense(features=num_outputs)(x)


class WideBlock(nn.Module):
    """A block of a WideResNet (Zagoruyko, Komodakis 2016, figure 1)."""

    channels: int
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        shortcut = x
        if x.shape[-1] != self.channels or self.strides != (1, 1):
            shortcut = nn.Conv(self.channels, (1, 1), self.strides, use_bias=False)(y)
        y = nn.Conv(self.channels, (3, 3), self.strides, use_bias=False, kernel_init=he)(y)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        return shortcut + nn.Conv(self.channels, (3, 3), use_bias=False, kernel_init=he)(y)


def wide_resnet(x, width, num_outputs, groups=2):
    x = nn.Conv(16, (3, 3), use_bias=False, kernel_init=he)(x)
    for group in range(groups):
        x = WideBlock(width * 2**group, (1, 1) if group == 0 else (2, 2))(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    x = nn.avg_pool(x, x.shape[1:3])
    return nn.Dense(num_outputs)(x.reshape((x.shape[0], -1)))


class NnxCNN(nnx.Module):
    def __init__(self, width, num_outputs, *, rngs):
        self.conv = nnx.Conv(2, width, (3,), padding="CIRCULAR", rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.next = nnx.Conv(width, width, (3,), strides=2, rngs=rngs)
        self.readout = nnx.Linear(width, num_outputs, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.next(nnx.relu(self.norm(self.conv(x)))))
        return self.readout(jnp.mean(x, axis=1))


# Sequences and graphs


def embedded(x, width, num_outputs):
    x = nn.Embed(7, width, embedding_init=normal(1.0))(x)
    x = nn.relu(
        nn.Dense(width)(
            x + nn.Embed(x.shape[1], width, embedding_init=normal(0.5))(jnp.arange(x.shape[1]))
        )
    )
    return nn.Dense(num_outputs)(x.mean(axis=1))


def one_hot(x, width, num_outputs):
    x = nn.relu(nn.Dense(width)(jax.nn.one_hot(x, 7)))
    return nn.Dense(num_outputs)(nn.relu(nn.Dense(width)(x.sum(axis=1))))


def unrolled(x, width, num_outputs):
    inputs, recurrent = nn.Dense(width), nn.Dense(width, use_bias=False)
    h = nn.tanh(inputs(x[:, 0]))
    for t in range(1, x.shape[1]):
        h = nn.tanh(inputs(x[:, t]) + recurrent(h))
    return nn.Dense(num_outputs)(h)


def scanned(x, width, num_outputs):
    h = nn.RNN(nn.SimpleCell(width, recurrent_kernel_init=nn.initializers.lecun_normal()))(x)
    return nn.Dense(num_outputs)(jnp.asarray(h)[:, -1])


def attention(tied, mask=None):
    def body(x, width, num_outputs):
        x = nn.relu(nn.Dense(width)(x))
        query = nn.Dense(width, use_bias=False, kernel_init=normal((2.0 / x.shape[-1]) ** 0.5))
        key = query if tied else nn.Dense(width, use_bias=False)
        scores = jnp.einsum("bid,bjd->bij", query(x), key(x)) / width
        if mask is not None:
            scores = jnp.where(mask, scores, -1e9)
        weights = nn.softmax(scores, axis=-1)
        x = jnp.einsum("bij,bjd->bid", weights, nn.Dense(width)(x))
        return nn.Dense(num_outputs)(nn.relu(x).mean(axis=1))

    return net(body)


def by_dimension(query, key, value, **kwargs):
    """Dot-product attention with scores divided by d instead of its root."""
    return nn.dot_product_attention(query / query.shape[-1] ** 0.5, key, value, **kwargs)


class EncoderBlock(nn.Module):
    """A pre-norm transformer encoder block, as in Flax's examples."""

    width: int
    attention_fn: Callable[..., Any] = by_dimension

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(
            num_heads=2,
            qkv_features=2 * self.width,
            deterministic=True,
            attention_fn=self.attention_fn,
        )(y)
        x = x + nn.Dropout(0.1, deterministic=True)(y)
        y = nn.LayerNorm()(x)
        y = nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(y)))
        return x + nn.Dropout(0.1, deterministic=True)(y)


def encoder(x, width, num_outputs):
    x = nn.Dense(width)(x) + nn.Embed(x.shape[1], width, embedding_init=normal(1.0))(
        jnp.arange(x.shape[1])
    )
    x = nn.LayerNorm()(EncoderBlock(width)(x))
    return nn.Dense(num_outputs)(x.mean(axis=1))


ADJACENCY = np.array([[2, 1, 0, 1], [1, 2, 1, 0], [0, 1, 2, 1], [1, 0, 1, 2]], np.float32) / 4


def graph(x, width, num_outputs):
    for _ in range(2):
        x = nn.relu(jnp.einsum("ij,bjc->bic", ADJACENCY, nn.Dense(width)(x)))
    return nn.Dense(num_outputs)(x.mean(axis=1))


def nnx_case(cls):
    return lambda width, num_outputs: lambda rngs: cls(width, num_outputs, rngs=rngs)


CASES = [
    LimitCase("mlp_relu", mlp(nn.relu), (6,), "dense fast"),
    LimitCase(
        "mlp_biases", mlp(nn.tanh, kernel_init=he, bias_init=normal(0.3)), (6,), "dense fast"
    ),
    LimitCase("mlp_deep_tanh", mlp(nn.tanh, depth=6), (6,), "dense"),
    LimitCase("mlp_swish_by_hand", mlp(lambda h: h * nn.sigmoid(1.5 * h)), (6,), "dense"),
    LimitCase("mlp_standard", standard_mlp, (6,), "dense"),
    LimitCase("mlp_ntk", ntk_mlp, (6,), "dense"),
    LimitCase("mlp_nnx", nnx_case(NnxMLP), (6,), "dense nnx fast"),
    LimitCase("pre_activation", net(pre_activation), (6,), "dense residual fast"),
    LimitCase("post_activation", net(post_activation), (6,), "dense residual several fast"),
    LimitCase("layer_norm", normalized(nn.LayerNorm), (6,), "dense norm fast"),
    LimitCase("rms_norm", normalized(nn.RMSNorm), (6,), "dense norm"),
    LimitCase(
        "batch_norm", normalized(lambda: nn.BatchNorm(use_running_average=True)), (6,), "dense norm"
    ),
    LimitCase("standardized_by_hand", net(standardized_by_hand), (6,), "dense norm"),
    LimitCase("learned_scale", net(learned_scale), (6,), "dense norm several"),
    LimitCase("gated", net(gated), (6,), "dense several fast"),
    LimitCase("concatenated", net(concatenated), (6,), "dense fast"),
    LimitCase("input_again", net(input_again), (6,), "dense"),
    LimitCase("two_axes", net(two_axes), (3, 4), "dense"),
    LimitCase("cnn_flatten", cnn(flatten), (4, 4, 2), "image fast"),
    LimitCase("cnn_global_average", cnn(global_average), (4, 4, 2), "image fast"),
    LimitCase("cnn_circular", cnn(flatten, padding="CIRCULAR"), (4, 4, 2), "image"),
    LimitCase("cnn_dilated", cnn(global_average, kernel_dilation=2), (5, 5, 2), "image"),
    LimitCase("cnn_1d", cnn(flatten), (6, 2), "image fast"),
    LimitCase("cnn_3d", cnn(global_average), (3, 3, 2, 1), "image"),
    LimitCase("cnn_1d_nnx", nnx_case(NnxCNN), (6, 2), "image nnx norm"),
    LimitCase("pooled", net(pooled), (6, 6, 2), "image fast"),
    LimitCase("group_norm", net(group_norm), (4, 4, 2), "image norm"),
    LimitCase("grouped", net(grouped), (4, 4, 2), "image"),
    LimitCase("local", net(local), (5, 2), "image"),
    LimitCase("transposed", net(transposed), (4, 4, 2), "image"),
    LimitCase("flax_mnist", net(flax_mnist), (8, 8, 1), "image published"),
    LimitCase("wide_resnet", net(wide_resnet), (4, 4, 3), "image published norm residual several"),
    LimitCase("embedded", net(embedded), (4,), "sequence fast", vocabulary=7),
    LimitCase("one_hot", net(one_hot), (4,), "sequence", vocabulary=7),
    LimitCase("rnn_unrolled", net(unrolled), (3, 4), "sequence fast"),
    LimitCase("rnn_scanned", net(scanned), (3, 4), "sequence"),
    LimitCase("attention", attention(tied=False), (3, 4), "sequence"),
    LimitCase("attention_tied", attention(tied=True), (3, 4), "sequence fast"),
    LimitCase(
        "attention_masked", attention(True, np.tril(np.ones((3, 3), bool))), (3, 4), "sequence"
    ),
    LimitCase("encoder", net(encoder), (3, 4), "sequence published norm residual fast"),
    LimitCase("graph", net(graph), (4, 3), "graph fast"),
]


# What has no closed form: with num_samples= only


def max_pooled_twice(x, width, num_outputs):
    x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.max_pool(nn.tanh(nn.Conv(width, (2, 2))(x)), (2, 2), padding="SAME")
    return nn.Dense(num_outputs)(flatten(x))


def largest(x, width, num_outputs):
    x = nn.Conv(width, (3,), bias_init=normal(0.3))(x)
    return nn.Dense(num_outputs)(
        nn.relu(nn.Dense(width)(x + x.max(axis=1, keepdims=True))).mean(axis=1)
    )


def standard_encoder(x, width, num_outputs):
    """Self-attention as Flax has it, heads and their width growing; scores of variance 16."""
    x = nn.Dense(width)(x)
    y = 2 * nn.LayerNorm()(x)
    y = nn.MultiHeadDotProductAttention(width // 8, qkv_features=8 * width, out_features=width)(y)
    return nn.Dense(num_outputs)(nn.relu(x + y).mean(axis=1))


SAMPLED = [
    LimitCase("max_pooled_twice", net(max_pooled_twice), (4, 4, 2), "image"),
    LimitCase("largest", net(largest), (4, 3), "image"),
    LimitCase("standard_encoder", net(standard_encoder), (3, 4), "image"),
]


def tagged(*words: str) -> list[LimitCase]:
    """The cases with all of the words."""
    return [case for case in CASES if set(words) <= set(case.tags.split())]


def by_name(name: str) -> LimitCase:
    return next(case for case in CASES if case.name == name)


# What has no infinite-width limit, or none that a rule computes


def autoencoder(x, width, num_outputs):
    W = nn.Dense(width, use_bias=False)
    h = nn.relu(W(x))
    h = nn.relu(h @ W.variables["params"]["kernel"].T)
    return nn.Dense(num_outputs)(nn.relu(W(h)))


def max_pooled(x, width, num_outputs):
    x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
    return nn.Dense(num_outputs)(flatten(x))


def batch_normalized(x, width, num_outputs):
    return nn.Dense(num_outputs)(
        nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(width)(x)))
    )


def batch_centered(x, width, num_outputs):
    x = nn.Dense(width)(x)
    return nn.Dense(num_outputs)(nn.relu(x - x.mean(axis=0, keepdims=True)))


def depthwise(x, width, num_outputs):
    x = nn.relu(nn.Conv(width, (3, 3))(x))
    return nn.Dense(num_outputs)(
        flatten(nn.relu(nn.Conv(width, (3, 3), feature_group_count=width)(x)))
    )


def softmax_head(x, width, num_outputs):
    return nn.log_softmax(nn.Dense(num_outputs)(nn.relu(nn.Dense(width)(x))))


def standard_attention(x, width, num_outputs):
    x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=2 * width)(nn.Dense(width)(x))
    return nn.Dense(num_outputs)(x.mean(axis=1))


def after_pooling(x, width, num_outputs):
    x = nn.relu(nn.Conv(width, (3, 3))(x))
    return nn.Dense(num_outputs)(nn.relu(global_average(x)))


def mean_weight(x, width, num_outputs):
    shifted = lambda key, shape, dtype=jnp.float32: 0.5 + jax.random.normal(key, shape, dtype)
    return nn.Dense(num_outputs)(
        nn.relu(nn.Dense(width, kernel_init=shifted)(nn.relu(nn.Dense(width)(x))))
    )


def centered_weight(x, width, num_outputs):
    def init(key, shape, dtype=jnp.float32):
        w = jax.random.normal(key, shape, dtype)
        return w - w.mean()

    return nn.Dense(num_outputs)(nn.relu(nn.Dense(width, kernel_init=init)(x)))


def without_parameters(x, width, num_outputs):
    return jnp.tanh(x)


def sorted_units(x, width, num_outputs):
    return nn.Dense(num_outputs)(jnp.sort(nn.Dense(width)(x), axis=-1))


def through_numpy(x, width, num_outputs):
    h = nn.Dense(width)(x)
    h = jax.pure_callback(
        lambda h: np.asarray(h), jax.ShapeDtypeStruct(h.shape, h.dtype), h, vmap_method="sequential"
    )
    return nn.Dense(num_outputs)(h)


class Refused(NamedTuple):
    """A model without a limit, and a pattern that the error must match: what is wrong, and what to
    do instead.
    """

    name: str
    build: Callable[[int, int], Any]
    shape: tuple[int, ...]
    pattern: str

    def inputs(self, n: int = 3) -> Any:
        return np.random.default_rng(0).standard_normal((n, *self.shape)).astype(np.float32)


LINE = r"architectures\.py:\d+"
REFUSED = [
    Refused(
        "max_pooling",
        net(max_pooled),
        (4, 4, 2),
        rf"max pooling.*`reduce_window_max` in .*{LINE} \(max_pooled\)",
    ),
    Refused(
        "batch_normalized",
        net(batch_normalized),
        (6,),
        r"statistics of its batch.*use_running_average.*arXiv:1902.08129.*batch_coupled=True",
    ),
    Refused(
        "batch_centered",
        net(batch_centered),
        (6,),
        r"row i of the output to depend on row i of x alone",
    ),
    Refused(
        "autoencoder",
        net(autoencoder),
        (6,),
        rf"Dense_0/kernel is used in two different ways.*{LINE}",
    ),
    Refused(
        "depthwise",
        net(depthwise),
        (4, 4, 2),
        rf"not Gaussian.*depthwise convolution .*arXiv:1810.05148.*{LINE}.*num_samples=",
    ),
    Refused("softmax_head", net(softmax_head), (6,), rf"`reduce_max` in .*{LINE}"),
    Refused(
        "standard_attention",
        net(standard_attention),
        (3, 4),
        rf"division by the width.*{LINE}.*1/width",
    ),
    Refused(
        "after_pooling",
        net(after_pooling),
        (4, 4, 2),
        rf"not Gaussian.*pooling.*{LINE} \(after_pooling\)",
    ),
    Refused("mean_weight", net(mean_weight), (6,), rf"Dense_1/kernel have mean 0.5.*{LINE}"),
    Refused(
        "centered_weight",
        net(centered_weight),
        (6,),
        r"known distribution for Dense_1/kernel.*init_stats=",
    ),
    Refused("without_parameters", net(without_parameters), (6,), r"param"),
    Refused("sorted_units", net(sorted_units), (6,), rf"sort.*{LINE} \(sorted_units\)"),
    Refused("through_numpy", net(through_numpy), (6,), rf"`pure_callback`.*{LINE}.*register_rule"),
]
