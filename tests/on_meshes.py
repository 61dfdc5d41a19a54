"""What devices compute together, saved by process 0: `python tests/on_meshes.py RESULT [COORDINATOR
NUM_PROCESSES PROCESS]`; tests compare one device, eight of one process, and three processes.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

import ntk_jax
from cases.draws import drawn
from ntk_jax.devices import processes

# As many rows as one, eight and three devices share, and more than a tile; and others.
N, PRIME, N2, D = 72, 61, 13, 5
BLOCK = 16
RELU = partial(ntk_jax.mlp_kernels, depth=2, activation="relu", W_std=1.4, b_std=0.1)


def examples(n, seed):
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def results(mesh):
    """Kernels, and products with them."""
    x, y, x2, v = examples(N, 0), examples(PRIME, 1), examples(N2, 2), examples(PRIME, 3)
    model = ntk_jax.MLP((8,), 2, "tanh", 1.2, 0.3)
    apply_fn, params = drawn(model, jnp.asarray(y))
    finite = lambda x1, x2=None: ntk_jax.empirical_ntk(apply_fn, params, x1, x2)
    limit = partial(ntk_jax.kernel_operator, RELU, kernel="ntk", mesh=mesh, block_size=BLOCK)
    sharded = ntk_jax.shard(RELU, mesh, block_size=BLOCK)
    exact = {
        "relu": sharded(x).ntk,
        "relu, x2": sharded(x, x2).nngp,
        "network": ntk_jax.shard(finite, mesh, block_size=BLOCK)(x),
    }
    yield from network_products(mesh, apply_fn, params)
    for storage in ("memory", "recompute"):
        op, other = limit(y, storage=storage), limit(y, x2, storage=storage)
        exact[f"columns, {storage}"] = op.columns(np.array([3, -1]))
        exact[f"diagonal, {storage}"] = op.diagonal()
        yield f"product, {storage}", op @ v
        yield f"vector, {storage}", op @ v[:, 0]
        yield f"rectangle, {storage}", other @ v[:N2]
        yield f"transposed, {storage}", other.T @ v
        yield f"in a program, {storage}", jax.jit(lambda op, v: op @ (op @ v))(op, op @ v)
    yield from ((f"exact: {name}", a) for name, a in exact.items())


def network_products(mesh, apply_fn, params):
    """Products with tangent kernels that are never formed, of rows that are shared out or not."""
    for name, n in (("shared", N), ("whole", PRIME)):
        x, v = examples(n, 1), examples(2 * n, 3)
        op = ntk_jax.ntk_operator(apply_fn, params, x, mesh=mesh, block_size=4)
        other = ntk_jax.ntk_operator(apply_fn, params, x, examples(N2, 2), mesh=mesh)
        yield f"network, {name}", op @ v
        yield f"network, {name}, diagonal", op.diagonal()
        yield f"network, {name}, columns", op.columns(np.array([3, -1, 7]))
        yield f"network, {name}, rectangle", other @ v[: 2 * N2]
        yield f"network, {name}, transposed", other.T @ v
        yield f"network, {name}, in a program", jax.jit(lambda op, v: op @ v)(op, v)


def main(path, *cluster):
    if cluster:
        names = ("coordinator_address", "num_processes", "process_id")
        values = (cluster[0], int(cluster[1]), int(cluster[2]))
        processes.initialize(**dict(zip(names, values, strict=True)))
    mesh = jax.make_mesh((jax.device_count(),), ("anything",))
    found = dict(results(mesh))
    whole = {
        name: a if a.is_fully_replicated else process_allgather(a, True)
        for name, a in found.items()
    }
    if jax.process_index() == 0:
        np.savez(path, **{name: np.asarray(a) for name, a in whole.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
