"""One place for strictness: float64 available, no implicit promotion of ranks or dtypes, annotated
shapes checked.
"""

import gc
import os
from contextlib import nullcontext

import hypothesis
import jax
import jaxtyping
import matplotlib
import numpy as np
import pytest
from annotations import checked
from repeats import COMPUTE, STAY

from cases.compilations import optimized

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
matplotlib.use("Agg")

jaxtyping.jaxtyped = lambda **_: checked  # what the import hook decorates with

gc.disable()  # nothing that is imported is garbage

# The tests that take longest. Nothing else is left to run beside one of them that starts last.
FIRST = ("test_readme.py", "test_notebooks.py", "test_demo.py")


def pytest_sessionstart():
    """In `make test OPTIMIZED=1` every program is compiled as those of large arrays are."""
    if os.environ.get("OPTIMIZED"):
        from ntk_jax import small_programs
        from ntk_jax.host import few

        small_programs.LARGEST = few.FEW = 0


@pytest.fixture(autouse=True)
def large_if_slow(request, monkeypatch):
    """Slow tests leave nothing to NumPy: what they are about are programs of XLA's, which is what
    large arrays take.
    """
    if request.node.get_closest_marker("slow"):
        monkeypatch.setattr("ntk_jax.host.few.FEW", 0)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    """Repeats are slow. The longest tests go first; the others keep their order, as tests of one
    module share compiled programs.
    """
    for item in items:
        stay = STAY.get(f"{item.path.name}::{item.originalname}")
        if stay is not None and (not stay or item.callspec.id not in stay):
            item.add_marker(pytest.mark.slow)
    rank = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))


def pytest_collection_finish():
    """From here on there is garbage, though not among what was imported. Traces make many objects
    that live for long: they are looked through less often.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Modules share few programs, and thousands of them held to the end slow every later one
    down.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def unoptimized():
    """For a file that counts programs, however good they are: XLA takes half the time."""
    with optimized(False):
        yield


@pytest.fixture(autouse=True, scope="module")
def as_for_users(request):
    """In the files that compute for longer than they compile, `make test-slow` optimizes."""
    computes = request.path.name in COMPUTE and request.config.option.markexpr == "slow"
    with optimized(True) if computes else nullcontext():
        yield


@pytest.fixture
def unchecked_shapes():
    """What users have: no run-time shape annotations, so that the library's own errors are what is
    tested.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def short_loops(monkeypatch):
    """Loops of a few steps: those of networks have a hundred."""
    monkeypatch.setattr("ntk_jax.loops.repeats.LEAST_STEPS", 2)


@pytest.fixture
def draw():
    """A function from shapes to standard Gaussians, new ones at each call, equal in every run."""
    return np.random.default_rng(0).standard_normal


@pytest.fixture
def getkey():
    """A function that returns a new random key at each call, the same ones in every run."""
    count = iter(range(10**6))
    return lambda: jax.random.key(next(count))


hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.load_profile("ci")
