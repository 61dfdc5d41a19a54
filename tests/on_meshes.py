"""What devices compute together, saved by process 0.

`python tests/on_meshes.py WHAT RESULT [COORDINATOR NUM_PROCESSES PROCESS]`, see `RESULTS`.
"""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

import ntk_jax
from cases.draws import drawn
from ntk_jax.devices import processes

# As many rows as one, eight and three devices share, in more than one tile; and others.
N, PRIME, N2, D = 72, 61, 13, 5
BLOCK = 16
RELU = partial(ntk_jax.mlp_kernels, depth=2, activation="relu", W_std=1.4, b_std=0.1)
SHIFT = np.float32(1)  # no array of JAX's: processes find each other first


def cubic(x1, x2=None):
    """Two kernels that are quick to compile; a row and itself differ from two equal rows."""
    y = x1 if x2 is None else x2
    nngp = x1 @ y.T / x1.shape[1]
    own = jnp.eye(len(x1), dtype=x1.dtype) if x2 is None else jnp.zeros((), x1.dtype)
    return ntk_jax.Kernels(nngp, (SHIFT.astype(x1.dtype) + nngp) ** 3 + own)


def examples(n, seed):
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def few(mesh):
    """A kernel, and one product of each kind."""
    x, v = examples(N, 0), examples(PRIME, 3)
    k = ntk_jax.shard(cubic, mesh, block_size=BLOCK)(x).ntk
    yield "exact: cubic", k
    if mesh.size > 1:
        check_refused(k)
    for storage in ("memory", "recompute"):
        op = operator(cubic, mesh, storage=storage)
        yield f"cubic, {storage}", op @ v
    op = ntk_jax.ntk_operator(*network(), x, mesh=mesh, block_size=4)
    yield "network", op @ examples(2 * N, 3)


def check_refused(k):
    """No front door factors a kernel whose rows are on several devices."""
    y = examples(N, 1)
    doors = {
        "diagonalize": lambda: ntk_jax.diagonalize(k),
        "regression": lambda: ntk_jax.kernel_regression(k, y, k),
        "process": lambda: ntk_jax.gp_posterior(k, y, k, k, noise=0.1),
        "evidence": lambda: ntk_jax.log_marginal_likelihood(k, y, noise=0.1),
        "eigenvalues": lambda: ntk_jax.eigenvalues(k),
        "rank": lambda: ntk_jax.effective_rank(k),
        "definite": lambda: ntk_jax.definiteness(k),
    }
    for name, door in doors.items():
        try:
            door()
        except ValueError as error:
            assert "ntk_jax.solve" in str(error), error
        else:
            raise AssertionError(name)


def everything(mesh):
    """All kinds of kernels and results."""
    yield from few(mesh)
    x, x2, v = examples(N, 0), examples(N2, 2), examples(PRIME, 3)
    sharded = ntk_jax.shard(RELU, mesh, block_size=BLOCK)
    yield "exact: relu", sharded(x).ntk
    yield "exact: relu, x2", sharded(x, x2).nngp
    f, params = network()
    finite = lambda x1, x2=None: ntk_jax.empirical_ntk(f, params, x1, x2, outputs="full")
    yield "exact: network", ntk_jax.shard(finite, mesh, block_size=BLOCK)(x)
    for storage in ("memory", "recompute"):
        yield f"relu, {storage}", operator(RELU, mesh, storage=storage) @ v
        op, other = (operator(cubic, mesh, x2, storage=storage) for x2 in (None, x2))
        yield f"exact: columns, {storage}", op.columns(np.array([3, -1]))
        yield f"exact: diagonal, {storage}", op.diagonal()
        yield f"vector, {storage}", op @ v[:, 0]
        yield f"rectangle, {storage}", other @ v[:N2]
        yield f"transposed, {storage}", other.T @ v
        yield f"transposed columns, {storage}", other.T.columns(np.array([3, -1]))
        yield f"in a program, {storage}", jax.jit(lambda op, v: op @ (op @ v))(op, op @ v)
    yield from of_networks(mesh)


def of_networks(mesh):
    """Tangent kernels that are never formed, of rows that are shared out or not."""
    for name, n in (("shared", N), ("whole", PRIME)):
        x, v = examples(n, 1), examples(2 * n, 3)
        op = ntk_jax.ntk_operator(*network(), x, mesh=mesh, block_size=4)
        other = ntk_jax.ntk_operator(*network(), x, examples(N2, 2), mesh=mesh)
        yield f"network, {name}", op @ v
        yield f"network, {name}, diagonal", op.diagonal()
        yield f"network, {name}, columns", op.columns(np.array([3, -1, 7]))
        yield f"network, {name}, rectangle", other @ v[: 2 * N2]
        yield f"network, {name}, transposed", other.T @ v
        yield f"network, {name}, in a program", jax.jit(lambda op, v: op @ v)(op, v)


