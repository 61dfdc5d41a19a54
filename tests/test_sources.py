"""The table of docs/sources.md is complete, and every function, test and notebook that it names
exists.
"""

import re
from pathlib import Path

import pytest

import ntk_jax
from ntk_jax import data, plots

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "sources.md").read_text()
LINES = {"S0": 15, "S1": 11, "S2": 10, "S3": 15, "S4": 11}


@pytest.mark.parametrize("source", LINES)
def test_every_line_of_the_checklist_is_there(source):
    assert re.findall(rf"^\| ({source}-\d+) \|", TEXT, re.M) == [
        f"{source}-{i + 1}" for i in range(LINES[source])
    ]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+\.py::test_\w+)`", TEXT))))
def test_named_tests_exist(name):
    file, function = name.split("::")
    assert f"\ndef {function}(" in (ROOT / "tests" / file).read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"notebook `(\w+)`", TEXT))))
def test_named_notebooks_exist(name):
    assert (ROOT / "notebooks" / f"{name}.ipynb").exists()


def test_named_functions_exist():
    columns = re.findall(r"^\| S\d-\d+ \|[^|]*\|([^|]*)\|", TEXT.replace(r"\|", "/"), re.M)
    names = {
        name for column in columns for name in re.findall(r"(?:`|`train\()([a-zA-Z_.]+)", column)
    }
    for name in names:
        room, _, rest = name.rpartition(".")
        owner = {
            "plots": plots,
            "data": data,
            "duals": ntk_jax.duals,
            "History": None,
            "": ntk_jax,
        }[room]
        assert rest in ntk_jax.History._fields if owner is None else hasattr(owner, rest), name
