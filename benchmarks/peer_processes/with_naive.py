"""The tutorials' loop in JAX: the gradient of one output of one example at a time, then one product
of all of them.
"""

import jax
import jax.numpy as jnp

from benchmarks.peer_processes.networks import network
from benchmarks.peer_processes.worker import serve


def make_case(problem, numbers, method):
    """A jitted gradient called n O times; inner products by one matrix product, which flatters the
    loop.
    """
    apply_fn, params, x = network(problem, numbers)

    @jax.jit
    def gradient(params, x, o):
        g = jax.grad(lambda p: apply_fn(p, x[None])[0, o])(params)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(g)])

    def call():
        kernel = jnp.zeros(())
        for o in range(problem.outputs):
            rows = jnp.stack([gradient(params, row, o) for row in x])
            kernel += jnp.matmul(rows, rows.T, precision="highest")
        return jax.block_until_ready(kernel / problem.outputs)

    return call


if __name__ == "__main__":
    serve(make_case)
