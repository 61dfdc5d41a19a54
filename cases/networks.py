"""One list of tiny networks, of every kind that the finite-width code must get exactly right.

Each case is a function `seed -> (apply_fn, params, x)` in float64 with three examples;
`Case.factored` says how many of the parameter leaves must have factored gradients, so that a lost
recognition is noticed, not only a wrong result.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ntk_jax
from cases.draws import UNOPTIMIZED

N = 3
F64 = jnp.float64


class Case(NamedTuple):
    """A network, and how many of its leaves have factored gradients."""

    name: str
    build: Callable[[Any], tuple[Any, Any, Any]]
    factored: int


def draw(rng, shapes):
    """Arrays of the given shapes, by NumPy: a Flax initializer run op by op takes longer than
    everything tested.
    """
    return jax.tree.map(lambda s: jax.device_put(0.6 * rng.standard_normal(s.shape)), shapes)


def lenient(fn):
    """Networks may promote ranks and dtypes, as Flax's own layers do; this library's code may
    not.
    """

    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args, **kwargs)

    return call


def linen(model, shape, **call):
    """A case from a Flax Linen model and the shape of one example."""

    def build(seed):
        rng = np.random.default_rng(seed)
        x = jax.device_put(rng.standard_normal((N, *shape)))
        shapes = jax.eval_shape(lambda: lenient(model.init)(jax.random.key(0), x, **call))
        apply_fn, params = ntk_jax.from_linen(model, draw(rng, shapes), **call)
        return lenient(apply_fn), params, x

    return build


def plain(apply_one, shapes, x_shape):
    """A case from a function of one example and a pytree of parameter shapes."""

    def build(seed):
        rng = np.random.default_rng(seed)
        is_shape = lambda s: isinstance(s, tuple) and all(isinstance(i, int) for i in s)
        structs = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, F64), shapes, is_leaf=is_shape)
        x = jax.device_put(rng.standard_normal((N, *x_shape)))
        apply_fn = lenient(lambda p, x: jax.vmap(lambda one: apply_one(p, one))(x))
        return apply_fn, draw(rng, structs), x

    return build


def options(**more):
    """Double precision for a Flax layer."""
    return {"dtype": F64, "param_dtype": F64, **more}


class Net(nn.Module):
    """A module from a function, for inline definitions."""

    body: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x):
        return self.body(x)


def conv_net(features, kernel, **conv):
    """One convolution, ReLU, a linear map of the flattened result."""

    def body(x):
        x = nn.relu(nn.Conv(features, kernel, **options(**conv))(x))
        return nn.Dense(2, **options())(x.reshape(len(x), -1))

    return Net(body)


def residual(x):
    """A convolutional residual block with two kinds of normalization."""
    x = nn.Conv(4, (3, 3), **options(use_bias=False))(x)
    y = nn.relu(nn.LayerNorm(**options())(x))
    y = nn.Conv(4, (3, 3), **options(strides=2))(y)
    y = nn.relu(nn.GroupNorm(num_groups=2, **options())(y))
    x = nn.Conv(4, (1, 1), **options(strides=2))(x) + y
    return nn.Dense(2, **options())(x.mean((1, 2)))


def transposed(x):
    """Convolution, transposed convolution, mean."""
    x = jnp.tanh(nn.Conv(2, (3,), **options(strides=2))(x))
    x = nn.ConvTranspose(3, (3,), **options(strides=(2,)))(x)
    return jnp.tanh(x).mean(1)


def attention(heads):
    """Self-attention with a residual and LayerNorm."""

    def body(x):
        y = nn.MultiHeadDotProductAttention(num_heads=heads, **options())(x, x)
        return nn.Dense(2, **options())(nn.LayerNorm(**options())(x + y)).mean(1)

    return Net(body)


def tied(p, x):
    """Encoder and decoder are one matrix, in two orientations."""
    return jnp.tanh(x @ p["w"]) @ p["w"].T


def shared(p, x):
    """One layer used three times, another scaled by a number and by a parameter."""
    for _ in range(3):
        x = jnp.tanh(x @ p["w"] / 2.0 + p["b"])
    return p["scale"][0] * (x @ (0.5 * p["readout"])) - p["c"]


def scanned_layers(p, x):
    """Stacked layers by scan."""

    def layer(h, wb):
        return jnp.tanh(h @ wb[0] + wb[1]), None

    return lax.scan(layer, x, (p["w"], p["b"]))[0] @ p["readout"]


def recurrent(p, x):
    """A plain recurrent network over the first axis of x, by scan."""

    def step(h, x_t):
        h = jnp.tanh(x_t @ p["w"] + h @ p["u"] + p["b"])
        return h, h @ p["readout"]

    return lax.scan(step, jnp.zeros(p["u"].shape[0], x.dtype), x)[1].sum(0)


def scan_in_scan(p, x):
    """Layers stacked by an outer scan, each recurrent over time by an inner one."""

    def layer(seq, w):
        def step(h, x_t):
            h = jnp.tanh(x_t @ w + h)
            return h, h

        return lax.scan(step, jnp.zeros(seq.shape[1], seq.dtype), seq)[1], None

    return lax.scan(layer, x, p["w"])[0].mean(0)


def remat(p, x):
    """Segments under jax.checkpoint, with a policy, inside scan as well."""

    @jax.checkpoint
    def layer(h, w):
        return jnp.tanh(h @ w), None

    h = lax.scan(layer, x, p["w"])[0]
    block = jax.checkpoint(
        lambda h, v, b: jnp.tanh(h @ v + b), policy=jax.checkpoint_policies.dots_saveable
    )
    return block(h, p["v"], p["b"])


def nonlinear_parameters(p, x):
    """Parameters inside functions: softplus, weight normalization, a product of two."""
    w = p["direction"] / jnp.linalg.norm(p["direction"], axis=0) * p["length"]
    return jnp.tanh(x @ w * jax.nn.softplus(p["gain"])) @ (p["left"] @ p["right"])


def gathered(p, x):
    """An embedding table read by tokens, and a gather along the features."""
    tokens = jnp.argsort(x)[:3]
    return jnp.tanh(p["table"][tokens].sum(0) @ p["w"])[jnp.array([2, 0, 2])]


def expert(p, x):
    """Batched products: a weight with a batch axis, on either side of the product, and an
    einsum.
    """
    h = jnp.einsum("ei,eio->eo", x, p["w"]) + p["b"]
    return jnp.einsum("oke,eo->k", p["v"], jnp.tanh(h))


def left_operand(p, x):
    """Weights on the left of column vectors, transposed and reshaped views."""
    h = jnp.tanh(p["w"] @ x[:, None] + p["b"][:, None])
    return (p["v"].reshape(2, 4) @ h)[:, 0] + p["flat"].T @ x


def lookup_of_unused(p, x):
    """A pytree of tuples and dictionaries, one leaf never read, one read but without effect."""
    a, (b, c) = p["layers"]
    return jnp.tanh(x @ a["w"]) @ b + 0.0 * c.sum()


def branching(p, x):
    """lax.cond, lax.while-free; a custom derivative rule around and beside a weight."""

    @jax.custom_jvp
    def straight_through(h):
        return jnp.sign(h)

    straight_through.defjvp(lambda primal, tangent: (jnp.sign(primal[0]), tangent[0]))
    h = straight_through(x @ p["w"])
    return lax.cond(x[0] > 0, lambda h: h @ p["v"], lambda h: 2.0 * (h @ p["v"]), h) + jnp.tanh(
        x @ p["u"]
    )


def potential(p, x):
    """A number, whose derivatives by x use every weight and its transpose."""
    h = jnp.tanh(x @ p["w"] + p["b"])
    return jnp.sum(jnp.tanh(h @ p["v"] + p["c"]) @ p["u"])


def laplacian(p, x):
    """Second derivatives, reverse over forward and reverse over reverse."""
    along = lambda t: jax.grad(potential, 1)(p, x.at[0].set(t))[0]
    hessian = jax.jacfwd(jax.grad(potential, 1), 1)(p, x)
    return jnp.stack([jnp.trace(hessian) + potential(p, x), jax.grad(along)(x[0])])


def force(p, x):
    """As many outputs as inputs, with the readout in one direction alone."""
    return -jax.grad(potential, 1)(p, x)


def beam(p, x):
    """The fourth derivative."""
    u = lambda t: jnp.sum(jnp.tanh(x.at[0].set(t) @ p["w"] + p["b"]) @ p["u"])
    return jnp.stack([jax.grad(jax.grad(jax.grad(jax.grad(u))))(x[0])])


def scanned_force(p, x):
    """Stacked layers, forth and back in scans."""

    def energy(x):
        step = lambda h, layer: (jnp.tanh(h @ layer[0] + layer[1]), None)
        return jnp.sum(lax.scan(step, x, (p["w"], p["b"]))[0] @ p["v"])

    return jax.grad(energy)(x)[:2]


POTENTIAL = {"w": (3, 4), "b": (4,), "v": (4, 4), "c": (4,), "u": (4, 1)}

CASES = [
    Case("mlp", linen(ntk_jax.MLP((5, 4), 2, "relu", 1.3, 0.4), (6,)), 6),
    Case("mlp_standard", linen(ntk_jax.MLP((5,), 3, "gelu", 1.3, 0.4, "standard"), (6,)), 4),
    Case("linear", linen(ntk_jax.MLP((), 1), (4,)), 2),
    Case(
        "conv_1d_dilated", linen(conv_net(3, (3,), kernel_dilation=2, padding="VALID"), (7, 2)), 4
    ),
    Case("conv_2d_stride", linen(conv_net(3, (3, 2), strides=(2, 1)), (5, 4, 2)), 4),
    Case("conv_3d_circular", linen(conv_net(2, (2, 2, 2), padding="CIRCULAR"), (3, 2, 2, 2)), 4),
    Case("conv_groups", linen(conv_net(4, (3,), feature_group_count=2), (4, 6)), 4),
    Case(
        "conv_depthwise",
        linen(
            conv_net(4, (2, 2), feature_group_count=2, input_dilation=2, padding=((1, 0), (0, -1))),
            (3, 3, 2),
        ),
        4,
    ),
    Case("conv_transposed", linen(Net(transposed), (6, 2)), 4),
    Case("residual_norms", linen(Net(residual), (4, 4, 2)), 7),
    Case("attention_1", linen(attention(1), (3, 4)), 10),
    Case("attention_2", linen(attention(2), (3, 4)), 10),
    Case(
        "lstm",
        linen(Net(lambda x: jnp.asarray(nn.RNN(nn.LSTMCell(3, **options()))(x))[:, -1]), (3, 2)),
        12,
    ),
    Case("tied", plain(tied, {"w": (4, 3)}, (4,)), 0),
    Case(
        "shared",
        plain(shared, {"w": (4, 4), "b": (4,), "scale": (1,), "readout": (4, 2), "c": (2,)}, (4,)),
        3,
    ),
    Case(
        "scanned_layers",
        plain(scanned_layers, {"w": (3, 4, 4), "b": (3, 4), "readout": (4, 2)}, (4,)),
        3,
    ),
    Case(
        "recurrent",
        plain(recurrent, {"w": (2, 3), "u": (3, 3), "b": (3,), "readout": (3, 2)}, (4, 2)),
        4,
    ),
    Case("scan_in_scan", plain(scan_in_scan, {"w": (2, 3, 3)}, (4, 3)), 1),
    Case("remat", plain(remat, {"w": (2, 4, 4), "v": (4, 2), "b": (2,)}, (4,)), 3),
    Case(
        "nonlinear_parameters",
        plain(
            nonlinear_parameters,
            {"direction": (3, 4), "length": (4,), "gain": (4,), "left": (4, 2), "right": (2, 2)},
            (3,),
        ),
        0,
    ),
    Case("gathered", plain(gathered, {"table": (5, 4), "w": (4, 3)}, (5,)), 1),
    Case("expert", plain(expert, {"w": (2, 3, 4), "b": (2, 4), "v": (4, 2, 2)}, (2, 3)), 3),
    Case(
        "left_operand",
        plain(left_operand, {"w": (4, 3), "b": (4,), "v": (8,), "flat": (3, 2)}, (3,)),
        4,
    ),
    Case(
        "unused",
        plain(lookup_of_unused, {"layers": ({"w": (3, 4), "dead": (7,)}, ((4, 2), (3,)))}, (3,)),
        2,
    ),
    Case("laplacian", plain(laplacian, POTENTIAL, (3,)), 5),
    Case("force", plain(force, POTENTIAL, (3,)), 5),
    Case("beam", plain(beam, {"w": (3, 4), "b": (4,), "u": (4, 1)}, (3,)), 3),
    Case(
        "scanned_force", plain(scanned_force, {"w": (2, 3, 3), "b": (2, 3), "v": (3, 1)}, (3,)), 3
    ),
    Case("branching", plain(branching, {"w": (3, 4), "v": (4, 2), "u": (3, 2)}, (3,)), 2),
]


def dense_ntk(apply_fn, params, x1, x2):
    """J(x1) J(x2)^T from the whole Jacobian of the whole batch, in every output mode."""

    @functools.partial(jax.jit, compiler_options=UNOPTIMIZED)
    def jacobian(x):
        jac = jax.jacobian(lambda p: apply_fn(p, x).reshape(x.shape[0], -1))(params)
        return jnp.concatenate(
            [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jac)], axis=2
        )

    j1 = np.asarray(jacobian(x1))
    full = np.einsum("iop,jqp->ijoq", j1, j1 if x2 is x1 else jacobian(x2))
    diagonal = np.einsum("ijoo->ijo", full)
    return {"mean": diagonal.mean(axis=2), "diagonal": diagonal, "full": full}
