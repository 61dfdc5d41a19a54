"""Figures show the numbers that they were given, labelled."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import ntk_jax
from ntk_jax import KernelRecord, plots
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
    np.testing.assert_allclose(
        right.images[0].get_array(), np.broadcast_to(0.1 * np.arange(4), (4, 4))
    )


def test_curves_are_labelled_and_leave_out_time_zero():
    t = np.array([0.0, 1.0, 10.0])
    ax = plots.plot_curves(
        t, {"network": t + 1, "kernel": t + 2}, ylabel="loss, half mean square", title="here"
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["network", "kernel"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1.0, 10.0])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [3.0, 12.0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "t = learning rate × steps",
        "loss, half mean square",
    )


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
    np.testing.assert_allclose(
        axes[2].lines[0].get_ydata(), np.abs(outputs[0] - outputs[1]).max((1, 2))[1:]
    )


def test_band_is_two_standard_deviations():
    x = np.linspace(0, 1, 5)
    ax = plots.plot_band(x, x, np.full(5, 0.25), samples=np.ones((3, 5)), data=(x[2:3], x[2:3]))
    corners = ax.collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose([corners.y0, corners.y1], [-1.0, 2.0])
    assert len(ax.lines) == 5


def last_frame(animation, path):
    """The Axes of an animation that was saved as a GIF."""
    plots.save_gif(animation, path, dpi=40)
    with Image.open(path) as image:
        assert image.n_frames > 1
    return plt.gcf().axes


def test_scaling_states_the_fitted_exponent():
    m = np.array([10.0, 100.0, 1000.0])
    ax = plots.plot_scaling(m, {"weights": 3 * m**-0.5, "seeds": np.stack([m, 2 * m, 3 * m], 1)})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "weights: exponent -0.50",
        "seeds: exponent 1.00",
    ]


def test_weights_state_the_movement():
    W = np.eye(4)
    rows = plots.plot_weights({"width 4": (W, 1.1 * W)})
    assert rows[0][2].get_title() == "difference: 10 %"
    np.testing.assert_allclose(rows[0][2].images[0].get_array(), 0.1 * W, atol=1e-15)


def test_vector_field_points_downhill():
    ax = plots.plot_vector_field(
        lambda w: w @ w, (-1.0, 1.0), (-1.0, 1.0), {"path": np.ones((3, 2))}
    )
    arrows = next(c for c in ax.collections if hasattr(c, "U"))
    assert np.all(arrows.U * arrows.X + arrows.V * arrows.Y <= 0)
    assert ax.get_legend().get_texts()[0].get_text() == "path"


def test_function_space_draws_the_ellipse_of_the_kernel():
    ax = plots.plot_function_space({"wide": np.zeros((2, 2))}, [4.0, 0.0], np.diag([2.0, 1.0]))
    ellipse = next(line for line in ax.lines if line.get_label() == "kernel ellipse")
    np.testing.assert_allclose(np.max(np.abs(ellipse.get_xydata()), axis=0), [1.0, 0.5], rtol=1e-3)


@pytest.mark.slow
def test_animations_show_the_frame_asked_for(tmp_path):
    path, t = tmp_path / "a.gif", np.array([0.0, 1.0, 2.0])
    x, f = np.array([0.0, 1.0]), np.arange(12.0).reshape(3, 2, 2)
    (ax,) = last_frame(
        plots.animate_networks(x, f, t, data=(x, x), mean=f[:, 0], std=f[:, 0]), path
    )
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), f[2, 1])
    np.testing.assert_array_equal(ax.lines[3].get_ydata(), 3 * f[2, 0])
    low, high = ax.get_ylim()
    assert low < -f[:, 0].max() and high > 3 * f[:, 0].max()  # the whole band is seen
    assert ax.get_title() == "2 networks, t = 2"
    weights = np.stack([np.eye(3), 1.5 * np.eye(3)])
    (ax,) = last_frame(plots.animate_weights({"a": weights}, [0, 5], max_rows=2), path)
    assert (ax.get_title(), ax.get_xlabel()) == ("a (first 2)", "moved 50.0 %")
    np.testing.assert_array_equal(ax.images[0].get_array(), 1.5 * np.eye(2))
    (ax,) = last_frame(
        plots.animate_function_space({"a": f[:, 0]}, {"a": np.eye(2)}, [1.0, 2.0], t), path
    )
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), f[:, 0])
    circle = ax.lines[1].get_xydata() - f[2, 0]
    np.testing.assert_allclose(
        np.linalg.norm(circle, axis=1), np.linalg.norm(circle[0]), rtol=1e-12
    )
    animation = plots.animate_output_scale(x, {"a": f[:, 0]}, t, data=(x, x), linear={"a": f[:, 1]})
    (ax,) = last_frame(animation, path)
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines[:2]], f[2])


def test_eigenvalues_that_are_not_positive_are_left_out():
    ax = plots.plot_eigenvalues({"a": np.array([4.0, 2.0, 0.0]), "b": np.ones(3)})
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [4, 2])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_density_counts_from_above():
    ax = plots.plot_spectral_density(
        np.array([1.0, 3.0, 2.0]), np.array([0.5, 0.1, 0.4]), np.array([1.0, 2.0])
    )
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 1])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [3, 2, 1])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.1, 0.5, 1])


def test_learning_curves_are_lines_and_measurements_markers():
    ax = plots.plot_learning_curves(
        [10, 20],
        np.array([1.0, 0.5]),
        {"theory": np.array([1.1, 0.4])},
        standard_error=np.array([0.1, 0.1]),
    )
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.1, 0.4])
    assert ax.lines[1].get_linestyle() == "None"
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"theory", "measured"}


def test_kernel_evolution_has_a_panel_per_quantity():
    t = np.array([0.0, 1.0, 2.0])
    record = KernelRecord(t, None, t / 4, None, t + 1, t[:, None], {}, {}, None)
    change, rank = plots.plot_kernel_evolution(
        {"a": t}, {"a": record}, ["change", "effective_rank"]
    )
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
    ax = plots.plot_scaling(
        m, {"law": 1.0 / m, "saturates": np.array([1.0, 0.2, 0.2])}, fitted=["law"]
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "law: exponent -1.00",
        "saturates",
    ]
    assert any(
        np.array_equal(line.get_ydata(), [1.0, 0.2, 0.2]) and line.get_linestyle() != "None"
        for line in ax.lines
    )
