"""The process of ntk_jax."""

import jax

from benchmarks.peer_processes.networks import model_of, network
from benchmarks.peer_processes.problems import B_STD, LIMITS, W_STD, examples
from benchmarks.peer_processes.worker import serve
from ntk_jax import empirical_ntk, infinite_width, mlp_kernels  # imports are no part of a call


def make_case(problem, numbers, method):
    """Kernels as a user would call them."""
    if problem.kind == "analytic":
        x = jax.numpy.asarray(examples(problem))
        return lambda: (
            jax.block_until_ready(mlp_kernels(x, depth=problem.depth, W_std=W_STD, b_std=B_STD)).ntk
        )
    if problem.kind in LIMITS:
        x = jax.numpy.asarray(examples(problem))
        kernel_fn = infinite_width(model_of(problem), learning_rates="variance")
        return lambda: jax.block_until_ready(kernel_fn(x)).ntk
    apply_fn, params, x = network(problem, numbers)
    return lambda: jax.block_until_ready(empirical_ntk(apply_fn, params, x, method=method))


if __name__ == "__main__":
    serve(make_case)
