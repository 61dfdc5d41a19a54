"""Programs of few values, by NumPy."""

from ntk_jax.host.few import by_numpy_if_few
from ntk_jax.host.functions import host_values, on_host

__all__ = ["by_numpy_if_few", "host_values", "on_host"]
