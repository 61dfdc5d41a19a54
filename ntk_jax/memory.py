"""How much memory a computation may take."""

import jax

from ntk_jax.compat import free_bytes


def default_memory_limit() -> int:
    """An eighth to a quarter of the device's free memory, at most 4 GiB on a CPU: the caller's
    other work needs room, too.
    """
    free = free_bytes()
    if free is None:
        return 2**30
    cap = 2**32 if jax.default_backend() == "cpu" else free
    share = max(min(free // 4, cap), 2**20)
    return 1 << (
        share.bit_length() - 1
    )  # a power of 2: small changes of free memory must not change the plan
