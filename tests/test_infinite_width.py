"""The front door of the infinite-width interpreter: what it equals, accepts and refuses, how it
scales and is extended.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntk_jax
from cases.architectures import Net, by_name, lenient
from cases.mlps import F64, flax_mlp
from ntk_jax.infinite.flax.interpreter import USER_RULES
from ntk_jax.jaxprs import all_equations

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((5, 6)), RNG.standard_normal((3, 6))


def close(found, expected, rtol=1e-12):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "erf", "leaky_relu"])
def test_equals_the_recursion_of_fully_connected_networks(activation):
    width = (8, 16)
    for parameterization in ("ntk", "standard") if activation in ("relu", "gelu") else ("ntk",):
        model = ntk_jax.MLP(width, 1, activation, 1.3, 0.2, parameterization)
        kernel = ntk_jax.infinite_width(model)
        options = {
            "depth": 2,
            "activation": activation,
            "W_std": 1.3,
            "b_std": 0.2,
            "parameterization": parameterization,
        }
        if parameterization == "standard":
            options["width"] = width
        # interpreted: called, such a model is recognized, and is this recursion
        program = kernel.model.program(jnp.asarray(X))
        (found,) = program.interpreted(jnp.asarray(X), None, None, [None], None)
        close(found, ntk_jax.mlp_kernels(X, **options))
        assert all(jnp.array_equal(k, k.T) for k in found)
    (found,) = program.interpreted(jnp.asarray(X), jnp.asarray(Y), None, [None], None)
    close(found, ntk_jax.mlp_kernels(X, Y, **options))


def test_linen_nnx_and_pairs_are_one_network():
    class Twin(nnx.Module):
        def __init__(self, *, rngs):
            self.first = nnx.Linear(6, 8, dtype=F64, param_dtype=F64, rngs=rngs)
            self.second = nnx.Linear(8, 1, dtype=F64, param_dtype=F64, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    linen = flax_mlp(nn.relu, 8)
    pair = (
        lambda key, x: lenient(linen.init)(key, x)["params"],
        lambda p, x: lenient(linen.apply)({"params": p}, x),
    )
    truth = lenient(ntk_jax.infinite_width(linen))(X)
    close(lenient(ntk_jax.infinite_width(pair))(X), truth)
    close(lenient(ntk_jax.infinite_width(Twin))(X), truth)
    stats = {
        "first/kernel": (0.0, 1 / 6),
        "first/bias": (0.0, 0.0),
        "second/kernel": (0.0, 1 / 8),
        "second/bias": (0.0, 0.0),
    }
    instance = lenient(lambda: Twin(rngs=nnx.Rngs(0)))()
    close(lenient(ntk_jax.infinite_width(instance, init_stats=stats))(X), truth, 1e-6)


def test_learning_rates_split_the_tangent_kernel_by_parameter():
    model = ntk_jax.MLP((8,), 1, "relu", 1.3, 0.2, "standard")
    full = ntk_jax.infinite_width(model)(X, Y)
    paths = ["Dense_0/kernel", "Dense_0/bias", "Dense_1/kernel", "Dense_1/bias"]
    parts = [
        ntk_jax.infinite_width(model, learning_rates=lambda path, _, p=p: float(path == p))(X, Y)
        for p in paths
    ]
    np.testing.assert_allclose(sum(k.ntk for k in parts), full.ntk, rtol=1e-12)
    np.testing.assert_allclose(parts[0].nngp, full.nngp, rtol=1e-12)
    by_variance = ntk_jax.infinite_width(model, learning_rates="variance")(X, Y)
    close(by_variance, ntk_jax.mlp_kernels(X, Y, depth=1, W_std=1.3, b_std=0.2), 1e-6)


@pytest.mark.slow
def test_tiles_are_the_whole_and_gradients_pass_through_them():
    case = by_name("cnn_1d")
    x = jnp.asarray(case.inputs(5, dtype=np.float64))
    model = case.build(8, 1)
    whole = lenient(ntk_jax.infinite_width(model))
    tiled = lenient(ntk_jax.infinite_width(model, memory_limit=4000))
    close(tiled(x), whole(x), 1e-13)
    y = jnp.asarray(case.inputs(2, seed=1, dtype=np.float64))
    f = lambda kernel: jax.jit(jax.grad(lambda x: jnp.sum(kernel(x, y).ntk)))(x)
    np.testing.assert_allclose(f(tiled), f(whole), rtol=1e-9, atol=1e-12)


def test_examples_may_be_constants_of_a_compiled_function():
    kernel = ntk_jax.infinite_width(ntk_jax.MLP((8,), 1, "tanh", 1.3, 0.2))
    close(jax.jit(lambda: kernel(X, Y))(), kernel(X, Y), 1e-9)
    close(jax.jit(lambda x: kernel(x, Y))(X), kernel(X, Y), 1e-9)


@pytest.mark.parametrize("phi", [nn.relu, pytest.param(jnp.tanh, marks=pytest.mark.slow)])
def test_gradients_with_respect_to_scales_are_those_of_finite_differences(phi):
    def draw(key, x):
        return {"W": jax.random.normal(key, (6, 8), F64), "V": jax.random.normal(key, (8, 1), F64)}

    def total(W_std):
        apply_fn = lenient(lambda p, x: W_std * phi(W_std * (x @ p["W"])) @ p["V"])
        k = ntk_jax.infinite_width((draw, apply_fn))(X[:2] / 3)
        return jnp.sum(k.ntk * jnp.array([[1.0, -0.4], [-0.4, 0.3]])) + k.nngp[0, 1]

    h = 1e-5
    numeric = (total(1.3 + h) - total(1.3 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(total)(1.3), numeric, rtol=1e-6)


def test_a_kernel_with_pooling_is_a_short_program():
    def body(x, width, num_outputs):
        for _ in range(3):
            x = nn.avg_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(num_outputs)(x.reshape(x.shape[0], -1))

    x = jnp.zeros((2, 16, 16, 3), jnp.float32)
    kernel = ntk_jax.infinite_width(Net(body, 8, 1))
    program = lenient(kernel.program)(x)
    closed = program.pair((), None).closed
    assert len(list(all_equations(closed.jaxpr))) < 3000


def test_what_is_alike_in_law_but_not_in_form():
    """Splits of an infinite axis, joins of two, products of gates: each against the same network
    written otherwise.
    """

    def fused(x, width, num_outputs):
        a, b = jnp.split(nn.Dense(2 * width, use_bias=False, **init(6))(x), 2, axis=-1)
        return nn.Dense(num_outputs, use_bias=False, **init(width))(nn.relu(a) * nn.sigmoid(b))

    def separate(x, width, num_outputs):
        a, b = (nn.Dense(width, use_bias=False, **init(6))(x) for _ in range(2))
        return nn.Dense(num_outputs, use_bias=False, **init(width))(nn.relu(a) * nn.sigmoid(b))

    def joined(x, width, num_outputs):
        a, b = (nn.relu(nn.Dense(width, use_bias=False, **init(6))(x)) for _ in range(2))
        return nn.Dense(num_outputs, use_bias=False, **init(2 * width))(jnp.concatenate([a, b], -1))

    def whole(x, width, num_outputs):
        a = nn.relu(nn.Dense(2 * width, use_bias=False, **init(6))(x))
        return nn.Dense(num_outputs, use_bias=False, **init(2 * width))(a)

    for one, other in ((fused, separate), (joined, whole)):
        a, b = (lenient(ntk_jax.infinite_width(Net(body, 8, 1)))(X, Y) for body in (one, other))
        close(a, b)


def init(fan_in):
    return {"kernel_init": nn.initializers.normal(fan_in**-0.5), "dtype": F64, "param_dtype": F64}


def test_explain_limit_is_a_table_of_what_became_of_each_operation(unchecked_shapes):
    case = by_name("mlp_nnx")
    table = lenient(ntk_jax.explain_limit)(case.build(8, 1), case.inputs())
    lines = table.splitlines()
    assert lines[0].split()[:3] == ["operation", "becomes", "dual"]
    assert any(
        "dot_general" in line and "Gaussian: first/kernel" in line and "∞" in line for line in lines
    )
    for part in ("closed form: rectifier", "one integral", "architectures.py:"):
        assert part in table
    phi = lambda h: jnp.exp(-jnp.abs(h))
    assert "series of" in lenient(ntk_jax.explain_limit)(flax_mlp(phi, 8), X)


def test_a_rule_of_the_users_own():
    def phi(h):
        return jax.pure_callback(
            np.tanh, jax.ShapeDtypeStruct(h.shape, h.dtype), h, vmap_method="sequential"
        )

    with pytest.raises(
        ntk_jax.NoLimitError, match=r"no rule for the operation `pure_callback`.*register_rule"
    ):
        lenient(ntk_jax.infinite_width(flax_mlp(phi, 8)))(X)
    ntk_jax.register_rule("pure_callback", lambda h, **params: jnp.tanh(h))
    try:
        close(
            lenient(ntk_jax.infinite_width(flax_mlp(phi, 8)))(X),
            lenient(ntk_jax.infinite_width(flax_mlp(jnp.tanh, 8)))(X),
        )
    finally:
        USER_RULES.pop("pure_callback")


@jax.custom_jvp
def straight_through(h):
    return jnp.sign(h)


straight_through.defjvp(lambda primals, tangents: (jnp.sign(primals[0]), tangents[0]))


def readout_inside(params, x):
    return nn.relu(x @ params["W"]) @ params["W"]


def scalar_gate(params, x):
    return (params["gate"] * nn.relu(x @ params["W"])) @ params["V"]


def stopped(params, x):
    return jax.lax.stop_gradient(nn.relu(x @ params["W"])) @ params["V"]


def product_of_weights(params, x):
    return x @ (params["W"] @ params["V"])


def spread(params, x):
    return nn.relu(x @ params["W"] + jnp.arange(6.0)) @ params["V"]


def narrow(params, x):
    return nn.relu(x @ params["W"][:, :1]) @ params["V"][:1]


def shuffled(params, x):
    h = nn.relu(x @ params["W"])
    return (h + h.reshape(-1, 2, 3).swapaxes(1, 2).reshape(h.shape)) @ params["V"]


REFUSALS = {
    "shuffled units": (shuffled, r"infinite axes change places"),
    "mean over pairs": (
        lambda p, x: nn.relu(x @ p["W"]).reshape(-1, 3, 2).mean(-1) @ p["V"][:3],
        r"a mean over 2 units of each group",
    ),
    "straight-through gradient": (
        lambda p, x: straight_through(x @ p["W"]) @ p["V"],
        r"custom derivative that is not",
    ),
    "readout inside": (readout_inside, r"readout weight W is used inside"),
    "scalar parameter": (
        scalar_gate,
        r"shared by all units.*`mul` in .*test_infinite_width.py:\d+ \(scalar_gate\)",
    ),
    "stop_gradient": (stopped, r"stop_gradient acts on a random value"),
    "product of weights": (product_of_weights, r"two parameters are multiplied"),
    "array along a wide axis": (spread, r"fixed array that differs along an infinite axis"),
    "one unit": (narrow, r"finitely many random entries"),
    "rounding": (
        lambda p, x: jnp.floor(x @ p["W"]) @ p["V"],
        r"`floor` jumps at infinitely many points",
    ),
    "batch": (
        lambda p, x: nn.relu((x - x.mean(0)) @ p["W"]) @ p["V"],
        r"row i of the output to depend on row i of x alone",
    ),
    "nonlinear readout": (lambda p, x: jnp.tanh(x @ p["V"]), r"outputs are not Gaussian.*logits"),
    "deterministic": (
        lambda p, x: (x @ p["W"]).mean(-1, keepdims=True),
        r"outputs are deterministic in the limit",
    ),
    "inner product": (
        lambda p, x: (
            (jnp.tanh(jnp.sum((x @ p["W"]) * (x @ p["V"]), -1, keepdims=True)) * (x @ p["W"]))
            @ p["V"]
        ),
        r"inner product of two wide vectors of width 6",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_would_be_wrong_is_refused(name):
    apply_fn, pattern = REFUSALS[name]
    normal = lambda key, shape: jax.random.normal(key, shape) / 6**0.5
    init_fn = lambda key, x: {
        "W": normal(key, (6, 6)),
        "V": normal(key, (6, 6)),
        "gate": normal(key, ()),
    }
    with pytest.raises(ValueError, match=f"(?s){pattern}"):
        ntk_jax.infinite_width((init_fn, lenient(apply_fn)))(X)


def test_joined_stacked_and_scattered_values_are_sums_of_their_parts():
    """Networks written with joins, stacks and edges, each against the same network written as
    sums.
    """
    edges = np.array([0, 1, 2, 0]), np.array([1, 0, 2, 2])
    adjacency = np.zeros((3, 3))
    np.add.at(adjacency, edges[::-1], 1.0)
    no_bias = {"use_bias": False}

    def dense(x, features, fan_in, **more):
        return nn.Dense(features, **init(fan_in), **no_bias, **more)(x)

    def parts(x, width):
        return [nn.relu(dense(x, w, 4)) for w in (width, 2 * width)]

    def joined(x, width, num_outputs):  # then flattened: the parts take turns, position by position
        both = jnp.concatenate(parts(x, width), -1)
        both = jnp.concatenate(
            [both, nn.relu(dense(both, width, 3 * width))], -1
        )  # densely connected
        return dense(both.reshape(len(x), -1), num_outputs, 12 * width)

    def summed(x, width, num_outputs):
        a, b = parts(x, width)
        c = nn.relu(dense(a, width, 3 * width) + dense(b, width, 3 * width))
        return sum(dense(h.reshape(len(x), -1), num_outputs, 12 * width) for h in (a, b, c))

    def stacked(x, width, num_outputs):
        a, b = parts(x, width)[0], parts(x, width)[0]
        return dense(jnp.stack([a, b], axis=1).mean((1, 2)), num_outputs, width)

    def averaged(x, width, num_outputs):
        a, b = parts(x, width)[0], parts(x, width)[0]
        return dense(((a + b) / 2).mean(1), num_outputs, width)

    def scattered(x, width, num_outputs):
        h = nn.relu(dense(x, width, 4))
        h = jax.vmap(lambda v: jax.ops.segment_sum(v[edges[0]], edges[1], 3))(h)
        return dense(h.reshape(len(x), -1), num_outputs, 3 * width)

    def multiplied(x, width, num_outputs):
        h = jnp.einsum("ij,bjc->bic", adjacency, nn.relu(dense(x, width, 4)))
        return dense(h.reshape(len(x), -1), num_outputs, 3 * width)

    x = RNG.standard_normal((2, 3, 4))
    for one, other in ((joined, summed), (stacked, averaged), (scattered, multiplied)):
        a, b = (lenient(ntk_jax.infinite_width(Net(body, 8, 1)))(x) for body in (one, other))
        close(a, b, 1e-10)


@pytest.mark.parametrize("d", [50, 784])
def test_equal_and_parallel_rows_have_exact_kernels_in_float32(d):
    x = np.abs(np.random.default_rng(0).standard_normal((20, d))).astype(np.float32)
    model = ntk_jax.MLP((8, 8, 8), 1, "relu", 2**0.5)
    kernels = ntk_jax.infinite_width(model)(np.concatenate([x, x, 3 * x]))
    for kernel in map(np.asarray, kernels):
        own, few = np.diag(kernel)[:20], 16 * np.finfo(np.float32).eps
        np.testing.assert_allclose(np.diag(kernel[:20, 20:40]), own, rtol=few)
        np.testing.assert_allclose(np.diag(kernel[:20, 40:]), 3 * own, rtol=few)
