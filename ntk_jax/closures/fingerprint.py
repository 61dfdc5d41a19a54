"""What a function reads besides its arguments, to be compared: a changed value, another function.

Followed are closures, defaults, globals, attributes of `self` and of modules, and everything these
hold. Numbers are compared by value, JAX arrays, which cannot change, by identity, NumPy arrays by
identity and content. Code of JAX, Flax and the like is taken as fixed.
"""

import functools
import sys
import types
import weakref
from collections.abc import Callable, Collection, Hashable
from typing import Any, TypeAlias

import jax
import numpy as np

from ntk_jax.closures.code import (
    HEAP_TYPE,
    PLAIN,
    SILENT,
    is_fixed,
    is_of_library,
    names_of,
    slots_of,
)
from ntk_jax.compat import flax_modules, is_concrete

MOST_VALUES = 20_000

# Where a Linen module stands in another, and its number.
_OF_LINEN = {"parent", "scope", "_id", "_state", "_parent_ref"}

Function: TypeAlias = Any
"""A function of the user's, or a `Reading` of one, or several in a tuple."""


def _attributes(value: object) -> list[object]:
    return [*getattr(value, "__dict__", {}).values()]


# What values of some kinds hold; all of it is compared.
_HELD: tuple[tuple[tuple[type, ...], Callable[[Any], Collection[object]]], ...] = (
    ((list, tuple, set, frozenset), lambda v: [*v, *_attributes(v)]),
    ((dict, types.MappingProxyType), lambda v: [*v.keys(), *v.values(), *_attributes(v)]),
    ((types.MethodType,), lambda v: (v.__func__, v.__self__)),
    ((functools.partial,), lambda v: (v.func, v.args, v.keywords)),
    ((staticmethod, classmethod), lambda v: (v.__func__,)),
    ((property,), lambda v: (v.fget,)),
    ((slice,), lambda v: (v.start, v.stop, v.step)),
    ((weakref.ref,), lambda v: (v(),)),
)


_BY_VALUE = frozenset((type(None), bool, int, str, bytes, type(...), object))
_ARRAYS = jax.Array, np.ndarray, np.generic


class UndecidedError(Exception):
    """Whether a value has changed cannot be told."""


class Same:
    """Equal for one and the same object, as long as it lives; does not keep it alive."""

    __slots__ = ("identity", "ref")

    def __init__(self, value: object) -> None:
        self.ref, self.identity = weakref.ref(value), id(value)

    def __hash__(self) -> int:
        return self.identity

    def __eq__(self, other: object) -> bool:
        value = self.ref()
        return isinstance(other, Same) and value is not None and value is other.ref()


class Content(int):
    """A number that stands for the entries of an array."""