def operator(kernel_fn, mesh, x2=None, **options):
    x = examples(PRIME, 1)
    return ntk_jax.kernel_operator(
        kernel_fn, x, x2, kernel="ntk", mesh=mesh, block_size=BLOCK, **options
    )


def network():
    return drawn(ntk_jax.MLP((8,), 2, "tanh", 1.2, 0.3), jnp.asarray(examples(1, 1)))


def refusals(mesh):
    """What processes with different arguments are told, each of them."""
    mine = jax.process_index()
    wrong = {
        "other rows": examples(PRIME, mine),
        "a row less": examples(PRIME - (mine == 1), 0),
        "not finite": np.where(mine == 1, np.nan, examples(PRIME, 0)),
        "no examples": examples(PRIME, 0)[:, 0] if mine == 1 else examples(PRIME, 0),
    }
    for name, x in wrong.items():
        try:
            ntk_jax.kernel_operator(cubic, x, kernel="ntk", mesh=mesh, storage="recompute")
        except ValueError as error:
            sys.stdout.write(f"refused {name}: {error}\n")
    try:
        operator(cubic, mesh) @ examples(PRIME + (mine == 1), 0)
    except ValueError as error:
        sys.stdout.write(f"refused a vector: {error}\n")


def dying(mesh):
    """Products until process 1 is killed."""
    op, v = operator(cubic, mesh, storage="recompute"), examples(PRIME, 3)
    for step in range(10**6):
        w = op @ v
        if step == 20 and jax.process_index() == 1:
            sys.stdout.write(f"killed at {time.monotonic()}\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        v = w / jnp.linalg.norm(w)
    yield "never", v


class Watched:
    """An operator that is killed with process 1 in one of its products, if that is asked for."""

    def __init__(self, op, last):
        self.op, self.last, self.products = op, last, 0
        self.shape, self.dtype = op.shape, op.dtype

    def __matmul__(self, v):
        self.products += 1
        if self.products == self.last and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.op @ v


def laplace(x1, x2=None):
    """A kernel whose eigenvalues decay slowly: conjugate gradients take many steps."""
    y = x1 if x2 is None else x2
    squares = jnp.sum(jnp.square(x1[:, None] - y[None]), axis=2)
    return jnp.exp(-jnp.sqrt(squares) / 10)


def system():
    """Rows and right-hand sides of a solve, in float64."""
    return examples(211, 1).astype(float), examples(211, 5)[:, :2].astype(float)


def solved(mesh, last=None):
    """A solve with checkpoints beside the results, and the products that it took."""
    jax.config.update("jax_enable_x64", True)
    x, y = system()
    op = ntk_jax.kernel_operator(laplace, x, mesh=mesh, storage="recompute", block_size=BLOCK)
    op, folder = Watched(op, last), Path(sys.argv[2]).parent / "checkpoint"
    options = {"preconditioner": None, "tol": 1e-12, "checkpoint": folder, "progress": False}
    found = ntk_jax.solve(op, y, diag_reg=1e-3, method="conjugate_gradients", **options)
    yield "value", found.value
    yield "steps", np.array(found.steps)
    yield "products", np.array(op.products)


RESULTS = {"few": few, "all": everything, "dying": dying, "solved": solved}
RESULTS["killed"] = partial(solved, last=58)


def main(what, path, *cluster):
    if cluster:
        names = ("coordinator_address", "num_processes", "process_id")
        values = (cluster[0], int(cluster[1]), int(cluster[2]))
        processes.initialize(**dict(zip(names, values, strict=True)))
    mesh = jax.make_mesh((jax.device_count(),), ("anything",))
    if cluster and what == "few":
        refusals(mesh)
    found = dict(RESULTS[what](mesh))
    whole_already = lambda a: isinstance(a, np.ndarray) or a.is_fully_replicated
    gather = lambda a: a if whole_already(a) else process_allgather(a, tiled=True)
    whole = {name: gather(a) for name, a in found.items()}
    if jax.process_index() == 0:
        np.savez(path, **{name: np.asarray(a) for name, a in whole.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
