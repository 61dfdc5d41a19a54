"""The house rules: who may import whom, how long a file may be, public JAX only, every public name
explained.
"""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import ntk_jax

ROOT = Path(ntk_jax.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
MAX_LINES = 360

# A file imports lower levels or its own folder; rooms of one level do not know each other.
LEVELS = {
    0: ["types", "compat"],
    1: ["checks", "draws", "jaxprs", "matrix_functions", "memory", "norms", "progress"],
    2: ["closures", "data", "linalg", "losses", "ode"],
    3: ["initializers", "networks", "operators"],
    4: ["duals", "modes"],
    5: ["dynamics", "finite", "inference", "infinite", "scale", "spectrum"],
    6: ["diagnostics"],
    7: ["training"],
    8: ["estimators", "plots"],
    9: ["cli"],
    10: ["__main__"],
}
LEVEL = {room: level for level, rooms in LEVELS.items() for room in rooms}


def name_of(path):
    return str(path.relative_to(ROOT))


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """(module, inside a function) of every import; `from ntk_jax import demo` counts as
    ntk_jax.demo.
    """
    tree = ast.parse(path.read_text())
    inside = {
        child for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for child in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import one way, by full name"
            package = ROOT.parent / node.module.replace(".", "/")
            if node.module.startswith("ntk_jax") and package.is_dir():
                yield from ((f"{node.module}.{alias.name}", node in inside) for alias in node.names)
            else:
                yield node.module, node in inside


@pytest.mark.parametrize(
    "path", [path for path in FILES if path != ROOT / "__init__.py"], ids=name_of
)
def test_imports_go_one_way(path):
    room = room_of(path)
    assert room in LEVEL, f"give {room} a level in LEVELS"
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "ntk_jax" and parts[1] != room:
            assert LEVEL[parts[1]] < LEVEL[room], f"{name_of(path)} may not import {module}"


def test_no_import_cycles():
    graph = {}
    for path in FILES:
        module = ".".join(["ntk_jax", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
            ".__init__"
        )
        graph[module] = [m for m, inside in imports(path) if m.startswith("ntk_jax") and not inside]
    modules = set(graph)
    prefixes = lambda target: {".".join(target.split(".")[:k]) for k in range(2, 9)}
    own = lambda m: {target for target in modules if f"{m}.".startswith(f"{target}.")}
    graph = {
        m: set().union(*map(prefixes, targets)) & modules - own(m) for m, targets in graph.items()
    }
    done, active = set(), []

    def visit(module):
        assert module not in active, f"cycle: {' -> '.join([*active, module])}"
        if module in done or module == "ntk_jax":
            return
        active.append(module)
        for other in graph[module]:
            visit(other)
        done.add(active.pop())

    for module in graph:
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_and_use_public_jax(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES
    assert "._src" not in text
    assert text.startswith('"""'), "a file says in its first line what it is"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_inside_functions_are_optional_extras(path):
    extras = {"tqdm", "sklearn.datasets", "ntk_jax.plots", "lineax", "sklearn.base", "diffrax"}
    assert {module for module, inside in imports(path) if inside} <= extras


def test_public_names_are_sorted_and_documented():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    found = [
        (node.module, alias.asname)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert found == sorted(found, key=lambda pair: (pair[0], not pair[1].isupper(), pair[1]))
    for module, name in found:
        value = getattr(importlib.import_module(module), name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__ and not value.__doc__.startswith(f"{name}("), name


def test_heavy_packages_are_not_imported_by_the_library():
    import subprocess
    import sys

    heavy = ("matplotlib", "sklearn", "diffrax", "tqdm")
    code = f"import sys, ntk_jax; print(*[m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