class Key:
    """A tuple with its hash at hand."""

    __slots__ = ("known", "parts")

    def __init__(self, parts: tuple[Hashable, ...]) -> None:
        self.parts, self.known = parts, hash(parts)

    def __hash__(self) -> int:
        return self.known

    @property
    def outline(self) -> "Key":
        """The key without the arrays: their number, shapes and dtypes stay."""
        return Key(tuple(None if isinstance(part, Same | Content) else part for part in self.parts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.known == other.known and self.parts == other.parts


class Reading:
    """A function together with what it reads now: equal to any other that computes the same.

    Attributes:
        function: what is called.
        key: its fingerprint; None where changes cannot be told.
        objects: the arrays and compiled functions that are compared by identity.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        found = _Fingerprint()
        try:
            found.visit(function)
            self.key: Key | None = Key(tuple(found.parts))
        except (UndecidedError, RecursionError):
            self.key = None
        self.objects = found.objects

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)

    def __hash__(self) -> int:
        return id(self) if self.key is None else hash(self.key)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Reading) and self.key is not None and self.key == other.key
        )

    def __repr__(self) -> str:
        return repr(self.function)

    def __reduce__(self) -> tuple[type, tuple[Function]]:
        return Reading, (self.function,)


def read(function: Function) -> Reading:
    """The function with what it reads now; what has been read in this call is not read again."""
    return function if isinstance(function, Reading) else Reading(function)


class _Fingerprint:
    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.modules: set[tuple[str, str]] = set()
        self.objects: list[Any] = []
        # The value too: else the number of a temporary one could be taken again.
        self.seen: dict[int, tuple[int, object]] = {}

    def visit(self, value: object) -> None:
        """Add what tells `value` from another one."""
        kind = type(value)
        if kind in _BY_VALUE:
            self.parts += (kind, value)
        elif isinstance(value, types.CodeType):  # which is equal to that of another file
            # Generated code may be named by an address.
            self.parts += (value, value.co_filename.partition(" at 0x")[0])
        elif kind in (float, complex):
            self.parts += (kind, repr(value))
        elif id(value) in self.seen:
            self.parts.append(self.seen[id(value)][0])
        elif is_of_library(kind, value):
            self.parts.append(value)
        elif len(self.seen) > MOST_VALUES:
            raise UndecidedError
        else:
            self.seen[id(value)] = (len(self.seen), value)
            self._enter(kind, value)

    def _enter(self, kind: type, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, _ARRAYS):
            self._array(value)
        elif isinstance(value, types.ModuleType):
            self.parts.append(value.__name__)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, Reading):
            self.visit(value.function)
        else:
            held = next((held for kinds, held in _HELD if isinstance(value, kinds)), None)
            self._object(kind, value) if held is None else self._all(kind, held(value))

    def _all(self, kind: type, values: Collection[object]) -> None:
        self.parts += (kind, len(values))
        for value in values:
            self.visit(value)

    def _identity(self, value: object) -> None:
        self.parts.append(Same(value))
        self.objects.append(value)

    def _array(self, value: jax.Array | np.ndarray | np.generic) -> None:
        if not is_concrete(value):
            raise UndecidedError
        if not isinstance(value, jax.Array):
            if value.dtype == object:
                return self._all(type(value), value.tolist() if value.ndim else [value.item()])
            self.parts += (value.dtype, value.shape, Content(hash(value.tobytes())))
        else:
            self.parts.append(value.aval)
        if not isinstance(value, np.generic):
            self._identity(value)
        return None

    def _function(self, value: types.FunctionType) -> None:
        names, attributes = names_of(value.__code__)
        self.visit(value.__code__)
        for cell in value.__closure__ or ():
            try:
                self._named(cell.cell_contents, attributes)
            except ValueError:  # not yet assigned
                self.parts.append("empty")
        for held in (value.__defaults__, value.__kwdefaults__, value.__dict__ or None):
            self.visit(held)
        if not is_fixed(value.__globals__.get("__name__")):
            for name in names:
                if name in value.__globals__:
                    self.parts.append(name)
                    self._named(value.__globals__[name], attributes)

    def _named(self, value: object, attributes: tuple[str, ...]) -> None:
        """What a name stands for; of a module, the attributes that the code names."""
        if not isinstance(value, types.ModuleType):
            self.visit(value)
        elif not is_fixed(value.__name__):
            for name in attributes:
                if name in vars(value) and (value.__name__, name) not in self.modules:
                    self.modules.add((value.__name__, name))
                    self.parts.append(name)
                    self._named(vars(value)[name], attributes)

    def _class(self, value: type) -> None:
        self.parts.append(value)
        for base in value.__mro__:
            if not is_fixed(base.__module__):
                silent = SILENT | _OF_LINEN if issubclass(base, flax_modules("linen")) else SILENT
                self._all(type, [v for k, v in vars(base).items() if k not in silent])

    def _object(self, kind: type, value: Any) -> None:
        if isinstance(value, flax_modules("linen")):
            return self._all(
                kind, [kind, *(x for k, x in vars(value).items() if k not in _OF_LINEN)]
            )
        if kind.__module__.startswith("jaxlib") and hasattr(
            value, "__wrapped__"
        ):  # compiled: keeps what it read first
            self._identity(value)
            return self.visit(value.__wrapped__)
        if is_fixed(kind.__module__) and not jax.tree_util.all_leaves([value]):
            leaves, structure = jax.tree.flatten(value)
            try:
                self.parts += (Key((structure,)),)
                return self._all(kind, leaves)
            except TypeError:  # metadata without a hash
                pass
        held = {
            name: getattr(value, name)
            for base in kind.__mro__
            for name in slots_of(base)
            if hasattr(value, name)
        }
        held |= getattr(value, "__dict__", {})
        if isinstance(value, types.BuiltinFunctionType):
            return self._all(kind, (value.__name__, value.__self__))
        if held or (kind.__flags__ & HEAP_TYPE and kind.__module__ not in sys.stdlib_module_names):
            return self._all(kind, [kind, *held.keys(), *held.values()])
        if kind.__module__.partition(".")[0] not in ("jaxlib", "jax", "numpy") and not isinstance(
            value, PLAIN
        ):
            raise UndecidedError  # an iterator, a file, a generator of random numbers
        try:
            return self._identity(value)
        except TypeError:
            self.parts.append(value)
        return None
