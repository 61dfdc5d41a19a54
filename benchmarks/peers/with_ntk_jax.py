"""This library's process."""

import jax
from networks import network
from problems import B_STD, W_STD, examples
from worker import serve

import ntk_jax


def make_case(problem, numbers, method):
    """Kernels as a user would call them."""
    if problem.kind == "analytic":
        x = jax.numpy.asarray(examples(problem))
        return lambda: jax.block_until_ready(
            ntk_jax.mlp_kernels(x, depth=problem.depth, W_std=W_STD, b_std=B_STD)
        ).ntk
    apply_fn, params, x = network(problem, numbers)
    return lambda: jax.block_until_ready(ntk_jax.empirical_ntk(apply_fn, params, x, method=method))


if __name__ == "__main__":
    serve(make_case)
