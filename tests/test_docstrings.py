"""Every public function shows an example that runs, and prints what its docstring says."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax

PUBLIC = {f"{name}": getattr(ntk_jax, name) for name in vars(ntk_jax) if name[0] != "_"}
PUBLIC |= {f"duals.{name}": value for name, value in vars(ntk_jax.duals).items() if name[0] != "_"}
FUNCTIONS = {
    name: f
    for name, f in PUBLIC.items()
    if inspect.isfunction(f) and f.__module__.startswith("ntk_jax")
}
NAMES = {"jax": jax, "jnp": jnp, "np": np, "ntk_jax": ntk_jax}  # imported by every example


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_public_function_runs(name):
    found = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name, globs=dict(NAMES))
    assert any(test.examples for test in found), f"{name} has no example (>>>)"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report = []
    for test in found:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
