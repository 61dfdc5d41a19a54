"""The house rules: who imports whom, how long things may be, public JAX only, names explained.

`python tests/test_architecture.py` prints the measures that `docs/architecture.md` quotes.
"""

import ast
import functools
import importlib
import inspect
import io
import statistics
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from repeats import STAY

import ntk_jax

ROOT = Path(ntk_jax.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
MAX_LINES = 300

# A file imports lower levels or its own folder; rooms of one level do not know each other.
LEVELS = {
    0: ["types", "compat", "examples", "extras", "platforms", "signatures"],
    1: [
        "checks",
        "draws",
        "jaxprs",
        "matrix_functions",
        "memory",
        "norms",
        "progress",
        "small_programs",
    ],
    2: ["closures", "data", "host", "linalg", "loops", "losses", "ode", "tiling"],
    3: ["devices", "duals", "initializers", "operators"],
    4: ["modes", "networks"],
    5: ["dynamics", "finite", "inference", "infinite", "scale", "spectrum"],
    6: ["diagnostics"],
    7: ["training"],
    8: ["estimators", "plots"],
    9: ["cli"],
    10: ["__main__"],
}
# The same between the rooms and files inside a room.
INSIDE = {
    "": LEVELS,
    "finite": {
        0: ["inputs", "jacobian_products", "linearize", "uses"],
        1: ["features"],
        2: ["contraction", "shared_products"],
        3: ["operator", "strategy"],
        4: ["explain", "projection", "views"],
        5: ["by_layer", "empirical"],
        6: ["monte_carlo"],
    },
    "host": {
        0: ["arrangements"],
        1: ["sums"],
        2: ["operations"],
        3: ["program"],
        4: ["few", "functions"],
    },
    "infinite": {0: ["mlp"], 1: ["flax"]},
    "infinite/mlp": {
        0: ["layers", "phase"],
        1: ["diagonal", "gaps"],
        2: ["pairs"],
        3: ["tiles"],
        4: ["recursion"],
        5: ["kernels"],
    },
    "infinite/flax": {
        0: ["errors", "model"],
        1: ["derivatives", "values"],
        2: ["algebra", "answers", "layouts", "moments", "parameter_uses"],
        3: ["alone", "evaluation", "pair_trace", "parameter_views", "products", "sampling"],
        4: ["interpreter", "joining", "scores"],
        5: ["register", "rules"],
        6: ["traced_model"],
        7: ["batch", "fully_connected", "observed", "reading"],
        8: ["compiled_model"],
        9: ["limit"],
        10: ["explain"],
    },
    "duals": {
        0: ["content", "hermite_coefficients", "mills", "numerics"],
        1: ["angle", "gaussian_pair"],
        2: ["dual_rule", "kinks", "price_integral"],
        3: ["form", "hermite_series", "rectifiers", "scaled"],
        4: ["closed_forms", "exponential_linear", "mixtures", "polynomials"],
        5: ["recognition"],
        6: ["catalogue"],
        7: ["any_function", "functions"],
        8: ["classical_kernels"],
    },
}
# What the house may not grow beyond.
LIMITS = {"longest import chain": 24, "bare Any": 302, "longest function": 42}


def name_of(path):
    return str(path.relative_to(ROOT))


def module_of(path):
    parts = ("ntk_jax", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path):
    """(module, inside a function) of every import; `from ntk_jax import x` counts as ntk_jax.x."""
    tree = ast.parse(path.read_text())
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    inside = {child for f in functions for child in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import one way, by full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module, node in inside


@functools.cache
def graph():
    """The modules of the package that each module imports when it is imported."""
    found = {}
    for module, path in MODULES.items():
        targets = {m for m, inside in imports(path) if m in MODULES and not inside}
        found[module] = targets - {m for m in MODULES if f"{module}.".startswith(f"{m}.")}
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p != ROOT / "__init__.py"], ids=name_of)
def test_imports_go_one_way(path):
    mine = module_of(path).split(".")[1:]
    for module, _ in imports(path):
        if not module.startswith("ntk_jax."):
            continue
        theirs = module.split(".")[1:]
        common = next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None
        )
        if common is None or "/".join(mine[:common]) not in INSIDE:
            continue
        table = INSIDE["/".join(mine[:common])]
        level = {room: number for number, rooms in table.items() for room in rooms}
        assert mine[common] in level, f"give {'.'.join(mine[: common + 1])} a level"
        assert level[theirs[common]] < level[mine[common]], f"{name_of(path)} imports {module}"


def test_every_room_has_a_level():
    for room, table in INSIDE.items():
        children = {p.stem if p.suffix else p.name for p in (ROOT / room).iterdir()}
        children -= {"__init__", "__pycache__", "py", "py.typed"}
        named = {name for names in table.values() for name in names}
        assert children <= named, f"{room or 'ntk_jax'}: {children - named}"


