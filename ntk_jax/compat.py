"""The only place where JAX and Flax versions differ."""

import importlib
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import Any, TypeAlias, cast

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

_shard_map: Callable[..., Callable[..., Any]]
if hasattr(jax, "shard_map"):
    _shard_map, _UNCHECKED = jax.shard_map, {"check_vma": False}
else:  # JAX 0.6.0
    from jax.experimental.shard_map import shard_map as _shard_map

    _UNCHECKED = {"check_rep": False}

Arrays: TypeAlias = Any  # a pytree of arrays
Specs: TypeAlias = Any  # a pytree of PartitionSpecs

Literal = jex_core.Literal

# Name of an equation that calls a jaxpr -> the parameter that holds it. "pjit" became "jit" in JAX
# 0.7.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}

# Calls with a derivative rule of their own.
CUSTOM_CALLS = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}

REMATS = ("checkpoint", "remat", "remat2")

# Compiler options for a program that runs once. XLA would compute what does not depend on its
# arguments, such as the counts that average pooling divides by, while it compiles: slower than the
# program by orders, and with a warning in the terminal.
UNFOLDED: Any = {"xla_disable_hlo_passes": "constant_folding"}

# Settings that a `with` block changes for its thread alone, which change results or where and how
# they are computed.
CONTEXTS = (
    "check_tracer_leaks",
    "default_device",
    "default_matmul_precision",
    "default_prng_impl",
    "disable_jit",
    "enable_x64",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "threefry_partitionable",
)


NnxModule: TypeAlias = Any
"""A `flax.nnx.Module`."""


def scan_counts(params: Any) -> tuple[int, int]:
    """How many arguments of a `scan` are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # JAX 0.12
    return len(list(consts)), len(list(carry))


def without_consts(closed: jex_core.ClosedJaxpr) -> jex_core.Jaxpr:
    """Its program, which keeps no constant alive: since JAX 0.12 a jaxpr holds its own."""
    if isinstance(closed, jex_core.Jaxpr):
        return jex_core.ClosedJaxpr(closed, [])
    return closed.jaxpr


def scipy_linalg() -> ModuleType:
    """SciPy's LAPACK, which takes longer to import than this library: when it is asked for."""
    return importlib.import_module("scipy.linalg")


def nnx() -> ModuleType:
    """Flax's NNX, which takes longer to import than this library: when it is asked for."""
    return importlib.import_module("flax.nnx")


def flax_modules(kind: str) -> tuple[type, ...]:
    """What `isinstance` asks of a module of "linen" or "nnx": nothing before that was imported."""
    loaded = sys.modules.get(f"flax.{kind}")
    return () if loaded is None else (loaded.Module,)


def is_concrete(x: Any) -> bool:
    """Whether the values of `x` can be looked at now: False inside jit, vmap and grad."""
    return not isinstance(x, jax.core.Tracer)


_trace_state: Callable[[], object] | None = getattr(jex_core, "get_opaque_trace_state", None)
with jax.ensure_compile_time_eval():  # this file may be imported first in a trace
    _OUTSIDE = None if _trace_state is None else _trace_state()


_abstract_mesh: Callable[[], Hashable] = getattr(jax.sharding, "get_abstract_mesh", lambda: None)


def ambient_mesh() -> Hashable:
    """The mesh that this thread traces a part of: what is traced there fits nowhere else."""
    return _abstract_mesh()


def is_on_host(x: object) -> bool:
    """Whether NumPy reads the values of `x` where they are: numbers, and arrays of the CPU."""
    if not isinstance(x, jax.Array):
        return True
    if not is_concrete(x) or not x.is_fully_addressable:
        return False
    return all(device.platform == "cpu" for device in x.devices())


def default_platform() -> str:
    """Where arrays of NumPy's go."""
    device: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return str(getattr(device, "platform", device)).split(":")[0]


def are_of_one_cpu(*trees: Arrays) -> bool:
    """Whether all arrays are on one CPU, where NumPy reads them; False in a trace of theirs."""
    placed = [a for a in jax.tree.leaves(trees) if isinstance(a, jax.Array)]
    if not placed:
        return default_platform() == "cpu"
    return all(map(is_on_host, placed)) and len(set().union(*(a.devices() for a in placed))) == 1


def is_compiling() -> bool:
    """Whether this thread traces someone's `jax.jit`: then even constants are traced."""
    if _trace_state is not None and _trace_state() == _OUTSIDE:
        return False
    return not is_concrete(jax.device_put(np.float32(0)))


def is_tracing() -> bool:
    """Whether this thread traces anything, derivatives too: functions may hold traced values."""
    return is_compiling() if _trace_state is None else _trace_state() != _OUTSIDE


