"""What has no closed form, from sampled Gaussians: against formulas where there are some, and
against wide random networks.
"""

import json
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import ntk_jax
from cases.architectures import SAMPLED, Net, lenient
from ntk_jax.infinite.flax.limit import infinite_width

REFERENCE = json.loads((Path(__file__).parent / "references" / "limits.json").read_text())
F64 = jnp.float64
RNG = np.random.default_rng(0)
DENSE = {"dtype": F64, "param_dtype": F64, "use_bias": False}
NUM_KEYS = 16


def examples(*shape):
    x = RNG.standard_normal(shape)
    x[1] = 0.6 * x[0] + 0.8 * x[1]
    return x


X = examples(3, 2, 4)


def sampled(body, num_samples=128):
    """The kernel of a double-precision network in the "ntk" parameterization; another `key` needs
    no new compilation.
    """
    return infinite_width(
        Net(body, 8, 1), num_samples=num_samples, key=jax.random.key(0), learning_rates="variance"
    )


def estimates(kernel, x):
    """Mean over independent keys, and its standard error."""
    found = []
    for seed in range(NUM_KEYS):
        found.append(lenient(replace(kernel, key=jax.random.key(seed)))(x))
    means, spreads = zip(
        *((np.mean(k, axis=0), np.std(k, axis=0, ddof=1)) for k in zip(*found, strict=True)),
        strict=True,
    )
    return means, [s / NUM_KEYS**0.5 for s in spreads]


def within(found, expected, *errors):
    """Both kernels agree within four combined standard errors."""
    for k, truth, *e in zip(found, expected, *errors, strict=True):
        assert np.all(
            np.abs(k - truth)
            <= 4 * np.sqrt(sum(np.square(s) for s in e)) + 1e-12 * np.max(np.abs(k))
        )


def larger(x, width, num_outputs):
    return nn.Dense(num_outputs, **DENSE)(nn.Dense(width, **DENSE)(x).max(axis=1))


def larger_of_two(x):
    """max(u, v) = (s + |d|) / 2 with s = u + v, d = u - v: E|d||d'| and E sign(d) sign(d') are
    arc-cosine kernels.
    """
    s, d = (x[:, 0] + sign * x[:, 1] for sign in (1, -1))
    ss, dd = (z @ z.T / x.shape[-1] for z in (s, d))
    scale = np.sqrt(np.outer(np.diag(dd), np.diag(dd)))
    angle = np.arcsin(np.clip(dd / scale, -1, 1))
    absolute = 2 / np.pi * (np.sqrt(np.maximum(scale**2 - dd**2, 0)) + dd * angle)
    nngp = (ss + absolute) / 4
    return nngp, nngp + (ss + 2 / np.pi * angle * dd) / 4


@pytest.mark.slow
def test_the_larger_of_two_correlated_gaussians():
    kernel = sampled(larger)
    means, errors = estimates(kernel, X)
    within(means, larger_of_two(X), errors)
    found = lenient(kernel)(X)
    assert all(np.array_equal(k, k.T) for k in found)
    assert all(np.array_equal(k, again) for k, again in zip(found, lenient(kernel)(X), strict=True))
    for reported, error in zip(
        lenient(kernel.standard_error)(X), errors, strict=True
    ):  # of one key, of sixteen
        ratio = np.sqrt(np.mean(np.square(reported))) / (
            NUM_KEYS**0.5 * np.sqrt(np.mean(np.square(error)))
        )
        assert 0.6 < ratio < 1.6


@pytest.mark.slow
def test_compiled_and_differentiated():
    kernel = lenient(sampled(larger, 32))
    x = np.concatenate([X[:2], X[:1], np.zeros_like(X[:1])])  # two equal examples and a zero
    value_and_slope = jax.jit(jax.value_and_grad(lambda a: sum(map(jnp.sum, kernel(a, x)))))
    _, gradient = value_and_slope(jnp.asarray(x))
    assert np.all(np.isfinite(gradient)) and np.all(np.any(gradient[:2] != 0, axis=(1, 2)))
    step = 1e-6 * RNG.standard_normal(x.shape)
    step[2:] = 0
    (up, _), (down, _) = value_and_slope(x + step), value_and_slope(x - step)
    np.testing.assert_allclose(
        up - down, 2 * jnp.vdot(gradient, step), rtol=1e-3
    )  # no sample changed its maximum


@pytest.mark.slow
def test_windows_of_one_and_rectified_averages_of_rectified_units_change_nothing():
    def body(x, width, num_outputs):
        x = nn.max_pool(nn.relu(nn.Dense(width, **DENSE)(x)), (1,))
        return nn.Dense(num_outputs, **DENSE)(nn.relu(x.mean(axis=1)))

    means, errors = estimates(sampled(body), X)
    exact = ntk_jax.mlp_kernels(X.reshape(6, 4), depth=1)
    within(means, [k.reshape(3, 2, 3, 2).mean(axis=(1, 3)) for k in exact], errors)


def attention(x, width, num_outputs):
    return nn.MultiHeadDotProductAttention(4, qkv_features=8, out_features=num_outputs, **DENSE)(
        x
    ).mean(axis=1)


