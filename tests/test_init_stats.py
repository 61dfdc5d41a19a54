"""Mean and variance read from the trace of an initializer, against formulas and against draws."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cases.draws import UNOPTIMIZED
from ntk_jax.initializers.stats import InitStats, gaussian_initializer, init_stats

I = nn.initializers
SHAPE = (40, 3, 50)

IN, OUT = 40 * 3, 40 * 50  # kernels are (receptive field, in, out)
TRUNCATED = 0.7737413035499232  # variance of a standard normal on (-2, 2)
NORMED = "divided by its norm"


def unit(w):
    """As `nn.WeightNorm` stores kernels."""
    return w * jax.lax.rsqrt((w * w).sum((0, 1), keepdims=True) + 1e-12)


KNOWN = {
    "zeros": (I.zeros, 0.0, 0.0, "constant"),
    "constant": (I.constant(-0.5), -0.5, 0.0, "constant"),
    "normal": (I.normal(0.3), 0.0, 0.09, "normal"),
    "truncated": (I.truncated_normal(0.3), 0.0, 0.09 * TRUNCATED, "truncated normal"),
    "uniform": (I.uniform(0.6), 0.3, 0.03, "uniform"),
    "lecun_normal": (I.lecun_normal(), 0.0, 1 / IN, "truncated normal"),
    "he_normal": (I.he_normal(), 0.0, 2 / IN, "truncated normal"),
    "glorot_normal": (I.glorot_normal(), 0.0, 2 / (IN + OUT), "truncated normal"),
    "lecun_uniform": (I.lecun_uniform(), 0.0, 1 / IN, "uniform"),
    "he_uniform": (I.he_uniform(), 0.0, 2 / IN, "uniform"),
    "glorot_uniform": (I.glorot_uniform(), 0.0, 2 / (IN + OUT), "uniform"),
    "orthogonal": (I.orthogonal(1.5), 0.0, 2.25 / 120, "orthogonal"),
    "unit norm": (lambda k, s, d: unit(jax.random.normal(k, s, d)), 0.0, 1 / 120, NORMED),
    "scaled unit norm": (lambda k, s, d: 2 * unit(I.lecun_normal()(k, s, d)), 0, 4 / 120, NORMED),
    "torch": (lambda k, s, d: jax.random.uniform(k, s, d, -0.2, 0.3), 0.05, 0.25 / 12, "uniform"),
    "shifted": (lambda k, s, d: 1 - 2 * jax.random.normal(k, s, d) / 4, 1.0, 0.25, "normal"),
    "one-sided": (
        lambda k, s, d: jax.random.truncated_normal(k, 0.0, np.inf, s, d),
        math.sqrt(2 / math.pi),
        1 - 2 / math.pi,
        "truncated normal",
    ),
    "half normal": (
        lambda k, s, d: jnp.abs(jax.random.normal(k, s, d)),
        math.sqrt(2 / math.pi),
        1 - 2 / math.pi,
        "a function of a normal variable",
    ),
    "log-normal": (
        lambda k, s, d: jnp.exp(0.5 * jax.random.normal(k, s, d)),
        math.exp(0.125),
        (math.exp(0.25) - 1) * math.exp(0.25),
        "a function of a normal variable",
    ),
    "relu": (
        lambda k, s, d: jax.nn.relu(jax.random.normal(k, s, d)),
        1 / math.sqrt(2 * math.pi),
        0.5 - 0.5 / math.pi,
        "a function of a normal variable",
    ),
    "laplace": (
        lambda k, s, d: jax.random.laplace(k, s, d),
        0.0,
        2.0,
        "a function of a uniform variable",
    ),
    "rademacher": (
        lambda k, s, d: jax.random.rademacher(k, s, d),
        0.0,
        1.0,
        "a function of a uniform variable",
    ),
    "bernoulli": (
        lambda k, s, d: jax.random.bernoulli(k, 0.25, s).astype(d),
        0.25,
        0.1875,
        "a function of a uniform variable",
    ),
    "exponential": (
        lambda k, s, d: jax.random.exponential(k, s, d),
        1.0,
        1.0,
        "a function of a uniform variable",
    ),
    "square": (
        lambda k, s, d: jnp.square(jax.random.uniform(k, s, d)),
        1 / 3,
        1 / 5 - 1 / 9,
        "a function of a uniform variable",
    ),
    "sum": (
        lambda k, s, d: (
            jax.random.normal(k, s, d) + 0.5 * jax.random.uniform(jax.random.fold_in(k, 1), s, d)
        ),
        0.25,
        1 + 0.25 / 12,
        "sum",
    ),
    "sparse": (
        lambda k, s, d: (
            jax.random.normal(k, s, d) * jax.random.bernoulli(jax.random.split(k)[1], 0.25, s)
        ),
        0.0,
        0.25,
        "product",
    ),
    "twice the same draw": (
        lambda k, s, d: jax.random.normal(k, s, d) + jax.random.normal(k, s, d),
        0.0,
        4.0,
        "a function of a normal variable",
    ),
    "blocks": (
        lambda k, s, d: jnp.concatenate(
            [jax.random.normal(key, (20, *s[1:]), d) for key in jax.random.split(k)]
        ),
        0.0,
        1.0,
        "normal",
    ),
    "vmapped": (
        lambda k, s, d: jax.vmap(lambda key: I.lecun_normal()(key, s[1:], d))(
            jax.random.split(k, s[0])
        ),
        0.0,
        1 / 3,
        "truncated normal",
    ),
    "transposed": (
        lambda k, s, d: jax.random.normal(k, s[::-1], d).T.reshape(s),
        0.0,
        1.0,
        "normal",
    ),
}


def stats_of(init, dtype=jnp.float64, **options):
    with jax.numpy_dtype_promotion("standard"):
        return init_stats(lambda key: {"w": init(key, SHAPE, dtype)}, **options)["w"]


@pytest.mark.parametrize("name", KNOWN)
def test_moments_are_those_of_the_formula(name):
    init, mean, variance, distribution = KNOWN[name]
    stats = stats_of(init)
    assert stats.mean == pytest.approx(mean, abs=2e-12)
    assert stats.variance == pytest.approx(variance, abs=2e-11 * max(variance, mean**2))
    assert stats.distribution == distribution


@pytest.mark.parametrize(
    "name", ["normal", "uniform", "truncated", "lecun_normal", "one-sided", "relu", "orthogonal"]
)
def test_single_precision_initializers_keep_seven_digits(name):
    init, mean, variance, distribution = KNOWN[name]
    stats = stats_of(init, jnp.float32)
    assert stats.mean == pytest.approx(mean, abs=2e-7)
    assert stats.variance == pytest.approx(variance, rel=3e-7)
    assert stats.distribution == distribution


def test_half_precision_initializers_are_recognized():
    for dtype in (jnp.bfloat16, jnp.float16):
        stats = stats_of(I.lecun_normal(), dtype)
        assert (
            stats.variance == pytest.approx(1 / IN, rel=0.02)
            and stats.distribution == "truncated normal"
        )


DRAWN = [
    "truncated",
    "orthogonal",
    "one-sided",
    "relu",
    "sum",
    "sparse",
    "twice the same draw",
    "blocks",
    "vmapped",
]


@pytest.mark.parametrize("name", DRAWN)
def test_moments_are_those_of_draws(name):
    init = KNOWN[name][0]
    with jax.numpy_dtype_promotion("standard"):
        draw = jax.jit(lambda key: init(key, SHAPE, jnp.float32), compiler_options=UNOPTIMIZED)
        w = np.asarray(draw(jax.random.key(0)), float).ravel()
    stats = stats_of(init)
    spread = ((w - w.mean()) ** 2).std() / math.sqrt(w.size)
    assert abs(w.mean() - stats.mean) <= 4 * math.sqrt(stats.variance / w.size)
    assert abs(w.var() - stats.variance) <= 4 * spread


class Scanned(nn.Module):
    """Three equal layers, by scan."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(Net, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers()(x, None)[0]


