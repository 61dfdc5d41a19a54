"""One program per call: a first call compiles at most three, and an equal call none."""

import jax
import pytest

from cases.architectures import lenient
from cases.compilations import compilations
from cases.front_doors import DOORS

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.mark.slow  # the files beside this one take the same doors apart
@pytest.mark.parametrize("name", DOORS)
def test_a_first_call_compiles_three_programs_at_most_and_an_equal_call_none(name):
    call = lenient(DOORS[name]())  # Flax's pools promote integers
    with compilations() as first:
        jax.block_until_ready(call(1.0))
    assert len(first) <= 3
    with compilations() as equal:
        call(1.0)
    assert not equal
    with compilations() as another_number:
        call(1.01)
    assert not another_number
