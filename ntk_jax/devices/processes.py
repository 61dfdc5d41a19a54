"""Several processes that compute one thing: started with bounded waiting, agreed on their inputs,
and ended together.

A process that waits for another one in a collective operation waits for ever if that one has
raised. So all raise before the first one, or none; and what dies later is noticed by its heartbeat.
"""

import hashlib
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from ntk_jax.compat import is_concrete
from ntk_jax.devices.mesh import Tree, num_processes, place

T = TypeVar("T")

Option: TypeAlias = Any  # of `jax.distributed.initialize`


def initialize(
    *, heartbeat_timeout_seconds: int = 10, shutdown_timeout_seconds: int = 10, **options: Option
) -> None:
    """`jax.distributed.initialize(**options)` with bounded waiting.

    JAX's own 100 and 300 s are how long the survivors of a failure keep their devices.

    Call it before anything else of JAX's. On Slurm, Open MPI, Kubernetes and cloud TPU no options
    are needed; elsewhere `coordinator_address`, `num_processes` and `process_id`.

    Args:
        heartbeat_timeout_seconds: after so long without a sign of life, a process counts as dead;
            longer where a host may be busy, such as while it compiles for minutes on few cores.
        shutdown_timeout_seconds: how long a process waits for the others at its end.
        options: as JAX's.

    JAX before 0.8 does not have both settings; those it does not have are left out.
    """
    known = inspect.signature(jax.distributed.initialize).parameters
    limits = {
        "heartbeat_timeout_seconds": heartbeat_timeout_seconds,
        "shutdown_timeout_seconds": shutdown_timeout_seconds,
    }
    supported: dict[str, Any] = {name: value for name, value in limits.items() if name in known}
    jax.distributed.initialize(**supported, **options)


def is_shared(mesh: Mesh | None) -> bool:
    """Whether a mesh has devices of other processes."""
    return mesh is not None and num_processes(mesh) > 1


def agreed(mesh: Mesh | None, prepare: Callable[[], T], inputs: Callable[[T], Any]) -> T:
    """`prepare()`, which checks arguments; on a mesh of several processes it succeeds in all of
    them, with the same `inputs` (a pytree of arrays), or raises in all of them.

    Raises:
        ValueError: another process refused its arguments, or has others.
    """
    if not is_shared(mesh):
        return prepare()
    problem, digest = None, 0
    try:
        found = prepare()
        digest = _digest(inputs(found))
    except Exception as error:  # the others must hear of it, whatever it is
        problem = error
    mine = np.array([problem is not None, digest >> 32, digest & 0xFFFFFFFF], np.uint32)
    with ending_together():
        all_ = process_allgather(mine)
    if problem is not None:
        raise problem
    if all_[:, 0].any():
        raise ValueError(
            f"process {int(all_[:, 0].argmax())} refused its arguments, and says why: expected "
            "arguments that every process accepts. Nothing was computed."
        )
    differs = (all_ != all_[:1]).any(axis=1)
    if differs.any():
        raise ValueError(
            f"process {int(differs.argmax())} has other arguments than process 0: expected equal "
            "arrays on every process. Load the same file, or draw with the same seed, everywhere."
        )
    return found


def same_everywhere(mesh: Mesh | None, v: T, check: Callable[[T], Array]) -> Array:
    """`check(v)` on every device of a mesh; what all processes share already, or is traced, is not
    compared.
    """
    if isinstance(v, Array) and not (is_concrete(v) and v.is_fully_addressable):
        return place(check(v), mesh)
    return place(agreed(mesh, lambda: check(v), lambda w: w), mesh)


def _digest(tree: Tree) -> int:
    """64 bits of all shapes, dtypes and entries; of arrays of all processes not the entries."""
    found = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, Array | np.ndarray):
            found.update(repr(leaf).encode())
            continue
        found.update(repr((leaf.shape, str(leaf.dtype))).encode())
        if getattr(leaf, "is_fully_addressable", True):
            found.update(np.ascontiguousarray(leaf).data)
    return int.from_bytes(found.digest(), "big")


@contextmanager
def ending_together() -> Iterator[None]:
    """What a computation of several processes raises when one of them has died says what to do.

    Raises:
        RuntimeError: JAX's error, with the command that starts again.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise RuntimeError(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on, as a "
            "computation of all processes failed: another one died, or is out of memory "
            f"({str(error).splitlines()[0][:200]}). End all processes, and start every one again "
            f"to resume: {shlex.join(sys.orig_argv)} (What a KernelStore or a checkpoint holds "
            "is not computed again.)"
        ) from error


def finished(mesh: Mesh | None, result: T) -> T:
    """A result of several processes when it is there: a failure must not come from elsewhere."""
    if not is_shared(mesh) or not all(map(is_concrete, jax.tree.leaves(result))):
        return result
    with ending_together():
        return jax.block_until_ready(result)
