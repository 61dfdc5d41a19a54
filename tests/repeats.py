# ruff: noqa: E501  (names of tests)
"""Which cases `make test` leaves to `make test-all` although nothing marks them where they stand:
those whose time goes to compiling one mechanism again.

By file and function: the cases that stay quick, by their ids; all others become slow. Examples in
docstrings, one for every public function, stay quick.
"""

STAY: dict[str, tuple[str, ...]] = {
    "test_compilation_duals.py::test_padded_programs_give_the_values_of_the_unpadded_one": (
        "relu-sizes0",
    ),
    "test_compilation_dynamics.py::test_cross_validation_compiles_less_than_ten_programs": (
        "regression",
    ),
    "test_compilation_dynamics.py::test_only_the_first_call_compiles": (
        "diagonalize", "gradient_flow_mse", "gradient_descent_mse", "kernel_regression",
        "gp_posterior", "ensemble_mse", "leave_one_out", "select_diag_reg", "eigenvalues",
        "effective_rank", "definiteness", "alignment", "cosine", "learning_times", "rkhs_norm",
        "relative_change", "taylor_gap", "max_learning_rate", "spectral_density",
    ),
    "test_compilation_flax.py::test_a_rule_of_the_users_own_is_another_program": (),
    "test_contexts.py::test_numbers_are_the_same_inside_a_context": (
        "mlp_kernels, relu-enable_x64", "mlp_kernels, relu-debugging",
        "infinite_width, relu-enable_x64", "kernel_regression-enable_x64",
        "kernel_regression-debugging", "empirical_ntk-disable_jit", "empirical_ntk-enable_x64",
        "empirical_ntk-debugging", "ntk_operator-enable_x64", "ntk_operator-debugging",
        "linearize-enable_x64", "linearize-disable_jit", "train-disable_jit", "train-enable_x64",
        "train-debugging", "gp_posterior-enable_x64", "gp_posterior-debugging",
        "kernel_diagonal-enable_x64", "kernel_diagonal-disable_jit", "kernel_diagonal-debugging",
        "gradient_flow_mse-enable_x64", "gradient_flow_mse-debugging",
        "gradient_descent_mse-enable_x64", "gradient_descent_mse-debugging",
    ),
    "test_convolution.py::test_a_few_rows_at_a_time_give_the_same_kernel": ("full",),
    "test_convolution.py::test_kernel_of_a_network_down_to_one_pixel_and_its_gradient": (),
    "test_derivatives.py::test_derivatives_are_central_differences": (
        "flow", "flow at inf", "ridge regression", "kernel regression", "posterior",
        "leave one out", "cross-validation", "effective rank", "norm", "norm with a ridge",
        "largest rate", "participation", "sums over modes", "descent", "ensemble",
    ),
    "test_derivatives.py::test_derivatives_by_time_ridge_and_rates": (),
    "test_derivatives.py::test_derivatives_go_through_vectorized_decompositions": (),
    "test_derivatives.py::test_second_derivatives_are_central_differences": ("kernel regression",),
    "test_features.py::test_half_precision_networks": (),
    "test_features.py::test_inside_jit_grad_and_vmap": (),
    "test_features.py::test_methods_agree": (
        "mean-auto", "mean-layerwise", "mean-jacobian", "mean-vector_products", "full-auto",
        "full-layerwise", "diagonal-layerwise", "diagonal-auto",
    ),
    "test_gaussian_process.py::test_ensemble_is_the_affine_image_of_the_prior": ("0.3-shared",),
    "test_gaussian_process.py::test_regression_with_one_kernel_per_output_is_as_many_regressions": (),
    "test_gradient_flow.py::test_dense_output_is_the_solution_between_times": (),
    "test_gradient_flow.py::test_zero_time_alone_and_progress_of_long_solves": (),
    "test_hyperparameters.py::test_any_optimizer_any_kernel_and_the_best_of_the_choices": (),
    "test_infinite_width.py::test_examples_may_be_constants_of_a_compiled_function": (),
    "test_infinite_width.py::test_joined_stacked_and_scattered_values_are_sums_of_their_parts": (),
    "test_infinite_width.py::test_what_is_alike_in_law_but_not_in_form": (),
    "test_kernel_regression.py::test_modes_that_float32_can_tell_are_fitted_and_lost_ones_are_named": (),
    "test_limit_dropout.py::test_linen_and_nnx_are_one_network_and_other_rows_are_those_without_dropout": (),
    "test_mlp_kernels.py::test_equal_and_parallel_rows_have_the_kernels_of_equal_and_parallel_rows": (
        "50-float32",
    ),
    "test_mlp_kernels.py::test_examples_on_a_line_without_biases_have_a_kernel_of_rank_two": (
        "float32",
    ),
    "test_mlp_kernels.py::test_four_nested_derivatives_are_those_of_the_recursion_at_forty_digits": (),
    "test_mlp_kernels.py::test_gradients": ("relu",),
    "test_monte_carlo.py::test_mean_and_error_are_those_of_the_samples": (),
    "test_near.py::test_blocks_of_accelerators_are_the_tiles_of_a_cpu": ("relu", "tanh"),
    "test_near.py::test_clusters_are_positive_semidefinite_at_every_distance": ("relu-float32",),
    "test_near.py::test_pairs_at_every_distance_equal_the_recursion_at_sixty_digits": (
        "options0-float64", "options1-float64", "options1-float32",
    ),
    "test_near.py::test_pairs_that_ordered_layers_bring_together_equal_the_recursion_at_sixty_digits": (
        "12-float64",
    ),
    "test_network_checks.py::test_outputs_that_are_not_finite": (),
    "test_projection.py::test_error_is_that_of_plain_signs": (),
    "test_projection.py::test_functions_of_the_same_parameters": (
        "one leaf", "no leaf", "reshaped weight",
    ),
    "test_projection.py::test_matrix_is_the_jacobian_and_its_projection": ("expert",),
    "test_projection.py::test_signs_do_not_depend_on_how_the_work_is_divided": (),
    "test_regression_on_operators.py::test_a_posterior_with_an_operator_is_that_with_its_array": (
        "True-stored", "False-recompute",
    ),
    "test_regression_on_operators.py::test_regression_with_an_operator_is_that_with_its_array": (
        "memory", "stored",
    ),
    "test_scales_of_layers.py::test_all_forms_are_the_tuple": (
        "list", "float32", "column of a table", "tuple of arrays", "JAX", "integers",
    ),
    "test_scales_of_layers.py::test_derivatives_by_a_vector_of_scales": ("kernel_diagonal",),
    "test_scales_of_layers.py::test_scales_do_not_decide_the_dtype": (),
    "test_scales_of_numbers.py::test_networks_of_any_scale": ("float32-1e+30", "float64-1e+200"),
    "test_separable.py::test_second_derivatives_pass_a_zero_readout": (),
    "test_separable.py::test_shared_cotangents_give_the_kernel_of_dense_jacobians": (
        "dense relu", "deep", "dense gelu",
    ),
    "test_series_bounds.py::test_a_value_is_within_its_bound_or_is_refused": (
        "floor", "square wave", "seventh power",
    ),
    "test_spectrum.py::test_gauss_rule_is_exact_per_probe": (),
    "test_training.py::test_line_search_optimizers_get_what_they_need": (),
}  # fmt: skip
