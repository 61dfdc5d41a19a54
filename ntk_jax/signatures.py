"""What `help` shows as the signature of a public function: annotations as the source has them."""

import ast
import inspect
from collections.abc import Iterable
from functools import cached_property
from textwrap import dedent
from types import FunctionType, MappingProxyType

WIDTH = 80


class Text(str):
    """An annotation as it is written: `Float[ArrayLike, 'n d']`, not the union it stands for."""

    __repr__ = str.__str__


class SourceSignature(inspect.Signature):
    """Read from the source when it is asked for; a parameter per line where one line is too long.

    At run time annotations stay what they are: `typing.get_type_hints` finds them.
    """

    def __init__(self, function: FunctionType) -> None:
        super().__init__()
        self.function = function

    @cached_property
    def read(self) -> inspect.Signature:
        """The signature with texts as annotations."""
        return _read(self.function)

    @property
    def parameters(self) -> MappingProxyType[str, inspect.Parameter]:
        """As of `inspect.Signature`."""
        return self.read.parameters

    @property
    def return_annotation(self) -> object:
        """As of `inspect.Signature`."""
        return self.read.return_annotation

    def replace(self, **changes: object) -> inspect.Signature:  # type: ignore[override]
        """As of `inspect.Signature`: one that is changed is no longer that of the source."""
        return self.read.replace(**changes)  # type: ignore[arg-type]

    __replace__ = replace  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type, tuple[FunctionType]]:
        return SourceSignature, (self.function,)

    def __str__(self) -> str:
        line = str(self.read)
        if len(self.function.__name__ + line) <= WIDTH:
            return line
        rows, named = [], False
        for parameter in self.parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and not named:
                rows.append("*")
            named |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
            rows.append(str(parameter))
        result = "" if self.return_annotation is self.empty else f" -> {self.return_annotation!r}"
        return "(\n    " + ",\n    ".join(rows) + f",\n){result}"


def readable(values: Iterable[object]) -> None:
    """Give functions, and methods of classes, of this package signatures as in their source."""
    for value in values:
        if not getattr(value, "__module__", "").startswith("ntk_jax"):
            continue
        if isinstance(value, type):
            readable(v for v in vars(value).values() if isinstance(v, FunctionType))
        elif isinstance(value, FunctionType):
            value.__signature__ = SourceSignature(value)  # type: ignore[attr-defined]


def _read(function: FunctionType) -> inspect.Signature:
    inner = inspect.unwrap(function)
    bare = FunctionType(inner.__code__, {}, inner.__name__, inner.__defaults__, inner.__closure__)
    bare.__kwdefaults__ = inner.__kwdefaults__
    tree = _definition(inner)
    if tree is None:
        bare.__annotations__ = inner.__annotations__
        return inspect.signature(bare)
    plain = inspect.signature(bare)
    texts = {
        node.arg: _text(node.annotation)
        for node in ast.walk(tree.args)
        if isinstance(node, ast.arg) and node.annotation
    }
    parameters = [
        p.replace(annotation=texts.get(p.name, p.empty)) for p in plain.parameters.values()
    ]
    returned = _text(tree.returns) if tree.returns else plain.empty
    return plain.replace(parameters=parameters, return_annotation=returned)


def _definition(function: FunctionType) -> ast.FunctionDef | None:
    """Its syntax tree; None of a generated function, or of a package without its source."""
    try:
        tree = ast.parse(dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


def _text(node: ast.expr) -> Text:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return Text(node.value)
    return Text(ast.unparse(node))
