# ruff: noqa: E501  (names of tests)
"""Which cases `make test` leaves to `make test-all` although nothing marks them where they stand:
those whose time goes to compiling one mechanism again.

By file and function: the cases that stay quick, by their ids; all others become slow.
"""

# Files whose slow tests compute for longer than XLA takes to optimize their programs.
COMPUTE: dict[str, str] = {
    "test_benchmarks.py": "parity and memory of programs as users have them",
    "test_lazy_regime.py": "wide networks that are trained",
    "test_limit_batch_norm.py": "wide networks whose batches are large",
    "test_notebooks.py": "what readers run, as they run it",
}

STAY: dict[str, tuple[str, ...]] = {
    "test_accelerators.py::test_an_exported_kernel_has_the_schedule_of_every_platform": (),
    "test_accelerators.py::test_every_front_door_has_a_program_for_accelerators": (
        "mlp_kernels relu", "mlp_kernels tanh", "mlp_kernels_by_layer", "kernel_diagonal",
        "mlp_kernels, value and gradient", "infinite_width flat CNN", "empirical_ntk MLP",
        "empirical_ntk MLP, vector_products", "empirical_nngp", "tangent_features",
        "tangent_features, projected", "ntk_operator", "ntk_operator.diagonal", "gradient_flow_mse",
        "gradient_descent_mse", "kernel_regression", "gp_posterior", "ensemble_mse",
        "eigenlearning", "Lanczos quadrature", "alignment",
    ),
    "test_closures.py::test_every_function_sees_the_change": (
        "empirical_nngp", "vector_products", "ntk_operator", "linearize", "train",
    ),
    "test_coincident_rows.py::test_an_example_in_both_sets_is_the_same_example_to_infinite_width": (),
    "test_coincident_rows.py::test_every_entry_gives_the_one_derivative": (
        "float64-1e-06-infinite_width, x2=None",
    ),
    "test_coincident_rows.py::test_one_argument_has_half_the_derivative_of_the_diagonal": (),
    "test_command_line.py::test_examples_of_the_help_run": (
        "ntk-jax predict --train train.csv --target price --test new.csv --out predictions.csv",
        "ntk-jax predict --train train.csv --target kind --test new.csv --kernel nngp --json",
        "ntk-jax explain --train train.csv --target price --test new.csv --top 3",
        "ntk-jax explain --train train.csv --target kind", "ntk-jax kernel table.csv --out K.npz",
        "ntk-jax kernel images.npy --model my_models:make_cnn --shape 8,8,1 --out K.npz",
        "ntk-jax spectrum table.csv --target price",
        "ntk-jax spectrum table.csv --kernel nngp --top 3 --json",
    ),
    "test_compilation.py::test_flat_draws_are_the_same_draws": (
        "shape0-normal", "shape1-uniform", "shape2-rademacher", "shape3-normal",
    ),
    "test_compilation_duals.py::test_a_changed_closure_is_another_function": (),
    "test_compilation_duals.py::test_padded_programs_give_the_values_of_the_unpadded_one": (
        "relu-sizes0",
    ),
    "test_compilation_duals.py::test_rows_that_are_in_both_sets_take_no_further_program": (),
    "test_compilation_duals.py::test_three_programs_at_first_and_none_for_equal_functions_scales_and_sizes": (
        "mlp_kernels-own", "kernel_diagonal-own",
    ),
    "test_compilation_dynamics.py::test_cross_validation_compiles_less_than_ten_programs": (),
    "test_compilation_dynamics.py::test_losses_of_equal_code_share_the_solve": (),
    "test_compilation_dynamics.py::test_only_the_first_call_compiles": (
        "diagonalize", "gradient_flow_mse", "gradient_descent_mse", "kernel_regression",
        "gp_posterior", "ensemble_mse", "leave_one_out", "select_diag_reg", "eigenvalues",
        "effective_rank", "definiteness", "alignment", "cosine", "learning_times", "rkhs_norm",
        "relative_change", "taylor_gap", "max_learning_rate", "spectral_density",
    ),
    "test_compilation_finite.py::test_few_programs_and_none_again": (
        "empirical_ntk", "of two sets", "of a lambda", "jacobian", "vector_products",
        "empirical_nngp", "empirical_ntk_by_layer", "contract", "explain_ntk", "ntk_operator",
        "diagonal", "columns", "taylor_expand", "relative_change", "train",
    ),
    "test_compilation_flax.py::test_a_rule_of_the_users_own_is_another_program": (),
    "test_compilation_flax.py::test_equal_models_share_their_programs": (
        "Linen", "NNX", "NNX class", "pair", "table",
    ),
    "test_contexts.py::test_numbers_are_the_same_inside_a_context": (
        "mlp_kernels, relu-enable_x64", "infinite_width, relu-enable_x64",
        "kernel_regression-enable_x64", "kernel_regression-debugging", "empirical_ntk-disable_jit",
        "empirical_ntk-enable_x64", "empirical_ntk-debugging", "ntk_operator-enable_x64",
        "ntk_operator-debugging", "linearize-enable_x64", "train-enable_x64", "train-debugging",
        "gp_posterior-enable_x64", "gp_posterior-debugging", "kernel_diagonal-enable_x64",
        "kernel_diagonal-debugging", "gradient_flow_mse-enable_x64",
        "gradient_descent_mse-enable_x64", "gradient_descent_mse-debugging",
    ),
    "test_convolution.py::test_a_few_rows_at_a_time_give_the_same_kernel": ("full",),
    "test_convolution.py::test_derivatives_in_both_modes_and_both_arguments": ("strided",),
    "test_convolution.py::test_kernel_of_a_network_down_to_one_pixel_and_its_gradient": (),
    "test_derivatives.py::test_derivatives_are_central_differences": (
        "flow", "kernel regression", "posterior", "leave one out", "cross-validation",
        "effective rank", "norm", "largest rate", "sums over modes", "descent", "ensemble",
    ),
    "test_derivatives.py::test_derivatives_by_time_ridge_and_rates": (),
    "test_derivatives.py::test_derivatives_found_wrong_on_symmetric_data": (),
    "test_derivatives.py::test_derivatives_go_through_vectorized_decompositions": (),
    "test_derivatives.py::test_second_derivatives_are_central_differences": ("kernel regression",),
    "test_empirical.py::test_blocks_change_nothing_and_symmetry_is_exact": (
        "1-jacobian", "1-vector_products",
    ),
    "test_empirical.py::test_equals_dense_jacobian": (
        "mlp-jacobian", "mlp-vector_products", "pytree-jacobian", "no output axis-jacobian",
        "no output axis-vector_products", "image-jacobian",
    ),
    "test_empirical.py::test_permuting_rows_permutes_and_blocks_are_slices": (),
    "test_estimators.py::test_fits_of_a_grid_share_their_programs": (),
    "test_example_trees.py::test_expansions_and_laziness_are_those_of_the_rows": (),
    "test_example_trees.py::test_kernels_by_every_method_are_those_of_dense_jacobians": (
        "tokens_and_mask-auto",
    ),
    "test_example_trees.py::test_limits_of_trees_are_those_of_their_parts_in_one_array": (),
    "test_example_trees.py::test_monte_carlo_averages_the_kernels_of_its_draws": (),
    "test_example_trees.py::test_training_takes_batches_of_every_leaf": (),
    "test_features.py::test_blocks_of_any_size_give_the_same_symmetric_kernel": (
        "20000-mean", "20000-full",
    ),
    "test_features.py::test_every_network_is_exact": (
        "mlp", "linear", "conv_1d_dilated", "conv_2d_stride", "conv_groups", "conv_transposed",
        "residual_norms", "attention_2", "tied", "shared", "scanned_layers", "recurrent",
        "scan_in_scan", "remat", "nonlinear_parameters", "gathered", "expert", "left_operand",
        "unused", "laplacian", "force", "scanned_force", "branching",
    ),
    "test_features.py::test_half_precision_networks": (),
    "test_features.py::test_inside_jit_grad_and_vmap": (),
    "test_features.py::test_methods_agree": (
        "mean-auto", "mean-layerwise", "mean-jacobian", "mean-vector_products", "full-auto",
        "full-layerwise", "diagonal-layerwise",
    ),
    "test_features.py::test_second_call_compiles_nothing": (),
    "test_flow_on_operators.py::test_float32_is_as_good_as_its_tolerance": (),
    "test_fully_connected_models.py::test_close_rows_are_told_apart_in_float32": (),
    "test_fully_connected_models.py::test_what_is_recognized_is_what_is_interpreted": (
        "plain", "no hidden layer", "residual", "normalization",
    ),
    "test_gaussian_process.py::test_ensemble_is_the_affine_image_of_the_prior": ("0.3-shared",),
    "test_gaussian_process.py::test_leave_one_out_equals_refits": ("shared", "full"),
    "test_gaussian_process.py::test_posterior_is_gaussian_conditioning": ("diagonal", "full"),
    "test_gaussian_process.py::test_regression_with_one_kernel_per_output_is_as_many_regressions": (),
    "test_gaussian_process.py::test_what_leaving_out_does_to_test_outputs_equals_refits": (
        "shared", "full",
    ),
    "test_gradient_flow.py::test_dense_output_is_the_solution_between_times": (),
    "test_gradient_flow.py::test_zero_time_alone_and_progress_of_long_solves": (),
    "test_host_programs.py::test_limits_are_alike_by_numpy_and_by_xla": (
        "mlp_relu", "pre_activation", "cnn_flatten", "attention_tied",
    ),
    "test_host_programs.py::test_limits_are_alike_with_single_examples_by_numpy": ("pooled",),
    "test_hyperparameters.py::test_any_optimizer_any_kernel_and_the_best_of_the_choices": (),
    "test_infinite_width.py::test_equal_and_parallel_rows_have_exact_kernels_in_float32": (),
    "test_infinite_width.py::test_equals_the_recursion_of_fully_connected_networks": (),
    "test_infinite_width.py::test_examples_may_be_constants_of_a_compiled_function": (),
    "test_infinite_width.py::test_joined_stacked_and_scattered_values_are_sums_of_their_parts": (),
    "test_infinite_width.py::test_what_is_alike_in_law_but_not_in_form": (),
    "test_init_stats.py::test_moments_are_those_of_draws": ("orthogonal", "sparse", "vmapped"),
    "test_jobs.py::test_a_graph_network_labels_nodes_from_a_few": (),
    "test_jobs.py::test_sentences_with_masks_are_told_apart": (),
    "test_kernel_operator.py::test_kernels_of_models": ("finite",),
    "test_kernel_regression.py::test_a_kernel_of_condition_1e6_has_full_rank_in_float32": (),
    "test_kernel_regression.py::test_large_kernels_are_factored_in_place_and_give_the_same": (
        "diagonal", "full",
    ),
    "test_kernel_regression.py::test_modes_that_float32_can_tell_are_fitted_and_lost_ones_are_named": (),
    "test_limit_blocks.py::test_equals_the_same_model_written_out": (
        "scan over layers", "fixed key", "depthwise", "joined kernels", "trained scale",
        "weight norm",
    ),
    "test_limit_closed_forms.py::test_convolutional_networks": ("average-ntk",),
    "test_limit_dropout.py::test_linen_and_nnx_are_one_network_and_other_rows_are_those_without_dropout": (),
    "test_limit_kernel.py::test_kernels_beyond_the_range_of_their_dtype_are_refused": ("relu",),
    "test_linear_data.py::test_analytic_corner": (),
    "test_linear_data.py::test_regression_with_the_analytic_kernel": (),
    "test_loops.py::test_a_deeper_network_is_no_larger_program": ("residual",),
    "test_loops.py::test_a_loop_is_its_steps_one_by_one": (
        "a_loop_on_what_another_kept", "two_chains",
    ),
    "test_loops.py::test_deep_limits_are_those_without_loops": ("convolutional",),
    "test_losses.py::test_flow_along_kinks_is_the_limit_of_small_steps": ("hinge",),
    "test_meshes.py::test_three_processes_compute_the_same_and_agree_on_what_they_refuse": (),
    "test_mlp_kernels.py::test_equal_and_parallel_rows_have_the_kernels_of_equal_and_parallel_rows": (
        "50-float32",
    ),
    "test_mlp_kernels.py::test_examples_on_a_line_without_biases_have_a_kernel_of_rank_two": (
        "float32",
    ),
    "test_mlp_kernels.py::test_four_nested_derivatives_are_those_of_the_recursion_at_forty_digits": (),
    "test_mlp_kernels.py::test_gradients": (),
    "test_mlp_kernels.py::test_symmetric_and_diagonal_to_the_bit": (
        "0-options0", "0-options1", "0-options4", "3-options0", "3-options1", "3-options2",
        "3-options3", "3-options4",
    ),
    "test_modes.py::test_descent_equals_optax_on_the_linearized_network": (),
    "test_modes.py::test_descent_equals_recursion": ("0.0-0.0-False", "0.3-0.9-True"),
    "test_modes.py::test_small_steps_are_the_flow": (),
    "test_moments.py::test_the_mean_is_that_of_the_function": (
        "abs", "cos", "erf", "exp", "gaussian", "gelu", "hard_tanh", "hermite", "identity",
        "leaky_relu", "monomial", "normalized_exp", "polynomial", "rbf", "rectified_monomial",
        "rectifier", "relu", "sign", "sin", "sinusoid", "softplus", "step", "tanh",
    ),
    "test_monte_carlo.py::test_mean_and_error_are_those_of_the_samples": (),
    "test_more_jobs.py::test_a_kernel_of_nodes_labels_them_from_a_few": (),
    "test_more_jobs.py::test_attribution_finds_wrong_labels_and_what_moves_a_prediction": (),
    "test_more_jobs.py::test_regression_on_many_rows": (),
    "test_near.py::test_at_moderate_distances_too_an_angle_is_known_to_its_rounding": (
        "0.0-3-float64", "0.1-3-float64",
    ),
    "test_near.py::test_blocks_of_accelerators_are_the_tiles_of_a_cpu": ("relu",),
    "test_near.py::test_clusters_are_positive_semidefinite_at_every_distance": ("relu-float32",),
    "test_near.py::test_pairs_at_every_distance_equal_the_recursion_at_sixty_digits": (
        "options0-float64", "options1-float64",
    ),
    "test_near.py::test_pairs_that_ordered_layers_bring_together_equal_the_recursion_at_sixty_digits": (
        "12-float64",
    ),
    "test_network_checks.py::test_half_precision_networks_have_kernels_in_single": (),
    "test_network_checks.py::test_outputs_that_are_not_finite": (),
    "test_networks.py::test_dtype_follows_the_input": ("float32",),
    "test_operator.py::test_conjugate_gradients_inside_jit": (),
    "test_parameter_flow.py::test_small_steps_of_gradient_descent_follow_the_flow": (),
    "test_parameter_flow.py::test_the_loss_falls_at_the_rate_of_the_squared_gradient": (),
    "test_projection.py::test_error_is_that_of_plain_signs": (),
    "test_projection.py::test_functions_of_the_same_parameters": (
        "one leaf", "no leaf", "reshaped weight",
    ),
    "test_projection.py::test_matrix_is_the_jacobian_and_its_projection": ("expert",),
    "test_projection.py::test_signs_are_independent": (),
    "test_projection.py::test_signs_do_not_depend_on_how_the_work_is_divided": (),
    "test_regression_on_operators.py::test_a_posterior_with_an_operator_is_that_with_its_array": (
        "True-stored", "False-stored",
    ),
    "test_regression_on_operators.py::test_regression_with_an_operator_is_that_with_its_array": (
        "memory",
    ),
    "test_row_independence.py::test_batch_normalization_inside_jit_vmap_and_grad": (),
    "test_scales_of_layers.py::test_all_forms_are_the_tuple": (
        "list", "float32", "column of a table", "JAX",
    ),
    "test_scales_of_layers.py::test_derivatives_by_a_vector_of_scales": ("kernel_diagonal",),
    "test_scales_of_layers.py::test_fit_of_one_scale_per_feature": (),
    "test_scales_of_layers.py::test_scales_do_not_decide_the_dtype": (),
    "test_scales_of_numbers.py::test_networks_of_any_scale": ("float64-1e+200",),
    "test_scales_of_numbers.py::test_the_scale_of_the_numbers_does_not_matter": (
        "norm", "standard error", "kernel_change", "relative_change", "alignment",
        "centered_alignment", "cosine", "kernel_distance", "effective_rank", "eigenvalues",
        "top_eigenvalues", "trace and its error", "cumulative_power", "rkhs_norm, targets", "GCV",
        "definiteness",
    ),
    "test_separable.py::test_second_derivatives_pass_a_zero_readout": (),
    "test_separable.py::test_shared_cotangents_give_the_kernel_of_dense_jacobians": (
        "dense relu", "dense gelu",
    ),
    "test_series_bounds.py::test_a_value_is_within_its_bound_or_is_refused": (
        "floor", "seventh power",
    ),
    "test_solve.py::test_a_network_as_operator_is_solved_with_all_its_outputs": (),
    "test_solve.py::test_a_preconditioner_is_the_inverse_of_its_low_rank_matrix": ("nystrom",),
    "test_solve.py::test_columns_by_pivots_find_small_clusters_that_uniform_ones_miss": (),
    "test_solve.py::test_conjugate_gradients_reach_the_dense_solution": (
        "nystrom-asarray", "nystrom-OnlyMultiplied", "nystrom-WithColumns", "uniform-asarray",
        "None-OnlyMultiplied",
    ),
    "test_spectrum.py::test_gauss_rule_is_exact_per_probe": (),
    "test_tabular_benchmark.py::test_kernels_with_frozen_first_layers_are_sums_over_later_ones": (),
    "test_tiled_kernels.py::test_single_precision_agrees_to_rounding": (),
    "test_tiled_kernels.py::test_tiles_are_the_kernel": (
        "a partial of mlp_kernels", "a lambda of one kernel", "mean over outputs", "all outputs",
        "a function of NumPy",
    ),
    "test_tiled_kernels.py::test_tiles_of_two_sets_are_the_kernel": ("all outputs",),
    "test_training.py::test_line_search_optimizers_get_what_they_need": (),
    "test_two_functions.py::test_kernels_of_two_functions_are_those_of_their_jacobians": (
        "heads-gradient", "value-other layers", "heads-of a dict",
    ),
}  # fmt: skip
