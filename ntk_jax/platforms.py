"""One mathematics, two schedules: which of them a computation takes.

A CPU likes tiles that stay in its caches and one output per fused loop; an accelerator likes few,
large launches. Where arrays can be looked at, they say where they are; in a trace only the lowering
knows, so both schedules are traced, and one is kept: `jax.default_backend()` names the host's
default there, whatever is lowered for.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Result = TypeVar("Result")


def is_on_cpu(*arrays: object) -> bool | None:
    """Whether a computation on these arrays is one of the CPU; None in a trace.

    `arrays` are pytrees. NumPy's go to JAX's default device.
    """
    leaves = jax.tree.leaves(arrays)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    placed = [leaf for leaf in leaves if isinstance(leaf, Array)] or [jax.device_put(np.float32(0))]
    if isinstance(placed[0], jax.core.Tracer):  # someone's jit is under way
        return None
    return all(device.platform == "cpu" for a in placed for device in a.devices())


def is_the_host() -> bool:
    """Whether all arrays are where NumPy finds them: it makes others without a program for each."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def by_platform(
    cpu: Callable[..., Result], accelerator: Callable[..., Result], *arrays: object
) -> Result:
    """`cpu(*arrays)` or `accelerator(*arrays)`: pytrees of arrays, and results of one shape."""
    on_cpu = is_on_cpu(*arrays)
    if on_cpu is None:
        return lax.platform_dependent(*arrays, cpu=cpu, default=accelerator)
    return (cpu if on_cpu else accelerator)(*arrays)


def packed_sum(term: Callable[[Array], tuple[Array, Array]], count: int, zero: Array) -> Array:
    """The sums over m < count of both arrays of `term(m)`, each like `zero`, as the real and the
    imaginary part of one: XLA would compute what two sums have in common twice.
    """

    def step(m: Array, total: Array) -> Array:
        return total + lax.complex(*term(m))

    loop = lambda zero: lax.fori_loop(0, count, step, zero)
    in_one_pass = lambda zero: jnp.sum(jax.vmap(step, (0, None))(jnp.arange(count), zero), axis=0)
    return by_platform(loop, in_one_pass, lax.complex(zero, zero))


@jax.jit  # traced once for equal shapes
def computed_once(a: Array) -> Array:
    """The same array; on a CPU computed where it stands: see `held_by_a_loop`."""
    return by_platform(lambda a: held_by_a_loop([a])[0], lambda a: a, a)


def held_by_a_loop(arrays: Sequence[Array]) -> list[Array]:
    """The same arrays, computed where they stand. Keys are left as they are.

    XLA for a CPU computes cheap operations anew in all that read them, which through the layers of
    a network costs time, to compile and to run, that grows exponentially with depth; and a row that
    is read from a stack in a fused loop keeps that from being vectorized. It leaves a loop as it
    is, and takes no notice of `lax.optimization_barrier`.
    """
    held = [a for a in arrays if isinstance(a.dtype, np.dtype)]
    found = iter(lax.fori_loop(0, 2, lambda *_: held, [jnp.zeros_like(a) for a in held]))
    return [next(found) if isinstance(a.dtype, np.dtype) else a for a in arrays]
