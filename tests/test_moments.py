"""What a dual is called on, and that duals are values: impossible moments, dtypes, pickling."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_jax import duals
from ntk_jax.duals.catalogue import CATALOGUE

NAMES = sorted({*duals.CLOSED_FORM_NAMES, *duals.SERIES_NAMES})

IMPOSSIBLE = {
    "NaN variance": ((np.nan, 0.0, 1.0), r"q11: expected a finite variance of at least 0; got nan"),
    "negative variance": (
        (-1.0, 0.0, 1.0),
        r"q11: expected a finite variance of at least 0; got -1",
    ),
    "infinite variance": (
        (1.0, 0.0, np.inf),
        r"q22: expected a finite variance of at least 0; got inf",
    ),
    "NaN covariance": ((1.0, np.nan, 1.0), r"q12: expected a finite covariance; got nan"),
    "covariance beyond the variances": (
        (1, 5, 1),
        r"q12: expected .* within \+-sqrt\(q11 q22\) = 1; got 5",
    ),
    "one of many": ((np.ones(3), np.array([0.0, -1.5, 0.0]), 1.0), r"q12: expected .*got -1.5"),
    "next to a zero input": ((0.0, 1e-3, 1.0), r"q12: expected .* = 0; got 0.001"),
    "shapes": (
        (np.ones(3), 0.0, np.ones(4)),
        r"expected shapes that broadcast; got \(3,\), \(\), \(4,\)",
    ),
    "complex": ((1.0 + 0j, 0.0, 1.0), r"q11: expected real numbers, .*got complex128"),
    "words": (("one", 0.0, 1.0), r"q11: expected real numbers, .*got <U3"),
    "objects": (({}, 0.0, 1.0), r"q11: expected real numbers, .*got object"),
}


def rule(name):
    return duals.rule(name, **CATALOGUE[name].example)


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_moments_are_refused(case, unchecked_shapes):
    moments, message = IMPOSSIBLE[case]
    for call in (duals.relu, duals.tanh, rule("elu")):
        with pytest.raises(ValueError, match=message):
            call(*moments)


@pytest.mark.parametrize("name", NAMES)
def test_every_dual_refuses_them(name):
    for moments in ((np.nan, 0.0, 1.0), (1.0, 5.0, 1.0), (-1.0, 0.0, 1.0)):
        with pytest.raises(ValueError, match=r"q1\d: expected"):
            rule(name)(*moments)


def test_many_moments_are_looked_at_where_they_are():
    q = jnp.ones(2**18 + 1).at[7].set(-1.0)
    with pytest.raises(ValueError, match="q22: expected a finite variance of at least 0; got -1"):
        duals.identity(1.0, 0.0, q)


def test_inside_jit_impossible_moments_count_as_the_nearest_possible_and_nan_stays():
    names = duals.CLOSED_FORM_NAMES
    dual = jax.jit(lambda *q: jnp.stack([jnp.stack(rule(name)(*q)) for name in names]))
    impossible = np.array(
        [
            (1.0, 5.0, 1.0),
            (-1.0, 0.0, 1.0),
            (0.0, 3.0, -2.0),
            (np.nan, 0.5, 1.0),
            (1.0, np.nan, 1.0),
        ]
    )
    possible = np.array([(1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
    found = dual(*impossible.T)
    np.testing.assert_array_equal(
        found[..., :3], dual(*np.pad(possible, ((0, 2), (0, 0))).T)[..., :3]
    )
    assert np.all(np.isnan(found[:, 0, 3:]))


def test_rounding_beyond_the_pole_is_not_an_impossible_covariance():
    for dtype, excess in ((np.float32, 1e-4), (np.float64, 1e-9)):
        one = np.ones((), dtype)
        np.testing.assert_allclose(duals.relu(one, dtype(1 + excess), one).k, 0.5, rtol=2 * excess)


@pytest.mark.parametrize("name", ["relu", "tanh", "elu"])
def test_dtypes(name, unchecked_shapes):
    moments = (2.0, 1.0, 3.0)
    exact = np.stack(rule(name)(*moments))
    for dtype in (np.float16, jnp.bfloat16, np.float32):
        found = rule(name)(*(np.asarray(m, dtype) for m in moments))
        assert found.k.dtype == np.float32
        np.testing.assert_allclose(np.stack(found), exact, rtol=3e-6)
    for dtype in (np.int64, np.uint8, object, np.longdouble, ">f8"):
        np.testing.assert_array_equal(
            np.stack(rule(name)(*(np.asarray(m).astype(dtype) for m in moments))), exact
        )


def test_large_integers_do_not_wrap_around(unchecked_shapes):
    q = np.asarray(2**40)
    assert float(duals.relu(q, q, q).k) == 2.0**39
    with jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64():
        assert float(duals.relu(q, q, q).k) == 2.0**39


@pytest.mark.parametrize("name", NAMES)
def test_duals_are_pickled_and_copied(name):
    one = rule(name)
    other = pickle.loads(pickle.dumps(one))
    assert (
        other == one
        and hash(other) == hash(one)
        and copy.deepcopy(one) == one
        and copy.copy(one) == one
    )


def test_series_of_jax_functions_are_pickled():
    one = duals.series(jnp.arctan, kinks=(2.0,), tolerance=1e-8)
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_that_of_the_function(name):
    entry = CATALOGUE[name]
    half = np.linspace(0, 12, 401)
    x, w = np.polynomial.legendre.leggauss(20)
    ends = np.concatenate([-half[:0:-1], half])  # kinks at 0 and at +-1, 3, 6 are among them
    middle, width = (ends[1:] + ends[:-1]) / 2, np.diff(ends)[:, None] / 2
    z = (middle[:, None] + width * x).ravel()
    weights = (width * w).ravel() * np.exp(-z * z / 2) / (2 * np.pi) ** 0.5
    q = np.array([1.0, 0.25])
    values = jax.jit(lambda z: entry.function(z, **entry.example))
    exact = [weights @ np.asarray(values(s * z)) for s in q**0.5]
    found = rule(name).mean(jax.device_put(q))
    np.testing.assert_allclose(found, exact, rtol=1e-8, atol=1e-10)
