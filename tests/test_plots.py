import matplotlib.pyplot as plt
import numpy as np
import pytest

import ntk_jax
from ntk_jax import plots
from ntk_jax.training.compare import Curves


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


def test_comparison_shows_network_and_prediction_and_marks_the_critical_rate():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(2, 5, 4, 3))
    side = Curves(np.full((2, 5), 0.5), np.full((2, 5), 0.9), outputs)
    comparison = ntk_jax.Comparison(np.arange(5), 0.1 * np.arange(5), side, side, 0.1, 0.05)
    axes = plots.plot_comparison(comparison, num_outputs=2)
    assert [len(ax.lines) for ax in axes] == [4, 4, 4]
    np.testing.assert_array_equal(axes[1].lines[1].get_ydata(), outputs[1, 1:, 0, 0])
    assert "unstable" in axes[0].texts[0].get_text() and axes[0].texts[0].get_color() == "#b00000"
    scalar = Curves(np.full((2, 5), 0.5), None, outputs)
    axes = plots.plot_comparison(comparison._replace(train=scalar, test=None))
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), np.abs(outputs[0] - outputs[1]).max((1, 2))[1:])


def test_band_is_two_standard_deviations():
    x = np.linspace(0, 1, 5)
    ax = plots.plot_band(x, x, np.full(5, 0.25), samples=np.ones((3, 5)), data=(x[2:3], x[2:3]))
    corners = ax.collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose([corners.y0, corners.y1], [-1.0, 2.0])
    assert len(ax.lines) == 5