def test_attention_to_a_single_key_is_none():
    x = X[:, :1]
    k = x[:, 0] @ x[:, 0].T / 4
    for found, expected in zip(lenient(sampled(attention, 8))(x), (k, 2 * k), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def attention_of_inputs(a, b, num_samples, rng):
    """NNGP and NTK of `attention` for one pair, with standard errors: the formulas of Hron et al.
    2020, plainly sampled.
    """
    K = np.einsum("asi,bti->abst", np.stack([a, b]), np.stack([a, b])) / a.shape[-1]
    T = len(a)
    C = np.einsum("abtu,absr->atsbur", K, K).reshape(2 * T * T, 2 * T * T)
    values, vectors = np.linalg.eigh(C)
    z = rng.standard_normal((num_samples, len(C))) * np.sqrt(np.maximum(values, 0)) @ vectors.T
    A, B = np.moveaxis(softmax(z.reshape(-1, 2, T, T), axis=-1), 1, 0)
    J, L = (
        np.einsum("ntr,rs->ntrs", P, np.eye(T)) - np.einsum("ntr,nts->ntrs", P, P) for P in (A, B)
    )
    weighted = np.einsum("nts,nur,sr->n", A, B, K[0, 1]) / T**2
    theta = 2 * np.einsum("tu,sr->tsur", K[0, 1], K[0, 1])
    scores = np.einsum("ntis,nujr,tsur,ij->n", J, L, theta, K[0, 1], optimize=True) / T**2
    samples = np.stack([weighted, 2 * weighted + scores])
    return samples.mean(axis=1), samples.std(axis=1) / num_samples**0.5


@pytest.mark.slow
def test_attention_follows_its_formulas():
    x = 2.5 * examples(2, 3, 4)
    means, errors = estimates(sampled(attention), x)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        truth, spread = attention_of_inputs(x[i], x[j], 4000, np.random.default_rng(1))
        within([k[i, j] for k in means], truth, [e[i, j] for e in errors], spread)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["max_pooled_twice", "standard_encoder"])
def test_wide_networks_of_the_very_same_module(name):
    case = next(case for case in SAMPLED if case.name == name)
    reference = REFERENCE[name]
    kernel = infinite_width(
        case.build(reference["width"], 1), num_samples=256, key=jax.random.key(0)
    )
    means, errors = estimates(kernel, case.inputs())
    truth, spread = (
        [np.asarray(reference[f"{k}{e}"]) for k in ("nngp", "ntk")] for e in ("", "_error")
    )
    within(means, truth, errors, spread)
    assert all(np.max(e) < 0.05 * np.max(k) for k, e in zip(truth, spread, strict=True))


def test_the_table_says_what_is_sampled(unchecked_shapes):
    table = lenient(ntk_jax.explain_limit)(
        Net(attention, 8, 1), X, num_samples=8, key=jax.random.key(0)
    )
    assert (
        "sampled: 8 draws" in table
        and "Gaussian: scores of MultiHeadDotProductAttention_0/query" in table
    )


def one_head(x, width, num_outputs):
    return nn.MultiHeadDotProductAttention(1, qkv_features=width, out_features=num_outputs)(x)


def units_of_a_head(x, width, num_outputs):
    q, k, v = (nn.DenseGeneral((4, width))(x) for _ in range(3))
    x = nn.dot_product_attention(q, k, v)
    return nn.DenseGeneral(num_outputs, axis=(-2, -1))(x - x.mean(axis=-1, keepdims=True))


def over_units(x, width, num_outputs):
    x = nn.Dense(width)(x)
    return nn.Dense(num_outputs)(x - x.max(axis=-1, keepdims=True))


@pytest.mark.parametrize(
    "body, pattern",
    [
        (one_head, r"scores of a single head.*Use several heads"),
        (units_of_a_head, r"units of one head .* share its random scores"),
        (over_units, r"a maximum over positions or units"),
    ],
)
def test_what_samples_do_not_give_is_refused(body, pattern):
    with pytest.raises(ntk_jax.NoLimitError, match=f"(?s){pattern}"):
        lenient(infinite_width(Net(body, 8, 1), num_samples=8, key=jax.random.key(0)))(
            X.astype(np.float32)
        )


def test_refusals_name_the_way_out():
    case = SAMPLED[0]
    with pytest.raises(ntk_jax.NoLimitError, match=r"max pooling.*num_samples=, key="):
        lenient(infinite_width(case.build(8, 1)))(case.inputs())
    case = SAMPLED[-1]
    with pytest.raises(ntk_jax.NoLimitError, match=r"division by the width.*num_samples=, key="):
        lenient(infinite_width(case.build(8, 1)))(case.inputs())
    with pytest.raises(ValueError, match="num_samples and key: expected both"):
        infinite_width(case.build(8, 1), num_samples=8)
    with pytest.raises(ValueError, match="standard_error: expected a kernel with num_samples="):
        infinite_width(case.build(8, 1)).standard_error(case.inputs())
