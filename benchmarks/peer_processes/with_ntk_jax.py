"""The process of ntk_jax."""

import jax

from benchmarks.peer_processes.networks import model_of, network
from benchmarks.peer_processes.problems import B_STD, JITTED, LIMITS, W_STD, examples
from benchmarks.peer_processes.worker import serve

# imports are no part of a call
from ntk_jax import Kernels, empirical_ntk, infinite_width, mlp_kernels


def make_case(problem, numbers, method):
    """Kernels as a user would call them; "jitted" inside `jax.jit`, as the peer's are called."""
    kernels, arguments = _kernels(problem, numbers, method)
    run = jax.jit(kernels) if method == JITTED else kernels

    def tangent_kernel():
        found = jax.block_until_ready(run(*arguments))
        return found.ntk if isinstance(found, Kernels) else found

    return tangent_kernel


def _kernels(problem, numbers, method):
    """A function of arrays that returns the tangent kernel or both, and its arguments."""
    if problem.kind == "analytic":
        x = jax.numpy.asarray(examples(problem))
        return lambda x: mlp_kernels(x, depth=problem.depth, W_std=W_STD, b_std=B_STD), (x,)
    if problem.kind in LIMITS:
        x = jax.numpy.asarray(examples(problem))
        return infinite_width(model_of(problem), learning_rates="variance"), (x,)
    apply_fn, params, x = network(problem, numbers)
    method = "auto" if method == JITTED else method
    return lambda params, x: empirical_ntk(apply_fn, params, x, method=method), (params, x)


if __name__ == "__main__":
    serve(make_case)
