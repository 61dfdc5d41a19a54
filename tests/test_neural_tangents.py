"""The page for those who come from google/neural-tangents: every public name of theirs is on it,
and every line of ours gives what theirs gave.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from cases.architectures import lenient
from cases.neural_tangents import DATA, LINES, OURS, VALUES

STORED = json.loads((Path(__file__).parent / "references" / "migration.json").read_text())
QUICK = ("empirical_ntk_fn", "predict.gradient_descent_mse", "stax.Relu", "stax.Dense")


@pytest.fixture(scope="module")
def here():
    names: dict = {}
    lenient(exec)(DATA + OURS, names)
    return names


@pytest.mark.parametrize(
    "line",
    [pytest.param(v, id=v.name, marks=[] if v.name in QUICK else pytest.mark.slow) for v in VALUES],
)
@pytest.mark.filterwarnings("ignore:mlp_kernels")  # the default tolerance of a series
def test_our_line_gives_what_theirs_gave(line, here):
    found = lenient(eval)(line.ours, here)
    found = jax.tree.leaves(tuple(found) if isinstance(found, tuple) else found)
    for ours, theirs in zip(found, STORED["values"][line.name], strict=True):
        scale = np.max(np.abs(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=line.rtol * scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [v for v in LINES if v.ours and not v.theirs], ids=lambda v: v.name
)
def test_lines_without_a_value_run(line, here):
    assert lenient(eval)(line.ours, here) is not None


def test_every_name_of_theirs_has_a_line():
    # the first word of a name: a line may be about a way to call it
    assert {v.name.split(",")[0] for v in LINES} == set(STORED["names"])
    assert all(v.ours or v.note for v in LINES)
