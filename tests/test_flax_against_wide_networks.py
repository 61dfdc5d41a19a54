"""Infinite-width kernels of Flax models against wide networks of the very same modules, with
Gaussian weights.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.architectures import CASES, REFUSED, SAMPLED, by_name, init_and_apply, lenient
from cases.wide_networks import estimate
from ntk_jax.infinite.flax.limit import infinite_width

pytestmark = pytest.mark.slow

REFERENCE = json.loads((Path(__file__).parent / "references" / "limits.json").read_text())
# A part of the list, for time; `python -m benchmarks limits` goes through all of it.
CHECKED = (
    "mlp_nnx post_activation layer_norm learned_scale gated concatenated pooled embedded "
    "rnn_scanned attention_masked graph"
).split()


def deviation(found, mean, error):
    """The largest difference in standard errors."""
    return np.max(np.abs(np.asarray(found, float) - np.asarray(mean)) / np.asarray(error))


def test_the_reference_is_of_this_list():
    assert set(REFERENCE) == {case.name for case in [*CASES, *SAMPLED]}
    assert len(CASES) >= 40 and {"nnx", "image", "sequence", "published"} <= set(
        " ".join(c.tags for c in CASES).split()
    )


@pytest.mark.parametrize("name", CHECKED)
def test_limit_is_within_four_standard_errors_of_stored_networks(name):
    case, reference = by_name(name), REFERENCE[name]
    x = case.inputs()
    found = lenient(infinite_width(case.build(reference["width"], 1)))(x)
    assert (
        found.nngp.dtype == found.ntk.dtype == (jnp.float64 if x.dtype.kind == "i" else jnp.float32)
    )
    assert deviation(found.nngp, reference["nngp"], reference["nngp_error"]) < 4
    assert deviation(found.ntk, reference["ntk"], reference["ntk_error"]) < 4


def test_limit_is_within_four_standard_errors_of_fresh_networks():
    case, width = by_name("attention_tied"), 128
    x = case.inputs(2, seed=1)
    networks = estimate(
        lambda width, outputs: init_and_apply(case.build(width, outputs), x), x, width, 64, seed=1
    )
    found = lenient(infinite_width(case.build(width, 1)))(x)
    assert deviation(found.nngp, networks.nngp, networks.nngp_error) < 4
    assert deviation(found.ntk, networks.ntk, networks.ntk_error) < 4
    assert np.all(networks.ntk_error < 0.05 * np.max(networks.ntk))


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_models_without_a_limit_are_refused(case, unchecked_shapes):
    with pytest.raises(ValueError, match=f"(?s){case.pattern}"):
        lenient(infinite_width(case.build(16, 2)))(case.inputs())


def test_gradients_with_respect_to_images_are_those_of_finite_differences():
    case = by_name("cnn_1d_nnx")
    x = jnp.asarray(case.inputs(2, dtype=np.float64))
    kernel = lenient(infinite_width(case.build(16, 1)))

    @jax.jit
    @jax.value_and_grad
    def total(
        x,
    ):  # one program for the values and the gradients: compiling takes nearly all of the time
        nngp, ntk = kernel(x)
        return jnp.sum(ntk * jnp.array([[1.0, -0.4], [-0.4, 0.3]])) + nngp[0, 1]

    gradient = total(x)[1]
    direction, h = jax.random.normal(jax.random.key(0), x.shape), 1e-5
    numeric = (total(x + h * direction)[0] - total(x - h * direction)[0]) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), numeric, rtol=1e-6)
    same = jnp.broadcast_to(x[:1], x.shape)
    assert jnp.all(jnp.isfinite(total(same)[1]))
