"""How much memory a computation may take: the one budget, how many at once, whether a result fits.

A budget is in bytes, for everything but the result.
"""

import math
import re
import time
from functools import lru_cache
from typing import Any

import jax

KERNEL_WAY_OUT = (
    "Use outputs='mean' (one number per pair), ntk_operator, which never forms the kernel, or rows "
    "of x1 at a time with results kept on disk."
)

RECENT = 0.1
"""Seconds for which an answer holds."""

LEAST_BUDGET = 2**20
"""What is taken for free where less is."""

ABSENT_DEVICE = 2**34
"""Bytes of an accelerator that is lowered for and is not here: the least that those in use have."""


def free_bytes() -> int | None:
    """Bytes that the default device can still give; None where the platform does not tell."""
    return _free_bytes(int(time.monotonic() / RECENT))


@lru_cache(maxsize=1)  # asking takes as long as a small kernel
def _free_bytes(_: int) -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo", "rb", buffering=0) as file:
            found = re.search(rb"MemAvailable:\s*(\d+) kB", file.read(1024))
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def memory_budget(
    memory_limit: float | None = None,
    *,
    most: float = math.inf,
    on_cpu: bool | None = None,
    needed: float = math.inf,
) -> int:
    """The caller's limit, or else an eighth to a quarter of the free memory, at most 4 GiB on CPU.

    The caller's other work needs room, too. `most` caps a budget on a CPU that the caller did not
    set. `on_cpu` says for which device, None for the default one. Where no more is `needed` than
    the least budget, that is enough.
    """
    if memory_limit is not None:
        return int(memory_limit)
    if needed <= LEAST_BUDGET:
        return LEAST_BUDGET
    by_default = jax.default_backend() == "cpu"
    on_cpu = by_default if on_cpu is None else on_cpu
    free = ABSENT_DEVICE if by_default and not on_cpu else free_bytes()
    most = most if on_cpu else math.inf
    if free is None:
        return int(min(2**30, most))
    share = max(min(free // 4, 2**32 if on_cpu else free), LEAST_BUDGET)
    # A power of 2: small changes of free memory must not change the plan, and compile anew.
    return int(min(1 << (share.bit_length() - 1), most))


def how_many(most: int, each: int, budget: int) -> int:
    """How many of `most` things of `each` bytes a budget holds at a time: at least one."""
    return max(1, min(most, int(budget // max(each, 1))))


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_result_fits(
    result: jax.ShapeDtypeStruct, what: str = "a kernel", way_out: str = KERNEL_WAY_OUT
) -> None:
    """Raise before anything is computed if the result alone exceeds the free memory."""
    size, free = tree_bytes(result), free_bytes()
    if free is not None and size > free:
        raise ValueError(
            f"result: expected {what} within the {readable_size(free)} of free memory; "
            f"shape {result.shape} in {result.dtype.name} takes {readable_size(size)}. {way_out}"
        )


def readable_size(num_bytes: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
