"""Networks of growing width against their limit."""

import jax
import numpy as np
import pytest

from ntk_jax import MLP, check_limit, plots
from ntk_jax.diagnostics.convergence import _slope, _verdict

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).standard_normal((4, 5))


def test_errors_fall_like_one_over_the_root_of_the_width():
    check = check_limit(
        lambda width: MLP((width,), b_std=0.2), X, widths=(32, 256), key=jax.random.key(0)
    )
    assert check.widths == (32, 256) and check.errors.shape == (2, 32)
    np.testing.assert_allclose(
        check.rms, np.sqrt(np.mean(np.square(check.errors), axis=1)), rtol=1e-12
    )
    assert abs(check.slope + 0.5) < 3 * check.slope_error + 0.1 and 0 < check.slope_error < 0.2
    assert check.verdict.startswith(("In the kernel regime", "Approaches the kernel regime"))
    ax = plots.plot_limit_check(check, label="MLP")
    assert [text.get_text()[:3] for text in ax.get_legend().get_texts()] == ["MLP", "slo"]


def test_a_layer_that_does_not_grow_is_no_kernel_regime():
    check = check_limit(lambda width: MLP((4,)), X, widths=(32, 128), key=jax.random.key(0))
    assert check.slope > -0.25 and check.verdict.startswith("Not in the kernel regime as built")


def test_slope_and_its_error():
    widths = np.array([10.0, 100.0, 1000.0])
    errors = 3 * widths[:, None] ** -0.5 * np.array([1.0, 1.0])
    assert _slope(widths, errors) == pytest.approx((-0.5, 0.0))
    rng = np.random.default_rng(0)
    draws = [
        _slope(widths, errors[:, :1] * np.exp(0.2 * rng.standard_normal((3, 16))))
        for _ in range(200)
    ]
    assert np.std([slope for slope, _ in draws]) == pytest.approx(
        np.mean([error for _, error in draws]), rel=0.2
    )


def test_verdicts():
    assert "0.05 at width 512" in _verdict(512, 0.05, -0.5, 0.02, [])
    assert "about width 8e+03" in _verdict(512, 0.4, -0.5, 0.02, [])
    assert _verdict(512, 0.4, -0.2, 0.1, []).startswith("Undecided")
    level = _verdict(512, 0.4, -0.02, 0.02, ["Dense_0/kernel (uniform)"])
    assert 'Not Gaussian: Dense_0/kernel (uniform); compare draw="gaussian"' in level