def on_device(x: np.ndarray) -> jax.Array:
    """A copy of an array of NumPy's as one of JAX's, by what compiles nothing: `jnp.asarray` does
    for every shape in JAX 0.10, `jnp.array` in JAX 0.6.
    """
    # On a CPU JAX takes the memory as it is where it can, and the caller may write to it later.
    return given_to_device([np.array(x)])[0]


def given_to_device(arrays: list[np.ndarray]) -> list[jax.Array]:
    """The same of new arrays that nobody writes to any more: several at once take little longer
    than one.
    """
    placed: list[jax.Array] = jax.device_put(arrays)
    return placed if all(map(is_concrete, placed)) else list(map(jnp.asarray, arrays))


def fetched(tree: Arrays) -> Arrays:
    """The arrays of a pytree, which are in one place, as NumPy's: `jax.device_get`, and without its
    ten microseconds for each where NumPy reads them as they are.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not leaves or not is_on_host(leaves[0]):
        return jax.device_get(tree)
    return jax.tree.unflatten(structure, list(map(np.asarray, leaves)))


def in_dtype(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`x.astype(dtype)`, which takes longer than a look where there is nothing to do."""
    return x if x.dtype == dtype and not x.weak_type else x.astype(dtype)


_aval: Any = getattr(jax, "typeof", None) or jax.core.get_aval  # type: ignore[attr-defined]


def abstract_value(x: Any) -> Any:
    """Shape, dtype and all else of `x` that programs depend on, hashable."""
    return _aval(x)


def settings() -> dict[str, Any]:
    """What `CONTEXTS` are in this thread, but for the device, which cannot be sent elsewhere."""
    return _values(name for name in CONTEXTS if name != "default_device")


def _values(names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(jax.config, f"jax_{name}") for name in names}


@contextmanager
def under_settings(own: dict[str, Any]) -> Iterator[None]:
    """A context in which they are those of another thread or process."""
    with ExitStack() as entered:
        for context in _contexts(own):
            entered.enter_context(context)
        yield


def _contexts(own: dict[str, Any]) -> list[Any]:
    return [
        _x64(value) if name == "enable_x64" else getattr(jax, name)(value)
        for name, value in own.items()
    ]


def outside_traces(f: Callable[..., Any], *args: Any) -> Any:
    """`f(*args)` on concrete values although this thread is tracing: traces belong to threads, and
    so do JAX's contexts.

    (`jax.ensure_compile_time_eval` does not evaluate loops and some functions with custom
    derivatives in JAX 0.6.)
    """
    contexts = _contexts(_values(CONTEXTS))
    contexts += [jax.debug_nans(False), jax.debug_infs(False)]  # what f tries may overflow

    def run() -> Any:
        with ExitStack() as entered:
            for context in contexts:
                entered.enter_context(context)
            return f(*args)

    with ThreadPoolExecutor(1) as other:
        return other.submit(run).result()


def bind(eqn: Any, args: list[Any]) -> list[Any]:
    """Evaluate one equation as it stands: custom differentiation rules and inner jits are kept."""
    found = eqn.primitive.get_bind_params(eqn.params)
    functions, params = (
        found if isinstance(found, tuple | list) else ((), found)
    )  # a pair before JAX 0.10
    out = eqn.primitive.bind(*functions, *args, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def shard_map(
    f: Callable[..., Any], mesh: jax.sharding.Mesh, in_specs: Specs, out_specs: Specs
) -> Callable[..., Any]:
    """`f` on the shards of every device, which is on its own there: derivatives that `f` takes are
    those of its shard, and no loop of a user's needs to know of the mesh.

    (With the check of what varies over the mesh, gradients of replicated parameters would be summed
    over it, in every block.)
    """
    specs = {"mesh": mesh, "in_specs": in_specs, "out_specs": out_specs}
    return _shard_map(f, **specs, **_UNCHECKED)


def double_precision() -> AbstractContextManager[Any]:
    """A context in which float64 is available, whatever JAX's global setting."""
    return _x64(True)


def _x64(enabled: bool) -> AbstractContextManager[Any]:
    switch: Any = (
        jax if hasattr(jax, "enable_x64") else jax.experimental
    ).enable_x64  # moved in JAX 0.8
    return cast(AbstractContextManager[Any], switch(enabled))


def new_primitive(
    name: str,
    evaluate: Callable[..., Any],
    abstract: Callable[..., Any],
    jvp: Callable[..., Any],
    transpose: Callable[..., Any],
    batch: Callable[..., Any],
) -> Any:
    """A primitive of JAX with one result, with its rules; `evaluate` is written in jax.numpy and
    compiled.
    """
    primitive = jex_core.Primitive(name)
    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(evaluate, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    return primitive


def is_zero(tangent: Any) -> bool:
    """Whether a tangent or cotangent, in the rules of a primitive, is known to be 0."""
    return isinstance(tangent, ad.Zero)


is_undefined = ad.is_undefined_primal
