"""Checks of shapes, values and options: every failure says what was expected, what came, and the
way out.

Values are looked at only where they exist: inside `jax.jit` the checks of shape and dtype remain.
"""

from ntk_jax.checks.examples import as_example_pair, as_example_tree, as_example_trees, as_examples
from ntk_jax.checks.kernels import (
    as_coupled_kernel,
    as_dtype,
    as_kernel,
    as_outputs,
    as_single_kernel,
    as_square_kernel,
    as_targets,
    as_targets_like,
    check_in_one_piece,
)
from ntk_jax.checks.looks import Look, check_looks, look, looks
from ntk_jax.checks.parameters import check_params
from ntk_jax.checks.values import (
    Number,
    all_finite,
    as_array,
    as_number,
    check_finite,
    check_integer,
    check_number,
    check_option,
    check_vector,
    is_zero,
    working_dtype,
)
