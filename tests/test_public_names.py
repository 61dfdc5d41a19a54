"""What the package says of itself, the names of what its functions return, readable signatures."""

import inspect
import pickle
import pydoc
import tomllib
from functools import partial
from pathlib import Path

import pytest

import ntk_jax
from ntk_jax import data, estimators, plots

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
ROOMS = (ntk_jax, ntk_jax.duals, ntk_jax.losses, data, estimators, plots)
PUBLIC = {name: value for room in ROOMS for name, value in vars(room).items() if name[0] != "_"}
OURS = {n: v for n, v in PUBLIC.items() if getattr(v, "__module__", "").startswith("ntk_jax")}
FUNCTIONS = [v for v in OURS.values() if inspect.isfunction(v)]
METHODS = [m for v in OURS.values() if inspect.isclass(v) for m in vars(v).values()]
STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
WRITTEN = [m for m in METHODS if inspect.isfunction(m) and "ntk_jax" in m.__code__.co_filename]


def test_the_version_is_that_of_the_project():
    assert ntk_jax.__version__ == tomllib.loads(PROJECT.read_text())["project"]["version"]


def test_types_of_results_are_public():
    for name in ("Displacement", "Explanation", "MonteCarlo", "Comparison", "Curves"):
        assert isinstance(getattr(ntk_jax, name), type)


def test_help_shows_signatures_that_can_be_read():
    for function in FUNCTIONS:
        text = pydoc.plain(pydoc.render_doc(function)).split("\n", 2)[2]
        assert max(map(len, text.splitlines())) <= 100, function.__name__
        for unreadable in ("Union[", "jaxtyping.", "typing.", "jaxlib"):
            assert unreadable not in text, function.__name__


@pytest.mark.parametrize("function", [*FUNCTIONS, *WRITTEN], ids=lambda f: f.__qualname__)
def test_a_signature_says_what_python_knows(function):
    inner, shown = inspect.unwrap(function), inspect.signature(function)
    code = inner.__code__
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    assert [n for n, p in shown.parameters.items() if p.kind not in STARRED] == list(named)
    defaults = [p.default for p in shown.parameters.values() if p.default is not p.empty]
    assert defaults == [*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values()]
    texts = {n: p.annotation for n, p in shown.parameters.items()}
    texts["return"] = shown.return_annotation
    for name, annotation in inner.__annotations__.items():
        meant = annotation if isinstance(annotation, str) else eval(texts[name], inner.__globals__)
        assert repr(meant) == repr(annotation)


def test_signatures_can_be_bound_and_pickled():
    signature = inspect.signature(ntk_jax.mlp_kernels)
    assert pickle.loads(pickle.dumps(signature)) == signature
    assert signature.bind(1, depth=3).arguments == {"x1": 1, "depth": 3}
    fixed = inspect.signature(partial(ntk_jax.mlp_kernels, depth=2))
    assert fixed.parameters["depth"].default == 2
