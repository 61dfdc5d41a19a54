"""Phases: the known critical points, and the definition of the fixed point."""

import numpy as np
import pytest

from ntk_jax import critical_W_std, phase
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
def test_plot_shows_the_line():
    ax = plot_phase_diagram("erf", W_std=np.linspace(0.5, 3, 5), b_std=np.linspace(0, 0.4, 3))
    assert len(ax.lines[0].get_xdata()) == 3
