"""Checks of shapes, values and options: every failure says what was expected, what came, and the
way out.

Values are looked at only where they exist: inside `jax.jit` the checks of shape and dtype remain.
"""

from ntk_jax.checks.kernels import (
    as_example_pair,
    as_examples,
    as_kernel,
    as_outputs,
    as_single_kernel,
    as_targets,
    as_targets_like,
    check_symmetric,
)
from ntk_jax.checks.parameters import check_params
from ntk_jax.checks.values import (
    all_finite,
    as_array,
    check_finite,
    check_integer,
    check_number,
    check_option,
    check_vector,
    working_dtype,
)
