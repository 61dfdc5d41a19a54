"""Functions of few values on the host, by NumPy.

What is looked at before a program is compiled, such as how many terms a series needs, and what each
example has with itself, are some thousand values: XLA would take longer to compile their program
than NumPy to compute them.
"""

import math
from collections.abc import Callable, Hashable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.compat import is_concrete
from ntk_jax.host.arrangements import Value
from ntk_jax.host.program import QUICK, HostProgram, host_program


def host_values(f: Callable[..., Value], *args: np.ndarray) -> Value:
    """The arrays that `f` returns, as NumPy's, in the dtypes of JAX.

    By XLA in one program where NumPy does not know an operation.
    """
    dtype = jnp.result_type(float)
    values = [np.asarray(a, dtype) for a in args]
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*values)
    if (program := host_program(closed)) is not None:
        return jax.tree.unflatten(jax.tree.structure(shapes), program(*values))
    found = jax.jit(f)(*values)
    if not all(map(is_concrete, jax.tree.leaves(found))):  # under someone's jit
        with jax.ensure_compile_time_eval():
            found = jax.jit(f)(*values)
    return jax.tree.map(np.asarray, found)


def on_host(f: Callable[..., Value], static: Hashable, *args: Value, few: bool = False) -> Value:
    """`f(static, *args)` of pytrees of concrete arrays on the host, as NumPy's; None where NumPy
    does not know an operation, or XLA is much faster: where NumPy is not quick, and if the
    arguments are not `few`, on arrays larger than those.

    `f` is a function of a module: programs are remembered by it, `static`, shapes and dtypes.
    """
    leaves, structure = jax.tree.flatten(args)
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    x64: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    found = _program(f, static, structure, kinds, x64, few)
    if found is None:
        return None
    program, results = found
    return jax.tree.unflatten(results, program(*map(np.asarray, leaves)))


@lru_cache(maxsize=256)
def _program(
    f: Callable[..., Value],
    static: Hashable,
    structure: Value,
    kinds: tuple[Value, ...],
    x64: bool,
    few: bool,
) -> tuple[HostProgram, Value] | None:
    args = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
    closed, shapes = jax.make_jaxpr(f, static_argnums=0, return_shape=True)(static, *args)
    most = QUICK if few else max(QUICK, _GROWTH * max(math.prod(shape) for shape, _ in kinds))
    program = host_program(closed, most)
    return None if program is None else (program, jax.tree.structure(shapes))


_GROWTH = 16  # a mixture has ten scales