class Net(nn.Module):
    """Dense, LayerNorm."""

    @nn.compact
    def __call__(self, x, _=None):
        return nn.LayerNorm()(nn.Dense(4, bias_init=I.normal(0.1))(x)), None


class NnxNet(nnx.Module):
    """The same in NNX, with three layers in one stack."""

    def __init__(self, rngs):
        self.kernel = nnx.Linear(4, 4, bias_init=I.normal(0.1), rngs=rngs)
        self.recurrent = nnx.SimpleCell(4, 5, rngs=rngs)


def check(stats, mean, variance, distribution):
    assert stats == InitStats(pytest.approx(mean), pytest.approx(variance), distribution)


@pytest.mark.parametrize("model", [Net(), Scanned()], ids=["plain", "scanned"])
def test_linen_models(model):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = init_stats(lambda key: model.init(key, jnp.ones((2, 4)))["params"])
    (params,) = found.values() if isinstance(model, Scanned) else (found,)
    check(params["Dense_0"]["kernel"], 0, 0.25, "truncated normal")
    check(params["Dense_0"]["bias"], 0, 0.01, "normal")
    check(params["LayerNorm_0"]["scale"], 1, 0, "constant")


def test_nnx_models():
    found = init_stats(lambda key: nnx.state(NnxNet(nnx.Rngs(key)), nnx.Param).to_pure_dict())
    check(found["kernel"]["kernel"], 0, 0.25, "truncated normal")
    check(found["kernel"]["bias"], 0, 0.01, "normal")
    check(found["recurrent"]["dense_h"]["kernel"], 0, 0.2, "orthogonal")


def test_entries_that_differ_have_arrays_of_moments():
    slopes = jnp.arange(3.0)[None, :, None]
    found = stats_of(lambda k, s, d: slopes * jax.random.normal(k, s, d) + 1)
    assert found.mean == 1.0 and found.distribution == "normal"
    np.testing.assert_allclose(found.variance, np.broadcast_to(slopes**2, SHAPE), rtol=1e-12)
    gates = stats_of(
        lambda k, s, d: jnp.concatenate(
            [jnp.ones((20, *s[1:])), jax.random.normal(k, (20, *s[1:]), d)]
        )
    )
    np.testing.assert_array_equal(gates.mean[:, 0, 0], np.repeat([1, 0], 20))
    np.testing.assert_array_equal(gates.variance[:, 0, 0], np.repeat([0, 1], 20))
    assert gates.distribution == "mixed"


