import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntk_jax import KernelRecord, plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_kernels_share_a_scale_and_the_difference_is_centered():
    a = np.eye(4)
    left, middle, right = plots.plot_kernels(a, a + 0.1 * np.arange(4)[None])
    assert left.images[0].get_clim() == middle.images[0].get_clim() == (0.0, 1.3)
    low, high = right.images[0].get_clim()
    assert low == -high == pytest.approx(-0.3)
    np.testing.assert_allclose(right.images[0].get_array(), np.broadcast_to(0.1 * np.arange(4), (4, 4)))


def test_curves_are_labelled_and_leave_out_time_zero():
    t = np.array([0.0, 1.0, 10.0])
    ax = plots.plot_curves(t, {"network": t + 1, "kernel": t + 2}, ylabel="loss, half mean square", title="here")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["network", "kernel"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1.0, 10.0])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [3.0, 12.0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("t = learning rate × steps", "loss, half mean square")


def test_predictions_state_the_error_over_all_points():
    f = np.linspace(-1, 1, 3000)
    ax = plots.plot_predictions(f, {"kernel": f + 0.1})
    assert ax.get_legend().get_texts()[0].get_text() == "kernel: MSE 0.01"
    assert len(ax.lines[1].get_xdata()) == 500


def test_relative_change_draws_one_curve_per_network():
    steps = np.array([0, 1, 2])
    ax = plots.plot_relative_change({"a": steps, "b": steps}, {"a": steps * 0.1, "b": steps * 0.2})
    assert len(ax.lines) == 2 and ax.get_xlabel() == "training step"


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="two kernels of one shape"):
        plots.plot_kernels(np.eye(3), np.eye(4))


def test_eigenvalues_that_are_not_positive_are_left_out():
    ax = plots.plot_eigenvalues({"a": np.array([4.0, 2.0, 0.0]), "b": np.ones(3)})
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [4, 2])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_density_counts_from_above():
    ax = plots.plot_spectral_density(np.array([1.0, 3.0, 2.0]), np.array([0.5, 0.1, 0.4]), np.array([1.0, 2.0]))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 1])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [3, 2, 1])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.1, 0.5, 1])


def test_learning_curves_are_lines_and_measurements_markers():
    ax = plots.plot_learning_curves(
        [10, 20], np.array([1.0, 0.5]), {"theory": np.array([1.1, 0.4])}, standard_error=np.array([0.1, 0.1])
    )
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.1, 0.4])
    assert ax.lines[1].get_linestyle() == "None"
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"theory", "measured"}


def test_kernel_evolution_has_a_panel_per_quantity():
    t = np.array([0.0, 1.0, 2.0])
    record = KernelRecord(t, None, t / 4, None, t + 1, {}, {}, None)
    change, rank = plots.plot_kernel_evolution({"a": t}, {"a": record}, ["change", "effective_rank"])
    np.testing.assert_array_equal(change.lines[0].get_xdata(), [1, 2])
    np.testing.assert_array_equal(rank.lines[0].get_ydata(), [2, 3])
    assert change.get_legend() is not None and rank.get_legend() is None
    with pytest.raises(ValueError, match="got 'velocity'"):
        plots.plot_kernel_evolution({"a": t}, {"a": record})


def test_scaling_states_the_exponent():
    m = np.array([10, 100, 1000])
    runs = m[:, None] ** -0.5 * np.array([[1.0, 1.0]])
    ax = plots.plot_scaling(m, {"kernel": runs, "weights": 1.0 / m})
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["kernel: exponent -0.50", "weights: exponent -1.00"]
