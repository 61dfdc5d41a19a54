"""Phases: the known critical points, and the definition of the fixed point."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ntk_jax import critical_W_std, phase
from ntk_jax.infinite.mlp.phase import critical_line
from ntk_jax.plots import plot_phase_diagram


def test_relu_is_critical_at_the_square_root_of_two():
    assert critical_W_std("relu", 0.3) == pytest.approx(2**0.5, rel=1e-6)
    assert phase("relu", 2**0.5, 0.0).name == "critical"
    assert phase("relu", 1.0, 0.1).q_star == pytest.approx(0.02, rel=1e-9)  # q = b² + q / 2
    assert phase("relu", 2.0, 0.1).q_star == np.inf


@pytest.mark.slow
def test_erf_has_order_and_chaos_on_either_side_of_its_critical_line():
    W = critical_W_std("erf", 0.2)
    assert phase("erf", 0.9 * W, 0.2).name == "ordered"
    at = phase("erf", 1.1 * W, 0.2)
    assert at.name == "chaotic" and at.chi_1 > 1 and at.correlation < 1
    q = at.q_star  # k(q, q) = 2/pi arcsin(2 q / (1 + 2 q)) (Williams 1997)
    assert q == pytest.approx(
        0.04 + (1.1 * W) ** 2 * 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)), rel=1e-9
    )


@pytest.mark.slow
def test_no_critical_point_is_an_error():
    with pytest.raises(ValueError, match="change sign"):
        critical_W_std("sign", 0.1)


@pytest.mark.slow
def test_plot_shows_phases_point_by_point_and_the_line():
    W, b = np.linspace(0.5, 3, 5), np.linspace(0, 0.4, 3)
    ax = plot_phase_diagram("erf", W_std=W, b_std=b)
    shown = np.reshape(ax.collections[0].get_array(), (3, 5))
    assert_allclose(shown, [[phase("erf", W_i, b_i).chi_1 for W_i in W] for b_i in b], rtol=1e-12)
    assert_allclose(ax.lines[0].get_xdata(), [critical_W_std("erf", b_i) for b_i in b], rtol=1e-7)


def test_a_line_without_a_critical_point_names_where():
    with pytest.raises(ValueError, match=r"b_std = 0\.2"):
        critical_line("relu", np.array([0.2, 0.3]), bounds=(0.1, 1.0))
