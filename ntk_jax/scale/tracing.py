"""What programs of tiles need to know before they are traced: the kernel, the device, the tile."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ntk_jax.closures.fingerprint import read
from ntk_jax.closures.programs import traced
from ntk_jax.devices.mesh import Tree, is_of_cpus
from ntk_jax.platforms import is_on_cpu
from ntk_jax.scale.tile_products import How
from ntk_jax.types import KernelFn


class Prepared(NamedTuple):
    """Checked arguments of a program of tiles."""

    x1: Array
    x2: Array | None
    how: How
    kernel_fn: KernelFn[Any]


def inputs_of(prepared: object) -> Tree:
    """What every process must have alike: examples, options, arrays that kernel_fn reads."""
    if not isinstance(prepared, Prepared):
        return ()
    return prepared.x1, prepared.x2, prepared.how, arrays_of(prepared.kernel_fn)


def arrays_of(kernel_fn: KernelFn[Any]) -> list[Array | np.ndarray]:
    """The arrays that a kernel_fn reads, such as parameters."""
    return [a for a in read(kernel_fn).objects if isinstance(a, Array | np.ndarray)]


# Rows of a block. A CPU's tiles are small enough to be made beside each other; an accelerator's
# large enough that launches do not count.
HELD_ON_CPU, RECOMPUTED_ON_CPU, ON_ACCELERATOR, LEAST = 256, 1024, 4096, 256

# What a kernel_fn does that looks at values, which are not there in a program.
LOOKS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def default_rows(n: int, on_cpu: bool, held: bool, devices: int) -> int:
    """Rows of a block."""
    if on_cpu:
        # Of a kernel that is held they do not depend on the devices: neither does any entry.
        return HELD_ON_CPU if held else RECOMPUTED_ON_CPU
    share = -(-n // (8 * devices) if held else -n // (2 * devices))
    return int(np.clip(share // LEAST * LEAST, LEAST, ON_ACCELERATOR))


def runs_on_cpu(x: Array, mesh: Mesh | None) -> bool:
    """Whether programs on these examples run on CPUs."""
    if mesh is not None:
        return is_of_cpus(mesh)
    return is_on_cpu(x) is not False


def traced_kernel(
    kernel_fn: KernelFn[Any], x1: Array, x2: Array | None, mesh: Mesh | None
) -> Tree | None:
    """What kernel_fn returns, as shapes; None if it looks at values."""
    if not callable(kernel_fn):
        raise ValueError(
            f"kernel_fn: expected a function kernel_fn(x1, x2=None); got "
            f"{type(kernel_fn).__name__}. An array is an operator already."
        )
    placed = [a for a in arrays_of(kernel_fn) if isinstance(a, Array) and len(a.devices()) > 1]
    if mesh is not None and placed:
        raise ValueError(
            "kernel_fn: expected arrays that it reads, such as parameters, on one device; "
            f"got one of shape {placed[0].shape} on {len(placed[0].devices())} "
            "devices. Read copies of them: jax.device_get(params)."
        )
    few = jax.ShapeDtypeStruct((min(len(x1), 2), *x1.shape[1:]), x1.dtype)
    args = (few,) if x2 is None else (few, jax.ShapeDtypeStruct((1, *x2.shape[1:]), x2.dtype))
    try:
        return traced(_called, read(kernel_fn), *args)[1]
    except LOOKS as error:
        if mesh is None:
            return None
        raise ValueError(
            "kernel_fn: expected a function that JAX can trace, as every device of a mesh runs it "
            f"inside one program; it looks at values: {str(error).splitlines()[0]} Leave mesh out, "
            "or write it with jax.numpy."
        ) from error


def _called(kernel_fn: KernelFn[Any], *args: Array) -> Tree:
    return kernel_fn(*args)
