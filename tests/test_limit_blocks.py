"""Loops over layers, experts, shared keys and constants of fixed keys in the limit of infinite
width: equal to the same model written out, and to wide networks.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.architectures import Net, init_and_apply, lenient, net, normal
from cases.blocks import BLOCKS, SAME, SAMPLED_BLOCKS, rotary_scores
from cases.blocks import turned as turned_by_position
from cases.wide_networks import estimate


def limit(model, x, **options):
    return lenient(ntk_jax.infinite_width(model, **options))(x)


def rows(shape):
    x = np.random.default_rng(1).standard_normal((2, *shape))
    x[1] = 0.6 * x[0] + 0.8 * x[1]
    return x


QUICK = (
    "scan over layers",
    "fixed key",
    "joined kernels",
    "depthwise",
    "trained scale",
    "weight norm",
)
SERIES = pytest.mark.filterwarnings("ignore:.*series of a function of several Gaussians")
SLOW = [pytest.param(name, marks=[pytest.mark.slow, SERIES]) for name in SAME if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_equals_the_same_model_written_out(name):
    build, twin, shape = SAME[name]
    x = rows(shape)
    for found, expected in zip(limit(build(16, 1), x), limit(twin(16, 1), x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_scores_turned_by_positions_have_the_cosines_of_their_differences():
    """E[s_ij s'_ij'] = K_ii K'_jj' sum over angles of 2 cos(angle (j - j')) / 8, for one i."""
    x = rows((3, 4))
    found = limit(
        net(rotary_scores)(64, 1),
        x,
        num_samples=8,
        key=jax.random.key(0),
        learning_rates="variance",
    )
    q = np.einsum("aic,bjc->abij", x, x)  # weights of variance 4 / 4
    gaps = np.arange(3)[:, None] - np.arange(3)
    turns = np.cos(2.0 * 10.0 ** (-np.arange(4) / 4) * gaps[..., None]).mean(axis=-1)
    expected = q[:, :, 0, 0] * np.sum(q * turns, axis=(2, 3))
    np.testing.assert_allclose(found.nngp, expected, rtol=1e-6)
    np.testing.assert_allclose(found.ntk, 3 * expected, rtol=1e-6)


def per_head_scale(x, width, num_outputs):
    """Heads with a fixed temperature of their own for scores that stay random."""
    x = nn.Dense(width)(x)
    project = lambda: nn.DenseGeneral((4, width), use_bias=False)
    scores = jnp.einsum("bihd,bjhd->bhij", project()(x), project()(x)) / width**0.5
    weights = nn.softmax(scores * jnp.arange(1.0, 5.0)[:, None, None], axis=-1)
    y = jnp.einsum("bhij,bjhd->bihd", weights, project()(x))
    return nn.Dense(num_outputs)(nn.DenseGeneral(width, axis=(-2, -1))(y).mean(axis=1))


def turned(x, width, num_outputs):
    """Units in two orders."""
    h = nn.relu(nn.DenseGeneral((4, 8), kernel_init=normal(0.5))(x))
    h = h.reshape(-1, 32) + h.swapaxes(1, 2).reshape(-1, 32)
    return nn.Dense(num_outputs)(h)


def repeated_keys(x, width, num_outputs):
    x = nn.Dense(width)(x)
    q, k = nn.DenseGeneral((4, width))(x), nn.DenseGeneral((2, width))(x)
    scores = jnp.einsum("bihd,bjhd->bijh", q, jnp.repeat(k, 2, axis=2)) / width
    return nn.Dense(num_outputs)(x.mean(axis=1)) + scores.mean((1, 2, 3))[:, None]


def shared_queries(x, width, num_outputs):
    """Queries that are the keys, scores over the root of their width."""
    q, v = nn.DenseGeneral((4, width))(x), nn.DenseGeneral((4, width))(x)
    weights = nn.softmax(jnp.einsum("bihd,bjhd->bhij", q, q) / width**0.5, axis=-1)
    y = jnp.einsum("bhij,bjhd->bihd", weights, v)
    return nn.Dense(num_outputs)(nn.DenseGeneral(width, axis=(-2, -1))(y).mean(axis=1))


def weight_norm_of_inputs(x, width, num_outputs):
    return nn.Dense(num_outputs)(nn.relu(nn.WeightNorm(nn.Dense(width))(x)))


def weight_norm_by_taps(x, width, num_outputs):
    x = nn.relu(nn.Conv(width, (3,))(x))
    x = nn.WeightNorm(nn.Conv(width, (3,)), feature_axes=(-2, -1), use_scale=False)(x)
    return nn.Dense(num_outputs)(nn.relu(x).mean(axis=1))


def weight_norm_of_depthwise(x, width, num_outputs):
    x = nn.relu(nn.Conv(width, (3,))(x))
    x = nn.WeightNorm(nn.Conv(width, (3,), feature_group_count=width))(x)
    return nn.Dense(num_outputs)(nn.Dense(width)(x).mean(axis=1))


def weight_norm_of_readout(x, width, num_outputs):
    return nn.WeightNorm(nn.Dense(num_outputs))(nn.relu(nn.Dense(width)(x)))


def scale_of_inputs(x, width, num_outputs):
    x = nn.relu(nn.Dense(width)(x))
    x = nn.WeightNorm(nn.Dense(width), feature_axes=0)(x)
    return nn.Dense(num_outputs)(nn.relu(x))


def channel_multiplier(x, width, num_outputs):
    x = nn.relu(nn.Conv(width, (3,))(x))
    x = nn.Conv(2 * width, (3,), feature_group_count=width)(x)
    return nn.Dense(num_outputs)(x.mean(axis=1))


def depthwise_inputs(x, width, num_outputs):
    x = nn.Conv(4, (3,), feature_group_count=4)(x)
    return nn.Dense(num_outputs)(nn.relu(nn.Conv(width, (1,))(x)).mean(axis=1))


def rotary_of_one_head(x, width, num_outputs):
    z = turned_by_position(nn.DenseGeneral((1, 8))(x))
    return nn.Dense(num_outputs)(nn.relu(z).mean(axis=(1, 2)))


REFUSED = {
    "weight norm of inputs": (weight_norm_of_inputs, (6,), r"arXiv:1602.07868.*after the first"),
    "weight norm of a few taps": (weight_norm_by_taps, (5, 2), r"no sum over infinitely many"),
    "weight norm of depthwise": (weight_norm_of_depthwise, (5, 2), r"no sum over infinitely many"),
    "weight norm of inputs' scale": (
        scale_of_inputs,
        (6,),
        r"scale multiplies the inputs of weight",
    ),
    "weight norm of a readout": (weight_norm_of_readout, (6,), r"trained scale.*use_scale=False"),
    "outputs that share a channel": (channel_multiplier, (5, 4), r"feature_group_count=features"),
    "depthwise inputs": (depthwise_inputs, (5, 4), r"arXiv:1810.05148.*all channels before"),
    "rotary of one head": (rotary_of_one_head, (3, 4), r"rotary one of a single head.*several"),
    "per-head scale of random scores": (per_head_scale, (3, 4), r"differs along an infinite axis"),
    "units in two orders": (turned, (6,), r"infinite axes change places"),
    "shared queries over the root": (shared_queries, (3, 4), r"independent queries and keys"),
    "repeated keys": (repeated_keys, (3, 4), r"axis of their own.*bihgd,bjhd->bhgij"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_limit_is_refused(name):
    body, shape, pattern = REFUSED[name]
    with pytest.raises(ntk_jax.NoLimitError, match=f"(?s){pattern}"):
        limit(
            Net(body, 16, 1),
            rows(shape),
            num_samples=8,
            key=jax.random.key(0),
        )


def check_against_networks(case, width, num_networks, **options):
    x = case.inputs(2, seed=1)
    networks = estimate(
        lambda width, outputs: init_and_apply(case.build(width, outputs), x),
        x,
        width,
        num_networks,
        seed=2,
    )
    found = limit(case.build(width, 1), x, **options)
    for k, mean, error in zip(found, networks[:2], networks[2:], strict=True):
        assert np.max(np.abs(np.asarray(k) - mean) / error) < 4
        assert np.max(error) < 0.1 * np.max(mean)


@pytest.mark.slow
@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.name)
def test_is_within_four_standard_errors_of_wide_networks(case):
    check_against_networks(case, 128, 48)


@pytest.mark.slow
@SERIES
@pytest.mark.parametrize("case", SAMPLED_BLOCKS, ids=lambda case: case.name)
def test_samples_are_within_four_standard_errors_of_wide_networks(case):
    check_against_networks(case, 128, 48, num_samples=4096, key=jax.random.key(3))
