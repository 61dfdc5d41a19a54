"""What the package says of itself, and the names of what its functions return."""

import tomllib
from pathlib import Path

import ntk_jax

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def test_the_version_is_that_of_the_project():
    assert ntk_jax.__version__ == tomllib.loads(PROJECT.read_text())["project"]["version"]


def test_types_of_results_are_public():
    for name in ("Displacement", "Explanation", "MonteCarlo", "Comparison", "Curves"):
        assert isinstance(getattr(ntk_jax, name), type)