UNKNOWN = {
    "centered": (lambda w: w - w.mean(), "`reduce_sum` of random entries"),
    "divided by a sum": (lambda w: w / jnp.sum(jnp.abs(w)), "`reduce_sum` of random entries"),
    "divided by other norms": (
        lambda w: w / jnp.linalg.norm(w[:, ::-1], axis=0)[None],
        "a norm of",
    ),
    "squares of another array": (lambda w: w / jnp.linalg.norm(w**2), "a norm of"),
    "repeated": (lambda w: jnp.broadcast_to(w[:1], w.shape), "repeated along an axis"),
    "symmetric": (lambda w: w + w[::-1], "no elementwise function of one random variable"),
    "twice": (lambda w: jnp.concatenate([w, w]), "the same random entries twice"),
    "sorted": (lambda w: jnp.sort(w, axis=0), "`sort` of random entries"),
    "QR without signs": (lambda w: jnp.linalg.qr(w[0])[0], "without the signs of R's diagonal"),
    "loop": (
        lambda w: jax.lax.scan(lambda c, _: (c, w), 0.0, None, 3)[1],
        "same random entries in every iteration",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_known_law_is_refused_unless_given(name):
    change, reason = UNKNOWN[name]
    init = lambda k, s, d: change(jax.random.normal(k, s, d))
    with pytest.raises(
        ValueError, match=rf"known distribution for w;.*{reason}.*init_stats=\{{\"w\": \(mean"
    ):
        stats_of(init)
    assert stats_of(init, given={"w": (0.0, 0.5)}) == InitStats(0.0, 0.5, "given")


WITHOUT_VARIANCE = {
    "Cauchy": lambda k, s, d: jax.random.cauchy(k, s, d),
    "scaled Cauchy": lambda k, s, d: 1 + 0.1 * jax.random.cauchy(k, s, d),
    "Pareto": lambda k, s, d: jax.random.uniform(k, s, d) ** -0.5,
    "slower than any power": lambda k, s, d: jnp.exp(jax.random.normal(k, s, d) ** 2 / 4),
    "not a number": lambda k, s, d: jnp.nan * jax.random.normal(k, s, d),
    "infinite": lambda k, s, d: jnp.full(s, jnp.inf, d),
}


@pytest.mark.parametrize("name", WITHOUT_VARIANCE)
def test_what_has_no_variance_is_refused_unless_given(name):
    with pytest.raises(
        ValueError, match=r"w; its trace does not tell: .* without a finite mean and variance. Pass"
    ):
        stats_of(WITHOUT_VARIANCE[name])
    assert stats_of(WITHOUT_VARIANCE[name], given={"w": (0.0, 0.5)}).variance == 0.5


def test_a_variable_without_variance_may_be_on_the_way():
    check(
        stats_of(lambda k, s, d: jnp.log(1 / (1 - jax.random.uniform(k, s, d)))),
        1.0,
        1.0,
        "a function of a uniform variable",
    )


@pytest.mark.parametrize(
    "pair", [(0.0, -1.0), (0.0, np.nan), (np.inf, 1.0), (0.0, 1.0, 2.0), 1.0, "ab", None]
)
def test_statistics_that_cannot_be_are_refused(pair, unchecked_shapes):
    with pytest.raises(
        ValueError, match=r"init_stats, w: expected \(mean, variance\), finite numbers"
    ):
        stats_of(I.ones, given={"w": pair})
    with pytest.raises(ValueError, match="init_stats: expected a mapping"):
        stats_of(I.ones, given=pair or 3)


def test_a_path_that_is_no_parameter_is_refused():
    with pytest.raises(ValueError, match="expected paths among w; got v"):
        stats_of(I.ones, given={"v": (0.0, 0.5)})


def test_it_works_inside_jit():
    jax.jit(lambda x: check(stats_of(KNOWN["log-normal"][0]), *KNOWN["log-normal"][1:]) or x)(1.0)


def test_gaussian_draws_have_the_same_moments():
    def init(key):
        return {
            "w": I.lecun_uniform()(key, (300, 200), jnp.float32),
            "b": jnp.full(7, 0.5),
            "slopes": jnp.arange(3.0),
        }

    drawn = jax.jit(gaussian_initializer(init))(jax.random.key(0))
    assert drawn["w"].dtype == jnp.float32 and drawn["w"].var() == pytest.approx(1 / 300, rel=0.03)
    assert np.max(np.abs(drawn["w"])) > 3 * (1 / 300) ** 0.5  # no uniform variable is that far out
    np.testing.assert_array_equal(drawn["b"], np.full(7, 0.5))
    np.testing.assert_array_equal(drawn["slopes"], np.arange(3.0))
