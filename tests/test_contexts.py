"""The front doors inside every context of JAX: the numbers that they give outside.

Strict promotion of ranks and dtypes are contexts, too: the whole suite runs in those two.
"""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_jax
from ntk_jax import compat
from ntk_jax.closures.programs import limits

RNG = np.random.default_rng(0)
X, SEQUENCES, Y = (
    RNG.standard_normal((3, 4)),
    RNG.standard_normal((2, 3, 2)),
    RNG.standard_normal((3, 1)),
)
W, K = {"w": RNG.standard_normal((4, 1))}, X @ X.T + np.eye(3)
enable_x64 = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Conv(4, (2,), padding="VALID")(x)).mean(1))


def network(p, x):
    return jnp.tanh(x @ p["w"])


def params(scale=1.0):
    return jax.tree.map(lambda w: jnp.asarray(scale * w), W)


def lenient(f):
    """With the promotion that users have: Flax mixes dtypes."""

    def run():
        with jax.numpy_dtype_promotion("standard"):
            return f()

    return run


DOORS = {
    "mlp_kernels, relu": lambda: ntk_jax.mlp_kernels(X, X[:2], depth=1),
    "mlp_kernels, tanh": lambda: ntk_jax.mlp_kernels(X, X[:2], depth=1, activation="tanh"),
    "mlp_kernels, gelu": lambda: ntk_jax.mlp_kernels(X, X[:2], depth=1, activation="gelu"),
    "kernel_diagonal": lambda: ntk_jax.kernel_diagonal(X, depth=2),
    "infinite_width, relu": lenient(
        lambda: ntk_jax.infinite_width(ntk_jax.MLP((4,), 1, "relu", 1.2, 0.1))(X, X[:2])
    ),
    "infinite_width, CNN": lenient(lambda: ntk_jax.infinite_width(CNN())(SEQUENCES, SEQUENCES[:1])),
    "empirical_ntk": lambda: ntk_jax.empirical_ntk(network, params(), X, X[:2]),
    "ntk_operator": lambda: ntk_jax.ntk_operator(network, params(), X) @ jnp.asarray(Y[:, 0]),
    "gradient_flow_mse": lambda: ntk_jax.gradient_flow_mse(ntk_jax.diagonalize(K), Y, 2.0),
    "gradient_descent_mse": lambda: ntk_jax.gradient_descent_mse(ntk_jax.diagonalize(K), Y, 3, 0.1),
    "kernel_regression": lambda: ntk_jax.kernel_regression(K, Y, K[:2], diag_reg=0.1),
    "gp_posterior": lambda: ntk_jax.gp_posterior(K, Y, K[:2], np.diag(K)[:2], noise=0.1),
    "linearize": lambda: ntk_jax.linearize(network, params())(params(1.1), X),
    "train": lambda: ntk_jax.train(
        network, params(), X, Y, optimizer=optax.sgd(0.1), num_steps=2, progress=False
    ),
}


@contextlib.contextmanager
def double_in_single():
    """float64 in a `with` block of a process whose default is float32."""
    jax.config.update("jax_enable_x64", False)
    try:
        with enable_x64(True):
            yield
    finally:
        jax.config.update("jax_enable_x64", True)


@contextlib.contextmanager
def debugging():
    """All that changes neither dtypes nor compilation, at once: each of them would trace everything
    again. No model is remembered from outside, so that its traces are looked at for leaks, too.
    """
    limits.values.clear()
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.debug_nans(True))
        stack.enter_context(jax.check_tracer_leaks(True))
        stack.enter_context(jax.default_matmul_precision("bfloat16"))
        stack.enter_context(jax.default_device(jax.devices("cpu")[-1]))
        yield


CONTEXTS = {"enable_x64": double_in_single, "debugging": debugging, "disable_jit": jax.disable_jit}
SLOW_STEP_BY_STEP = (
    "mlp_kernels, relu",
    "mlp_kernels, tanh",
    "infinite_width, CNN",
    "gradient_flow_mse",
)
CASES = [
    pytest.param(
        door,
        context,
        marks=[pytest.mark.slow] * (context == "disable_jit" and door in SLOW_STEP_BY_STEP),
    )
    for door in DOORS
    for context in CONTEXTS
]


@pytest.fixture(scope="module")
def outside():
    return {}


@pytest.mark.parametrize(("door", "context"), CASES)
def test_numbers_are_the_same_inside_a_context(door, context, outside, unchecked_shapes):
    if door not in outside:
        outside[door] = jax.tree.leaves(DOORS[door]())
    with CONTEXTS[context]():
        inside = jax.tree.leaves(DOORS[door]())
    for a, b in zip(inside, outside[door], strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


OTHER_THAN_DEFAULT = {
    "check_tracer_leaks": True,
    "default_device": jax.devices()[0],
    "default_matmul_precision": "float32",
    "default_prng_impl": "rbg",
    "disable_jit": True,
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "threefry_partitionable": False,
}


@pytest.mark.parametrize("name", OTHER_THAN_DEFAULT)
def test_what_runs_outside_traces_has_the_contexts_of_its_caller(name):
    context = enable_x64 if name == "enable_x64" else getattr(jax, name)
    own = lambda: getattr(jax.config, f"jax_{name}")
    before = own()
    with context(OTHER_THAN_DEFAULT[name]):
        assert compat.outside_traces(own) == own() != before
        assert compat.outside_traces(compat.outside_traces, own) == own()


def test_what_runs_outside_traces_may_overflow():
    with jax.debug_nans(True):
        assert np.isnan(compat.outside_traces(lambda: jnp.log(-jnp.ones(()))))
