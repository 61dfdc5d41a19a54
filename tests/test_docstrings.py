"""Every public function shows an example that runs, and its docstring is enough to use it."""

import doctest
import inspect
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import ntk_jax
from ntk_jax import data, estimators, losses, plots

PUBLIC = {name: getattr(ntk_jax, name) for name in ntk_jax.__all__}
PUBLIC |= {f"duals.{name}": value for name, value in vars(ntk_jax.duals).items() if name[0] != "_"}
PUBLIC |= {name: getattr(data, name) for name in ("linear_data", "digits_data", "csv_data")}
PUBLIC |= losses.LOSSES | losses.LEVELS
PLOTS = {
    name: value
    for name, value in vars(plots).items()
    if inspect.isfunction(value) and value.__module__.startswith("ntk_jax")
}
PUBLIC |= PLOTS
FUNCTIONS = {
    name: f
    for name, f in PUBLIC.items()
    if inspect.isfunction(f) and f.__module__.startswith("ntk_jax")
}
CLASSES = {name: value for name, value in vars(estimators).items() if name.startswith("NTK")}
# Examples that take the longest, of functions whose own tests are quick.
LONG = (
    *("critical_W_std", "effective_rank", "eigenlearning", "ensemble_mse", "explain_limit"),
    *("from_nnx", "gaussian_initializer", "kernel_evolution", "kernel_operator"),
    *("kernel_regression", "laziness", "learning_curve", "log_determinant"),
    *("mlp_kernels_by_layer", "monte_carlo_estimates", "monte_carlo_kernels", "parameter_flow"),
    *("select_diag_reg", "shard", "spectral_density", "stochastic_trace", "tangent_features"),
    *("tile", "top_eigenvalues", "torch_init", "train_ensemble"),
    *PLOTS,
    *CLASSES,
)
QUICK = [name for name in FUNCTIONS if name not in LONG]
LATER = [pytest.param(name, marks=pytest.mark.slow) for name in LONG]
NAMES = {"jax": jax, "jnp": jnp, "np": np, "ntk_jax": ntk_jax}  # imported by every example


@pytest.mark.parametrize("name", QUICK + LATER)
def test_the_example_of_a_public_function_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what writes files
    value = (FUNCTIONS | CLASSES)[name]
    found = doctest.DocTestFinder(recurse=False).find(value, name, globs=dict(NAMES))
    assert any(test.examples for test in found), f"{name} has no example (>>>)"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report = []
    for test in found:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            runner.run(test, out=report.append)
    plt.close("all")
    assert not runner.failures, "".join(report)


# What refuses nothing, of what is passed on; what is no mathematics.
WITHOUT = {
    "Raises:": {"scale_output", "zero_output", "torch_init", "linear_data", *PLOTS},
    "formula": {
        "register_rule",
        "infinite_width",
        "explain_limit",
        "shard",
        "tile",
        "csv_data",
        "digits_data",
        *PLOTS,
    },
}
FORMULA = r"[=Σ∂²√←]|\|f|max\(|\(y - f\)|sqrt|log\(|(?<=[a-z] )\d{4}\b"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_help_is_enough(name):
    """Purpose, arguments, shapes, errors, and a formula or where it is from."""
    text = inspect.getdoc(FUNCTIONS[name])
    said = re.sub(r"Example:\n(    .*\n?)+", "", text)
    assert len(said.split("\n\n")[0]) > 20
    if not {"q11", "f", "level"} & set(inspect.signature(FUNCTIONS[name]).parameters):
        for parameter in inspect.signature(FUNCTIONS[name]).parameters:
            assert re.search(rf"^    \**{parameter}: ", said, re.M), f"{name} says no {parameter}"
        assert "Returns:" in said or "-> None" in str(inspect.signature(FUNCTIONS[name]))
        assert "Raises:" in said or name in WITHOUT["Raises:"], name
    assert re.search(FORMULA, said) or "Reference" in said or name in WITHOUT["formula"], name
