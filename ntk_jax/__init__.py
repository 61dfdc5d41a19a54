"""Neural tangent kernels in JAX: finite width, infinite width, and training under them.

The public names are those of `__init__.pyi`; each is imported when it is first asked for.
"""

import importlib.metadata as _metadata

import lazy_loader as _lazy

import ntk_jax.signatures as _signatures

try:
    __version__ = _metadata.version("ntk-jax")
except _metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "unknown"

_imported, _, __all__ = _lazy.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    value = _imported(name)
    _signatures.readable([value])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