def test_no_import_cycles():
    done, active = set(), []

    def visit(module):
        assert module not in active, f"cycle: {' -> '.join([*active, module])}"
        if module not in done:
            active.append(module)
            for other in graph()[module]:
                visit(other)
            done.add(active.pop())

    for module in graph():
        visit(module)


def longest_chain():
    """The longest way down the imports, the package's own front left out."""

    @functools.cache
    def below(module):
        return (*max(map(below, graph()[module]), key=len, default=()), module)

    return max((below(m) for m in MODULES if m != "ntk_jax"), key=len)


def functions_of(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def body_length(function):
    """Lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def annotations_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            a = node.args
            every = (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg)
            yield from (arg.annotation for arg in every if arg is not None)
            yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def measures():
    """What can be counted of the house."""
    texts = [path.read_text() for path in FILES]
    trees = [ast.parse(text) for text in texts]
    functions = [f for tree in trees for f in functions_of(tree)]
    bodies = sorted(map(body_length, functions))
    annotations = [a for tree in trees for a in annotations_of(tree)]
    is_text = lambda n: isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
    statements = [n for t in trees for n in ast.walk(t) if isinstance(n, ast.stmt)]
    tokens = [t for s in texts for t in tokenize.generate_tokens(io.StringIO(s).readline)]
    comments = [t for t in tokens if t.type == tokenize.COMMENT and "noqa" not in t.string]
    untyped = [f for f in functions if f.returns is None]
    return {
        "files": len(FILES),
        "median file, lines": statistics.median(text.count("\n") for text in texts),
        "90th percentile of function bodies, lines": bodies[int(0.9 * len(bodies))],
        "longest function": bodies[-1],
        "longest import chain": len(longest_chain()),
        "bare Any": sum(isinstance(a, ast.Name) and a.id == "Any" for a in annotations),
        "functions without annotations": len(untyped),
        "statements": len(statements) - sum(map(is_text, statements)),
        "lines with a comment, %": round(
            100 * len(comments) / sum(bool(line.strip()) for t in texts for line in t.split("\n")),
            1,
        ),
    }


def test_the_house_does_not_grow_beyond_its_limits():
    found = measures()
    assert {name: found[name] for name in LIMITS if found[name] > LIMITS[name]} == {}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_and_use_public_jax(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES
    assert "._src" not in text
    assert text.startswith('"""'), "a file says in its first line what it is"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_inside_functions_are_optional_extras(path):
    extras = {
        "tqdm",
        "sklearn.datasets",
        "ntk_jax.estimators",
        "ntk_jax.plots",
        "lineax",
        "orbax.checkpoint",
        "sklearn.base",
        "diffrax",
        "equinox",
        "pyarrow.parquet",
        "tensorstore",
    }
    assert {module for module, inside in imports(path) if inside} <= extras


def test_public_names_are_sorted_and_documented():
    tree = ast.parse((ROOT / "__init__.pyi").read_text())
    found = [
        (".".join(filter(None, ("ntk_jax", node.module))), alias.asname)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert found == sorted(found, key=lambda pair: (pair[0], not pair[1].isupper(), pair[1]))
    for module, name in found:
        value = getattr(importlib.import_module(module), name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__ and not value.__doc__.startswith(f"{name}("), name


def in_a_process(code):
    """What it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_name_is_imported_when_it_is_asked_for_and_heavy_packages_by_none():
    heavy = ("matplotlib", "sklearn", "diffrax", "tqdm", "orbax", "flax.nnx")
    code = f"""
import sys, ntk_jax
assert not {{"jax", "flax", "optax"}} & sys.modules.keys()
ntk_jax.gp_posterior, ntk_jax.mlp_kernels
assert "jax" in sys.modules and not {{"flax", "optax"}} & sys.modules.keys()
all(getattr(ntk_jax, name) for name in ntk_jax.__all__)
assert {{*ntk_jax.__all__}} <= {{*dir(ntk_jax)}} and ntk_jax.__version__
print(*[m for m in {heavy} if m in sys.modules])
"""
    assert in_a_process(code) == ""


def test_what_is_first_imported_in_a_trace_keeps_nothing_of_it():
    code = """
import sys, jax, ntk_jax
jax.jit(lambda x: [getattr(ntk_jax, name) for name in ntk_jax.__all__] and x)(1.0)
held = [value for name in sys.modules if name.startswith("ntk_jax") for value in
        vars(sys.modules[name]).values()]
assert len(held) > 1000
print(*[a for value in held for a in jax.tree.leaves(value) if isinstance(a, jax.core.Tracer)])
"""
    assert in_a_process(code) == ""


@pytest.mark.parametrize("name", STAY)
def test_repeats_are_tests_that_exist(name):
    file, function = name.split("::")
    assert f"def {function}(" in (Path(__file__).parent / file).read_text()


if __name__ == "__main__":
    for measure, value in measures().items():
        print(f"{value:>8}  {measure}")
    print(" -> ".join(longest_chain()))
