"""What code and types tell about themselves: whose they are, and which names they read."""

import dis
import functools
import sys
import types

FIXED = {
    *"jax jaxlib flax numpy optax scipy equinox chex jaxtyping beartype einops ml_dtypes".split(),
    *"haiku lineax diffrax orbax typing_extensions ntk_jax".split(),
    *sys.stdlib_module_names,
}
"""Packages whose globals do not change (what their closures and objects hold may)."""

# Attributes of classes that no forward pass reads.
SILENT = {
    *"__doc__ __module__ __dict__ __weakref__ __annotations__ __init__ __repr__ __eq__".split(),
    *"__hash__ __setattr__ __delattr__ __dataclass_fields__ __dataclass_params__".split(),
    *"__match_args__ __qualname__ __post_init__ __init_subclass__ __abstractmethods__".split(),
    *"_abc_impl __firstlineno__ __static_attributes__".split(),
    *"__annotate_func__ __annotations_cache__".split(),  # since Python 3.14
}

HEAP_TYPE = 1 << 9  # the flag of classes that are written in Python

# Parts of types written in C, which do not change.
PLAIN: tuple[type, ...] = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.MethodWrapperType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
    types.GenericAlias,
    types.UnionType,
    range,
)


def slots_of(base: type) -> tuple[str, ...]:
    """Names of the attributes that instances keep outside their dictionary."""
    slots = vars(base).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def is_of_library(kind: type, value: object) -> bool:
    """Whether `value` is a function that a library has by that name, which holds nothing else."""
    if kind is not types.FunctionType and not (
        callable(value) and kind.__module__.startswith("jax")
    ):
        return False
    module = getattr(value, "__module__", None)
    if not is_fixed(module):
        return False
    found: object = sys.modules.get(str(module))
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is value


@functools.lru_cache(maxsize=4096)
def is_fixed(module: str | None) -> bool:
    """Whether the module belongs to a library."""
    return module is not None and module.partition(".")[0] in FIXED


@functools.lru_cache(maxsize=4096)
def names_of(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Globals that the code and functions inside it read; and all names, attributes among them."""
    found, names = set(), set(code.co_names)
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            own, attributes = names_of(inner)
            found |= set(own)
            names |= set(attributes)
    return tuple(sorted(found)), tuple(sorted(names))
