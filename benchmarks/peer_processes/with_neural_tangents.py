"""google/neural-tangents' process: Python of its own, with an old JAX."""

import importlib

import jax
import jax.interpreters.ad
import neural_tangents as nt
from neural_tangents import stax

from benchmarks.peer_processes.networks import network
from benchmarks.peer_processes.problems import B_STD, LIMITS, W_STD, examples
from benchmarks.peer_processes.worker import serve

# Its fast implementation asks for two names that JAX 0.4.38 no longer has there; older JAX is
# slower.
vars(jax.interpreters.ad)["config"] = jax.config
vars(jax.interpreters.ad)["source_info_util"] = importlib.import_module("jax._src.source_info_util")


def make_case(problem, numbers, method):
    """Jitted, as its documentation asks; "default" is its default implementation without
    options.
    """
    if problem.kind == "analytic" or problem.kind in LIMITS:
        layers = _layers(problem)
        kernel_fn = jax.jit(
            stax.serial(*layers, stax.Dense(1, W_STD, B_STD))[2], static_argnames="get"
        )
        x = jax.numpy.asarray(examples(problem))
        return lambda: jax.block_until_ready(kernel_fn(x, None, get=("nngp", "ntk"))).ntk
    apply_fn, params, x = network(problem, numbers)
    options = (
        {}
        if method == "default"
        else {"vmap_axes": 0, "implementation": nt.NtkImplementation[method.upper()]}
    )
    kernel_fn = jax.jit(nt.empirical_ntk_fn(apply_fn, **options))
    return lambda: jax.block_until_ready(kernel_fn(x, None, params))


def _layers(problem):
    """Everything below the readout."""
    if problem.kind == "analytic":
        return [
            layer
            for _ in range(problem.depth)
            for layer in (stax.Dense(1, W_STD, B_STD), stax.Relu())
        ]
    layers = []
    for _ in range(problem.depth):
        layers += [stax.Conv(1, (3, 3), padding="SAME", W_std=W_STD, b_std=B_STD), stax.Relu()]
        if problem.kind == "limit_pool":
            layers.append(stax.AvgPool((2, 2), (2, 2)))
    return [*layers, stax.Flatten()]


if __name__ == "__main__":
    serve(make_case)
